"""Turns for what must not all be done at once: the most urgent first.

Owns the order only. Who comes in the same step of the event loop is put in order before anyone begins.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def turn(self, urgency: float) -> AsyncIterator[None]:
        """Wait for one's turn and keep it inside; the lowest `urgency` comes first, then who came first."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (urgency, next(self._arrivals), granted))
        loop.call_soon(self._grant)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release()
            raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._waiting:
            granted = heapq.heappop(self._waiting)[2]
            if not granted.done():  # else whoever waited was cancelled
                self._free -= 1
                granted.set_result(None)
