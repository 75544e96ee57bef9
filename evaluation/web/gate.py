"""The gate before the page: which requests are let through, how large and slow they may be, and what their answers may say.

Gradio serves many more routes than the page uses, reads bodies of any size, and fetches addresses that a visitor names.
Here only what the page needs passes.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evaluation.web.bodies import Bodies, BodyError, checked_form

API = "/gradio_api"
PUBLIC = "/visitors"  # stands for the folder of uploads in everything that leaves the server, and in what comes back
# The routes that the page uses, and no others.
READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/[\w./@+-]+|/made/[0-9a-f]{32}/[^/]+"
    rf"|{API}/(queue/data|upload_progress|startup-events|heartbeat/\w+|file={PUBLIC}/.+)"
)
UPLOAD, FORMS = f"{API}/upload", {f"{API}/queue/join", f"{API}/cancel", f"{API}/reset"}
LIVE = "/live"
MOST_OPEN = 64  # requests of one visitor at the same time
HEADERS = {
    # Gradio's page has scripts of its own in it and makes functions of texts: 'unsafe-inline' and 'unsafe-eval' are its price.
    "content-security-policy": "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; manifest-src 'self'; form-action 'none'; base-uri 'self'; "
    "frame-ancestors {frames}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
}
REWRITTEN = ("application/json", "text/html", "text/plain")  # answers in which the folder of uploads could be named


@dataclass(frozen=True)
class Names:
    """Under which names the page may be visited, for pages of other names must not use it in a visitor's browser.

    host: the address that is listened on. allowed: further names, e.g. a proxy's. A page that is served to other machines
    may be visited by any number, for only names can be pointed at somebody else's machine.
    """

    host: str
    allowed: tuple[str, ...] = ()

    def allow(self, header: str | None) -> bool:
        """Whether a Host header, with or without a port, names this server."""
        name = _name_of(f"//{header}")
        if not name:
            return False
        if name in (*self.allowed, self.host.lower(), "localhost", "127.0.0.1", "::1"):
            return True
        if self.host not in ("0.0.0.0", "::", ""):
            return False
        return _is_number(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())

    def allow_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether the page that sends a request is ours; what is no browser says nothing."""
        if origin is None:
            return True
        name = _name_of(origin)
        return bool(name) and (name in self.allowed or origin.partition("://")[2] == host)


def _name_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def visitor_of(client: Iterable | None) -> str:
    """By what visitors are told apart: the address, of IPv6 its first 64 bits, for one visitor has all the others."""
    host = next(iter(client or ()), "") or "unknown"
    if _is_number(host) and ":" in host:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    return host


class Gate:
    """ASGI middleware around the whole page.

    folder: what Gradio calls its cache, in which uploads lie. frames: which pages may show this one in a frame, as
    Content-Security-Policy says it.
    """

    def __init__(self, app: ASGIApp, folder: Path, names: Names, largest_mb: int, frames: str = "'self'") -> None:
        self._app, self._names = app, names
        self._private = str(folder)
        self._bodies = Bodies(folder, largest_mb)
        self._open: Counter[str] = Counter()
        self._headers = {name: value.format(frames=frames) for name, value in HEADERS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        visitor = visitor_of(scope.get("client"))
        refusal = self._refusal(scope, visitor)
        is_socket = scope["type"] == "websocket"
        if refusal is not None and is_socket:
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if not is_socket:
            send = self._guarded(send)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._open[visitor] += 1
        try:
            if not is_socket and scope["method"] == "POST":
                await self._post(scope, receive, send, visitor)
            else:
                await self._app(scope if is_socket else self._inward(scope), receive, send)
        finally:
            self._open[visitor] -= 1
            if not self._open[visitor]:
                del self._open[visitor]

    def _refusal(self, scope: Scope, visitor: str) -> JSONResponse | None:
        """What is answered instead of the page; None for a request that passes."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if not self._names.allow(host):
            return refuse(421, "This server is not known under that name. app.py --allowed_hosts adds names.")
        path, method = scope["path"], scope.get("method", "WEBSOCKET")
        known = {
            "GET": READ.fullmatch(path) is not None and "/.." not in path, "POST": path in FORMS or path == UPLOAD,
            "WEBSOCKET": path == LIVE,
        }  # fmt: skip
        if not known.get("GET" if method == "HEAD" else method, False):
            return refuse(404, "There is no such page.")
        if method in ("POST", "WEBSOCKET") and not self._names.allow_origin(origin, host):
            return refuse(403, "Another page may not use this one. app.py --allowed_hosts adds names.")
        if method != "POST" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            return refuse(413, "This request may have no body.")
        if self._open[visitor] >= MOST_OPEN:
            return refuse(429, "You have too many requests open at the same time.")
        return None

    async def _post(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        upload = scope["path"] == UPLOAD
        body = None

        async def answer(message: Message) -> None:
            if body is None or body.error is None:  # else Gradio speaks of an error that is not its own
                await send(message)

        try:
            async with self._bodies.open(receive, visitor, upload, Headers(scope=scope).get("content-length")) as body:
                if upload:
                    await self._app(self._inward(scope), body.receive, answer)
                    if body.error is not None:
                        raise body.error
                else:
                    form = checked_form(await body.read(), PUBLIC, self._private)
                    await self._app(self._inward(_with_length(scope, len(form))), _whole(form, receive), send)
        except Exception as error:
            refused = error if isinstance(error, BodyError) else body.error if body is not None else None
            if refused is None:
                raise
            await refuse(refused.status, str(refused))(scope, receive, send)

    def _inward(self, scope: Scope) -> Scope:
        """The request as Gradio gets it: with the folder's real name, and without compression, for answers are rewritten."""
        path = scope["path"]
        if path.startswith(f"{API}/file="):
            path = path.replace(PUBLIC, self._private, 1)
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding" or "/assets/" in path]
        return {**scope, "path": path, "raw_path": quote(path).encode(), "headers": headers}

    def _guarded(self, send: Send) -> Send:
        """`send` that adds HEADERS, and writes PUBLIC where an answer names the folder of uploads."""
        start: Message | None = None  # is sent when the length of the rewritten answer is known
        parts: list[bytes] = []
        is_stream = False

        async def guarded(message: Message) -> None:
            nonlocal start, is_stream
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                headers.update(self._headers)
                message = {**message, "headers": headers.raw}
                kind = headers.get("content-type", "")
                is_stream = kind.startswith("text/event-stream")  # Each of its events comes whole.
                if kind.startswith(REWRITTEN):
                    start = message
                    return
            elif is_stream:
                message = {**message, "body": self._outward(message.get("body", b""))}
            elif start is not None:
                parts.append(message.get("body", b""))
                if message.get("more_body"):
                    return
                body = self._outward(b"".join(parts))
                headers = MutableHeaders(raw=list(start["headers"]))
                headers["content-length"] = str(len(body))
                await send({**start, "headers": headers.raw})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        return guarded

    def _outward(self, body: bytes) -> bytes:
        return body.replace(self._private.encode(), PUBLIC.encode())


def refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, {"connection": "close"} if status in (408, 413) else None)


def _whole(content: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read already."""
    left = [content]

    async def again() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return again


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}
