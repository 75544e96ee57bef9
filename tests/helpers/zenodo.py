"""A local server that answers as Zenodo does, for what fetches from there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def zipped(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return out.getvalue()


class Zenodo:
    """Answers as Zenodo does; `plan` says what goes wrong with the next requests for a file."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.sizes = {name: len(content) for name, content in files.items()}
        self.md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
        self.ranges: list[tuple[str, str | None]] = []  # of every request for a file
        self.plan: list[str] = []
        self.knows_ranges = True
        self.url = ""

    def record(self) -> bytes:
        return json.dumps({"files": [
            {"key": name, "size": self.sizes[name], "checksum": f"md5:{self.md5[name]}",
             "links": {"self": f"https://elsewhere.invalid/{name}"}} for name in self.files
        ]}).encode()  # fmt: skip


def handler_of(site: Zenodo) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/api/records/3625687":
                return self._send(200, site.record())
            name = path.removeprefix("/records/3625687/files/")
            wanted = self.headers.get("Range")
            site.ranges.append((name, wanted))
            fate = site.plan.pop(0) if site.plan else "well"
            if name not in site.files or fate == "gone":
                return self._send(404, b"")
            if fate == "busy":
                return self._send(503, b"")
            content = site.files[name]
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.knows_ranges else 0
            cut = len(content) // 3 if fate == "broken off" else None
            return self._send(206 if first else 200, content[first:], cut)

        def _send(self, status: int, content: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut])
            self.close_connection = True

    return Handler


@contextlib.contextmanager
def serving(site: Zenodo) -> Iterator[str]:
    """Its address while it answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(site))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
