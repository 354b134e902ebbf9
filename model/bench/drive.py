"""Callers for the engine: frames that come when they should, stepped as the scheduler says, and how long that took.

Owns the measured loop, in lockstep or at random phases, with or without other work beside it. Knows no networks: it
steps slots and looks at the clock.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.engine import Stepper
from model.scheduler import FRAME, Scheduler
from model.wire import FRAME_SAMPLES

_SPIN = 0.0005
"""Seconds before a moment from which it is waited for without sleep."""
_LOOK_AGAIN = 0.002
"""Seconds after which work that waits for the device is looked at again."""
SOUND = (np.sin(np.arange(FRAME_SAMPLES) * 0.05) * 4000).astype("<i2").tobytes()


@dataclass(frozen=True, slots=True)
class Latency:
    """Of frames, from when the caller's sound was there to when the answer was, in milliseconds."""

    frames: int
    p50: float
    p99: float
    p999: float
    max: float
    misses: int
    """Frames that took more than 80 ms."""
    mean_batch: float = 0.0


def latency(seconds: Sequence[float], steps: int) -> Latency:
    """Raises ValueError for no frames at all."""
    if not seconds:
        raise ValueError("nothing was measured: let it run for longer")
    sorted_ms = np.sort(np.asarray(seconds)) * 1000
    p50, p99, p999 = np.quantile(sorted_ms, (0.5, 0.99, 0.999))
    misses = int((sorted_ms > FRAME * 1000).sum())
    return Latency(len(seconds), p50, p99, p999, sorted_ms[-1], misses, len(seconds) / steps)


def lockstep(stepper: Stepper, slots: int, seconds: float, least: int = 20) -> Latency:
    """All slots at once, step after step without a pause."""
    named, sound = list(range(slots)), [SOUND] * slots
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < least or time.perf_counter() < end:
        start = time.perf_counter()
        stepper.step(named, sound)
        took.append(time.perf_counter() - start)
    return latency([one for one in took for _ in named], len(took))


Job = Callable[[], Generator[bool]]
"""Work to be done beside the calls, in parts."""


@dataclass(slots=True)
class Timed:
    """A job's times: when it is to begin (seconds from the start), and what it took, in milliseconds."""

    at: float
    job: Job
    then: Callable[[], None]
    """What is done at once when the work is complete."""
    took: float | None = None
    _parts: Generator[bool] | None = field(default=None, repr=False)

    def advance(self) -> bool:
        """One part. Returns whether that was the last."""
        if self._parts is None:
            self._parts = self.job()
        try:
            next(self._parts)
        except StopIteration:
            return True
        return False


class Callers:
    """Callers of slots 0 to `slots` - 1, each with a phase of its own, for some seconds of real time."""

    def __init__(self, stepper: Stepper, slots: int, costs: Mapping[int, float], seed: int = 1) -> None:
        """`costs`: what a step of so many slots takes, seconds. Other sizes than these are not stepped."""
        self._stepper, self._slots = stepper, slots
        self._scheduler = Scheduler(slots, largest=max(costs), costs=costs)
        self._phases = [random.Random(seed + slot).random() * FRAME for slot in range(slots)]

    def run(self, seconds: float, beside: Sequence[Timed] = ()) -> Latency:
        """Each caller's frames until the end, all of them answered; jobs are done between steps, in order."""
        scheduler, waiting = self._scheduler, sorted(beside, key=lambda timed: timed.at)
        start = time.perf_counter()
        for _ in range(self._slots):
            scheduler.open(start)
        coming = [(start + phase, slot, 0) for slot, phase in enumerate(self._phases)]
        heapq.heapify(coming)
        took: list[float] = []
        steps = 0
        while True:
            now = time.perf_counter()
            self._arrive(coming, now, start + seconds)
            frames = scheduler.due(now)
            if frames:
                self._stepper.step([frame.slot for frame in frames], [frame.pcm for frame in frames])
                now = time.perf_counter()
                scheduler.stepped(frames, now)
                took += [now - frame.arrived for frame in frames]
                steps += 1
            worked = self._work(waiting, start)
            if not frames and not worked:
                moments = [coming[0][0]] if coming else []
                if (due := scheduler.next_due()) is not None:
                    moments.append(due)
                if not moments and not waiting:
                    break
                if waiting:
                    moments.append(now + _LOOK_AGAIN)
                wait_until(min(moments))
        for slot in range(self._slots):
            scheduler.close(slot, time.perf_counter())
        return latency(took, steps)

    def _arrive(self, coming: list[tuple[float, int, int]], now: float, end: float) -> None:
        while coming and coming[0][0] <= now:
            due, slot, index = heapq.heappop(coming)
            self._scheduler.push(slot, index, SOUND, due)
            if due + FRAME < end:
                heapq.heappush(coming, (due + FRAME, slot, index + 1))

    def _work(self, waiting: list[Timed], start: float) -> bool:
        """One part of the first job whose time has come."""
        now = time.perf_counter()
        if not waiting or start + waiting[0].at > now:
            return False
        timed = waiting[0]
        with self._stepper.aside() as free:
            if not free:
                return False
            over = timed.advance()
        if over:
            self._stepper.join()
            timed.then()
            timed.took = (time.perf_counter() - start - timed.at) * 1000
            waiting.pop(0)
        return True


def wait_until(moment: float) -> None:
    """Sleep, and at the end spin, until a moment of `time.perf_counter`."""
    left = moment - time.perf_counter()
    if left > _SPIN:
        time.sleep(left - _SPIN)
    while time.perf_counter() < moment:
        pass
