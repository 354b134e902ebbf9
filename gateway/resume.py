"""Sessions that outlive their worker: when it dies, hangs or is stopped, another goes on with the call.

Owns when a worker counts as lost, where its sessions go, and what the caller hears meanwhile: silence,
one frame for each of theirs, so that the call's clock never notices. What is remembered is
`gateway.history`'s, which worker there is `gateway.pool`'s.

A session's way out of its worker:

    lost         its connection breaks, or it says `draining`: at once. It owes frames and answers none
                 for three ticks of the call's clock, 240 ms: it hangs
    waiting      for its turn: some sessions are opened at a time, those whose line was silent longest last
    opening      on another worker, with all that is known by then. Caller frames that come from here on
                 are for that worker; all before, unanswered, are missed
    going on     the worker answers what came meanwhile, a little late; the line gives that delay back in
                 the agent's next pause

An engine without token columns (rehearsal, echo) cannot go on; its sessions are handed out as they are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

from gateway.audio import QUIET, level
from gateway.engine import EngineError, EngineLost, Session, WorkerChanged
from gateway.history import SessionHistory
from gateway.pool import WorkerPool
from gateway.turns import Turns
from gateway.worker_client import RemoteSession
from model.wire import (
    FRAME_BYTES,
    FRAME_SECONDS,
    AgentFrame,
    AgentText,
    CallerText,
    Columns,
    Cut,
    GaveWay,
    Late,
    Output,
    Played,
    SessionRequest,
)

MISSED_FRAMES = 3
"""Ticks without any answer, while answers are owed, after which a worker hangs."""
RESUME_WITHIN = 8.0
"""Seconds from the loss in which our own worker, started again, may take the call, unless the settings say otherwise:
callers hear silence meanwhile, and few hold on for longer. With an attempt's time it stays below the 10 s of a caller's
sound that a history holds. An engine that loads 17 GB takes longer: see CALLPLEX_RESUME_WITHIN."""
ATTEMPT_SECONDS = 1.5
"""For one attempt to open a session elsewhere; below the 2 s that a call waits for sound it is owed."""
RETRY_SECONDS = 0.1
AT_ONCE = 32
"""Sessions that are opened anew at a time. A worker prepares sixteen together; while it does, the next sixteen come.
All at once would be no sooner, and the last would have most to catch up with: what was said since it was asked for."""
MAX_LOSSES, LOSSES_WITHIN = 3, 10.0
"""A session lost this often in so many seconds is what breaks the workers."""
_SILENCE = bytes(FRAME_BYTES)


class Watch:
    """Tells a worker that hangs from one that is slow, and from a gateway that is. Pure: time comes in.

    Counted are ticks, not seconds, and of a burst of late ticks only the first: after our own process
    stood still, answers that wait to be read are not held against the worker.
    """

    def __init__(self) -> None:
        self._owed = 0
        self._missed = 0
        self._last = 0.0

    def sent(self, now: float) -> bool:
        """A caller frame is about to be sent; whether the worker hangs."""
        if self._owed and now - self._last >= FRAME_SECONDS / 2:
            self._missed += 1
        self._last = now
        self._owed += 1
        return self._missed >= MISSED_FRAMES

    def answered(self) -> None:
        """An agent frame came."""
        self._owed = max(0, self._owed - 1)
        self._missed = 0


class ResumingPool:
    """The pool as calls see it. Implements `gateway.engine.Engine`."""

    def __init__(self, pool: WorkerPool, within: float | None = None) -> None:
        """`within`: seconds that a lost call waits for a worker that takes it.

        None: RESUME_WITHIN where a lost worker is started again by us, else not at all.
        """
        self._pool = pool
        self._turns = Turns(AT_ONCE)
        self._within = within if within is not None else RESUME_WITHIN if pool.restarts else 0.0

    async def open(self, request: SessionRequest) -> Session:
        session = await self._pool.open(request)
        if not session.resumable:
            return session
        return ResumingSession(self._pool, self._turns, self._within, request, session)


class ResumingSession:
    """One call's. Implements `gateway.engine.Session`."""

    def __init__(
        self, pool: WorkerPool, turns: Turns, within: float, request: SessionRequest, session: RemoteSession
    ) -> None:
        self.engine = session.engine
        self.history = SessionHistory()
        self.history.say(request.greeting)
        self._pool = pool
        self._turns = turns
        self._within = within
        self._request = request
        self._session = session
        self._watch = Watch()
        self._hung = False
        self._moving = False
        self._opening_from: int | None = None
        """Once a session is being opened: the caller frame from which it will answer."""
        self._unsent: list[bytes] = []
        """Caller frames since then."""
        self._unsaid: list[str] = []
        self._texts: list[AgentText] = []
        """What the agent says with its next frame: said only once that frame is here."""
        self._answered = 0
        self._last_speech = 0
        self._lost_at = 0
        """The first frame that the worker lost last has not answered."""
        self._losses: deque[float] = deque(maxlen=MAX_LOSSES)
        self._reopening: asyncio.Task[WorkerChanged] | None = None
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._now = asyncio.get_running_loop().time

    async def send(self, pcm: bytes, line: bytes) -> None:
        if self._over.is_set():
            return
        self.history.caller(line)
        if level(line) >= QUIET:
            self._last_speech = self.history.sent
        if self._moving:
            self._unsent.append(pcm)
            self._news.set()
            return
        if self._watch.sent(self._now()):
            self._hung = True
            silent = MISSED_FRAMES * FRAME_SECONDS
            self._session.give_up(f"the worker at {self._session.url} was silent for {silent:.2f} s")
        with suppress(EngineLost):  # which `outputs` raises too, where it is dealt with
            await self._session.send(pcm)

    async def outputs(self) -> AsyncIterator[Output | WorkerChanged]:
        while not self._over.is_set():
            try:
                async for output in self._session.outputs():
                    for known in self._take(output):
                        yield known
                return
            except EngineLost as error:
                self._lose(str(error))
                reason = str(error)
            reopening = self._reopening = asyncio.create_task(self._reopen(reason))
            reopening.add_done_callback(lambda _: self._news.set())
            while not (reopening.done() or self._over.is_set()):
                for silence in self._silence():
                    yield silence
                await self._news.wait()
                self._news.clear()
            if self._over.is_set():
                return
            change = reopening.result()
            for silence in self._silence(change.index):
                yield silence
            yield change

    def _take(self, output: Output) -> Iterator[Output]:
        """Remember what another worker would need, and pass on what is for the call."""
        history = self.history
        match output:
            case AgentFrame():
                self._watch.answered()
                yield from self._spoken()
                if output.tokens:
                    history.agent(output.index, output.tokens)
                self._answered = output.index + 1
                yield output
            case AgentText():
                self._texts.append(output)
            case CallerText():
                if not output.final:
                    yield output
                elif output.end > history.heard:
                    history.heard = output.end
                    yield output
            case Cut():
                history.cut(output.index)
            case Columns():
                history.agent(output.index, output.columns)
            case Played():
                history.played(output.clip)
            case GaveWay():
                history.gave_way(output.text)
            case Late():
                yield output
            case _:
                yield from self._spoken()
                yield output

    def _spoken(self) -> Iterator[AgentText]:
        for text in self._texts:
            self._last_speech = self.history.sent
            self.history.spoke(text.text)
            yield text
        self._texts.clear()

    def _silence(self, until: int | None = None) -> Iterator[AgentFrame]:
        """What the caller hears in place of frames that nobody will answer, up to `until` if that is known."""
        if until is None:
            until = self.history.sent if self._opening_from is None else self._opening_from
        while self._answered < until:
            yield AgentFrame(self._answered, _SILENCE)
            self._answered += 1

    # Going on elsewhere.

    def _lose(self, reason: str) -> None:
        """The worker is gone. Raises EngineLost if that happened too often."""
        self._moving = True
        self._opening_from = None
        self._texts.clear()
        self._lost_at = self.history.answered
        self._pool.lost_session(self._session.url, self._hung)
        now = self._now()
        self._losses.append(now)
        if len(self._losses) == MAX_LOSSES and now - self._losses[0] < LOSSES_WITHIN:
            raise EngineLost(f"the session was lost {MAX_LOSSES} times within {LOSSES_WITHIN:.0f} s; {reason}")

    async def _reopen(self, reason: str) -> WorkerChanged:
        """Open the session elsewhere. Raises EngineLost, with both reasons, if nobody takes it in time."""
        until = self._now() + self._within
        while True:
            try:
                async with self._turns.turn(self.history.sent - self._last_speech):
                    return await self._attempt(reason)
            except EngineError as error:
                self._opening_from = None
                self._news.set()
                if self._now() + RETRY_SECONDS > until:
                    raise EngineLost(f"{reason}; {error}") from None
            await asyncio.sleep(RETRY_SECONDS)

    async def _attempt(self, reason: str) -> WorkerChanged:
        resume = self.history.resume()
        self._opening_from = resume.next_index
        self._unsent.clear()
        self._unsaid.clear()
        self._news.set()
        request = replace(self._request, resume=resume)
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                self._session = await self._pool.open(request, self.history.content())
        except TimeoutError:
            raise EngineLost(f"no worker took the session within {ATTEMPT_SECONDS:.1f} s") from None
        await self._catch_up()
        missed = resume.next_index - self._lost_at
        return WorkerChanged(resume.next_index, missed, self._session.worker, reason)

    async def _catch_up(self) -> None:
        """Hand the new worker what came while it was being opened."""
        self._moving = self._hung = False
        self._watch = Watch()
        session, unsent, unsaid = self._session, self._unsent, self._unsaid
        self._unsent, self._unsaid = [], []
        with suppress(EngineLost):  # lost again: `outputs` will say so
            for pcm in unsent:
                self._watch.sent(self._now())
                await session.send(pcm)
            for text in unsaid:
                await session.say(text)
            for clip in self.history.clips:
                await session.play(clip)

    # What the agent is told.

    async def say(self, text: str) -> None:
        self.history.say(text)
        if self._moving:
            self._unsaid.append(text)
            return
        with suppress(EngineLost):
            await self._session.say(text)

    async def play(self, clip: str) -> None:
        self.history.play(clip)
        if not self._moving:
            with suppress(EngineLost):
                await self._session.play(clip)

    async def close(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._news.set()
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        self.history.wipe()
        await self._session.close()
