"""The live tab's socket: who may stream, what is dropped when the machine cannot keep up, and when it ends.

Gradio's own streaming goes over its queue to an HLS player, seconds late, and sends sound and camera as separate events that
share no clock. One WebSocket keeps them in order, answers in tens of milliseconds, and tells at once when the tab is closed:
the stream and its tensors go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import time
from collections import deque
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from evaluation.web.recording import AS_IT_IS, OFF, Complaint
from evaluation.web.session import LIVE_CORRUPTIONS, PICTURE, SOUND, LiveSession, Message
from models.inference.enhancer import Enhancer

HEADER = struct.Struct("<B7xd")  # kind, seconds on the visitor's clock; then the content
LARGEST_MESSAGE = 1 << 18  # bytes
MOST_WAITING_SEC = 1.0  # of sound that has come and is not enhanced; what is older is left out
MOST_WAITING = 100  # messages of a kind, however short
SILENT_SEC = 20.0  # without sound or picture a visitor is taken to be gone
READOUT_SEC = 0.1

_log = logging.getLogger(__name__)


class Inbox:
    """What has arrived and is not worked on yet; bounded, so that no delay can grow: the oldest goes first."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.waiting: deque[Message] = deque()
        self.arrived = asyncio.Event()
        self.closed = False
        self.complaint: Complaint | None = None

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        same = [held for held in self.waiting if held.kind == message.kind]
        waiting_sec = sum(len(held.content) for held in same) / 2 / self.rate_hz
        if len(same) > MOST_WAITING or (message.kind == SOUND and waiting_sec > MOST_WAITING_SEC and len(same) > 1):
            self.waiting.remove(same[0])
        self.arrived.set()

    def take(self) -> list[Message]:
        messages, self.waiting = list(self.waiting), deque()
        self.arrived.clear()
        return messages

    def close(self, complaint: Complaint | None = None) -> None:
        self.closed, self.complaint = True, complaint
        self.arrived.set()


def same_origin(socket: WebSocket) -> bool:
    """Whether the page that opened the socket is ours, by its own name or a proxy's; what is no browser names none."""
    origin = socket.headers.get("origin")
    ours = socket.headers.get("host"), socket.headers.get("x-forwarded-host")
    return origin is None or urlsplit(origin).netloc in ours


class LiveRoom:
    """All that are live at the moment; `serve` is the socket's endpoint."""

    def __init__(self, enhancer: Enhancer, most_visitors: int = 2, longest_sec: float = 600.0) -> None:
        self._enhancer, self.most_visitors, self.longest_sec = enhancer, most_visitors, longest_sec
        self.visitors = 0

    async def serve(self, socket: WebSocket) -> None:
        """One visitor from hello to goodbye; what is wrong is told as {"stop": sentence} before the socket closes."""
        if not same_origin(socket):
            await socket.close(1008)
            return
        await socket.accept()
        if self.visitors >= self.most_visitors:
            most = "one at a time" if self.most_visitors == 1 else f"{self.most_visitors} at a time"
            await self._stop(socket, f"Others are live at the moment ({most} here); please try again a little later.")
            return
        self.visitors += 1
        try:
            await self._stream(socket)
        except Complaint as error:
            await self._stop(socket, f"Stopped: {error}")
        except (WebSocketDisconnect, asyncio.TimeoutError, ConnectionError):
            pass
        except Exception:  # whatever it was, it ends one stream and not the server; the log has the traceback
            _log.exception("a live stream failed")
            await self._stop(socket, "Stopped: the stream failed on the server. Start begins another one.")
        finally:
            self.visitors -= 1
            if socket.client_state == WebSocketState.CONNECTED and socket.application_state == WebSocketState.CONNECTED:
                with contextlib.suppress(RuntimeError, OSError):
                    await socket.close()

    @staticmethod
    async def _stop(socket: WebSocket, sentence: str) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            await socket.send_json({"stop": sentence})
            await socket.close()

    async def _stream(self, socket: WebSocket) -> None:
        packet = await asyncio.wait_for(socket.receive(), SILENT_SEC)
        if packet["type"] == "websocket.disconnect":
            return
        hello = _parsed(packet.get("text") or "")
        try:
            rate_hz = int(hello["rate"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Complaint("the page did not say at which rate its sound comes.") from None
        session = await asyncio.to_thread(LiveSession, self._enhancer, rate_hz)
        await socket.send_json({"ready": self._enhancer.sample_rate})
        inbox = Inbox(rate_hz)
        receiver = asyncio.create_task(self._receive(socket, inbox, session))
        try:
            await self._answer(socket, inbox, session)
        finally:
            receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiver

    async def _receive(self, socket: WebSocket, inbox: Inbox, session: LiveSession) -> None:
        """Fill the inbox until the visitor goes, or sends neither sound nor picture for too long."""
        complaint = None
        gone = time.monotonic() + SILENT_SEC
        try:
            while True:
                packet = await asyncio.wait_for(socket.receive(), gone - time.monotonic())
                if packet["type"] == "websocket.disconnect":
                    break
                if packet.get("text"):
                    mode = _parsed(packet["text"]).get("picture")
                    if mode in (AS_IT_IS, OFF, *LIVE_CORRUPTIONS):
                        session.picture_mode = mode
                    continue
                inbox.put(_message(packet.get("bytes") or b""))
                gone = time.monotonic() + SILENT_SEC
        except Complaint as error:
            complaint = error
        except (asyncio.TimeoutError, RuntimeError):
            pass  # gone without a word
        inbox.close(complaint)

    async def _answer(self, socket: WebSocket, inbox: Inbox, session: LiveSession) -> None:
        """Work through the inbox until it is closed, or the time is over."""
        end = time.monotonic() + self.longest_sec
        told = 0.0
        while True:
            try:
                await asyncio.wait_for(inbox.arrived.wait(), end - time.monotonic())
            except asyncio.TimeoutError:
                raise Complaint(f"{self.longest_sec / 60:g} minutes are over. Start begins another stream.") from None
            if inbox.closed:
                if inbox.complaint is not None:
                    raise inbox.complaint
                return
            for kind, at_sec, content in await asyncio.to_thread(session.work, inbox.take()):
                await socket.send_bytes(HEADER.pack(kind, at_sec) + content)
            if time.monotonic() - told > READOUT_SEC:
                told = time.monotonic()
                await socket.send_json(session.readout())


def _parsed(text: str) -> dict:
    try:
        value = json.loads(text[:1000])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Complaint("the page sent something that is no message.")
    return value


def _message(content: bytes) -> Message:
    if not HEADER.size <= len(content) <= LARGEST_MESSAGE:
        raise Complaint(f"a message of {len(content)} bytes arrived; up to {LARGEST_MESSAGE} are taken.")
    kind, at_sec = HEADER.unpack_from(content)
    if kind not in (SOUND, PICTURE):
        raise Complaint("a message arrived that is neither sound nor picture.")
    return Message(kind, at_sec, content[HEADER.size :])
