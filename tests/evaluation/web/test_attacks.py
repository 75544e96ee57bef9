"""Attacks on the page's server by number: others are served meanwhile, and memory and disk are as they were afterwards."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the web page's packages are missing: pip install -r requirements-app.txt")

from evaluation.web.bodies import FORM_BYTES
from evaluation.web.connections import WAITING_EACH
from evaluation.web.folders import BROKEN_SEC, SWEEP_SEC, bytes_in
from evaluation.web.gate import API
from helpers.paths import LONGEST_SEC
from helpers.visitors import ask, begin_upload, enhance, multipart, wait_for
from helpers.web import Server

SERVED_SEC = 10.0  # within which everybody gets the page, whatever others do
GROWN_BYTES = 25 * 10**6  # of memory: less than what three floods bring of each kind of request, if it stayed
JSON = {"Content-Type": "application/json"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads and sets what Linux says of processes")


def connect(server: Server, visitor: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=LONGEST_SEC, source_address=(visitor, 0))


@contextlib.contextmanager
def second_visitor(server: Server, address: str = "127.0.0.99") -> Iterator[None]:
    """Somebody else opens the page again and again; each time it comes within SERVED_SEC."""
    over, visits = threading.Event(), []

    def visit() -> None:
        while not over.is_set():
            began, status = time.monotonic(), 0
            with contextlib.suppress(OSError):
                status = ask(server, "GET", "/", visitor=address)[0]
            visits.append((status, time.monotonic() - began))
            over.wait(0.2)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        yield
    finally:
        over.set()
        visitor.join()
    longest_sec = max(sec for _, sec in visits)
    print(f"the page was opened {len(visits)} times and came after {longest_sec:.2f} s at most")
    assert {status for status, _ in visits} == {200} and longest_sec < SERVED_SEC


def memory_of(server: Server) -> int:
    """Resident bytes of the server and all its processes."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended by now
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            parents[int(fields["Pid"])] = int(fields["PPid"])
            sizes[int(fields["Pid"])] = 1024 * int(fields.get("VmRSS", "0 kB").split()[0])
    ours = {server.pid}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(sizes.get(pid, 0) for pid in ours)


def waiting(server: Server, visitor: str, n: int, sent: bytes = b"") -> list[socket.socket]:
    """So many connections on which no request is sent, or its beginning alone."""
    socks = []
    for _ in range(n):
        socks.append(connect(server, visitor))
        socks[-1].sendall(sent)
    return socks


def is_closed(sock: socket.socket) -> bool:
    """Wait until the server closes a connection; whether it did so without an answer."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_silent_connections_lock_nobody_out(server: Server) -> None:
    """200 that say nothing, and 20 that never end the head of a request, where the server may open 150 more files."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    n_open = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (n_open + 150, hard))
    try:
        with second_visitor(server), contextlib.ExitStack() as opened:
            held = waiting(server, "127.0.0.50", 200) + waiting(server, "127.0.0.51", 20, b"GET / HTTP/1.1\r\nHost: local")
            for sock in held:
                opened.enter_context(sock)
            assert all(is_closed(sock) for sock in held)
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_connection_stays_while_its_requests_are_at_work(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_SEC, source_address=("127.0.0.52", 0))
    with contextlib.closing(connection):
        connection.request("GET", f"{API}/heartbeat/stays")
        beats = connection.getresponse()
        others = waiting(server, "127.0.0.52", WAITING_EACH + 10)
        assert is_closed(others[0]) and is_closed(others[-1])  # the first for its number, the last after WAITING_SEC
        for _ in range(3):  # one in 15 s
            assert beats.readline() == b"data: ALIVE\n" and beats.readline() == b"\n"
        for sock in others:
            sock.close()


def flood(server: Server, visitor: str, n: int) -> None:
    """Uploads that are broken off, forms that are too long or senseless, and pages that are opened and left at once."""
    for _ in range(n):
        begin_upload(server, visitor, multipart("half.wav", bytes(2 * 10**6))[:-50]).close()
    for _ in range(10 * n):
        with connect(server, visitor) as sock:  # a form that does not say how long it is
            sock.sendall(f"POST {API}/queue/join HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            with contextlib.suppress(ConnectionError):
                for _ in range(2 * FORM_BYTES // 4096):
                    sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    assert wait_for(lambda: ask(server, "GET", "/config", visitor=visitor)[0] == 200)  # the last of these have been refused
    for k in range(5 * n):
        assert ask(server, "POST", f"{API}/queue/join", b"[" * FORM_BYTES, JSON, visitor)[0] == 400
        assert ask(server, "GET", f"/no/such/page/{k}", visitor=visitor)[0] == 404
    for k in range(15 * n):
        stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST_SEC, source_address=(visitor, 0))
        with contextlib.closing(stream):
            stream.request("GET", f"{API}/heartbeat/{visitor.replace('.', '')}x{k}")
            stream.getresponse()
    enhance(server, None, visitor)


@pytest.mark.slow
def test_memory_and_disk_are_as_they_were_after_a_flood(server: Server) -> None:
    """The first floods let Python and its packages take what they then keep; the others find it there."""
    disk = bytes_in(server.temporary)
    for visitor in range(60, 68):  # measured: memory rises for eight floods, and stays for the next six
        flood(server, f"127.0.0.{visitor}", 20)
    memory = memory_of(server)
    with second_visitor(server):
        for visitor in (68, 69, 70):
            flood(server, f"127.0.0.{visitor}", 20)
    print(f"memory {memory / 1e6:.0f} MB, after more floods {memory_of(server) / 1e6:.0f} MB; "
          f"disk {disk / 1e6:.1f} MB, after all floods {bytes_in(server.temporary) / 1e6:.1f} MB")
    assert wait_for(lambda: memory_of(server) < memory + GROWN_BYTES)
    assert wait_for(lambda: bytes_in(server.temporary) <= disk, BROKEN_SEC + 4 * SWEEP_SEC)
