"""The PersonaPlex engine as the worker's server sees it: the model in a process of its own.

Owns that process, the channel to it and which session each of its messages is for. Loads no torch. When the process
ends, for whatever reason, so do its sessions, told that they can go on elsewhere. One that hangs is ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import count

from websockets.frames import CloseCode

from model import engine_wire
from model.capacity import check_asked
from model.engine_options import NAME, EngineOptions, EngineRefused, EngineState
from model.engine_watch import LOOK_SECONDS, EngineWatch
from model.engine_wire import CONTROL, OPENS_FILL, Told, ring_size
from model.metrics import Histogram
from model.personaplex_session import PersonaplexSession
from model.ring import Channel, Ends, PeerGone, RingFull, make_channel
from model.scheduler import LATE_CALLS
from model.session import SessionEnded
from model.transcriber import NoTranscriber, Transcriber
from model.wire import (
    Close,
    Error,
    History,
    SessionRequest,
)

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""The engine's process has so long to end once we have let go of it."""
BEHIND = "the worker's engine has too much to read; no call is taken until it has caught up"
QUIET = "the worker's engine does not answer; no call is taken until it does"


class PersonaplexEngine:
    """Implements `model.worker_engine.ResumingEngine` and `SupervisedEngine`."""

    name = NAME

    def __init__(self, options: EngineOptions, transcriber: Transcriber | None = None) -> None:
        self.state = EngineState()
        self.pid: int | None = None
        """The engine's process while it runs."""
        self._options = options
        self._transcriber = transcriber or NoTranscriber()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._sessions: dict[int, PersonaplexSession] = {}
        self._numbers = count(CONTROL + 1)
        self._failure = ""
        """What the process said was wrong, before it ended."""
        self._up: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[str] | None = None
        self._watch = EngineWatch()
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def capacity(self) -> int:
        return self.state.capacity

    @property
    def refusal(self) -> str:
        return QUIET if self._watch.quiet else self.state.refusal

    def counters(self) -> Mapping[str, int]:
        heard = self._transcriber
        return {
            **self.state.counters(),
            "untranscribed_frames": heard.dropped,
            "transcribers_ended": heard.ended,
        }

    def histograms(self) -> Mapping[str, Histogram]:
        state = self.state
        return {"late_frames_per_call": Histogram(LATE_CALLS, list(state.late_calls), state.late_calls_frames)}

    async def start(self) -> None:
        """Start the process and wait until it can take calls. Raises EngineRefused, with its own sentence."""
        check_asked(self._options.slots)
        loop = asyncio.get_running_loop()
        self._up, self._lost = loop.create_future(), loop.create_future()
        self._channel, ends = make_channel(ring_size(self._options.slots))
        # Not as an argument: prompts are nobody else's business on this machine, and may be longer than one can be.
        self._channel.put(CONTROL, self._options.to_json().encode())
        self._spawn(ends)
        loop.add_reader(self._channel.ears, self._read)
        try:
            await asyncio.gather(self._up, self._transcriber.start())
        except BaseException:
            await self.stop()
            raise
        self._watch = EngineWatch(self.state.step_seconds.get("1", 0.0))
        self._keep_watch()
        costs = ", ".join(f"{slots}: {1000 * took:.1f} ms" for slots, took in self.state.step_seconds.items())
        log.info("the engine is ready; a step by slots: %s", costs)

    def _spawn(self, ends: Ends) -> None:
        command = [sys.executable, "-m", "model.gpu_process", json.dumps(asdict(ends))]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, pass_fds=ends.descriptors)
        self.pid = self._process.pid
        ends.close()

    async def stop(self) -> None:
        """End the process. Safe to call twice."""
        await self._transcriber.stop()
        self._hang_up()
        process, self._process, self.pid = self._process, None, None
        if process is None:
            return
        if self._watch.quiet:
            process.kill()  # It does not see that we let go of it, and whoever stops us does not wait for long.
        for _ in range(2):
            try:
                await asyncio.to_thread(process.wait, STOP_SECONDS)
                return
            except subprocess.TimeoutExpired:
                process.kill()
        # It waits for a driver that hangs, and ends when that lets go of it.
        log.error("the engine's process %d has been killed and does not end; it is left to the system", process.pid)

    async def lost(self) -> str:
        """Returns when the process has ended by itself: why."""
        if self._lost is None:
            raise RuntimeError("the engine is not started")
        return await asyncio.shield(self._lost)

    async def open(self, request: SessionRequest) -> PersonaplexSession:
        return await self.resume(request, History())

    async def resume(self, request: SessionRequest, history: History) -> PersonaplexSession:
        if self._watch.quiet:
            raise _refused(QUIET)
        data = engine_wire.encode_open(request, history)
        if self._channel is not None and self._channel.fill(len(data)) > OPENS_FILL:
            raise _refused(BEHIND)
        number = next(self._numbers)
        session = self._sessions[number] = PersonaplexSession(self, number, self._transcriber, request.call_id)
        try:
            self._put(number, data)
            await session.opened
            session.listen(request, history)
        except BaseException:
            self.forget(number)
            raise
        return session

    def send(self, number: int, message: Told) -> None:
        """Tell the engine something of a session; nothing, once that is over."""
        if number in self._sessions:
            self._put(number, engine_wire.encode(message))

    def forget(self, number: int) -> None:
        """A session is over: whatever still comes of it is dropped."""
        if self._sessions.pop(number, None) is not None:
            self._put(number, engine_wire.encode(Close()))

    def _put(self, number: int, data: bytes) -> None:
        if self._channel is None:
            if (session := self._sessions.get(number)) is not None:
                session.fail(_gone())
            return
        try:
            self._channel.put(number, data)
        except PeerGone:
            self._end()
        except RingFull:
            self._kill("the engine's process took nothing any more and was killed")

    def _read(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            channel.hush()
            gone = False
        except PeerGone:
            gone = True
        while (message := channel.get()) is not None:
            if self._watch.quiet:
                log.warning("the engine's process works again")
            self._watch.heard()
            number, data = message
            if number == CONTROL:
                self._know(EngineState.from_json(data.decode()))
            elif (session := self._sessions.get(number)) is not None:
                session.told(engine_wire.decode_from_engine(data))
        if gone:
            self._end()

    def _know(self, state: EngineState) -> None:
        assert self._up is not None
        if state.failure:
            self._failure = state.failure
            if not self._up.done():
                self._up.set_exception(EngineRefused(state.failure))
            return
        self.state = state
        if not self._up.done():
            self._up.set_result(None)

    def _keep_watch(self) -> None:
        if self._channel is not None:
            self._next_look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._keep_watch)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """See whether the process still works; `now` as of `time.monotonic`. One that hangs is killed."""
        self._read()  # What has come is heard, however late we are.
        was_quiet, watch = self._watch.quiet, self._watch
        watch.look(now)
        if self._channel is None or not watch.quiet:
            return
        if watch.hung:
            self._kill(f"the engine's process has said nothing for {watch.hung_after:.0f} s and was killed")
        elif not was_quiet:
            log.error("the engine's process says nothing any more; no call is taken until it does")
            for session in self._sessions.values():
                if not session.opened.done():
                    session.fail(_refused(QUIET))

    def _kill(self, reason: str) -> None:
        """End the process. Its end is not waited for: one that hangs in a driver may not be killed at once."""
        log.critical("%s", reason)
        self._failure = self._failure or reason
        if self._process is not None:
            self._process.kill()
        self._end()

    def _end(self) -> None:
        """The process is no more, and nobody asked it to end."""
        self._hang_up()
        assert self._up is not None
        assert self._lost is not None
        reason = self._failure or "the engine's process has ended; its messages are above"
        if not self._up.done():
            self._up.set_exception(EngineRefused(reason))
        if not self._lost.done():
            self._lost.set_result(reason)
        for session in list(self._sessions.values()):
            session.fail(_gone())

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if self._next_look is not None:
            self._next_look.cancel()
        if channel is not None:
            asyncio.get_running_loop().remove_reader(channel.ears)
            channel.close()


def _gone() -> SessionEnded:
    return SessionEnded(Error("draining", "the worker's engine has ended; it is started anew"), CloseCode.GOING_AWAY)


def _refused(reason: str) -> SessionEnded:
    return SessionEnded(Error("full", reason), CloseCode.TRY_AGAIN_LATER)
