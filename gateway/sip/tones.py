"""The tones a caller hears from a telephone network, as sound. Pure.

North America's, of two sines each: at -19 dBm0 a sine for ringing, -24 dBm0 for busy (the Precise Tone Plan, as in
ITU-T E.180, supplement 2, which lists every country's).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from gateway.audio import LINE_FRAME_SAMPLES, LINE_RATE

FULL_SCALE_DBM0 = 3.17
"""Level of the loudest sine that mu-law can tell (ITU-T G.711)."""


@dataclass(frozen=True, slots=True)
class Tone:
    """Two sines, on and off in turn."""

    hertz: tuple[int, int]
    dbm0: float
    """Of each sine."""
    on: float
    """Seconds."""
    off: float


RINGING = Tone((440, 480), -19.0, 2.0, 4.0)
BUSY = Tone((480, 620), -24.0, 0.5, 0.5)


def tone_frame(tone: Tone, index: int) -> bytes:
    """Frame `index` of the tone, 80 ms: 640 samples of int16 at 8 kHz. It goes on for ever."""
    frames = _period(tone)
    return frames[index % len(frames)]


@cache
def _period(tone: Tone) -> list[bytes]:
    """Whole frames of as many repetitions as end with one."""
    cycle = round((tone.on + tone.off) * LINE_RATE)
    time = np.arange(np.lcm(cycle, LINE_FRAME_SAMPLES))
    peak = 32_767 * 10 ** ((tone.dbm0 - FULL_SCALE_DBM0) / 20)
    sound = sum(np.sin(2 * np.pi * hertz / LINE_RATE * time) for hertz in tone.hertz)
    audible = time % cycle < round(tone.on * LINE_RATE)
    pcm = np.rint(peak * sound * audible).astype(np.int16).reshape(-1, LINE_FRAME_SAMPLES)
    return [frame.tobytes() for frame in pcm]
