"""Work beside calls in full swing: an opened call, a new prompt, a session taken over, prompts given back.

Owns what each is made of and when it begins. The engine's own `Calls` does it, between steps as it sees fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model.bench.asked import Asked, Asking
from model.bench.drive import Latency
from model.bench.models import fill_windows
from model.bench.talk import Job, Talk
from model.engine import Stepper
from model.history import renewed_every
from model.pace import FRAME
from model.prompt_cache import PromptCache
from model.scheduler import PAUSE, WATCHED

RESUMED = 64
"""Calls resumed at once, or as many as there are."""
_PROMPTS = 1 << 30
"""Bytes in which prompts are kept."""
_FIRST = 1.0
"""Seconds until the first work, or half of a run that is shorter than two: the calls have found their pace."""
_BETWEEN = 0.5
"""Seconds of talk after which it is looked whether calls are taken again."""
_LATE_NO_LONGER = WATCHED + PAUSE
"""Seconds after the last late frame in which a scheduler takes no calls: it is watched for, and then waited."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Milliseconds that each piece of work took until its call spoke (or remembered all), and the others' latency."""

    took: tuple[float, ...]
    others: Latency | None
    """Of their frames that waited for an answer while a piece of it was done; None where there were none."""
    frames: int = 0
    """Of the others in all of the run, most of which nothing was done beside."""
    refused: tuple[str, ...] = ()
    """Why calls were not opened: an engine whose frames run late takes none."""


@dataclass(frozen=True, slots=True)
class Repriming:
    """Calls that get their prompts back, one after another, as often as those of a worker do."""

    every: float
    """Seconds from one of them to the next."""
    took: tuple[float, ...]
    """Milliseconds until each had its own."""
    latency: Latency
    """Of all frames of that run."""


class BesideCalls:
    """Calls of slots 0 to `slots` - 1 at phases of their own, and work beside them in the slot after theirs.

    Each has a past that is long enough to be read again when it gets its prompt back.
    """

    def __init__(self, stepper: Stepper, slots: int, costs: Mapping[int, float], seconds: float, frames: int) -> None:
        """`frames`: what calls have behind them."""
        self._stepper, self._slots, self._costs, self._seconds = stepper, slots, costs, seconds
        self._frames = frames
        self._first = min(_FIRST, seconds / 2)
        self._jobs = max(1, int(seconds - self._first))
        self._asking = Asking(stepper.models.config)
        self._prompts = PromptCache(stepper, _PROMPTS)
        self._prompts.warm(self._asking.known)
        self._talk = Talk(stepper, slots, costs, self._prompts, self._asking)
        self._talk.open_callers([self._asking.resumed(self._asking.deep) for _ in range(slots)], frames)

    def random_phases(self, seconds: float) -> Latency:
        """Nothing but the calls, none of which gets its prompt back. Raises CallEnded, as all of these."""
        return self._talk.run(seconds).latency()

    def repriming(self, seconds: float) -> Repriming:
        """Nothing but the calls, each of which gets its prompt back as often as in a worker, in turn.

        A window is full until then, and as the engine leaves it from then on; afterwards all are full again.
        """
        context = self._stepper.models.config.transformer.context
        every = renewed_every(context, self._asking.known.frames) * FRAME / self._slots
        jobs = [self._repriming(number % self._slots) for number in range(round(seconds / every))]
        for number, job in enumerate(jobs):
            job.at = (number + 0.5) * every
        found = self._talk.run(seconds, jobs).latency()
        fill_windows(self._stepper, self._slots, self._frames)
        return Repriming(every, tuple(job.took for job in jobs if job.took is not None), found)

    def measure(self) -> dict[str, Beside]:
        """Each kind by itself. Afterwards the calls are over."""
        self._until_calls_are_taken()
        asking = self._asking
        kinds: dict[str, Callable[[int], Job]] = {
            "open_from_cache": lambda _: self._session(asking.plain()),
            "uncached_prompt": lambda _: self._session(asking.fresh()),
            "resume_fast": lambda _: self._session(asking.resumed(asking.fast)),
            "resume_deep": lambda _: self._session(asking.resumed(asking.whole)),
            "reprime_each_second": lambda number: self._repriming(number % self._slots),
        }
        found = {name: self._run([kind(number) for number in range(self._jobs)]) for name, kind in kinds.items()}
        self.close()
        found["resume_all"] = Beside(self._resume_all(), None)
        return found

    def _until_calls_are_taken(self) -> None:
        """Frames that ran late before are no reason to refuse one, unless they still do."""
        scheduler, end = self._talk.calls.scheduler, time.perf_counter() + _LATE_NO_LONGER
        while (now := time.perf_counter()) < end and scheduler.refusal(now):
            self._talk.run(_BETWEEN)

    def close(self) -> None:
        """The calls are over."""
        self._talk.close_callers()

    def _run(self, jobs: list[Job]) -> Beside:
        for index, job in enumerate(jobs):
            job.at = self._first + index
        refused = len(self._talk.refused)
        run = self._talk.run(self._seconds, jobs)
        reasons = tuple(self._talk.refused.values())[refused:]
        took = tuple(job.took for job in jobs if job.took is not None)
        return Beside(took, run.beside(jobs), len(run.frames), reasons)

    def _session(self, asked: Asked) -> Job:
        """From asking for a call until it has answered its caller and remembers all that it is to."""
        talk, calls = self._talk, self._talk.calls
        number = talk.number()

        def over() -> bool:
            return number in talk.refused or (talk.speaks(number) and not calls.remembering(number))

        return Job(lambda moment: talk.open(number, asked, moment), over, lambda: talk.close(number), session=number)

    def _repriming(self, session: int) -> Job:
        """A caller's call gets its prompt back, while it goes on."""
        calls = self._talk.calls
        return Job(lambda _: calls.renew(session), lambda: not calls.remembering(session), lambda: None)

    def _resume_all(self) -> tuple[float, ...]:
        """As after another worker's end: calls resumed at once, until each has spoken. Nobody else talks."""
        count, spoke = min(RESUMED, self._slots), dict[int, float]()
        talk = Talk(self._stepper, 0, self._costs, self._prompts, self._asking, count)
        asked = self._asking.resumed(self._asking.fast)
        begun = time.perf_counter()

        def open_all(moment: float) -> None:
            for session in range(count):
                talk.open(session, asked, moment)

        def all_speak() -> bool:
            for session in range(count):
                if session not in spoke and talk.speaks(session):
                    spoke[session] = 1000 * (time.perf_counter() - begun)
            return len(spoke.keys() | talk.refused.keys()) == count

        def close_all() -> None:
            for session in range(count):
                talk.close(session)

        talk.run(0.0, [Job(open_all, all_speak, close_all)])
        return tuple(spoke.values())
