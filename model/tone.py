"""A tone in place of sound of which only the loudness is known. Pure; loads nothing."""

from __future__ import annotations

import math
import sys
from array import array
from functools import cache

from model.wire import AGENT_SILENT, FRAME_SAMPLES, SAMPLE_RATE

_HERTZ = 1_000
_PERIOD = SAMPLE_RATE // _HERTZ
"""Samples; a frame holds whole ones, so that frames follow each other without a click."""
_LOUDEST = 32_767


@cache
def as_loud_as(level: int) -> bytes:
    """80 ms of a tone of 1 kHz, int16 at 24 kHz, whose root mean square is `level` dB below full scale.

    One of AGENT_SILENT is silence; above -3 dB the tone is clipped.
    """
    peak = 0.0 if level >= AGENT_SILENT else math.sqrt(2) * (_LOUDEST + 1) * 10 ** (-level / 20)
    wave = (peak * math.sin(2 * math.pi * place / _PERIOD) for place in range(_PERIOD))
    samples = array("h", (round(max(-_LOUDEST, min(sample, _LOUDEST))) for sample in wave))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes() * (FRAME_SAMPLES // _PERIOD)
