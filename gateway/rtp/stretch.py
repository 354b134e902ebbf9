"""A frame played a little faster or slower, so that clocks may differ and delay may change. Pure.

160 + n samples become 160 by band-limited interpolation: a filter per n, 16 taps of a Kaiser-windowed
sinc for each sample. The positions of consecutive frames join exactly, so there is no step between a
stretched frame and its neighbours, only a moment of slightly other pitch (n = 2: 1.3 %).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

FRAME = 160
REACH = 8
"""Samples needed before and after the frame."""
_BETA = 6.0


def stretch(before: bytes, frame: bytes, after: bytes) -> bytes:
    """160 samples out of `frame`, 156 to 164 of them; `before` and `after` are its REACH neighbours."""
    signal = np.frombuffer(before + frame + after, np.int16).astype(np.float64)
    index, taps = _filter(len(frame) // 2)
    # Not a matrix product: BLAS would start threads for one.
    sound = np.einsum("ij,ij->i", signal[index], taps)
    pcm: bytes = np.clip(np.rint(sound), -32_768, 32_767).astype(np.int16).tobytes()
    return pcm


@cache
def _filter(length: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each of the 160 samples, which of the signal's it is made of, and in what proportion."""
    position = np.arange(FRAME)[:, None] * (length / FRAME)
    offset = position.astype(np.intp) + np.arange(1 - REACH, 1 + REACH)
    distance = offset - position
    taps = np.sinc(distance) * np.i0(_BETA * np.sqrt(np.clip(1.0 - (distance / REACH) ** 2, 0.0, 1.0)))
    return offset + REACH, taps / taps.sum(axis=1, keepdims=True)
