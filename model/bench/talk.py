"""Calls in full swing: callers at phases of their own in real time, and sessions that come and go beside them.

Owns the callers, the clock and who was answered when. The engine's own `Calls` does the work, so that steps and what
comes between them take turns as they do in a worker. Knows no networks.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from model.bench.asked import Asked, Asking
from model.bench.drive import SOUND, Latency, latency, wait_until
from model.bench.models import fill_windows
from model.calls import Calls
from model.engine import Stepper
from model.pace import FRAME
from model.prompt_cache import PromptCache
from model.scheduler import Scheduler
from model.wire import AgentFrame, Error, FromWorker


class CallEnded(Exception):
    """The engine ended a caller's call, so that nothing more can be measured; the message says why."""


@dataclass(slots=True)
class Job:
    """Work beside the callers: what begins it, and how to know that it is over."""

    begin: Callable[[float], None]
    """Takes the moment at which it was asked for."""
    over: Callable[[], bool]
    end: Callable[[], None]
    """What is done then, and not timed."""
    at: float = 0.0
    """Seconds from the start of a run until it is asked for, or later: when the one before is over."""
    session: int | None = None
    """That it opens."""
    asked: float = 0.0
    """The moment at which it was."""
    took: float | None = None
    """Milliseconds from then on; None if its session was refused."""

    @property
    def done(self) -> float:
        """The moment at which it was over; that at which it was asked for if its session was refused."""
        return self.asked + (self.took or 0.0) / 1000


Answered = tuple[float, float, int]
"""A caller's frame: when it came, the seconds until its answer, and the number of the step that gave it.

No named tuple: the collector walks those for ever, and a run of minutes keeps hundreds of thousands beside its steps.
"""


@dataclass(slots=True)
class Run:
    """What was seen in one run."""

    frames: list[Answered] = field(default_factory=list)
    steps: int = 0

    def latency(self) -> Latency:
        """Of all frames."""
        return latency([took for _, took, _ in self.frames], self.steps)

    def beside(self, jobs: Sequence[Job]) -> Latency | None:
        """Of the frames that waited for their answers while one of `jobs` was done; None if there were none."""
        times = [(job.asked, job.done) for job in jobs if job.took is not None]
        waited = [
            (took, step)
            for came, took, step in self.frames
            if any(came < done and came + took > asked for asked, done in times)
        ]
        return latency([took for took, _ in waited], len({step for _, step in waited})) if waited else None


