"""Connections to the page's server: how long one may wait without a request, and how many of them may.

uvicorn closes a connection that waits after an answer, and never one on which no request has come. Each takes a file of the
server's, of which it often may open a thousand.
"""

from __future__ import annotations

import asyncio
import time

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from evaluation.web.gate import visitor_of

WAITING_SEC = 10.0  # A connection on which no request comes whole for so long is closed.
WAITING_EACH, WAITING = 64, 512  # of one visitor, and of all. Where there are more, the oldest is closed.
_AT_WORK = object()


class Connection(AutoHTTPProtocol):
    """uvicorn's HTTP connection, which is closed where it waits for too long or where too many wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since_sec = time.monotonic()
        self._make_room()
        self.loop.call_later(WAITING_SEC, self._look, None)

    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look(self, earlier: object) -> None:
        """Close the connection if it waits as it did at the last look; `earlier` is the request that it had answered then."""
        if self not in self.connections:  # It is closed, or a live stream by now.
            return
        now = self.cycle if self._waits() else _AT_WORK
        if now is earlier and now is not _AT_WORK:
            self.transport.abort()
        else:
            self.loop.call_later(WAITING_SEC, self._look, now)

    def _make_room(self) -> None:
        """Close those that have waited longest where a new one makes them too many."""
        waiting = [other for other in self.connections if isinstance(other, Connection) and other._waits()]
        own = [other for other in waiting if visitor_of(other.client) == visitor_of(self.client)]
        for among, most in ((own, WAITING_EACH), (waiting, WAITING)):
            for other in sorted(among, key=lambda other: other._since_sec)[: max(0, len(among) - most)]:
                other.transport.abort()
