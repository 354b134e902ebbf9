"""Is somebody speaking: Silero VAD, streamed.

Owns the model's windows and its recurrent state. Gives a probability for each 32 ms and decides
nothing: turns are made elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.rehearsal.onnx_session import open_session

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 512
WINDOW_SECONDS = WINDOW_SAMPLES / SAMPLE_RATE
_CONTEXT_SAMPLES = 64
"""The model sees the last 4 ms of the window before, too."""


class VadModel:
    """The weights, shared by all calls. About 0.12 ms a window on one core."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)

    def step(self, window: NDArray[np.float32], state: tuple[Any, Any]) -> tuple[float, tuple[Any, Any]]:
        """Context and window, 576 samples -> probability of speech, next state."""
        probability, h, c = self._session.run(None, {"input": window[None], "h": state[0], "c": state[1]})
        return float(probability[0]), (h, c)


class VadStream:
    """One caller's state. Feed it any number of samples; it answers for each whole window."""

    def __init__(self, model: VadModel) -> None:
        self._model = model
        zeros = np.zeros((1, 1, 128), np.float32)
        self._state: tuple[Any, Any] = (zeros, zeros)
        self._pending = np.zeros(_CONTEXT_SAMPLES, np.float32)
        """The context, then what has not made a whole window yet."""

    def feed(self, samples: NDArray[np.float32]) -> list[float]:
        """float32 at 16 kHz -> probabilities of the windows that are now complete, in order."""
        pending = np.concatenate([self._pending, samples])
        probabilities = []
        start = 0
        while len(pending) - start >= _CONTEXT_SAMPLES + WINDOW_SAMPLES:
            window = pending[start : start + _CONTEXT_SAMPLES + WINDOW_SAMPLES]
            probability, self._state = self._model.step(window, self._state)
            probabilities.append(probability)
            start += WINDOW_SAMPLES
        self._pending = pending[start:].copy()
        return probabilities
