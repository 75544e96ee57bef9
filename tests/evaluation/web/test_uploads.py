"""What the web page's server lets nobody reach, and what it leaves behind: nothing."""

from __future__ import annotations

import http.client
import json
import os
import urllib.request
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from evaluation.web.uploads import UploadLimit
from helpers.paths import LONGEST_SEC
from helpers.web import ROOT, Server, status_of


def upload(server: Server, name: str, content: bytes) -> str:
    """Upload a file as the page does; gives its place on the server."""
    boundary = "x" * 30
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{server.url}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    with urllib.request.urlopen(request, timeout=LONGEST_SEC) as answer:
        return json.loads(answer.read())[0]


def test_nothing_but_what_it_made_can_be_fetched(server: Server, causal_checkpoint: Path) -> None:
    secret = server.folder / "secret.wav"
    secret.write_bytes(b"not for visitors")
    for path in (secret, causal_checkpoint, ROOT / "README.md", ROOT / "ckpts" / "LiteAVSE_small.pth", server.temporary,
                 server.folder / "log", Path("/etc/passwd")):  # fmt: skip
        assert status_of(f"{server.url}gradio_api/file={path}") == 403, path
    place = upload(server, "mine.wav", b"a visitor's")
    assert status_of(f"{server.url}gradio_api/file={place}") == 200
    # Where it lies cannot be guessed, and folders are not listed.
    assert len(Path(place).parent.name) >= 32
    assert status_of(f"{server.url}gradio_api/file={Path(place).parent}") == 403
    assert status_of(f"{server.url}gradio_api/file={Path(place).parents[1]}") == 403


def test_what_it_serves_names_no_path_and_no_other_host(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}config", timeout=LONGEST_SEC) as answer:
        config = answer.read().decode()
    for path in (str(ROOT), str(Path.home()) + "/", str(server.folder / "log")):
        assert path not in config, path
    with urllib.request.urlopen(server.url, timeout=LONGEST_SEC) as answer:
        page = answer.read().decode()
    assert "fonts.googleapis.com" not in page and '"is_space": true' not in page


def test_what_is_uploaded_is_bounded_in_all(tmp_path: Path) -> None:
    taken = []

    async def page(scope, receive, send) -> None:
        taken.append((tmp_path / f"{len(taken)}.wav").write_bytes(await Request(scope, receive).body()))
        await Response()(scope, receive, send)

    client = TestClient(UploadLimit(page, tmp_path, 1))
    assert client.post("/gradio_api/upload", content=bytes(2 * 10**6)).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"1"])).status_code == 411
    answers = [client.post("/gradio_api/upload", content=bytes(10**6)).status_code for _ in range(24)]
    assert answers == [200] * 21 + [507] * 3 and len(taken) == 21
    assert client.post("/gradio_api/run", content=bytes(10)).status_code == 200
    for path in list(tmp_path.iterdir())[:2]:
        os.utime(path, (0, 0))  # left by an upload that was broken off long ago
    assert client.post("/gradio_api/upload", content=bytes(10**6)).status_code == 200


def test_the_server_bounds_uploads(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_SEC)
    connection.request("POST", "/gradio_api/upload", headers={"Content-Length": str(210 * 10**6)})
    answer = connection.getresponse()
    assert answer.status == 413 and "larger" in json.loads(answer.read())["detail"]
    connection.close()


def test_it_ends_when_told_to_and_leaves_no_files(causal_checkpoint: Path, tmp_path: Path) -> None:
    server = Server(causal_checkpoint, tmp_path)
    upload(server, "mine.wav", bytes(1000))
    assert any(server.temporary.rglob("mine.wav"))
    assert server.stop() == 0, server.log()
    assert not list(server.temporary.rglob("*.wav")) and not list(server.temporary.glob("liteavse*"))
    assert "Traceback" not in server.log()
