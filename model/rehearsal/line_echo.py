"""Telling the caller from the agent's own voice coming back over the line.

Owns the levels of what the agent said lately and the comparison with what comes in. Pure but for numpy.

A hybrid returns the agent about 25 dB down, 150-250 ms late at the line; buffers on the way add up to
half a second more, and vary. Cancelling it sample by sample would need that delay exactly. A turn-taking
decision needs less: in no window may the caller be believed who is not clearly above the loudest that
echo can be, which is the loudest the agent was in the last second, less the loss of the line.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

LEAST_LOSS_DB = 17.0
"""An echo is believed to come back at least this much weaker than it left: 25 dB, less 8 dB of margin."""
_MEMORY_WINDOWS = 28
"""0.9 s of 32 ms windows: the latest that an echo comes back."""
_SILENCE_DB = -90.0


def level_db(samples: NDArray[np.float32]) -> float:
    """RMS of float samples in dB below full scale, not below -90."""
    if not len(samples):
        return _SILENCE_DB
    power = float(np.dot(samples, samples)) / len(samples)
    return max(_SILENCE_DB, 10.0 * float(np.log10(power + 1e-12)))


class EchoGate:
    """Per call. Feed it both sides window by window."""

    def __init__(self) -> None:
        self._played: deque[float] = deque([_SILENCE_DB] * _MEMORY_WINDOWS, _MEMORY_WINDOWS)

    def played(self, window: NDArray[np.float32]) -> None:
        """The agent's sound of the window that is being heard at the same time."""
        self._played.append(level_db(window))

    def above_db(self, window: NDArray[np.float32]) -> float:
        """By how much the incoming window is louder than any echo of the agent could be; negative: it may be echo."""
        return level_db(window) - (max(self._played) - LEAST_LOSS_DB)
