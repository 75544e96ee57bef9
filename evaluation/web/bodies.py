"""What visitors send: how much and how slowly they may, together and each, and what may stand in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from starlette.types import Message, Receive

from evaluation.web.folders import KEPT_SEC, bytes_in

FORM_BYTES = 1 << 16  # of a request that is no upload, and of an upload besides its file
IDLE_SEC = 10.0  # A body of which nothing comes for so long is given up.
FORM_SEC, UPLOAD_SEC = 10.0, 900.0  # A body is received within this time, or not at all.
FILES_EACH, FILES_AT_A_TIME = 5, 20  # of the largest size: of one visitor in KEPT_SEC, and on the disk together
LEAST_COUNTED = 100_000  # bytes; small files, too, cost something
UPLOADS_EACH, UPLOADS_AT_A_TIME = 4, 32  # Where there are more, the one that has waited longest for its content ends.


class BodyError(Exception):
    """Why a body is not taken: a sentence, with the HTTP status that fits."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Body:
    """The body of one request. `receive` stands in for the server's own and raises BodyError where the body is not taken."""

    def __init__(self, bodies: Bodies, receive: Receive, visitor: str, upload: bool) -> None:
        self._bodies, self._receive, self.visitor, self.upload = bodies, receive, visitor, upload
        self._most_bytes, within_sec = (bodies.largest, UPLOAD_SEC) if upload else (FORM_BYTES, FORM_SEC)
        self.heard_sec = time.monotonic()
        self._end_sec = self.heard_sec + within_sec
        self._waiting: asyncio.Future | None = None
        self.received = 0
        self.error: BodyError | None = None

    async def receive(self) -> Message:
        """The next part of the body, once it has come."""
        if self.error is not None:
            raise self.error
        self._waiting = asyncio.ensure_future(self._receive())
        try:
            message = await asyncio.wait_for(self._waiting, min(IDLE_SEC, self._end_sec - time.monotonic()))
        except asyncio.TimeoutError:
            self.end(408, "The upload did not arrive in time.")
        except asyncio.CancelledError:
            if self.error is None:
                raise
        else:
            self._count(len(message.get("body", b"")))
        if self.error is not None:
            raise self.error
        return message

    def _count(self, n: int) -> None:
        self.heard_sec = time.monotonic()
        self.received += n
        if self.received > self._most_bytes:
            self.end(413, "The upload is larger than what is taken here.")
        elif self.upload and self._bodies.is_full(n):
            self.end(507, "The server is full at the moment; please try again in an hour.")

    def end(self, status: int, sentence: str) -> None:
        """Take nothing more of it."""
        self.error = self.error or BodyError(status, sentence)
        if self._waiting is not None:
            self._waiting.cancel()

    async def read(self) -> bytes:
        """The whole body."""
        parts, more = [], True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise BodyError(400, "The request was broken off.")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)


class Bodies:
    """All bodies that are being received, and what came before. folder: where uploads lie."""

    def __init__(self, folder: Path, largest_mb: int) -> None:
        self._folder, self.largest = folder, largest_mb * 10**6 + FORM_BYTES
        self._uploads: list[Body] = []
        self._taken: dict[str, deque[tuple[float, int]]] = {}  # by visitor: when how many bytes came
        self._on_disk = 0

    @contextlib.asynccontextmanager
    async def open(self, receive: Receive, visitor: str, upload: bool, length: str | None) -> AsyncIterator[Body]:
        """Begin to receive a body that says to be `length` long; BodyError where it is not taken."""
        body = Body(self, receive, visitor, upload)
        if length is not None and (not length.isdigit() or int(length) > (self.largest if upload else FORM_BYTES)):
            raise BodyError(413, "The upload is larger than what is taken here.")
        if not upload:
            yield body
            return
        self._make_room(visitor)
        self._uploads.append(body)
        try:
            yield body
        finally:
            self._uploads.remove(body)
            self._taken.setdefault(visitor, deque()).append((time.monotonic(), max(LEAST_COUNTED, body.received)))

    def _make_room(self, visitor: str) -> None:
        """BodyError where the visitor has sent too much already; ends other uploads that nothing comes of."""
        self._forget()
        taken = sum(n for _, n in self._taken.get(visitor, ())) + sum(
            body.received for body in self._uploads if body.visitor == visitor
        )
        if taken > FILES_EACH * self.largest:
            raise BodyError(429, "You have sent as much as one visitor may in an hour; please try again later.")
        self._on_disk = bytes_in(self._folder)
        if self.is_full(0):
            raise BodyError(507, "The server is full at the moment; please try again in an hour.")
        for among, most in (([body for body in self._uploads if body.visitor == visitor], UPLOADS_EACH),
                            (self._uploads, UPLOADS_AT_A_TIME)):  # fmt: skip
            alive = sorted((body for body in among if body.error is None), key=lambda body: body.heard_sec)
            for body in alive[: len(alive) - most + 1]:
                body.end(408, "The upload ended, for newer ones needed its place.")

    def is_full(self, n: int) -> bool:
        """Count n bytes more; whether there are too many now."""
        self._on_disk += n
        return self._on_disk > FILES_AT_A_TIME * self.largest

    def _forget(self) -> None:
        """Of what came, count only what can still be on the disk."""
        now = time.monotonic()
        for visitor in list(self._taken):
            taken = self._taken[visitor]
            while taken and now - taken[0][0] > KEPT_SEC:
                taken.popleft()
            if not taken:
                del self._taken[visitor]


def checked_form(content: bytes, public: str, private: str) -> bytes:
    """A JSON body as it may reach Gradio; BodyError for one that may not.

    Files are named by their place below `public`, which becomes the folder `private`. Nothing may name another place, or
    an address: Gradio would fetch that.
    """
    try:
        return json.dumps(_checked(json.loads(content, parse_constant=_no_constant), public, private)).encode()
    except (ValueError, RecursionError):
        raise BodyError(400, "The request is no JSON that the page would send.") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _checked(value: object, public: str, private: str) -> object:
    if isinstance(value, dict):
        checked = {str(key): _checked(held, public, private) for key, held in value.items() if key not in ("url", "path")}
        if value.get("path") is not None:
            checked["path"] = _place(value["path"], public, private)
        return checked
    if isinstance(value, list):
        return [_checked(held, public, private) for held in value]
    if isinstance(value, str) and ("://" in value or value.startswith("data:")):
        raise BodyError(403, "Addresses are not fetched; upload the file.")
    return value


def _place(path: object, public: str, private: str) -> str:
    if not isinstance(path, str) or not path.startswith(f"{public}/") or ".." in PurePosixPath(path).parts:
        raise BodyError(403, "The file is none that was uploaded here.")
    return private + path[len(public) :]
