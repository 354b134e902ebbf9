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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from model.wire import CallerText

log = logging.getLogger(__name__)

HEADER = struct.Struct("<BIII")
"""Before each message to a process: kind, session, frame index, length of what follows."""
OPEN, FRAME, CLOSE, FINISH = 1, 2, 3, 4
MOST_PROCESSES = 8
CORES_EACH = 3
"""One process for so many cores, at least one. A call takes some 4 % of a core, one of many digits 10 %: the five of
16 cores carry 130 callers, by calculation (`python -m model.bench.transcriber`, deploy/benchmarks.md)."""
BEHIND = 16 << 20
"""Bytes that may wait for a process, some three minutes of one call; frames beyond are not transcribed."""
MUCH_WAITS = 1 << 18
"""Bytes that wait for a process, some three seconds of one call. One that works through as much says so, see
`model.transcriber_process`."""
HUNG_SECONDS = 30.0
"""A process that has said nothing for so long while much waited all the time is killed. The longest utterance takes a
processor that others use as well a few seconds."""
START_SECONDS = 60.0
RESTART_SECONDS, RESTART_LAST = 1.0, 60.0
"""Before one that ended is started again; twice as long each time that it does not start, up to the last."""
FINISH_SECONDS = 2.0
"""A call's last words are waited for so long."""

Tell = Callable[[CallerText], None]
Finished = Callable[[int], None]
"""Told how many caller frames of the call were not transcribed because that took too long."""


class TranscriberRefused(Exception):
    """Nothing can be transcribed here; the message says what to do."""


class Transcriber(Protocol):
    """Listens to calls. Nothing here waits or raises for load."""

    dropped: int
    """Caller frames that were not transcribed, for want of time or of a process; after the end of one, up to a second
    of each call too many."""
    ended: int
    """Processes that ended by themselves or hung; each is started again until it runs."""

    async def start(self) -> None:
        """Load what it needs. Raises TranscriberRefused."""

    async def stop(self) -> None:
        """End it. Safe to call twice."""

    def open(self, session: int, first: int, tell: Tell) -> None:
        """A call is to be heard from caller frame `first` on; `tell` gets what was said, seconds later."""

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        """80 ms of both sides, int16 at 24 kHz; the agent's so that its echo is not taken for the caller."""

    def finish(self, session: int, finished: Finished) -> None:
        """The call is over: `tell` gets what was still being said, and then `finished` is called.

        FINISH_SECONDS later at most, and at once where nothing can be told any more.
        """

    def close(self, session: int) -> None:
        """The call is somebody else's, or `finish` is not waited for: nothing more is told."""


class NoTranscriber:
    """Implements `Transcriber` by not listening: `--transcriber none`."""

    dropped = ended = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to end."""

    def open(self, session: int, first: int, tell: Tell) -> None:
        """Nothing will be told."""

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        """Not heard."""

    def finish(self, session: int, finished: Finished) -> None:
        finished(0)

    def close(self, session: int) -> None:
        """Nothing was kept."""


@dataclass(slots=True)
class _Listened:
    """A call, as a process hears it."""

    listener: _Listener
    following: int
    tell: Tell
    sent: int = 0
    """Frames that went to the process."""
    settled: int = 0
    """Those among them that it is done with, as it said last: their words were told, or there were none."""
    finished: Finished | None = None
    timer: asyncio.TimerHandle | None = None
    """While its last words are waited for."""

    @property
    def unsettled(self) -> int:
        return self.sent - self.settled


class WhisperPool:
    """Implements `Transcriber` with Whisper tiny.en."""

    def __init__(self, weights: Path | None = None, processes: int = 0) -> None:
        """`weights`: where to look before the installed packages. `processes` 0: by the number of cores."""
        count = processes or min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) // CORES_EACH))
        self.dropped = self.ended = 0
        self._sessions: dict[int, _Listened] = {}
        self._listeners = [_Listener(weights, self) for _ in range(count)]

    async def start(self) -> None:
        await asyncio.gather(*(listener.start() for listener in self._listeners))

    async def stop(self) -> None:
        for session, listened in list(self._sessions.items()):
            if listened.finished is not None:
                self._finish(session)
            else:
                self.close(session)
        await asyncio.gather(*(listener.stop() for listener in self._listeners))

    def open(self, session: int, first: int, tell: Tell) -> None:
        listener = self._freest()
        listener.sessions += 1
        self._sessions[session] = _Listened(listener, first, tell)
        listener.send(OPEN, session, first)

    def _freest(self) -> _Listener:
        return min(self._listeners, key=lambda each: (not each.up, each.sessions))

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        listened = self._sessions.get(session)
        if listened is None:
            return
        listened.following = index + 1
        if listened.listener.send(FRAME, session, index, caller + agent):
            listened.sent += 1
            return
        self.dropped += 1
        listened.listener.left_out()

    def finish(self, session: int, finished: Finished) -> None:
        listened = self._sessions.get(session)
        if listened is None:
            finished(0)
            return
        listened.finished = finished
        if listened.listener.send(FINISH, session, 0):
            listened.timer = asyncio.get_running_loop().call_later(FINISH_SECONDS, self._finish, session)
        else:
            self._finish(session)

    def close(self, session: int) -> None:
        listened = self._forget(session)
        if listened is not None:
            listened.listener.send(CLOSE, session, 0)

    def _finish(self, session: int) -> None:
        """All that will be told of a call has been: what is missing is counted."""
        listened = self._forget(session)
        if listened is not None and listened.finished is not None:
            self.dropped += listened.unsettled
            listened.finished(listened.unsettled)

    def _forget(self, session: int) -> _Listened | None:
        listened = self._sessions.pop(session, None)
        if listened is not None:
            listened.listener.sessions -= 1
            if listened.timer is not None:
                listened.timer.cancel()
        return listened

    # What its processes tell it.

    def said(self, session: int, said: Mapping[str, Any]) -> None:
        """A line of a process's, see `model.transcriber_process`."""
        listened = self._sessions.get(session)
        if listened is None:
            return
        listened.settled = said["settled"]
        if "text" in said:
            onsets, sure = tuple(said["onsets"]), said["confidence"]
            listened.tell(CallerText(said["start"], said["end"], said["text"], onsets=onsets, confidence=sure))
        if said.get("over"):
            self._finish(session)

    def lost(self, listener: _Listener) -> None:
        """A process ended, with what waited in it and for it. Its calls stay its own: as a rule it is back in seconds,
        and if another had taken them that one would have the calls of two from then on."""
        self.ended += 1
        calls = [(session, each) for session, each in self._sessions.items() if each.listener is listener]
        lost = sum(each.unsettled for _, each in calls)
        log.error(
            "%d frames of %d callers, which it had not transcribed, are left out of their transcripts", lost, len(calls)
        )
        for session, listened in calls:
            if listened.finished is not None:
                self._finish(session)
                continue
            self.dropped += listened.unsettled
            listened.sent = listened.settled = 0

    def give_away(self, listener: _Listener) -> None:
        """It cannot be started for now: others hear its calls from now on, if there are any."""
        for session, listened in self._sessions.items():
            if listened.listener is listener and (other := self._freest()).up:
                self._give(session, listened, other)

    def reopen(self, listener: _Listener) -> None:
        """It was started again: it hears its calls from now on, and those of others that cannot be started."""
        for session, listened in self._sessions.items():
            if listened.listener is listener or listened.listener.failing:
                self._give(session, listened, listener)

    def _give(self, session: int, listened: _Listened, listener: _Listener) -> None:
        listened.listener.sessions -= 1
        listener.sessions += 1
        listened.listener = listener
        listener.send(OPEN, session, listened.following)


