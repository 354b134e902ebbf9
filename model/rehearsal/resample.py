"""24 kHz to 16 kHz for the ears of the engine: a streaming polyphase FIR.

Owns the filter and its state. Chunked equals whole, to the sample, so long as chunks are multiples of
three samples (a frame is 1,920). The line carries 300-3,400 Hz, so the filter may be short: flat to
5 kHz, 60 dB down from 8 kHz, 0.7 ms late.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_TAPS = 66
"""At the common rate of 48 kHz; 33 for each of the two phases."""
_CUTOFF = 6_500.0


def _prototype() -> NDArray[np.float64]:
    """Low-pass at 48 kHz, Kaiser window (beta 6: about 63 dB), unit gain per phase."""
    n = np.arange(_TAPS) - (_TAPS - 1) / 2
    taps = np.sinc(2 * _CUTOFF / 48_000 * n) * np.kaiser(_TAPS, 6.0)
    return np.asarray(taps * (2.0 / taps.sum()), np.float64)


class Downsampler:
    """24 kHz int16 in, 16 kHz float32 in [-1, 1] out; two samples for every three."""

    def __init__(self) -> None:
        taps = _prototype()
        # Output k at 16 kHz is sample 3k of the 48 kHz stream: phase 3k % 2 of the filter, so outputs
        # come in pairs that advance the input by three samples.
        self._even = taps[0::2][::-1].astype(np.float32)
        self._odd = taps[1::2][::-1].astype(np.float32)
        self._history = np.zeros(len(self._even) - 1, np.float32)

    def process(self, pcm: bytes) -> Floats:
        """Any multiple of three int16 samples -> two thirds as many float32 samples."""
        block = np.frombuffer(pcm, "<i2").astype(np.float32) / 32_768.0
        if len(block) % 3:
            raise ValueError(f"{len(block)} samples are not a multiple of three")
        samples = np.concatenate([self._history, block])
        self._history = samples[len(block) :]
        windows = np.lib.stride_tricks.sliding_window_view(samples, len(self._even))
        out = np.empty(len(block) // 3 * 2, np.float32)
        out[0::2] = windows[0::3] @ self._even
        # 48 kHz sample 6j + 3 lies between inputs 3j + 1 and 3j + 2: odd phase, newest input 3j + 1.
        out[1::2] = windows[1::3] @ self._odd
        return out