class Talk:
    """Sessions 0 to `slots` - 1 are the callers' and stay; others come and go in the slots beyond theirs."""

    def __init__(
        self,
        stepper: Stepper,
        slots: int,
        costs: Mapping[int, float],
        prompts: PromptCache,
        asking: Asking,
        spare_slots: int = 1,
    ) -> None:
        """`costs`: what a step of so many slots takes, seconds. Other sizes than these are not stepped."""
        self.stepper, self.slots = stepper, slots
        scheduler = Scheduler(slots + spare_slots, largest=max(costs), costs=costs)
        # All calls begin at once: they would get their prompts back at once, too, as calls that come one by one do not.
        # Who measures what that costs asks for it.
        self.calls = Calls(stepper, scheduler, prompts, asking, self._tell, time.perf_counter, "sliding")
        self.refused: dict[int, str] = {}
        """Sessions that were not opened, and why."""
        self._phases = [random.Random(1 + slot).random() * FRAME for slot in range(slots)]
        self._next: dict[int, int] = {}
        """Of each session that talks, the index of its next frame."""
        self._unanswered: dict[tuple[int, int], float] = {}
        self._spoke: set[int] = set()
        self._numbers = slots
        self._coming: list[tuple[float, int]] = []
        """When whose next frame comes."""
        self._run = Run()

    def open_callers(self, asked: Sequence[Asked], frames: int) -> None:
        """Open a call for each, wait until all is done for it, and let its window be as after `frames` frames."""
        for session, one in enumerate(asked):
            self.calls.open(session, one.request, one.history)
            self._next[session] = one.first
        self._settle()
        fill_windows(self.stepper, self.slots, frames)

    def number(self) -> int:
        """Of a new session."""
        self._numbers += 1
        return self._numbers - 1

    def open(self, session: int, asked: Asked, moment: float) -> None:
        """One more session, whose caller talks from `moment` on, too."""
        self.calls.open(session, asked.request, asked.history)
        if session not in self.refused:
            self._next[session] = asked.first
            self._say(moment, session)

    def close(self, session: int) -> None:
        """The session is over, if it was ever opened. What it was not told it will not be."""
        self.calls.close(session)
        self._next.pop(session, None)
        self._coming = [one for one in self._coming if one[1] != session]
        heapq.heapify(self._coming)
        self._unanswered = {frame: came for frame, came in self._unanswered.items() if frame[0] != session}

    def close_callers(self) -> None:
        """And let all be done that their end leaves to do."""
        for session in range(self.slots):
            self.close(session)
        self._settle()

    def speaks(self, session: int) -> bool:
        """Whether it has answered its caller."""
        return session in self._spoke

    def run(self, seconds: float, jobs: Sequence[Job] = ()) -> Run:
        """Callers talk until the time is over and so are the jobs, done in order; all their frames are answered.

        Raises CallEnded.
        """
        start, steps, self._run = time.perf_counter(), self.calls.steps, Run()
        end = start + seconds
        self._coming = [(start + phase, session) for session, phase in enumerate(self._phases)]
        heapq.heapify(self._coming)
        waiting = deque(jobs)
        doing: Job | None = None
        asked = start + waiting[0].at if waiting else math.inf  # when the next job is
        while waiting or doing or self._unanswered or (self._coming and self._coming[0][0] < end):
            self._arrive(time.perf_counter(), math.inf if waiting or doing else end)
            if doing is None and asked <= time.perf_counter():
                doing = waiting.popleft()
                doing.asked = asked
                doing.begin(asked)
            worked = self.calls.work()
            if doing is not None and doing.over():
                self._finish(doing)
                doing = None
                asked = max(start + waiting[0].at, time.perf_counter()) if waiting else math.inf
            elif not worked:
                self._rest(asked if doing is None else math.inf)
        self._run.steps = self.calls.steps - steps
        return self._run

    def _finish(self, job: Job) -> None:
        if job.session not in self.refused:
            job.took = 1000 * (time.perf_counter() - job.asked)
        job.end()

    def _rest(self, begins: float) -> None:
        """Until something comes, is due, or begins."""
        comes = self._coming[0][0] if self._coming else math.inf
        due = self.calls.wake_at()
        moment = min(comes, math.inf if due is None else due, begins)
        if moment < math.inf:
            wait_until(moment)

    def _settle(self) -> None:
        """Do all that is to be done between steps."""
        while True:
            if not self.calls.work():
                if (wake := self.calls.wake_at()) is None:
                    return
                wait_until(wake)

    def _arrive(self, now: float, end: float) -> None:
        """What has come until now, but from `end` on nothing."""
        while self._coming and self._coming[0][0] <= now:
            moment, session = heapq.heappop(self._coming)
            if moment < end:
                self._say(moment, session)

    def _say(self, moment: float, session: int) -> None:
        """The next frame of a session comes, and the one after it will."""
        index = self._next[session]
        self._next[session] = index + 1
        self._unanswered[session, index] = moment
        heapq.heappush(self._coming, (moment + FRAME, session))
        self.calls.frame(session, index, SOUND, moment)

    def _tell(self, session: int, message: FromWorker) -> None:
        if isinstance(message, Error):
            if session < self.slots:
                raise CallEnded(f"the engine ended a call that was measured: {message.message}")
            self.refused[session] = message.message
        elif isinstance(message, AgentFrame):
            self._spoke.add(session)
            came = self._unanswered.pop((session, message.index), None)
            if came is not None and session < self.slots:
                self._run.frames.append((came, time.perf_counter() - came, self.calls.steps))
