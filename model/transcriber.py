"""What callers say, as text: a small pool of processes that listen beside the calls and are never waited for.

Owns the pool, who listens to whom, and what is left out when a process cannot keep up. PersonaPlex writes down only
what it says itself; nothing in a call depends on this. A streaming recogniser on the GPU would implement `Transcriber`.
Loads no recogniser: that is `model.transcriber_process`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model.wire import CallerText

log = logging.getLogger(__name__)

HEADER = struct.Struct("<BIII")
"""Before each message to a process: kind, session, frame index, length of what follows."""
OPEN, FRAME, CLOSE = 1, 2, 3
MOST_PROCESSES = 4
CORES_EACH = 4
"""One process for so many cores, at least one: transcribing takes a few per cent of a core for each call."""
BEHIND = 16 << 20
"""Bytes that may wait for a process, some three minutes of one call; frames beyond are not transcribed."""
START_SECONDS = 60.0
RESTART_SECONDS = 1.0

Tell = Callable[[CallerText], None]


class TranscriberRefused(Exception):
    """Nothing can be transcribed here; the message says what to do."""


class Transcriber(Protocol):
    """Listens to calls. Nothing here waits or raises for load."""

    dropped: int
    """Caller frames that were not transcribed, for want of time or of a process."""

    async def start(self) -> None:
        """Load what it needs. Raises TranscriberRefused."""

    async def stop(self) -> None:
        """End it. Safe to call twice."""

    def open(self, session: int, first: int, tell: Tell) -> None:
        """A call is to be heard from caller frame `first` on; `tell` gets what was said, seconds later."""

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        """80 ms of both sides, int16 at 24 kHz; the agent's so that its echo is not taken for the caller."""

    def close(self, session: int) -> None:
        """The call is over: nothing more is told."""


class NoTranscriber:
    """Implements `Transcriber` by not listening: `--transcriber none`."""

    dropped = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to end."""

    def open(self, session: int, first: int, tell: Tell) -> None:
        """Nothing will be told."""

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        """Not heard."""

    def close(self, session: int) -> None:
        """Nothing was kept."""


@dataclass(slots=True)
class _Listened:
    listener: _Listener
    following: int
    tell: Tell


class WhisperPool:
    """Implements `Transcriber` with Whisper tiny.en."""

    def __init__(self, weights: Path | None = None, processes: int = 0) -> None:
        """`weights`: where to look before the installed packages. `processes` 0: by the number of cores."""
        count = processes or min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) // CORES_EACH))
        self.dropped = 0
        self._sessions: dict[int, _Listened] = {}
        self._listeners = [_Listener(weights, self._said, self._reopen) for _ in range(count)]

    async def start(self) -> None:
        await asyncio.gather(*(listener.start() for listener in self._listeners))

    async def stop(self) -> None:
        self._sessions.clear()
        await asyncio.gather(*(listener.stop() for listener in self._listeners))

    def open(self, session: int, first: int, tell: Tell) -> None:
        listener = min(self._listeners, key=lambda each: each.sessions)
        listener.sessions += 1
        self._sessions[session] = _Listened(listener, first, tell)
        listener.send(OPEN, session, first)

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        listened = self._sessions.get(session)
        if listened is None:
            return
        listened.following = index + 1
        if not listened.listener.send(FRAME, session, index, caller + agent):
            self.dropped += 1
            if self.dropped == 1:
                log.warning("transcription cannot keep up: frames of callers are left out of their transcripts")

    def close(self, session: int) -> None:
        listened = self._sessions.pop(session, None)
        if listened is not None:
            listened.listener.sessions -= 1
            listened.listener.send(CLOSE, session, 0)

    def _said(self, session: int, text: CallerText) -> None:
        listened = self._sessions.get(session)
        if listened is not None:
            listened.tell(text)

    def _reopen(self, listener: _Listener) -> None:
        """A process was started again: it hears its calls from now on."""
        for session, listened in self._sessions.items():
            if listened.listener is listener:
                listener.send(OPEN, session, listened.following)


class _Listener:
    """One process of the pool."""

    def __init__(
        self, weights: Path | None, said: Callable[[int, CallerText], None], again: Callable[[_Listener], None]
    ) -> None:
        self.sessions = 0
        self.up = False
        self._command = [sys.executable, "-m", "model.transcriber_process", str(weights or "")]
        self._said = said
        self._again = again
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises TranscriberRefused."""
        await self._spawn()
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._end()

    def send(self, kind: int, session: int, index: int, payload: bytes = b"") -> bool:
        """Leave a message for the process. False if it is too far behind, or not there."""
        pipe = self._process.stdin if self.up and self._process is not None else None
        if pipe is None or pipe.is_closing():
            return False
        if kind == FRAME and pipe.transport.get_write_buffer_size() > BEHIND:
            return False
        pipe.write(HEADER.pack(kind, session, index, len(payload)) + payload)
        return True

    async def _spawn(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        try:
            refused = str(json.loads(line)["refused"])
        except (ValueError, KeyError, TypeError):
            refused = "the transcriber did not start; its messages are above"
        if refused:
            await self._end()
            raise TranscriberRefused(f"{refused}; or say --transcriber none")
        self.up = True

    async def _read(self) -> None:
        """What the process has heard, for ever; one that ends is started again."""
        while True:
            process = self._process
            assert process is not None
            assert process.stdout is not None
            while line := await process.stdout.readline():
                data = json.loads(line)
                onsets, sure = tuple(data["onsets"]), data["confidence"]
                text = CallerText(data["start"], data["end"], data["text"], onsets=onsets, confidence=sure)
                self._said(data["session"], text)
            self.up = False
            log.error("a transcriber ended with status %s and is started again", await process.wait())
            await asyncio.sleep(RESTART_SECONDS)
            try:
                await self._spawn()
            except TranscriberRefused:
                log.exception("callers are not transcribed any more")
                return
            self._again(self)

    async def _end(self) -> None:
        process, self._process, self.up = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            # It may be in the middle of half a second's work, of which nobody wants to know.
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
