"""How much visitors may leave on the server's disk at a time."""

from __future__ import annotations

import time
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FORM_BYTES = 1 << 16  # of an upload besides the file
FILES_AT_A_TIME = 20  # of the largest size, on the disk together
ABANDONED_SEC = 3600.0


class UploadLimit:
    """ASGI middleware: an upload has to say how long it is, and is refused when it is too long or the folder is full.

    Gradio bounds each file, but not how many there are, and forgets the halves of uploads that were broken off.
    """

    def __init__(self, app: ASGIApp, folder: Path, largest_mb: int) -> None:
        self._app, self._folder, self._coming = app, Path(folder), 0
        self._largest = largest_mb * 10**6 + FORM_BYTES
        self._most = FILES_AT_A_TIME * self._largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await _refuse(411, "An upload has to say how long it is.")(scope, receive, send)
        elif int(length) > self._largest:
            await _refuse(413, "The upload is larger than what is taken here.")(scope, receive, send)
        elif self._held() + self._coming + int(length) > self._most:
            await _refuse(507, "The server is full at the moment; please try again in an hour.")(scope, receive, send)
        else:
            self._coming += int(length)
            try:
                await self._app(scope, receive, send)
            finally:
                self._coming -= int(length)

    def _held(self) -> int:
        """Bytes in the folder, once what broken-off uploads left in it (directly, an hour ago) is removed."""
        for path in self._folder.glob("*"):
            if path.is_file() and time.time() - path.stat().st_mtime > ABANDONED_SEC:
                path.unlink(missing_ok=True)
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # removed just now
                continue
        return total


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)
