"""Whether the agent has taken its leave, once a call has reached one of its limits. Pure: frames are its only clock.

Owns what "said" means. The agent may be in the middle of a sentence when it is asked, pause before it begins or between
two words, and lose its worker meanwhile. So its words count: all of them came as text, and it was silent for a moment
after the last. Only of an engine that writes nothing down does its sound alone tell. A frame that nobody answered is
no silence of the agent's.
"""

from __future__ import annotations

from gateway.latency import MIN_QUIET, SPEECH_LEVEL
from gateway.recording.consent import letters
from model.wire import FRAME_SECONDS

LAST_WORDS = 8.0
"""Seconds of answered frames that the agent has for it at most."""
SPOKEN = 0.8
"""Seconds of silence after its last word."""
LOST_THREAD = 2.4
"""Seconds of silence within it after which the rest is not waited for: a caller spoke over it, or a word was written
otherwise than asked for."""


class Farewell:
    """One call's. It is told of what the agent says all along."""

    def __init__(self, text: str) -> None:
        self._left = [word for word in map(letters, text.split()) if word]
        self._words = len(self._left)
        self._word = ""
        self._asked = False
        self._writes = self._remembers = False
        """The engine says what its agent says; its answers carry what another worker would need."""
        self._paused = self._sounded = False
        """Since it was asked for, or as it was: the agent was silent; then it spoke."""
        self._frames = self._quiet = 0

    def ask(self) -> None:
        """The agent is asked for it now."""
        self._paused = self._quiet * FRAME_SECONDS >= MIN_QUIET
        self._asked = True
        self._word = ""
        self._frames = self._quiet = 0

    def spoke(self, piece: str) -> None:
        """A piece of what the agent says; a leading space starts a word."""
        self._writes = True
        if not self._asked:
            return
        self._quiet = 0
        if piece[:1].isspace():
            self._end_word()
        *whole, self._word = (self._word + piece).split(" ")
        for word in whole:
            self._said(word)

    def played(self, level: int, *, column: bool) -> None:
        """A frame of the agent's: how loud it is, and whether it came with its column of tokens."""
        self._remembers |= column
        if self._remembers and not column:
            return  # what the caller hears in place of an answer
        self._frames += 1
        loud = level >= SPEECH_LEVEL
        self._sounded |= self._asked and self._paused and loud
        self._quiet = 0 if loud else self._quiet + 1
        self._paused |= self._quiet * FRAME_SECONDS >= MIN_QUIET

    @property
    def over(self) -> bool:
        """Of one that was asked for: it was said, or will not be."""
        quiet = self._quiet * FRAME_SECONDS
        left = self._left[1:] if letters(self._word) in self._left[:1] else self._left
        if self._frames * FRAME_SECONDS >= LAST_WORDS:
            return True
        if not self._writes:
            return self._sounded and quiet >= SPOKEN
        if left:
            return len(left) < self._words and quiet >= LOST_THREAD
        return quiet >= SPOKEN

    def _end_word(self) -> None:
        self._said(self._word)
        self._word = ""

    def _said(self, word: str) -> None:
        """Tick a word off; those that the agent adds of its own accord pass."""
        if letters(word) in self._left[:1]:
            self._left.pop(0)
