"""What a visitor's browser sends to the page's server, without a browser: requests, uploads and halves of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import time
from collections.abc import Callable

from evaluation.web.gate import API
from helpers.web import Server

BOUNDARY = "x" * 30
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def ask(
    server: Server, method: str, path: str, body: object = None, headers: dict | None = None, visitor: str = "127.0.0.1"
) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers) of a request that comes from the address `visitor`, any of 127.0.0.0/8."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60, source_address=(visitor, 0))
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {}, encode_chunked=hasattr(body, "__next__"))
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


def multipart(name: str, content: bytes) -> bytes:
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip


def upload(server: Server, name: str, content: bytes, visitor: str = "127.0.0.1") -> str:
    """Upload a file as the page does; gives its place as the server calls it."""
    status, body, _ = ask(server, "POST", f"{API}/upload", multipart(name, content), MULTIPART, visitor)
    assert status == 200, body
    return json.loads(body)[0]


def begin_upload(server: Server, visitor: str, sent: bytes = b"", length: int = 10**8) -> socket.socket:
    """An upload of which only the beginning is sent."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=(visitor, 0))
    head = f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART['Content-Type']}\r\n"
    sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
    return sock


def enhancing(server: Server) -> int:
    """Gradio's number of what the Enhance button does."""
    config = json.loads(ask(server, "GET", "/config")[1])
    (run,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == "run")
    return next(k for k, event in enumerate(config["dependencies"]) if [run, "click"] in event["targets"])


def enhance(server: Server, video: object, visitor: str = "127.0.0.1", session: str | None = None) -> tuple[int, str]:
    """Press Enhance without a browser; (status, session)."""
    session = session or secrets.token_hex(5)
    data = [video, None, None, "none", 0, "as it is", 40, "the one that talks"]
    form = {"data": data, "fn_index": enhancing(server), "session_hash": session, "event_data": None, "trigger_id": None}
    return ask(server, "POST", f"{API}/queue/join", json.dumps(form), {"Content-Type": "application/json"}, visitor)[0], session


def given(place: str) -> dict:
    return {"path": place, "meta": {"_type": "gradio.FileData"}}


def wait_for(condition: Callable[[], bool], within_sec: float = 30.0) -> bool:
    end = time.monotonic() + within_sec
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
