"""What the agent has yet to say, released one frame of 80 ms at a time.

Owns rendered sentences, how far they have been heard, and stopping, going on and dropping them. Pure but
for numpy: it knows no clock, no threads and no dialogue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.wire import FRAME_SAMPLES, SAMPLE_RATE

SILENCE = bytes(2 * FRAME_SAMPLES)
_GAP = int(0.16 * SAMPLE_RATE)
"""Between two sentences."""
_FADE = int(0.005 * SAMPLE_RATE)


@dataclass(slots=True)
class _Rendered:
    """A rendered sentence and how much of it has been released."""

    pcm: NDArray[np.int16]
    words: tuple[str, ...]
    onsets: tuple[int, ...]
    position: int = 0
    fade_in: bool = False

    def released_words(self) -> int:
        return sum(onset < self.position for onset in self.onsets)


@dataclass(slots=True)
class Released:
    """One frame of the agent."""

    pcm: bytes
    words: list[str] = field(default_factory=list)
    """The words that start in it."""
    sound: bool = False


class Playout:
    """The agent's voice. `take` once a frame; the rest says what comes next."""

    def __init__(self) -> None:
        self._sentences: deque[_Rendered] = deque()
        self._gap = 0
        self._said: list[str] = []
        self.paused = False

    @property
    def empty(self) -> bool:
        return not self._sentences

    @property
    def remaining(self) -> int:
        """Samples not yet released."""
        return sum(len(sentence.pcm) - sentence.position for sentence in self._sentences)

    @property
    def said(self) -> str:
        """The words released since the last `begin`."""
        return " ".join(self._said)

    @property
    def asking(self) -> bool:
        """Whether what is being said, to its end, is a question."""
        return bool(self._sentences) and self._sentences[-1].words[-1].endswith("?")

    def begin(self) -> None:
        """A new reply follows: what was said so far is no longer counted by `said`."""
        self._said.clear()

    def add(self, pcm: NDArray[np.int16], words: tuple[str, ...], onsets: tuple[int, ...]) -> None:
        """Append a rendered sentence: int16 at 24 kHz, its words and the sample at which each starts."""
        if len(pcm) and words:
            self._sentences.append(_Rendered(pcm, words, onsets))

    def take(self) -> Released:
        """The next 80 ms; silence while paused or when there is nothing to say."""
        if self.paused or not self._sentences:
            self._gap = 0 if not self._sentences else self._gap
            return Released(SILENCE)
        frame = np.zeros(FRAME_SAMPLES, np.int16)
        words: list[str] = []
        filled = min(self._gap, FRAME_SAMPLES)
        self._gap -= filled
        sound = False
        while filled < FRAME_SAMPLES and self._sentences:
            sentence = self._sentences[0]
            end = min(len(sentence.pcm), sentence.position + FRAME_SAMPLES - filled)
            piece = sentence.pcm[sentence.position : end]
            if sentence.fade_in:
                piece = _faded(piece)
                sentence.fade_in = False
            frame[filled : filled + len(piece)] = piece
            starting = zip(sentence.words, sentence.onsets, strict=True)
            words += [word for word, onset in starting if sentence.position <= onset < end]
            sound = sound or len(piece) > 0
            filled += len(piece)
            sentence.position = end
            if end == len(sentence.pcm):
                self._sentences.popleft()
                self._gap = _GAP
                pause = min(self._gap, FRAME_SAMPLES - filled)
                filled += pause
                self._gap -= pause
        self._said += words
        return Released(frame.tobytes(), words, sound)

    def pause(self) -> None:
        """Release nothing until `resume` or `drop`."""
        self.paused = True

    def resume(self) -> None:
        """Go on from the start of the last word that had begun."""
        if self.paused and self._sentences:
            sentence = self._sentences[0]
            begun = sentence.released_words()
            if begun and sentence.position:
                sentence.position = sentence.onsets[begun - 1]
                sentence.fade_in = True
                del self._said[-1:]
        self.paused = False

    def drop(self) -> str:
        """Forget what has not been said; returns what was, since `begin`."""
        self._sentences.clear()
        self._gap = 0
        self.paused = False
        return self.said


def _faded(piece: NDArray[np.int16]) -> NDArray[np.int16]:
    """The piece, risen from silence over 5 ms so that it does not click."""
    ramp = np.ones(len(piece), np.float32)
    ramp[:_FADE] = np.linspace(0.0, 1.0, _FADE, dtype=np.float32)[: len(piece)]
    return np.asarray(piece * ramp, np.int16)
