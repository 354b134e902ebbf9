"""Sessions that outlive their worker: when it dies, hangs or is stopped, another goes on with the call.

Owns when a worker counts as lost, where its sessions go, and what the caller hears meanwhile: silence,
one frame for each of theirs, so that the call's clock never notices. What is remembered is
`gateway.history`'s, what the call hears in which order `gateway.answers`'s, which worker there is `gateway.pool`'s,
whether it keeps up `gateway.watch`'s, how many are opened at a time and how long a lost one waits
`gateway.resuming_pool`'s.

A session's way out of its worker:

    doubtful     it owes frames and answers none for three ticks of the call's clock, 240 ms, or falls 1.2 s behind.
                 Another that has a free slot is asked; until that one has the session, the first may answer and keep
                 it, but what it says waits, for the other would say it again. Before the call has waited too long for
                 that, one that owes less itself is heard after all, and left only once it owes as much
    lost         its connection breaks, or it says `draining`: at once. A doubtful one: once it owes so much that the
                 call would end, if the session is being opened elsewhere, has room there, or may wait for a worker
    waiting      for its turn: some sessions are opened at a time, those whose line was silent longest last
    opening      on another worker, with all that is known by then. Caller frames that come from here on
                 are for that worker; all before, unanswered, are missed
    going on     the worker answers what came meanwhile, a little late; the line gives that delay back in
                 the agent's next pause
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

from gateway.answers import Answers
from gateway.audio import QUIET, level
from gateway.engine import EngineError, EngineLost, WorkerChanged
from gateway.history import SessionHistory
from gateway.losses import LOSSES_WITHIN, MAX_LOSSES, Losses
from gateway.pool import WorkerPool
from gateway.pooled_worker import PooledWorker
from gateway.turns import Turns
from gateway.watch import MISSED_FRAMES, Watch
from gateway.worker_client import RESUME_READY_TIMEOUT, RemoteSession
from model.wire import (
    FRAME_SECONDS,
    AgentFrame,
    CallerText,
    Done,
    History,
    Output,
    SessionRequest,
)

log = logging.getLogger(__name__)

PATIENCE = 1.6
"""Seconds of sound that a doubtful worker may owe, where there is another way; the call itself ends at 2 s."""
RETRY_SECONDS, RETRY_LAST = 0.1, 0.8
"""Between two attempts; after one that a worker refused twice as long each time, for it costs 5 ms of our processor."""


class ResumingSession:
    """One call's. Implements `gateway.engine.Session`, and `gateway.pool.Continuation`."""

    def __init__(
        self,
        pool: WorkerPool,
        turns: Turns,
        within: float,
        leaves_for_nobody: bool,
        request: SessionRequest,
        session: RemoteSession,
    ) -> None:
        self.engine = session.engine
        self.history = SessionHistory()
        self.history.say(request.greeting)
        self._pool = pool
        self._turns = turns
        self._within = within
        self._leaves_for_nobody = leaves_for_nobody
        self._request = request
        self._session = session
        self._watch = Watch()
        self._lost = False
        """No worker holds the session."""
        self._reason = ""
        """Why it goes elsewhere, in a sentence."""
        self._slow = False
        """It leaves a worker that is too slow for it."""
        self._until = 0.0
        """When a lost one has waited long enough."""
        self._last_try = False
        self._opening_from: int | None = None
        """While a worker opens it: the caller frame from which that one will answer."""
        self._unsent: list[bytes] = []
        """Caller frames since then."""
        self._unsaid: list[str] = []
        self._answers = Answers(self.history)
        self._refusals = 0
        self._lost_at = 0
        """The first frame that the worker lost last has not answered."""
        self._last_speech = 0
        self._losses = Losses()
        self._reopening: asyncio.Task[WorkerChanged] | None = None
        self._given_up: set[asyncio.Task[WorkerChanged]] = set()
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._now = asyncio.get_running_loop().time

    async def send(self, pcm: bytes, line: bytes) -> None:
        if self._over.is_set():
            return
        self.history.caller(line)
        if level(line) >= QUIET:
            self._last_speech = self.history.sent
        if self._opening_from is not None:
            self._unsent.append(pcm)
        if self._lost:
            self._news.set()
            return
        if self._watch.sent(self._now()) and not self._session.unread:
            self._doubt()
        with suppress(EngineLost):  # which `outputs` raises too, where it is dealt with
            await self._session.send(pcm)

    async def outputs(self) -> AsyncIterator[Output | WorkerChanged]:
        while not self._over.is_set():
            session = self._session
            try:
                async for output in session.outputs():
                    for known in self._take(output):
                        yield known
                return
            except EngineLost as error:
                if self._opening_from is None:
                    for known in self._checked(self._answers.release()):
                        yield known
                reopening = self._leave(session, str(error))
            while not (reopening.done() or self._over.is_set()):
                for silence in self._silence():
                    yield silence
                await self._news.wait()
                self._news.clear()
            if self._over.is_set():
                return
            self._reopening = None
            try:
                change = reopening.result()
            finally:
                del reopening  # its exception holds this frame: a cycle, and the call in it
            for silence in self._answers.silence(change.index):
                yield silence
            yield change

    def _take(self, output: Output) -> list[Output]:
        """What is for the call now, with this."""
        if isinstance(output, AgentFrame):
            self._watch.answered()
            caught_up = self._opening_from is not None and output.index >= self._opening_from
            keeps = caught_up or not self._watch.fails
        else:  # one that is finished has no frames to catch up with
            keeps = isinstance(output, Done)
        if keeps and self._reopening is not None:
            self._stay(self._reopening)
        return self._checked(self._answers.take(output, opening=self._opening_from is not None))

    def _checked(self, outputs: Iterator[Output]) -> list[Output]:
        """A worker that breaks the protocol cannot be believed any longer.

        All at once, and remembered before any of it is handed out: another may be asked meanwhile.
        """
        known: list[Output] = []
        try:
            for output in outputs:
                known.append(output)  # noqa: PERF402  what comes before the fault is for the call
        except ValueError as error:
            self._session.give_up(f"the worker at {self._session.url} broke the protocol: {error}")
        return known

    def _silence(self) -> Iterator[Output]:
        """What the caller hears while nobody answers, and whoever goes on will not."""
        return self._answers.silence(self.history.sent if self._opening_from is None else self._opening_from)

    # Leaving a worker.

    def _doubt(self) -> None:
        """The worker fails. Another is looked for, and this one waited for as long as the call can bear."""
        url = self._session.url
        if self._reopening is None:
            silent = f"was silent for {MISSED_FRAMES * FRAME_SECONDS:.2f} s"
            self._slow = not self._watch.hangs
            how = f"was {self._watch.owed:.1f} s behind" if self._slow else silent
            self._reason = f"the worker at {url} {how}"
            self._pool.silent(url)
        reopening = self._reopening or self._begin()
        # What is withheld the call does not have either.
        if (self.history.sent - self._answers.next) * FRAME_SECONDS < PATIENCE:
            return
        # The call bears no more of that, but of this worker: what it said is better than silence.
        if self._watch.owed < PATIENCE and not self._watch.hangs:
            self._stay(reopening)
            self._watch.trust(PATIENCE)
            return
        # One that is only slow would take it again, and again be too slow.
        waits = self._leaves_for_nobody and self._watch.hangs
        # Nor does the call end while it waits for its turn.
        if waits or self._opening_from is not None or self._pool.has_room(self):
            self._session.give_up(self._reason)

    def _stay(self, reopening: asyncio.Task[WorkerChanged]) -> None:
        """The worker answers again before another had the session: it keeps it."""
        self._reopening = None
        reopening.cancel()
        self._given_up.add(reopening)
        reopening.add_done_callback(self._given_up.discard)
        self.refused()
        self._pool.answers(self._session.url)

    def _leave(self, session: RemoteSession, reason: str) -> asyncio.Task[WorkerChanged]:
        """That worker is gone; what goes on elsewhere. Raises EngineLost if it happened too often."""
        self._answers.forget()
        self._pool.lost_session(session.url)
        now = self._now()
        if self._session is session:  # else another has it by now
            self._lost, self._lost_at = True, self._answers.next
            self._reason, self._slow = reason, False
            self._until = now + self._within
        if not self._slow:
            self._losses.lost(now, session.worker, session.stopping)
        if self._losses.too_many(now):
            raise EngineLost(f"the session was lost {MAX_LOSSES} times within {LOSSES_WITHIN:.0f} s; {reason}")
        return self._reopening or self._begin()

    # Going on elsewhere.

    def _begin(self) -> asyncio.Task[WorkerChanged]:
        reopening = self._reopening = asyncio.create_task(self._reopen())
        reopening.add_done_callback(lambda _: self._news.set())
        return reopening

    async def _reopen(self) -> WorkerChanged:
        """Open the session elsewhere. Raises EngineLost, with both reasons, if it is lost and nobody takes it."""
        pause = RETRY_SECONDS
        while True:
            self._last_try = self._lost and self._now() + pause > self._until
            refusals = self._refusals
            try:
                async with self._turns.turn(self.history.sent - max(self._last_speech, self._answers.last_speech)):
                    return await self._attempt()
            except EngineError as error:
                if self._last_try or self._over.is_set():
                    raise EngineLost(f"{self._reason}; {error}") from None
            pause = RETRY_SECONDS if self._refusals == refusals else min(2 * pause, RETRY_LAST)
            await asyncio.sleep(pause)

    async def _attempt(self) -> WorkerChanged:
        session = await self._pool.resume(self)
        index = self._opening_from
        assert index is not None
        if not self._lost:
            if self._session.unread:
                session.give_up("the worker before answers again")
                self.refused()
                raise EngineLost("the worker answers again")
            self._lost_at = self._answers.next
            self._session.give_up(self._reason)
        self._session = session
        await self._catch_up()
        return WorkerChanged(index, index - self._lost_at, session.worker, self._reason)

    def fits(self, worker: PooledWorker) -> bool:
        if self._over.is_set():
            return False
        if self._lost:  # in the end one that hangs is better than none
            return self._last_try or not (worker.hung or worker.full)
        if worker.engine.url == self._session.url or worker.hung or not worker.free:
            return False
        return self._watch.hangs or not worker.suspect  # else calls go round among workers that are all too slow

    def describe(self) -> tuple[SessionRequest, History]:
        resume = self.history.resume()
        self._opening_from = resume.next_index
        self._unsent.clear()
        self._unsaid.clear()
        self._news.set()
        return replace(self._request, resume=resume), self.history.content()

    def refused(self) -> None:
        self._refusals += 1
        self._opening_from = None
        self._answers.kept()
        self._news.set()

    async def _catch_up(self) -> None:
        """Hand the new worker what came while it was being opened."""
        self.history.goes_on()
        self._answers.handed_over()
        self._lost = False
        self._opening_from = None
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
        if self._opening_from is not None:
            self._unsaid.append(text)
        if not self._lost:
            with suppress(EngineLost):
                await self._session.say(text)

    async def play(self, clip: str) -> None:
        self.history.play(clip)
        if not self._lost:
            with suppress(EngineLost):
                await self._session.play(clip)

    async def close(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._news.set()
        # First of all: whoever waits for the rest may be cancelled.
        self.history.wipe()
        self._unsaid.clear()
        self._answers.forget()
        reopening = [self._reopening] if self._reopening is not None else []
        tasks = [*self._given_up, *reopening]
        try:
            if reopening and self._opening_from is not None and (self._lost or self._watch.hangs):  # it heard the rest
                await asyncio.wait(reopening, timeout=RESUME_READY_TIMEOUT)
        finally:
            self._unsent.clear()
            for task in tasks:
                task.cancel()
            if self.unheard is not None:
                said = f"what its caller said after {self.unheard:.1f} s"
                what = f"it ended between two workers; {said} {'is not' if self._lost else 'may not be'} written down"
                log.warning("call %s: %s", self._request.call_id, what)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reopening = None  # its exception holds us
        self._opening_from = None
        self._answers.kept()
        await self._session.close()

    @property
    def unheard(self) -> float | None:
        return self.history.heard * FRAME_SECONDS if self._lost or self._watch.hangs else None

    async def last_words(self) -> AsyncIterator[CallerText]:
        async for text in self._session.last_words():
            for known in self._take(text):
                if isinstance(known, CallerText):
                    yield known
        for known in self._answers.caller_words():
            yield known
