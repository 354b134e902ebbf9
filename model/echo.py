"""An engine that repeats the caller: a real worker for tests and load, with no speech in it.

Owns nothing but the echo. Each caller frame comes back as the agent's frame of the same index, and
what it is told to say comes back as text.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from model.wire import AgentFrame, AgentText, CallerFrame, CallerText, Output, SessionRequest


class EchoSession:
    """Implements `model.worker_engine.WorkerSession`."""

    def __init__(self) -> None:
        self._pending: deque[Output] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._next = 0

    def push(self, frame: CallerFrame) -> None:
        self._next = frame.index + 1
        self._pending.append(AgentFrame(frame.index, frame.pcm))
        self._wake.set()

    async def outputs(self) -> AsyncIterator[Output]:
        while not self._closed:
            while self._pending:
                yield self._pending.popleft()
            self._wake.clear()
            await self._wake.wait()

    def say(self, text: str) -> None:
        self._pending.append(AgentText(self._next, text))
        self._wake.set()

    def play(self, clip: str) -> None:
        """There are no clips to play; the caller hears the echo go on."""

    def finish(self) -> AsyncIterator[CallerText] | None:
        return None

    async def close(self) -> None:
        self._closed = True
        self._pending.clear()
        self._wake.set()


class EchoEngine:
    """Implements `model.worker_engine.WorkerEngine`."""

    name = "echo"

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to release."""

    async def open(self, request: SessionRequest) -> EchoSession:
        return EchoSession()
