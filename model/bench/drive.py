"""Steps of all slots at once, and what frames took: the figures of the engine's benchmark.

Owns the run in lockstep, how long frames took in numbers, and the wait for a moment. Calls at phases of their own are
`model.bench.talk`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.engine import Stepper
from model.pace import FRAME
from model.wire import FRAME_SAMPLES

_SPIN = 0.0005
"""Seconds before a moment from which it is waited for without sleep."""
_FIRST = 5
"""Steps that are told apart."""
SOUND = (np.sin(np.arange(FRAME_SAMPLES) * 0.05) * 4000).astype("<i2").tobytes()


@dataclass(frozen=True, slots=True)
class Latency:
    """Of frames, from when the caller's sound was there to when the answer was, in milliseconds."""

    frames: int
    steps: int
    """In which they were answered. Frames of one step in lockstep take the same: it is their number that says what a
    quantile is worth."""
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
    return Latency(len(seconds), steps, p50, p99, p999, sorted_ms[-1], misses, len(seconds) / steps)


def lockstep(stepper: Stepper, slots: int, seconds: float, least: int = 20) -> Latency:
    """All slots at once, step after step without a pause: `least` of them, or more in so many seconds."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < least or time.perf_counter() < end:
        took.append(_step(stepper, slots))
    return latency([one for one in took for _ in range(slots)], len(took))


def first_steps(stepper: Stepper, slots: int) -> tuple[float, ...]:
    """Milliseconds of the first steps after windows were filled, which wait for that, too: no others are like them."""
    return tuple(1000 * _step(stepper, slots) for _ in range(_FIRST))


def _step(stepper: Stepper, slots: int) -> float:
    """Seconds of one with sound for the first `slots`."""
    start = time.perf_counter()
    stepper.step(list(range(slots)), [SOUND] * slots)
    return time.perf_counter() - start


def wait_until(moment: float) -> None:
    """Sleep, and at the end spin, until a moment of `time.perf_counter`."""
    left = moment - time.perf_counter()
    if left > _SPIN:
        time.sleep(left - _SPIN)
    while time.perf_counter() < moment:
        pass
