"""What is being said right now, for whoever watches: the console, the demo.

Owns the fan-out only. A watcher that does not keep up loses the oldest news, never a call's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.transcript import Utterance

BACKLOG = 256


@dataclass(frozen=True, slots=True)
class LiveUtterance:
    """An utterance that is new or has changed; it replaces what was shown under its number."""

    call_id: str
    utterance: Utterance


class LiveFeed:
    """Everything said on every call, to any number of watchers."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[LiveUtterance | None]] = set()
        self._over = False

    def publish(self, call_id: str, utterance: Utterance) -> None:
        """Never waits and never fails."""
        self._tell(LiveUtterance(call_id, utterance))

    def close(self) -> None:
        """Nothing will be said any more: watchers have what they were told, and end."""
        self._over = True
        self._tell(None)

    def _tell(self, news: LiveUtterance | None) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(news)

    async def watch(self) -> AsyncIterator[LiveUtterance]:
        """What is said from now on; ends when the feed is closed, or the watcher stops iterating."""
        queue: asyncio.Queue[LiveUtterance | None] = asyncio.Queue(BACKLOG)
        self._watchers.add(queue)
        try:
            while not (self._over and queue.empty()) and (news := await queue.get()) is not None:
                yield news
        finally:
            self._watchers.discard(queue)
