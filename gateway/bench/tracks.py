"""The sound of a measured call: a sequence of levels that says, wherever it is heard, when it was spoken.

Owns the sequence, its mu-law frames, and finding it again in what came back. Pure: knows nothing of
sockets, carriers or clocks.

Every 20 ms the caller's sound steps to another of 16 levels. No two neighbours are equal and every
ordered pair of levels occurs once, so any 40 ms tell their place in a track of 240 frames (4.8 s).
Steps survive G.711 and the resamplers: between them the level is constant, and a linear-phase filter
leaves the middle of a step where it was, plus its own delay. So the place is known to a sample.

The last 0.64 s of a track are silent, as speech has pauses: a gateway may use them to give back the
delay of a stall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gateway.audio import CARRIER_FRAME_SAMPLES, decode_ulaw, encode_ulaw

_MAGNITUDES = tuple(round(300 * 1.6**step) for step in range(8))
LEVELS = tuple(sign * magnitude for magnitude in _MAGNITUDES for sign in (1, -1))
TRACK_FRAMES = len(LEVELS) * (len(LEVELS) - 1)
"""20 ms frames until the track repeats: 240, 4.8 s."""
VOICED_FRAMES = TRACK_FRAMES - 32
"""Frames of the track before its pause."""
_UNKNOWN = 255
_SETTLED = 25
"""Samples either side of a frame's middle that must carry the same level; the two filters of a round
trip smear a step over 49 samples either side of it, which leaves 62 of 160."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def track() -> list[int]:
    """Indices into LEVELS, one for each frame: an Eulerian circuit of the complete graph of levels."""
    unused = {node: [other for other in reversed(range(len(LEVELS))) if other != node] for node in range(len(LEVELS))}
    stack, circuit = [0], []
    while stack:
        if unused[stack[-1]]:
            stack.append(unused[stack[-1]].pop())
        else:
            circuit.append(stack.pop())
    return circuit[:0:-1]


def track_payloads() -> list[bytes]:
    """The track as mu-law, 160 bytes a frame."""
    values = [LEVELS[level] for level in track()[:VOICED_FRAMES]] + [0] * (TRACK_FRAMES - VOICED_FRAMES)
    samples = [np.full(CARRIER_FRAME_SAMPLES, value, np.int16) for value in values]
    return [encode_ulaw(frame.tobytes()) for frame in samples]


@dataclass(frozen=True, slots=True)
class Heard:
    """Where the caller's frames are in what came back."""

    frames: Integers
    """Number of each frame found, within the track (0-239)."""
    starts: Floats
    """Where its first sample lies in the received sound, in samples; the way's filter delay included."""
    unreadable: int
    """20 ms pieces of received sound that hold no frame of the track: pauses, gaps, cuts."""


def find_frames(payload: bytes) -> Heard:
    """Find the track's frames in received mu-law sound, however it was cut or delayed.

    A frame counts as found where it and its neighbours continue each other: three in a row.
    """
    pcm = np.frombuffer(decode_ulaw(payload), np.int16).astype(np.int32)
    if len(pcm) < 4 * CARRIER_FRAME_SAMPLES:
        return Heard(np.empty(0, np.int64), np.empty(0), len(pcm) // CARRIER_FRAME_SAMPLES)
    phase = _phase(pcm)
    levels = _levels_at(pcm, phase)
    places = _pair_places()[levels[:-1], levels[1:]]
    follows = (places[:-1] >= 0) & ((places[:-1] + 1) % TRACK_FRAMES == places[1:])
    frames = np.full(len(levels), -1, np.int64)
    for shift in range(3):
        middle = slice(shift, shift + len(follows))
        frames[middle][follows] = (places[:-1][follows] + shift) % TRACK_FRAMES
    found = np.flatnonzero(frames >= 0)
    return Heard(frames[found], phase + CARRIER_FRAME_SAMPLES * found.astype(np.float64), len(levels) - len(found))


def _phase(pcm: NDArray[np.int32]) -> float:
    """Where in every 160 samples the steps lie: circular mean of the steps, weighted by their height."""
    heights = np.abs(np.diff(pcm)).astype(np.float64)
    turn = np.exp(2j * np.pi * np.arange(CARRIER_FRAME_SAMPLES) / CARRIER_FRAME_SAMPLES)
    whole = len(heights) // CARRIER_FRAME_SAMPLES * CARRIER_FRAME_SAMPLES
    profile = heights[:whole].reshape(-1, CARRIER_FRAME_SAMPLES).sum(axis=0)
    angle = math.atan2((profile @ turn).imag, (profile @ turn).real) / (2 * math.pi)
    # The difference of samples i and i + 1 stands for a step just before sample i + 1.
    return (angle * CARRIER_FRAME_SAMPLES + 1) % CARRIER_FRAME_SAMPLES


def _levels_at(pcm: NDArray[np.int32], phase: float) -> NDArray[np.intp]:
    """The level of each 20 ms piece that begins at `phase`, or the unknown one."""
    middle = round(phase) + CARRIER_FRAME_SAMPLES // 2
    middles = np.arange(middle, len(pcm) - _SETTLED, CARRIER_FRAME_SAMPLES)
    bounds = np.array([math.sqrt(low * high) for low, high in pairwise(_MAGNITUDES)])
    quietest, loudest = _MAGNITUDES[0] / 1.2, _MAGNITUDES[-1] * 1.2

    def read(where: Integers) -> NDArray[np.intp]:
        values = pcm[where]
        size = np.abs(values)
        levels = 2 * np.searchsorted(bounds, size) + (values < 0)
        return np.where((size < quietest) | (size > loudest), _UNKNOWN, levels)

    levels = read(middles)
    steady = (read(middles - _SETTLED) == levels) & (read(middles + _SETTLED) == levels)
    return np.where(steady, levels, _UNKNOWN)


def _pair_places() -> Integers:
    """Place in the track of each ordered pair of levels, -1 where there is none."""
    places = np.full((_UNKNOWN + 1, _UNKNOWN + 1), -1, np.int64)
    levels = track()
    for place, level in enumerate(levels):
        places[level, levels[(place + 1) % TRACK_FRAMES]] = place
    return places
