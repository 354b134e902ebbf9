"""Text of both sides -> timed utterances. Pure: no clock, no files.

Owns what one utterance is: when a pause ends it, what an interruption leaves of it, and when a sentence
that was paused for a backchannel is still the same sentence. Knows nothing of legs, engines or storage.

Agent text arrives as pieces, each at the frame in which it is first heard; a leading space starts a
word. Where a word ends is not said, so it is estimated from its letters and bounded by the next word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.wire import AgentText, CallerText, Flush, Output

AGENT_PAUSE = 1.0
"""Seconds without a word after which the agent's next word is a new utterance."""
CALLER_PAUSE = 0.6
"""Seconds between two texts of the caller below which they are one utterance."""
KEY_PAUSE = 3.0
"""Seconds between two keys of the telephone up to which they belong together."""
RESUME_WITHIN = 4.0
"""Seconds of silence in which an unfinished sentence may still go on after a backchannel."""
BACKCHANNEL_SECONDS = 2.0
BACKCHANNEL_WORDS = 6
"""The most that "okay, I see, thank you" takes; whether the agent goes on says the rest."""
TOLERANCE = 0.2
"""Seconds by which estimated word ends and recognised speech may overlap and still count as one after the other."""

_SECONDS_A_LETTER = 0.08
_SECONDS_A_DIGIT = 0.3
_WORD_SECONDS = (0.24, 1.6)

