"""Whether the caller has heard that the call is recorded or written down. Pure: frames are its only clock.

Owns what "heard" means, and what may be written down when. The line is the first the agent says. It has been
heard when its words came in the agent's own text, in order and none left out, and the sound of the last one has been
played to its end, which only the phone line can tell: it may hold what it was handed. A pause in between does no harm;
a word that an interruption or the loss of the worker cut off must be said again, and so the line if it was the last.
So must the line of which the phone line left out sound, as too much came at once or the caller held the call.

Until then nothing is kept of either side: no sound, no text, no keys. What the caller began to say before is
not kept later either. A line that was not heard is asked for again, a few times; then the call goes on unrecorded.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.transcript import word_seconds
from model.wire import AgentText, CallerText, Flush, Output

BEYOND = 0.1
"""Seconds of sound after the last word that are waited for as well: where a word ends is estimated."""
SAY_AGAIN_AFTER = 2.0
"""Seconds of the agent's silence after which a line that was not heard is asked for again."""
TIMES = 3
"""How often it is said at most."""

_CUT = "\0"
"""Stands for a word that was cut off, and for no letter of a line."""


@dataclass(slots=True)
class _Word:
    onset: int
    text: str
    cut: bool = False

    @property
    def letters(self) -> str:
        return letters(self.text)


class Consent:
    """One call's line. `frame_seconds`: the length of a frame, in which indices count."""

    def __init__(self, line: str, frame_seconds: float) -> None:
        self.line = line
        self.heard_at: float | None = None
        """Seconds of the call at which the line had been heard; None: not yet."""
        self.said = 1
        """How often the line was asked for; the first time it begins the greeting."""
        self._target = letters(line)
        self._frame = frame_seconds
        self._words: list[_Word] = []
        self._longest = 2 * len(line.split()) + 20
        """Words looked back at: the line, and what may follow while its end is played."""
        self._after: list[Output] = []
        """What was said after the line while its end was still being played."""
        self._last_sound = 0
        self._left_out = -1
        """The newest frame of which the phone line has left out sound."""
        self._with_line = False
        """The last word was handed to the phone line, which has not told yet whether it has played it."""

    @property
    def heard(self) -> bool:
        return self.heard_at is not None

    def admit(self, output: AgentText | CallerText | Flush) -> list[Output]:
        """What of this may be written down now."""
        if self.heard_at is not None:
            began_before = isinstance(output, CallerText) and output.start * self._frame < self.heard_at
            return [] if began_before else [output]
        if isinstance(output, Flush):
            self._cut(output.index)
            self._drop_last(output.index)
            if self._end() is not None:
                self._after.append(output)
        elif isinstance(output, AgentText) and output.text:
            self._add(output)
        return []

    def handed_over(self, frames: int) -> bool:
        """So many of the agent's frames were handed to the phone line. True: the last word is among them.

        Then `played` or `not_played` has to follow.
        """
        end = self._end()
        if self.heard_at is not None or self._with_line or end is None or frames * self._frame < end + BEYOND:
            return False
        self._with_line = True
        return True

    def played(self, frames: int) -> bool:
        """The phone line has played the last word, and was handed so many frames by now. True: it has been heard."""
        self._with_line = False
        if self._end() is None:
            return False
        self.heard_at = frames * self._frame
        return True

    def not_played(self) -> None:
        """The phone line has dropped it, or cannot tell."""
        self._with_line = False

    def lost(self, index: int) -> None:
        """Nobody answered frame `index`: the caller hears silence in it, whatever the agent was saying."""
        if self.heard_at is None:
            self._cut(index - 1)
            self._last_sound = max(self._last_sound, index)

    def left_out(self, index: int) -> None:
        """The caller misses sound of frame `index`, which was handed to the phone line a while ago."""
        if self.heard_at is not None:
            return
        self._left_out = max(self._left_out, index)
        for place, word in enumerate(self._words):
            if word.onset <= index and index * self._frame < self._word_end(place) + BEYOND:
                word.cut = True
        if self._end() is None:
            self._after.clear()

    def released(self) -> list[Output]:
        """What the agent said while the end of the line was being played; to be written down once it was heard."""
        after, self._after = self._after, []
        return after

    def say_again(self, frames: int) -> bool:
        """Whether the agent shall say the line again, after so many frames. Each True counts as said."""
        if self.heard_at is not None or self.said >= TIMES or self._end() is not None:
            return False
        if (frames - self._last_sound) * self._frame < SAY_AGAIN_AFTER:
            return False
        self.said += 1
        self._last_sound = frames
        self._words.clear()
        return True

    def _add(self, piece: AgentText) -> None:
        self._last_sound = max(self._last_sound, piece.index)
        if self._end() is not None:
            self._after.append(piece)
        last = self._words[-1] if self._words else None
        if last is None or piece.text[0].isspace() or last.cut:
            self._words.append(_Word(piece.index, piece.text))
            del self._words[: -self._longest]
        else:
            last.text += piece.text
        # Of a word that comes in pieces the estimate of its end was short, before this one.
        if self._words[-1].onset <= self._left_out:
            self._words[-1].cut = True
        self._forget_said_again()

    def _forget_said_again(self) -> None:
        """Words that were cut off count no more once the next one is the same, as far as they came."""
        while len(self._words) > 1:
            cut, word = self._words[-2:]
            if not cut.cut or not word.letters.startswith(cut.letters):
                return
            del self._words[-2]

    def _cut(self, index: int) -> None:
        """What comes after frame `index` is not heard."""
        self._words = [word for word in self._words if word.onset <= index]
        self._after = [one for one in self._after if not isinstance(one, AgentText) or one.index <= index]
        if self._words and self._word_end(len(self._words) - 1) > (index + 1) * self._frame:
            self._words[-1].cut = True
        if self._end() is None:
            self._after.clear()

    def _drop_last(self, index: int) -> None:
        """A flush after frame `index`: a last word that the phone line may still hold goes with what that drops."""
        last = self._last()
        if last is not None and (self._with_line or self._word_end(last) + BEYOND > (index + 1) * self._frame):
            self._words[last].cut = True
            self._after.clear()

    def _end(self) -> float | None:
        """Seconds at which the last word of the line ends; None: it has not been said, or was cut off."""
        last = self._last()
        return None if last is None else self._word_end(last)

    def _last(self) -> int | None:
        """The place of the line's last word."""
        said = ""
        for place, word in enumerate(self._words):
            said += _CUT if word.cut else word.letters
            if said.endswith(self._target):
                return place
        return None

    def _word_end(self, place: int) -> float:
        word = self._words[place]
        end = word.onset * self._frame + word_seconds(word.text)
        if place + 1 < len(self._words):
            end = min(end, self._words[place + 1].onset * self._frame)
        return end


def letters(text: str) -> str:
    """What of a text can be compared with how an engine writes it: its letters and digits, in lower case."""
    return "".join(char for char in text.lower() if char.isalnum())
