"""A tone cut into packets, and the measure of a click in it. Time is explicit: nothing here waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gateway.rtp.jitter import JitterBuffer

RATE = 8_000
TICK = 0.02
HERTZ = 437.5
"""8.75 cycles in 20 ms: a packet left out, doubled or swapped turns the phase by 90 degrees or more."""
AMPLITUDE = 8_000
_CYCLE = np.rint(AMPLITUDE * np.sin(2 * np.pi * HERTZ * np.arange(1_280) / RATE)).astype(np.int16)
_LONG = np.tile(_CYCLE, 3)
QUARTER = 2 * np.pi * HERTZ / RATE


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    at: float
    number: int
    """First sample."""
    samples: int = field(compare=False)

    @property
    def pcm(self) -> bytes:
        start = self.number % 1_280
        return _LONG[start : start + self.samples].tobytes()


def packets(
    seconds: float, samples: int = 160, ppm: float = 0.0, delay: Callable[[int], float | None] = lambda index: 0.0
) -> list[Arrival]:
    """A tone's packets in order of arrival, from a clock that is `ppm` slow; a delay of None is a loss."""
    made = []
    for index in range(int(seconds * RATE) // samples):
        late = delay(index)
        if late is not None:
            at = (index + 1) * samples / RATE * (1 + ppm * 1e-6) + late
            made.append(Arrival(at, index * samples, samples))
    return sorted(made)


@dataclass(slots=True)
class Heard:
    frames: list[bytes | None]
    delays: list[float]

    def sound(self, start: float = 0.0, stop: float | None = None) -> NDArray[np.float64]:
        chosen = self.frames[int(start / TICK) : None if stop is None else int(stop / TICK)]
        pcm = b"".join(frame if frame is not None else bytes(320) for frame in chosen)
        return np.frombuffer(pcm, np.int16).astype(np.float64)


def play(
    buffer: JitterBuffer, arrivals: Iterable[Arrival], seconds: float, base: int = 0, phase: float = 0.003
) -> Heard:
    """Push what arrives and pull each 20 ms."""
    coming: Iterator[Arrival] = iter(arrivals)
    following = next(coming, None)
    heard = Heard([], [])
    for tick in range(int(seconds / TICK)):
        now = tick * TICK + phase
        while following is not None and following.at <= now:
            buffer.push((following.number + base) & 0xFFFFFFFF, following.pcm, following.at)
            following = next(coming, None)
        heard.frames.append(buffer.pop(now))
        heard.delays.append(buffer.delay)
    return heard


def roughness(sound: NDArray[np.float64]) -> float:
    """How far any sample lies from what its two neighbours say a pure tone has there: about 2 without a click."""
    return float(np.abs(sound[2:] - 2 * np.cos(QUARTER) * sound[1:-1] + sound[:-2]).max())


def largest_step(sound: NDArray[np.float64]) -> float:
    return float(np.abs(np.diff(sound)).max())


STEP = AMPLITUDE * QUARTER
"""The tone's own largest step."""
