"""The engine's ear: a caller's frames in, a decision for each 32 ms out, and the sound of a turn on request.

Owns the caller's resampler, voice activity, echo gate and the last half minute of sound. Decides nothing
about turns. Runs on a worker thread, one frame of a session at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.rehearsal.line_echo import EchoGate
from model.rehearsal.resample import Downsampler
from model.rehearsal.vad import WINDOW_SAMPLES, VadModel, VadStream

SPEECH_ON = 0.5
SPEECH_OFF = 0.35
_KEEP_WINDOWS = 940
"""30 s: the longest that is ever recognised at once."""
_FRAME_WINDOWS = 3
"""At most so many windows end in one frame."""
_BESIDE = 2
"""Windows next to the caller's that are never taken for mere echo."""
_WORD = 3
"""So many windows of speech that are louder than echo are a word of the caller's."""
_CLEAR_DB = 10.0
"""By so much at least one of them is: voices are, the agent's echo with the line's noise on it seldom."""


class Listener:
    """One caller. Window `n` covers samples `512 n` up to `512 (n + 1)` of the call at 16 kHz."""

    def __init__(self, vad: VadModel) -> None:
        self._vad = VadStream(vad)
        self._caller = Downsampler()
        self._agent = Downsampler()
        self._gate = EchoGate()
        self._agent_pending = np.zeros(0, np.float32)
        self._sound = np.zeros(_KEEP_WINDOWS * WINDOW_SAMPLES, np.float32)
        self._samples = 0
        self._windows = 0
        self._speech = False
        self._word = 0
        """Windows of the caller's present word that were louder than any echo."""
        self._peak_db = 0.0
        """By how much the loudest of them was."""
        self._since_word = 0
        """Windows after the last of them."""
        self._echo = np.zeros(_KEEP_WINDOWS, np.bool_)
        """Of the windows kept: whether all that is in them may be echo."""

    def hear(self, caller_pcm: bytes, agent_pcm: bytes) -> list[bool]:
        """80 ms of both sides, int16 at 24 kHz -> for each window completed by it: does the caller speak."""
        samples = self._caller.process(caller_pcm)
        self._keep(samples)
        self._agent_pending = np.concatenate([self._agent_pending, self._agent.process(agent_pcm)])
        decisions = []
        for probability in self._vad.feed(samples):
            self._gate.played(self._agent_pending[:WINDOW_SAMPLES])
            self._agent_pending = self._agent_pending[WINDOW_SAMPLES:]
            self._speech = probability > (SPEECH_OFF if self._speech else SPEECH_ON)
            window = self._cut(self._windows, self._windows + 1)
            above_db = self._gate.above_db(window)
            self._echo[self._windows % _KEEP_WINDOWS] = above_db <= 0
            self._windows += 1
            decisions.append(self._is_callers(above_db))
        return decisions

    def _is_callers(self, above_db: float) -> bool:
        """Whether the caller speaks in the next window: louder than echo, or the soft end of a word that clearly was.

        Voice activity is late for a word's beginning. Without its end too, a short one would not interrupt the agent.
        """
        if self._speech and above_db > 0:
            self._word += 1
            self._peak_db = max(self._peak_db, above_db)
            self._since_word = 0
            return True
        self._since_word += 1
        clear = self._word >= _WORD and self._peak_db >= _CLEAR_DB
        if self._speech and clear and self._since_word <= _BESIDE:
            return True
        self._word, self._peak_db = 0, 0.0
        return False

    def sound(self, start: int, end: int) -> NDArray[np.float32]:
        """The caller from window `start` up to `end`, a copy; what is older than 30 s is left out.

        Windows that hold nothing but what may be the agent's echo are silenced, so that it is not
        recognised as the caller's words; not those next to the caller's, which hold soft beginnings and ends.
        """
        end = min(end, self._windows)
        start = min(max(start, 0, self._windows - _KEEP_WINDOWS + _FRAME_WINDOWS), end)
        sound = self._cut(start, end)
        echo = self._echo[np.arange(start, end) % _KEEP_WINDOWS]
        alone = echo.copy()
        for shift in range(1, _BESIDE + 1):
            alone[shift:] &= echo[:-shift]
            alone[:-shift] &= echo[shift:]
        sound.reshape(-1, WINDOW_SAMPLES)[alone] = 0.0
        return sound

    def _cut(self, start: int, end: int) -> NDArray[np.float32]:
        """The samples of windows that are kept."""
        size = len(self._sound)
        first = start * WINDOW_SAMPLES % size
        count = (end - start) * WINDOW_SAMPLES
        wrapped = max(0, first + count - size)
        return np.concatenate([self._sound[first : first + count - wrapped], self._sound[:wrapped]])

    def _keep(self, samples: NDArray[np.float32]) -> None:
        place = self._samples % len(self._sound)
        before_end = len(self._sound) - place
        self._sound[place : place + len(samples)] = samples[:before_end]
        self._sound[: max(0, len(samples) - before_end)] = samples[before_end:]
        self._samples += len(samples)
