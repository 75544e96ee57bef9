"""The live tab's socket: who may stream, what is left out when the machine cannot keep up, and when a stream ends.

Gradio's own streaming plays seconds late, and sends sound and camera as separate events without a common clock. One
WebSocket keeps them in order, answers in tens of milliseconds, and says at once when the tab is closed; the stream and its
tensors go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import time
from collections import Counter, deque

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from evaluation.web.gate import visitor_of
from evaluation.web.recording import AS_IT_IS, OFF, Complaint
from evaluation.web.session import FRAME, LIVE_CORRUPTIONS, SOUND, LiveSession, Message
from models.inference.enhancer import Enhancer

HEADER = struct.Struct("<B7xd")  # the kind and the time in seconds on the visitor's clock; the content follows
LARGEST_MESSAGE = 1 << 18  # bytes
MOST_WAITING_SEC = 1.0  # of sound that has come and is not enhanced; what is older is left out
MOST_WAITING = 100  # messages of a kind, however short
HELLO_SEC = 5.0  # within which a page says how it sends its sound
SILENT_SEC = 20.0  # A visitor from whom no sound comes for so long is taken to be gone,
QUIET_SEC = 3.0  # or for so long, where another one wants the place.
SLOWEST_SEC = 10.0  # A piece of work may take so long; a machine that needs more cannot run live at all.
READOUT_SEC = 0.1

_log = logging.getLogger(__name__)


class Inbox:
    """What has arrived and is not worked on yet. It is bounded so that no delay can grow; the oldest goes first."""

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
        """Nothing comes any more; the first complaint says why."""
        self.closed, self.complaint = True, self.complaint or complaint
        self.arrived.set()


class Guest:
    """One who streams: the visitor's address, and since when no sound has come."""

    def __init__(self, address: str, rate_hz: int) -> None:
        self.address, self.inbox = address, Inbox(rate_hz)
        self.heard_sec = time.monotonic()

    def quiet_sec(self) -> float:
        return time.monotonic() - self.heard_sec


