"""Sound in place of sound that did not come: the last pitch period again, fading out. Pure.

After ITU-T G.711 Appendix I, without its look-ahead: the newest sound is searched for its period, the
period is repeated at full strength for 10 ms and faded to silence by 60 ms, and the sound that comes
back is cross-faded with what would have followed. Neither seam has a step.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

FULL = 80
"""Samples repeated at full strength: 10 ms."""
FADED = 480
"""Samples after which there is silence: 60 ms."""
OVERLAP = 40
"""Samples over which returning sound is cross-faded: 5 ms."""
_SHORTEST, _LONGEST = 40, 160
"""Periods searched, in samples: 200 Hz to 50 Hz; higher voices match at a multiple."""
_TEMPLATE = 160
_HISTORY = _TEMPLATE + _LONGEST + OVERLAP
_SEAM = 16
"""Samples over which a period's end is bent towards its beginning, and the first step is undone."""

_Sound = NDArray[np.float64]
_GAIN: _Sound = np.asarray(np.minimum(1.0, (FADED - np.arange(FADED)) / (FADED - FULL)), np.float64)
_RISE: _Sound = np.asarray(np.sin(np.pi / 2 * (np.arange(OVERLAP) + 0.5) / OVERLAP) ** 2, np.float64)
_BEND: _Sound = np.asarray((np.arange(_SEAM) + 1.0) / (_SEAM + 1.0), np.float64)


class Concealer:
    """One stream's: hears every frame that is played, invents what is missing."""

    def __init__(self) -> None:
        self._heard: deque[bytes] = deque(maxlen=4)
        self._period: _Sound = np.zeros(1)
        self._step = 0.0
        self._peak = 0.0
        self._made = 0
        self._back = 0
        """Samples of returning sound that have been cross-faded."""
        self.active = False
        """Whether invented sound is in what was handed out last, and in what comes next."""
        self.remember = self._heard.append
        """Called with each 20 ms of int16 sound as they are played."""

    @property
    def silent(self) -> bool:
        """Whether what is invented has faded out: the timeline may jump unheard."""
        return self.active and self._made >= FADED

    def invent(self, count: int, since: bytes = b"") -> bytes:
        """The next `count` samples of what might have come; `since` was played and not yet remembered."""
        if not self.active or self._back:
            self._begin(since)
        return self._next(count)

    def resume(self, pcm: bytes) -> bytes:
        """Sound that is back, as long as `pcm`; to be called until OVERLAP samples have been cross-faded."""
        real = np.frombuffer(pcm, np.int16)
        start = self._back
        overlap = min(OVERLAP - start, len(real))
        self._back = start + overlap
        self.active = self._back < OVERLAP
        rise = _RISE[start : self._back]
        invented = np.frombuffer(self._next(overlap), np.int16)
        mixed = np.rint(invented * (1.0 - rise) + real[:overlap] * rise).astype(np.int16)
        return mixed.tobytes() + pcm[2 * overlap :]

    def _begin(self, since: bytes) -> None:
        self.active = True
        self._made = self._back = 0
        history = np.frombuffer(b"".join(self._heard) + since, np.int16).astype(np.float64)[-_HISTORY:]
        if len(history) < _HISTORY:
            history = np.concatenate((np.zeros(_HISTORY - len(history)), history))
        length = _best_period(history)
        period = history[-length:].copy()
        # The first pass follows real sound, later ones follow the period's own end.
        self._step = float(history[-1] - history[-length - 1])
        self._peak = float(np.abs(history).max())
        before = history[-length - _SEAM : -length]
        period[-_SEAM:] += _BEND * (before - period[-_SEAM:])
        self._period = period

    def _next(self, count: int) -> bytes:
        start = self._made
        self._made = min(start + count, FADED)
        audible = self._made - start
        if audible == 0:
            return bytes(2 * count)
        at = np.arange(start, start + audible)
        sound = self._period[at % len(self._period)]
        if start < _SEAM:
            left = _BEND[::-1][start : start + audible]
            sound[: len(left)] += self._step * left
        sound *= _GAIN[start : start + audible]
        pcm = np.rint(np.clip(sound, -self._peak, self._peak)).astype(np.int16).tobytes()
        return pcm + bytes(2 * (count - audible))


def _best_period(history: _Sound) -> int:
    """The lag at which the newest 20 ms resemble what came before them most (normalised correlation)."""
    template = history[-_TEMPLATE:]
    earlier = history[-_TEMPLATE - _LONGEST : -_SHORTEST]
    likeness = np.correlate(earlier, template, "valid")
    sums = np.concatenate(([0.0], np.cumsum(earlier * earlier)))
    energy = sums[_TEMPLATE:] - sums[:-_TEMPLATE]
    likeness /= np.sqrt(energy + 1.0)
    return _LONGEST - int(np.argmax(likeness))
