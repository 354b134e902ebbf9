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
        self._watchers: set[asyncio.Queue[LiveUtterance]] = set()

    def publish(self, call_id: str, utterance: Utterance) -> None:
        """Never waits and never fails."""
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(LiveUtterance(call_id, utterance))

    async def watch(self) -> AsyncIterator[LiveUtterance]:
        """What is said from now on; ends when the watcher stops iterating."""
        queue: asyncio.Queue[LiveUtterance] = asyncio.Queue(BACKLOG)
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)
