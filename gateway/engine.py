"""What answers a call, as the gateway sees it: an engine opens sessions, one for each call.

Owns the two protocols, their errors, and the echo engine. Knows nothing of phones or of the wire:
`worker_client.RemoteEngine` is the implementation that reaches a worker over WebSocket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from model.wire import AgentFrame, AgentText, CallerText, Output, SessionRequest


class EngineError(Exception):
    """An engine cannot serve this call; the message says why in one sentence."""


class EngineFull(EngineError):
    """Every slot is taken; nothing is wrong. Another engine, or a person, can take the call."""


class EngineLost(EngineError):
    """The engine cannot be reached, or stopped answering."""


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """The session was lost with its worker and goes on with another, which remembers it."""

    index: int
    """Frame from which the new worker answers."""
    missed: int
    """Frames before it that nobody answered, 80 ms each: the agent was silent."""
    worker: str
    """The worker that holds the session now."""
    reason: str
    """How the one before was lost, in a sentence."""


class Session(Protocol):
    """One call's conversation with the agent: one frame out for each frame in, 80 ms each."""

    engine: str
    """What answers: `rehearsal`, `personaplex` or `echo`."""

    async def send(self, pcm: bytes, line: bytes) -> None:
        """The caller's next 80 ms: 1,920 int16 samples at 24 kHz. Raises EngineLost; never waits long.

        `line` is the same as it came from the line, 640 samples at 8 kHz, of which `Upsampler` made `pcm`:
        a session that remembers keeps that, being a third.
        """

    def outputs(self) -> AsyncIterator[Output | WorkerChanged]:
        """Everything the engine says, in order; ends after close. Raises EngineLost if the engine dies."""

    async def say(self, text: str) -> None:
        """The agent says this next, in its own timing."""

    async def play(self, clip: str) -> None:
        """A prepared clip, sound for sound."""

    async def close(self) -> None:
        """Frees the slot. Safe to call twice, and after a loss."""

    def last_words(self) -> AsyncIterator[CallerText]:
        """After `close`: what the caller was still saying. Ends within a few seconds, and never raises."""

    @property
    def unheard(self) -> float | None:
        """After that: seconds of the call from which on its caller may not be written down; None: all was heard."""


class Engine(Protocol):
    async def open(self, request: SessionRequest) -> Session:
        """Hold a slot for a call. Raises EngineFull or EngineLost at once rather than queue a caller."""


TURN = 50
"""Frames that each side speaks before the other does, where the echo engine makes up words: 4 s."""
WORD = 5
"""Frames of a word, pauses included: 150 words a minute."""


class EchoSession:
    """Returns the caller's frames as the agent's; `words`: and texts of both sides, as if they talked in turns."""

    engine = "echo"
    unheard: float | None = None

    def __init__(self, limit: int = 50, words: bool = False) -> None:
        self._frames: asyncio.Queue[AgentFrame | None] = asyncio.Queue(limit)
        self._index = 0
        self._closed = False
        self._words = words

    async def send(self, pcm: bytes, line: bytes = b"") -> None:
        if self._closed:
            return
        if self._frames.full():
            raise EngineLost("nobody takes the echo engine's frames")
        self._frames.put_nowait(AgentFrame(self._index, pcm))
        self._index += 1

    async def outputs(self) -> AsyncIterator[Output]:
        while (frame := await self._frames.get()) is not None:
            yield frame
            if self._words and (text := made_up(frame.index)) is not None:
                yield text

    async def say(self, text: str) -> None:
        return

    async def play(self, clip: str) -> None:
        return

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            while self._frames.full():
                self._frames.get_nowait()
            self._frames.put_nowait(None)

    async def last_words(self) -> AsyncIterator[CallerText]:
        nothing: tuple[CallerText, ...] = ()
        for text in nothing:
            yield text


def made_up(index: int) -> AgentText | CallerText | None:
    """What becomes known with a frame of a talk: the agent's words one by one, the caller's twice in a turn."""
    place = index % (2 * TURN)
    if place < TURN:
        return AgentText(index, " tomorrow" if place % (2 * WORD) else " yesterday") if place % WORD == 0 else None
    spoken = place - TURN + 1
    if spoken in (TURN // 2, TURN):
        text = " ".join(["appointment"] * (spoken // WORD))
        return CallerText(index - spoken + 1, index + 1, text, final=spoken == TURN)
    return None


class EchoEngine:
    """An engine in the gateway's own process that repeats the caller: for tests and load. `words`: see EchoSession."""

    def __init__(self, words: bool = False) -> None:
        self._words = words

    async def open(self, request: SessionRequest) -> EchoSession:
        return EchoSession(words=self._words)