class LiveRoom:
    """All that are live at the moment; `serve` is the socket's endpoint."""

    def __init__(self, enhancer: Enhancer, most_visitors: int = 2, longest_sec: float = 600.0) -> None:
        self._enhancer, self.most_visitors, self.longest_sec = enhancer, most_visitors, longest_sec
        self._guests: list[Guest] = []

    @property
    def visitors(self) -> int:
        return len(self._guests)

    async def serve(self, socket: WebSocket) -> None:
        """One visitor from hello to goodbye; what is wrong is told as {"stop": sentence} before the socket closes."""
        await socket.accept()
        guest = None
        try:
            guest = await self._admit(socket)
            if guest is not None:
                await self._stream(socket, guest)
        except Complaint as error:
            await self._stop(socket, str(error))
        except (WebSocketDisconnect, asyncio.TimeoutError, ConnectionError):
            pass
        except Exception:  # whatever it was, it ends one stream and not the server; the log has the traceback
            _log.exception("a live stream failed")
            await self._stop(socket, "Stopped: the stream failed on the server. Start begins another one.")
        finally:
            if guest in self._guests:
                self._guests.remove(guest)
            if socket.client_state == WebSocketState.CONNECTED and socket.application_state == WebSocketState.CONNECTED:
                with contextlib.suppress(RuntimeError, OSError):
                    await socket.close()

    async def _admit(self, socket: WebSocket) -> Guest | None:
        """Give a place to a visitor who says hello; Complaint where there is none, None for one who is gone already."""
        packet = await asyncio.wait_for(socket.receive(), HELLO_SEC)
        if packet["type"] == "websocket.disconnect":
            return None
        hello = _parsed(packet.get("text") or "")
        try:
            guest = Guest(visitor_of(socket.scope.get("client")), int(hello["rate"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Complaint("Stopped: the page did not say at which rate its sound comes.") from None
        if self.visitors >= self.most_visitors:
            self._make_room(guest)
        self._guests.append(guest)
        return guest

    def _make_room(self, newcomer: Guest) -> None:
        """End the stream of one who is silent, or has several places where the newcomer has none; Complaint otherwise."""
        quiet = max(self._guests, key=Guest.quiet_sec)
        places = Counter(guest.address for guest in self._guests)
        several = [guest for guest in self._guests if places[guest.address] > 1 and newcomer.address not in places]
        if quiet.quiet_sec() > QUIET_SEC:
            leaves, why = quiet, "no sound came from this page"
        elif several:
            leaves, why = several[0], "you have another one"
        else:
            most = "one at a time" if self.most_visitors == 1 else f"{self.most_visitors} at a time"
            raise Complaint(f"Others are live at the moment ({most} here); please try again a little later.")
        self._guests.remove(leaves)
        leaves.inbox.close(Complaint(f"Stopped: another visitor needed the place, and {why}."))

    @staticmethod
    async def _stop(socket: WebSocket, sentence: str) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            await socket.send_json({"stop": sentence})
            await socket.close()

    async def _stream(self, socket: WebSocket, guest: Guest) -> None:
        try:
            session = await asyncio.to_thread(LiveSession, self._enhancer, guest.inbox.rate_hz)
        except Complaint as error:
            raise Complaint(f"Stopped: {error}") from None
        await socket.send_json({"ready": self._enhancer.sample_rate})
        receiver = asyncio.create_task(self._receive(socket, guest, session))
        try:
            await self._answer(socket, guest.inbox, session)
        finally:
            receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiver

    async def _receive(self, socket: WebSocket, guest: Guest, session: LiveSession) -> None:
        """Fill the inbox until the visitor goes, or sends no sound for too long."""
        complaint = None
        try:
            while True:
                packet = await asyncio.wait_for(socket.receive(), SILENT_SEC - guest.quiet_sec())
                if packet["type"] == "websocket.disconnect":
                    break
                if packet.get("text"):
                    mode = _parsed(packet["text"]).get("video_mode")
                    if mode in (AS_IT_IS, OFF, *LIVE_CORRUPTIONS):
                        session.video_mode = mode
                    continue
                message = _message(packet.get("bytes") or b"")
                guest.inbox.put(message)
                if message.kind == SOUND and message.content:
                    guest.heard_sec = time.monotonic()
        except Complaint as error:
            complaint = Complaint(f"Stopped: {error}")
        except asyncio.TimeoutError:
            complaint = Complaint("Stopped: no sound came from this page.")
        except RuntimeError:
            pass  # gone without a word
        guest.inbox.close(complaint)

    async def _answer(self, socket: WebSocket, inbox: Inbox, session: LiveSession) -> None:
        """Work through the inbox until it is closed, or the time is over."""
        end = time.monotonic() + self.longest_sec
        told = 0.0
        while True:
            try:
                await asyncio.wait_for(inbox.arrived.wait(), end - time.monotonic())
            except asyncio.TimeoutError:
                minutes = f"{self.longest_sec / 60:g} minutes are over"
                raise Complaint(f"Stopped: {minutes}. Start begins another stream.") from None
            if inbox.closed:
                if inbox.complaint is not None:
                    raise inbox.complaint
                return
            began_sec = time.monotonic()
            try:
                replies = await asyncio.to_thread(session.work, inbox.take())
            except Complaint as error:
                raise Complaint(f"Stopped: {error}") from None
            took_sec = time.monotonic() - began_sec
            if took_sec > SLOWEST_SEC:
                raise Complaint("Stopped: this machine is too slow for live streams. "
                                f"It needed {took_sec:.0f} s for {MOST_WAITING_SEC:g} s of sound at most.")  # fmt: skip
            for kind, at_sec, content in replies:
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
    if kind not in (SOUND, FRAME):
        raise Complaint("a message arrived that is neither sound nor video.")
    return Message(kind, at_sec, content[HEADER.size :])