class Waiting:
    """Whether a process stands still before what waits for it. Pure."""

    def __init__(self) -> None:
        self._since: float | None = None
        """When much began to wait and nothing had been said since."""

    def heard(self) -> None:
        """The process has said something."""
        self._since = None

    def hangs(self, size: int, now: float) -> bool:
        """`size`: bytes that wait at `now`, in seconds of any clock."""
        if size <= MUCH_WAITS:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since > HUNG_SECONDS


class _Listener:
    """One process of the pool."""

    def __init__(self, weights: Path | None, pool: WhisperPool) -> None:
        self.sessions = 0
        self.up = False
        self.failing = False
        """It ended, and could not be started the last time that this was tried."""
        self._behind = False
        """Frames are left out for want of time, and that was told."""
        self._waiting = Waiting()
        self._command = [sys.executable, "-m", "model.transcriber_process", str(weights or "")]
        self._pool = pool
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
        if kind == FRAME and not self._takes_more():
            return False
        pipe.write(HEADER.pack(kind, session, index, len(payload)) + payload)
        return True

    @property
    def waiting(self) -> int:
        """Bytes that wait for the process."""
        pipe = self._process.stdin if self._process is not None else None
        return pipe.transport.get_write_buffer_size() if pipe is not None else 0

    def left_out(self) -> None:
        """A frame was, which is told once each time that the process falls behind."""
        if self.up and not self._behind:
            self._behind = True
            log.warning("transcription cannot keep up: frames of callers are left out of their transcripts")

    def _takes_more(self) -> bool:
        """Whether there is room for a frame. One that has stood still for too long is killed, and so started again."""
        waiting = self.waiting
        if waiting <= BEHIND // 2:
            self._behind = False
        if self._waiting.hangs(waiting, asyncio.get_running_loop().time()):
            self._kill()
        return waiting <= BEHIND

    def _kill(self) -> None:
        self._waiting = Waiting()
        log.error("a transcriber has said nothing for %.0f s, though much waits for it, and is killed", HUNG_SECONDS)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

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
        self.up, self.failing, self._behind, self._waiting = True, False, False, Waiting()

    async def _read(self) -> None:
        """What the process has heard, for ever; one that ends is started again."""
        while True:
            process = self._process
            assert process is not None
            assert process.stdout is not None
            while (line := await process.stdout.readline()).endswith(b"\n"):
                self._waiting.heard()
                said = json.loads(line)
                self._pool.said(said["session"], said)
            self.up = False
            log.error("a transcriber ended with status %s and is started again", await process.wait())
            self._pool.lost(self)
            pause = RESTART_SECONDS
            while not await self._started_again(pause):
                pause = min(2 * pause, RESTART_LAST)
            self._pool.reopen(self)

    async def _started_again(self, pause: float) -> bool:
        """Whether it could be, after `pause` seconds: a machine short of memory may have killed it, and still be."""
        await asyncio.sleep(pause)
        try:
            await self._spawn()
        except (TranscriberRefused, OSError) as error:
            log.error("a transcriber does not start, others hear its callers, if any can; it is tried again: %s", error)
            self.failing = True
            self._pool.give_away(self)
            return False
        return True

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
