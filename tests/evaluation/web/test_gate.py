"""Attacks on the page's server: what it lets nobody reach, how much it takes from whom, and what it leaves behind: nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the web page's packages are missing: pip install -r requirements-app.txt")
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from evaluation.web import bodies
from evaluation.web.bodies import FILES_EACH, FORM_BYTES, BodyError, checked_form
from evaluation.web.folders import PREFIX, remove_if_abandoned, sweep
from evaluation.web.gate import API, PUBLIC, Gate, Names, visitor_of
from helpers.visitors import MULTIPART, ask, begin_upload, enhance, given, multipart, upload, wait_for
from helpers.web import ROOT, Server, status_of

# What is let through ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    "/login", "/monitoring", "/docs", "/openapi.json", "/manifest.json", f"{API}/info", f"{API}/app_id", f"{API}/runs",
    f"{API}/proxy=http://127.0.0.1/", f"{API}/file=/etc/passwd", f"{API}/file=http://127.0.0.1:1/x.wav", f"{API}/deep_link",
    f"{API}/file/etc/passwd", "/made/../lock", "/made/" + 32 * "0" + "/x.wav", "/assets/../../app.py", "/static/%2e%2e/app.py",
])  # fmt: skip
def test_routes_that_the_page_does_not_use_are_not_there(server: Server, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize("path", [
    f"{API}/component_server", f"{API}/process_recording", f"{API}/run/predict", f"{API}/api/predict", f"{API}/call/enhance",
    f"{API}/vibe-edit", f"{API}/stream/x", "/login", "/", "/config", "/no/such/route",
])  # fmt: skip
def test_nothing_can_be_sent_to_them(server: Server, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert ask(server, method, path, b"x" * 1000)[0] == 404, method


def test_what_the_page_needs_is_there_with_headers_that_guard_it(server: Server) -> None:
    for path in ("/", "/config", "/theme.css"):
        status, _, headers = ask(server, "GET", path)
        assert status == 200, path
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'self'" in policy and "connect-src 'self'" in policy
    assert "content-security-policy" in ask(server, "GET", "/no/such/page")[2]


def test_other_pages_cannot_use_it(server: Server) -> None:
    good = {"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}", "Content-Type": "application/json"}
    assert ask(server, "POST", f"{API}/reset", "{}", good)[0] != 403
    for origin in ("http://evil.example", "null", "http://localhost:1", f"http://localhost.evil.example:{server.port}"):
        assert ask(server, "POST", f"{API}/queue/join", "{}", {**good, "Origin": origin})[0] == 403, origin
        assert ask(server, "POST", f"{API}/upload", "", {**good, "Origin": origin})[0] == 403, origin


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.0.2.1", ""])
def test_other_names_are_refused(server: Server, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", f"{API}/queue/join")):
        forwarded = {"Host": host, "X-Forwarded-Host": "localhost"}  # which anybody may write
        assert ask(server, method, path, None, forwarded)[0] == 421


def test_which_names_are_ours() -> None:
    here, everywhere = Names("127.0.0.1"), Names("0.0.0.0", ("ours.example",))
    assert here.allow("localhost:7860") and here.allow("127.0.0.1") and here.allow("[::1]:80") and here.allow("LOCALHOST")
    assert not here.allow("192.0.2.1") and not here.allow("ours.example") and not here.allow(None) and not here.allow("[::")
    assert everywhere.allow("192.0.2.1:7860") and everywhere.allow("[2001:db8::1]") and everywhere.allow("ours.example")
    assert everywhere.allow(socket.gethostname()) and not everywhere.allow("evil.example")
    assert everywhere.allow_origin("https://ours.example", "127.0.0.1:7860")  # behind a proxy
    assert not everywhere.allow_origin("https://192.0.2.1", "192.0.2.2") and not everywhere.allow_origin("http://[", "[")


def test_by_what_visitors_are_told_apart() -> None:
    assert visitor_of(("192.0.2.1", 5)) == visitor_of(("192.0.2.1", 6)) != visitor_of(("192.0.2.2", 5))
    assert visitor_of(("2001:db8::1", 5)) == visitor_of(("2001:db8::2", 5)) != visitor_of(("2001:db8:1::1", 5))
    assert visitor_of(None) == visitor_of(("testclient-without-address", 1)[:0])


def test_nothing_but_what_it_made_can_be_fetched(server: Server, causal_checkpoint: Path) -> None:
    secret = server.folder / "secret.wav"
    secret.write_bytes(b"not for visitors")
    for path in (secret, causal_checkpoint, ROOT / "README.md", server.folder / "log", Path("/etc/passwd")):
        for place in (path, f"{PUBLIC}/../../../../../../..{path}", f"{PUBLIC}/{path}"):
            assert status_of(f"{server.url}gradio_api/file={place}") in (403, 404), place
    place = upload(server, "mine.wav", b"a visitor's")
    assert status_of(f"{server.url}gradio_api/file={place}") == 200
    # Where it lies cannot be guessed, and folders are not listed.
    assert len(Path(place).parent.name) >= 32
    assert status_of(f"{server.url}gradio_api/file={Path(place).parent}") == 403
    assert status_of(f"{server.url}gradio_api/file={PUBLIC}/") in (403, 404)


def test_no_answer_names_a_folder_of_the_server(server: Server) -> None:
    place = upload(server, "mine.wav", b"a visitor's")
    answers = [place.encode()]
    paths = "/", "/config", f"{API}/file={PUBLIC}/nothing", f"{API}/file={place}x"
    answers += [ask(server, "GET", path)[1] for path in paths]
    status, session = enhance(server, given(place))
    assert status == 200
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"{API}/queue/data?session_hash={session}")
    answers.append(connection.getresponse().read())
    assert b"neither sound nor video" in answers[-1]
    for answer in answers:
        for secret in (str(server.temporary), str(ROOT), str(Path.home()) + "/", str(server.folder)):
            assert secret.encode() not in answer, answer[:300]
    page = answers[1].decode()
    assert "fonts.googleapis.com" not in page and '"is_space": true' not in page


def test_no_address_is_fetched_for_a_visitor(server: Server) -> None:
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(2.0)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/x.wav"
        for video in (given(address), {"path": None, "url": address, "meta": {"_type": "gradio.FileData"}}, address,
                      {"video": given(address)}, "data:video/mp4;base64,AAAA"):  # fmt: skip
            enhance(server, video)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.parametrize(("form", "status"), [
    (b'{"data": [{"path": "/etc/passwd"}]}', 403), (b'{"data": [{"path": "' + PUBLIC.encode() + b'/../x"}]}', 403),
    (b'{"data": [{"path": 5}]}', 403), (b'{"data": ["file:///etc/passwd"]}', 403), (b"[" * 20000, 400),
    (b"no json", 400), (b'{"data": [NaN]}', 400), (b"\xff\xfe", 400),
])  # fmt: skip
def test_forms_name_only_what_was_uploaded(form: bytes, status: int) -> None:
    with pytest.raises(BodyError) as refused:
        checked_form(form, PUBLIC, "/private")
    assert refused.value.status == status


def test_files_are_found_by_their_public_name() -> None:
    form = json.dumps({"data": [{"path": f"{PUBLIC}/0/a.wav", "url": "http://x/y"}, "text"]}).encode()
    assert json.loads(checked_form(form, PUBLIC, "/private")) == {"data": [{"path": "/private/0/a.wav"}, "text"]}


# How much and how slowly -----------------------------------------------------------------------------------------------


def endless(piece: bytes = b"x" * 65536):
    while True:
        yield piece


@pytest.mark.parametrize("path", [f"{API}/queue/join", f"{API}/cancel", f"{API}/reset", f"{API}/upload"])
def test_every_body_is_bounded_by_what_is_received(server: Server, path: str) -> None:
    headers = MULTIPART if path.endswith("upload") else {"Content-Type": "application/json"}
    over = 210 * 10**6 if path.endswith("upload") else FORM_BYTES + 1
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, headers={**headers, "Content-Length": str(over)})  # by what it says
    assert connection.getresponse().status == 413
    connection.close()
    if path.endswith("upload"):
        return
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:  # by what comes, saying nothing
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert b" 413 " in sock.recv(100)
    assert ask(server, "GET", "/theme.css", b"x" * 1000)[0] == 413  # where no body belongs


def test_uploads_are_bounded_in_all_and_for_each_visitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    async def app(scope, receive, send) -> None:
        taken.append((tmp_path / f"{len(taken)}.wav").write_bytes(await Request(scope, receive).body()))
        await PlainTextResponse()(scope, receive, send)

    def client(address: str) -> TestClient:
        return TestClient(Gate(app, tmp_path, Names("testserver"), 1), client=(address, 1))

    def send(client: TestClient, content: object) -> int:
        return client.post(f"{API}/upload", content=content).status_code

    first = client("192.0.2.1")
    assert send(first, bytes(2 * 10**6)) == 413
    assert send(first, iter([bytes(10**6)] * 2)) == 413  # chunked
    assert not taken
    statuses = [send(first, iter([bytes(10**6)])) for _ in range(FILES_EACH + 1)]
    assert statuses[:3] == [200] * 3 and statuses[-1] == 429
    monkeypatch.setattr(bodies, "FILES_AT_A_TIME", len(taken) + 1)
    others = client("192.0.2.2")
    assert [send(others, bytes(10**6)) for _ in range(3)] == [200, 507, 507]


def test_idle_and_trickling_uploads_lock_nobody_out(server: Server) -> None:
    sent = multipart("big.wav", b"x" * 1000)[:-50]
    attack = [begin_upload(server, f"127.0.0.{20 + k % 3}", sent) for k in range(40)]
    began = time.monotonic()
    upload(server, "mine.wav", b"a visitor's", "127.0.0.9")
    status, _ = enhance(server, None, "127.0.0.9")
    assert status == 200 and time.monotonic() - began < 10
    for sock in attack:  # each is given up, by number or by time
        sock.settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert b" 408 " in sock.recv(200)
        sock.close()


def test_halves_of_uploads_are_removed(server: Server, tmp_path: Path) -> None:
    def halves() -> list[Path]:
        return [path for path in server.temporary.glob(f"{PREFIX}*/cache/*") if path.is_file()]

    with begin_upload(server, "127.0.0.30", multipart("half.wav", b"y" * 10**6)[:-50]):
        assert wait_for(lambda: bool(halves()))
    for name, age_sec in (("cache/new", 0), ("cache/half", 100), ("cache/0/whole", 100), ("made/0/old", 4000)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_sec,) * 2)
    sweep(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"cache/new", "cache/0/whole"}


def test_one_visitor_has_no_more_than_so_many_requests_open(server: Server) -> None:
    """Where more connections come than the server has read from, the oldest are closed without an answer instead."""
    streams = []
    for k in range(70):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60, source_address=("127.0.0.40", 0))
        connection.request("GET", f"{API}/heartbeat/s{k}")
        streams.append(connection)
    statuses = []
    for connection in streams:
        try:
            statuses.append(connection.getresponse().status)
        except ConnectionError:
            statuses.append(429)
    assert statuses.count(429) >= 6 and statuses.count(200) <= 64 and len(statuses) == statuses.count(429) + statuses.count(200)
    assert ask(server, "GET", "/", visitor="127.0.0.41")[0] == 200
    for connection in streams:
        connection.close()
    assert wait_for(lambda: ask(server, "GET", "/", visitor="127.0.0.40")[0] == 200)


# What stays ------------------------------------------------------------------------------------------------------------


def left_by(server: Server) -> list[Path]:
    return list(server.temporary.iterdir())


def ends_without_a_trace(server: Server, how: signal.Signals) -> None:
    upload(server, "mine.wav", bytes(1000))
    assert any(server.temporary.rglob("mine.wav"))
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)  # a browser that has the page open
    page.request("GET", f"{API}/heartbeat/open")
    assert page.getresponse().status == 200
    assert server.stop(how) == 0, server.log()
    assert not left_by(server) and "Traceback" not in server.log() and "ERROR" not in server.log()
    page.close()


def test_it_ends_with_its_terminal_and_leaves_no_files(causal_checkpoint: Path, tmp_path: Path) -> None:
    ends_without_a_trace(Server(causal_checkpoint, tmp_path), signal.SIGHUP)


def test_what_a_killed_server_left_goes_at_the_next_start_and_that_leaves_nothing(
    causal_checkpoint: Path, tmp_path: Path
) -> None:
    killed = Server(causal_checkpoint, tmp_path / "first")
    place = upload(killed, "film.mp4", (ROOT / "samples" / "cafe_slt.mp4").read_bytes())
    enhance(killed, given(place))
    assert wait_for(lambda: any(killed.temporary.rglob("made/*/*")))
    killed.stop(signal.SIGKILL)
    assert any(killed.temporary.rglob("film.mp4"))
    server = Server(causal_checkpoint, tmp_path / "second", temporary=killed.temporary)
    (folder,) = server.temporary.glob(f"{PREFIX}*")
    assert not any(server.temporary.rglob("film.mp4"))
    remove_if_abandoned(folder)  # as another server would, which removes nothing of one that runs
    assert (folder / "samples").is_dir() and status_of(server.url) == 200
    ends_without_a_trace(server, signal.SIGTERM)