Speaker = Literal["caller", "agent"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One side's words without a long pause; times in seconds from answer."""

    number: int
    """Stays the same while the utterance grows, so that a live view can replace it."""
    speaker: Speaker
    text: str
    """Empty in a live update: the utterance was taken back, nothing of it was heard."""
    start: float
    end: float
    interrupted: bool = False
    final: bool = True
    """False while the caller's words are still being recognised."""
    unsaid: str = ""
    """Of the agent: what it had announced to say next and never did, for the caller interrupted or hung up."""
    confidence: float | None = None
    """Of the caller, 0 to 1: how sure the recogniser is; None where it does not say."""
    onsets: tuple[float, ...] = ()
    """When each of the words between spaces begins, in seconds from answer; empty where that is not known."""


@dataclass(slots=True)
class _Word:
    onset: int
    text: str
    cut: int | None = None
    """The frame at which a flush silenced the agent after (or in) this word."""
    lost: bool = False
    """Its worker was lost before it was over: another may say it again."""
    again: bool = False
    """Said a second time: a flush or a loss had cut it, and the agent went on from its start."""

    def joined(self) -> str:
        return self.text.strip()


@dataclass(slots=True)
class _AgentTurn:
    number: int
    words: list[_Word]
    unsaid: str = ""


@dataclass(slots=True)
class _CallerTurn:
    number: int
    start: float
    end: float
    text: str
    final: bool = True
    onsets: tuple[float, ...] = ()
    confidence: float | None = None


def word_seconds(word: str) -> float:
    """How long a word is estimated to take, by its letters and digits."""
    digits = sum(char.isdigit() for char in word)
    letters = sum(char.isalpha() for char in word)
    shortest, longest = _WORD_SECONDS
    return min(max(_SECONDS_A_LETTER * letters + _SECONDS_A_DIGIT * digits, shortest), longest)


class Transcript:
    """The utterances of one call. `frame_seconds`: the length of a frame, in which indices count."""

    def __init__(self, frame_seconds: float) -> None:
        self._frame = frame_seconds
        self._agent: list[_AgentTurn] = []
        self._caller: list[_CallerTurn] = []
        self._keys: list[_CallerTurn] = []
        self._never_said: list[Utterance] = []
        """What was announced and cut off before its first word."""
        self._numbers = 0

    def add(self, output: Output) -> list[Utterance]:
        """Take in what the engine said; other outputs than text and flush are ignored.

        Returns the utterances that are new or changed, for live views: each replaces what was shown
        under its number, and an empty text removes it.
        """
        if isinstance(output, AgentText):
            return self._add_agent(output) if output.text else []
        if isinstance(output, CallerText):
            return self._add_caller(output)
        if isinstance(output, Flush):
            return self._add_flush(output)
        return []

    def press(self, key: str, at: float) -> list[Utterance]:
        """A key of the caller's telephone; those pressed one after the other make one utterance."""
        if self._keys and at - self._keys[-1].end <= KEY_PAUSE:
            turn = self._keys[-1]
            turn.text, turn.end = turn.text[:-1] + key + "]", at
        else:
            turn = _CallerTurn(self._next_number(), at, at, f"[keypad {key}]")
            self._keys.append(turn)
        return [_caller_view(turn)]

    def lost(self, index: int) -> None:
        """Nobody answered agent frame `index`: the caller hears silence in it, whatever the agent was saying."""
        for turn in self._agent[-1:]:
            last = turn.words[-1]
            last.lost = last.lost or self._word_end(last) > index * self._frame

    def utterances(self) -> list[Utterance]:
        """All utterances so far, ordered by start; those of both sides may overlap."""
        both = [self._agent_view(turn) for turn in self._agent] + [
            _caller_view(turn) for turn in (*self._caller, *self._keys)
        ]
        known = [one for one in both if one.text or one.unsaid]
        return sorted(known + self._never_said, key=lambda one: (one.start, one.number))

    def stop(self, index: int) -> list[Utterance]:
        """The call is over, and agent frame `index` was the last one played: what comes later is unsaid."""
        if any(turn.words[-1].onset > index for turn in self._agent[-1:]):
            return self._add_flush(Flush(index))
        return []

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # The agent's side

    def _add_agent(self, piece: AgentText) -> list[Utterance]:
        if not self._agent:
            return self._new_turn(_Word(piece.index, piece.text))
        turn = self._agent[-1]
        last = turn.words[-1]
        word = _Word(max(piece.index, last.onset), piece.text)
        starts_word = piece.text[0].isspace() or last.cut is not None
        if not starts_word and word.onset * self._frame - self._word_end(last) <= AGENT_PAUSE:
            last.text, last.lost = last.text + piece.text, False
            if _is_said_again(turn.words):
                _forget_the_first(turn.words)
            return [self._agent_view(turn)]
        word.again = _is_said_again([last, word])
        if not self._breaks(last, word, self._caller):
            if last.cut is not None:
                turn.unsaid = ""  # The sentence goes on after all.
            turn.words.append(word)
            if word.again:
                _forget_the_first(turn.words)
            return [self._agent_view(turn)]
        return self._leave(turn, word) + self._new_turn(word)

    def _new_turn(self, word: _Word) -> list[Utterance]:
        word.again = False
        self._agent.append(_AgentTurn(self._next_number(), [word]))
        return [self._agent_view(self._agent[-1])] if word.joined() else []

    def _leave(self, turn: _AgentTurn, word: _Word) -> list[Utterance]:
        """A sentence that was said to its end was not interrupted by an "okay" that followed it."""
        last = turn.words[-1]
        if last.cut is None or not _ends_sentence(last.text):
            return []
        between = self._between(last, word, self._caller)
        if not between or not all(_is_backchannel(one) for one in between):
            return []
        last.cut = None
        return [self._agent_view(turn)]

    def _add_flush(self, flush: Flush) -> list[Utterance]:
        """Set apart what was announced but never sent, and mark the utterance that was being spoken."""
        changed: list[Utterance] = []
        while self._agent and self._agent[-1].words[0].onset > flush.index:
            dropped = self._agent.pop()
            at = flush.index * self._frame
            never = Utterance(dropped.number, "agent", "", at, at, True, unsaid=_joined(dropped.words))
            if never.unsaid:
                self._never_said.append(never)
            changed.append(never)
        if not self._agent:
            return changed
        turn = self._agent[-1]
        spoken = [word for word in turn.words if word.onset <= flush.index]
        was_speaking = len(spoken) < len(turn.words) or bool(changed)
        turn.unsaid = _joined(turn.words[len(spoken) :]) or turn.unsaid
        turn.words = spoken
        silent = (flush.index + 1) * self._frame - self._word_end(spoken[-1])
        if spoken[-1].cut is None and (was_speaking or silent <= AGENT_PAUSE):
            spoken[-1].cut = flush.index
            changed.append(self._agent_view(turn))
        return changed

    def _word_end(self, word: _Word, following: _Word | None = None) -> float:
        """Seconds at which a word is estimated to end: by its length, the next word, and a flush."""
        end = word.onset * self._frame + word_seconds(word.text)
        if word.cut is not None:
            end = min(end, (word.cut + 1) * self._frame)
        if following is not None:
            end = min(end, following.onset * self._frame)
        return max(end, word.onset * self._frame)

    def _between(self, last: _Word, word: _Word, caller: Sequence[_CallerTurn]) -> list[_CallerTurn]:
        """What the caller said while the agent was silent between two words."""
        end, onset = self._word_end(last, word), word.onset * self._frame
        return [one for one in _recent(caller, end) if one.final and _lies_between(one, last, end, onset)]

    def _breaks(self, last: _Word, word: _Word, caller: Sequence[_CallerTurn]) -> bool:
        """Whether `word` begins a new utterance after `last`, given what the caller said."""
        silence = word.onset * self._frame - self._word_end(last, word)
        between = self._between(last, word, caller)
        unfinished = word.again or not _ends_sentence(last.text)
        if between:
            only_backchannel = all(_is_backchannel(one) for one in between)
            goes_on = unfinished and (word.again or word.joined()[:1].islower())
            return not (only_backchannel and goes_on and silence <= RESUME_WITHIN)
        if last.cut is not None:
            return not unfinished or silence > RESUME_WITHIN
        return silence > (RESUME_WITHIN if last.lost and unfinished else AGENT_PAUSE)

    def _agent_view(self, turn: _AgentTurn) -> Utterance:
        last = turn.words[-1]
        start, end = turn.words[0].onset * self._frame, self._word_end(last)
        cut = last.cut is not None
        unsaid = turn.unsaid if cut else ""
        onsets = tuple(word.onset * self._frame for word in turn.words for _ in word.text.split())
        return Utterance(turn.number, "agent", _joined(turn.words), start, end, cut, unsaid=unsaid, onsets=onsets)

    # The caller's side

    def _add_caller(self, text: CallerText) -> list[Utterance]:
        start = text.start * self._frame
        end = max(text.end * self._frame, start)
        onsets = tuple(onset * self._frame for onset in text.onsets)
        changed: list[Utterance] = []
        number = 0
        if self._caller and not self._caller[-1].final:
            # A newer text always replaces the provisional one, and keeps its place in a live view.
            pending = self._caller.pop()
            number = pending.number
            if not text.text.strip():
                return [Utterance(number, "caller", "", pending.start, pending.start)]
        if not text.text.strip():
            return []
        if text.final and self._caller and self._joins(self._caller[-1], start):
            turn = self._caller[-1]
            turn.text, turn.end = f"{turn.text} {_squeeze(text.text)}", max(turn.end, end)
            turn.onsets = (*turn.onsets, *onsets) if turn.onsets and onsets else ()
            turn.confidence = _least(turn.confidence, text.confidence)
            if number:
                changed.append(Utterance(number, "caller", "", start, start))
        else:
            number, said = number or self._next_number(), _squeeze(text.text)
            turn = _CallerTurn(number, start, end, said, text.final, onsets, _least(text.confidence, 1.0))
            self._caller.append(turn)
        changed.append(_caller_view(turn))
        return changed + (self._split(turn) if text.final else [])

    def _joins(self, last: _CallerTurn, start: float) -> bool:
        if not last.start <= start < last.end + CALLER_PAUSE:
            return False
        onsets = (turn.words[0].onset * self._frame for turn in self._agent[-2:])
        return not any(last.end <= onset <= start for onset in onsets)

    def _split(self, caller: _CallerTurn) -> list[Utterance]:
        """Recognition comes late: part an agent utterance into which the caller's turn turns out to fall."""
        for place in range(len(self._agent) - 1, -1, -1):
            turn = self._agent[place]
            if self._word_end(turn.words[-1]) <= caller.start:
                break
            for index in range(1, len(turn.words)):
                last, word = turn.words[index - 1], turn.words[index]
                if self._between(last, word, [caller]) and self._breaks(last, word, [caller]):
                    later = _AgentTurn(self._next_number(), turn.words[index:], turn.unsaid)
                    turn.words, turn.unsaid = turn.words[:index], ""
                    self._agent.insert(place + 1, later)
                    return [self._agent_view(turn), self._agent_view(later)]
        return []


def _caller_view(turn: _CallerTurn) -> Utterance:
    return Utterance(
        turn.number,
        "caller",
        turn.text,
        turn.start,
        turn.end,
        final=turn.final,
        confidence=turn.confidence,
        onsets=turn.onsets,
    )


def _least(one: float | None, other: float | None) -> float | None:
    """How sure one may be of both, 0 to 1; None if it is not known of each."""
    return None if one is None or other is None else max(0.0, min(one, other))


def _recent(caller: Sequence[_CallerTurn], since: float) -> list[_CallerTurn]:
    """The caller's turns that end after `since`: a few at the end of the list."""
    recent: list[_CallerTurn] = []
    for turn in reversed(caller):
        if turn.end <= since:
            break
        recent.append(turn)
    return recent


def _lies_between(turn: _CallerTurn, last: _Word, end: float, onset: float) -> bool:
    """Whether the caller spoke while the agent was silent from `end` to `onset`.

    Whoever interrupts begins before the agent is silent, so after a flush any words in the silence count.
    """
    if last.cut is not None:
        return turn.start < onset and turn.end > end
    return turn.start >= end - TOLERANCE and end < turn.end <= onset + TOLERANCE


def _is_backchannel(turn: _CallerTurn) -> bool:
    short = turn.end - turn.start <= BACKCHANNEL_SECONDS
    return short and len(turn.text.split()) <= BACKCHANNEL_WORDS


def _is_said_again(words: Sequence[_Word]) -> bool:
    """Whether the last word is the one before it, which was cut off. One that comes in pieces is so with its last."""
    if len(words) < 2:
        return False
    first, word = words[-2:]
    return (first.lost or first.cut is not None) and word.joined() == first.joined()


def _forget_the_first(words: list[_Word]) -> None:
    """The last word is said again: the one before it counts no more."""
    words[-1].again = True
    first = words.pop(-2)
    if len(words) > 1:
        words[-2].cut = first.cut


def _ends_sentence(text: str) -> bool:
    return text.rstrip(" \"')\u201d\u2019").endswith((".", "?", "!", "\u2026"))


def _spaced(word: _Word, index: int) -> str:
    """A word cut off by a flush is followed by a new one, even if that has no leading space."""
    return word.text if index == 0 or word.text[:1].isspace() else " " + word.text


def _joined(words: Sequence[_Word]) -> str:
    return _squeeze("".join(_spaced(word, index) for index, word in enumerate(words)))


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
