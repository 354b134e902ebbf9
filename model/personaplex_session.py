"""A session of the PersonaPlex engine as the worker's server sees it.

Owns what is to be told of it, in order, and the caller's words beside it. Knows no process: what the engine is told
goes through `Sessions`, and what it says comes by `told` and `fail`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from websockets.frames import CloseCode

from model.engine_wire import Heard, Told
from model.session import SessionEnded
from model.tone import as_loud_as
from model.transcriber import Transcriber
from model.wire import (
    FRAME_BYTES,
    FRAME_SECONDS,
    AgentFrame,
    CallerFrame,
    CallerText,
    Closed,
    Error,
    FromWorker,
    History,
    Output,
    Play,
    Ready,
    Resume,
    Say,
    SessionRequest,
    WireError,
)

log = logging.getLogger(__name__)


class Sessions(Protocol):
    """The engine, as one of its sessions needs it."""

    def send(self, number: int, message: Told) -> None:
        """Tell the engine something of a session; nothing, once that is over."""

    def forget(self, number: int) -> None:
        """A session is over: whatever still comes of it is dropped."""


class PersonaplexSession:
    """Implements `model.worker_engine.WorkerSession`."""

    def __init__(self, engine: Sessions, number: int, transcriber: Transcriber, call_id: str = "") -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._number = number
        self._transcriber = transcriber
        self._call_id = call_id
        self._unheard: deque[CallerFrame] = deque()
        """Caller frames that wait for the agent's, with which they are transcribed."""
        self._outputs: deque[Output | SessionEnded] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._finishing = False
        self._all_written = False
        """Of the caller's words, once the call is over."""

    def listen(self, request: SessionRequest, history: History) -> None:
        """Have the caller's words written down, from where a session taken over is not.

        What the agent said there is not known, but how loud it was, and no more is needed to tell its echo.
        """
        resume = request.resume or Resume()
        known = resume.next_index - resume.caller_frames
        first = max(resume.heard, known)
        self._transcriber.open(self._number, first, self.write)
        for index in range(first, resume.next_index):
            place = FRAME_BYTES * (index - known)
            caller = history.caller_pcm[place : place + FRAME_BYTES]
            agent = as_loud_as(resume.agent_levels[index - known]) if resume.agent_levels else b""
            self._transcriber.hear(self._number, index, caller, agent)

    def write(self, output: Output) -> None:
        """Something for the gateway."""
        self._outputs.append(output)
        self._wake.set()

    def push(self, frame: CallerFrame) -> None:
        # Stamped here: the engine's process reads between steps only, and after a stall of its own much later.
        self._unheard.append(frame)
        self._engine.send(self._number, Heard(frame, time.monotonic()))

    def say(self, text: str) -> None:
        self._engine.send(self._number, Say(text))

    def play(self, clip: str) -> None:
        self._engine.send(self._number, Play(clip))

    async def outputs(self) -> AsyncIterator[Output]:
        while not self._closed:
            while self._outputs:
                output = self._outputs.popleft()
                if isinstance(output, SessionEnded):
                    raise output
                yield output
            self._wake.clear()
            await self._wake.wait()

    def finish(self) -> AsyncIterator[CallerText] | None:
        self._finishing = True
        while self._unheard:
            frame = self._unheard.popleft()
            self._transcriber.hear(self._number, frame.index, frame.pcm, b"")
        self._transcriber.finish(self._number, self._written)
        if self._all_written and not any(isinstance(output, CallerText) for output in self._outputs):
            return None
        return self._last_words()

    def _written(self, missing: int) -> None:
        """The caller's words have been told, but for those of so many frames."""
        self._all_written = True
        self._wake.set()
        if missing:
            seconds = missing * FRAME_SECONDS
            log.warning("call %s: the caller's last %.1f s were not transcribed in time", self._call_id, seconds)

    async def _last_words(self) -> AsyncIterator[CallerText]:
        while True:
            while self._outputs:
                if isinstance(output := self._outputs.popleft(), CallerText):
                    yield output
            if self._all_written:
                return
            self._wake.clear()
            await self._wake.wait()

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        if not self._finishing:
            self._outputs.clear()
            self._transcriber.close(self._number)
        self._engine.forget(self._number)

    def told(self, message: FromWorker) -> None:
        """The engine said something of this session."""
        if isinstance(message, Ready):
            if not self.opened.done():
                self.opened.set_result(None)
        elif isinstance(message, Error):
            self.fail(_ended(message))
        elif not isinstance(message, Closed):  # which is the server's to say
            if isinstance(message, AgentFrame):
                self._hear(message)
            self.write(message)

    def _hear(self, agent: AgentFrame) -> None:
        while self._unheard and self._unheard[0].index <= agent.index:
            frame = self._unheard.popleft()
            sound = agent.pcm if frame.index == agent.index else b""
            self._transcriber.hear(self._number, frame.index, frame.pcm, sound)

    def fail(self, reason: SessionEnded | WireError) -> None:
        """It cannot go on, or never began."""
        if not self.opened.done():
            self.opened.set_exception(reason)
        elif isinstance(reason, SessionEnded):
            self._outputs.append(reason)
            self._wake.set()


def _ended(error: Error) -> SessionEnded | WireError:
    """How the server is told an error of the engine's."""
    if error.code == "invalid":
        return WireError(error.message)
    return SessionEnded(error, CloseCode.TRY_AGAIN_LATER if error.code == "full" else CloseCode.INTERNAL_ERROR)
