"""What the agent is told to say: words in the model's own timing, and clips sound for sound.

Owns each slot's queue of things to say, the forced rows of every step, and the account of what came out. The host's
side: plain lists, one call before a step and one after. Knows no network, no sound and no reasons.

    before a step    rows(slots)               what is forced, a clip's next frame
    in the step      words, as its Sampler     what is said in words, see `model.word_queue`
    after a step     returned(slot, tokens)    what came out: the frame one step back
    barge-in         cut(slot, unheard)        what the caller has really heard of it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.clip import Clip
from model.config import TEXT_END_OF_PAD, TEXT_PAD
from model.tokenizer import Tokenizer
from model.word_queue import LONGEST, WordQueue

LAST_WORD_FRAMES = 5
"""The last word's sound goes on for 0.4 s after its last piece of text, unless the model goes on before."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """How it went with one thing that was to be said."""

    text: str
    heard: str
    """As much of the text as came out; of a barge-in's last word the first frame may be all of it."""
    frames: int
    """Frames in which it sounded."""
    complete: bool


@dataclass(slots=True)
class _Item:
    """Something to say. `first` is the step that decided its first frame; `came` its frames' text ids so far."""

    text: str
    words: list[list[int]] = field(default_factory=list)
    clip: Clip | None = None
    first: int = -1
    came: list[int] = field(default_factory=list)

    @property
    def pieces(self) -> list[int]:
        return [piece for word in self.words for piece in word]


@dataclass(slots=True)
class _Slot:
    steps: int = 0
    now: _Item | None = None
    later: deque[_Item] = field(default_factory=deque)


class ForcedSpeech:
    """The things to say of all slots. Works on whole frames: text, then the codes of the agent and of the caller."""

    def __init__(self, words: WordQueue, tokenizer: Tokenizer, slots: int, rows: int = 17, card: int = 2048) -> None:
        """`rows`: ids of a frame; `card`: audio ids that there are."""
        self._words = words
        self._tokenizer = tokenizer
        self._rows = rows
        self._card = card
        self._slots = [_Slot() for _ in range(slots)]

    def say(self, slot: int, text: str) -> None:
        """Queue words, said when all before them is. Raises ValueError for text without words, or too long."""
        words = self._tokenizer.words(text)
        if not words:
            raise ValueError("there is nothing to say in an empty text")
        if sum(map(len, words)) > LONGEST:
            raise ValueError(f"the text has {sum(map(len, words))} pieces; {LONGEST} can be said at once")
        self._slots[slot].later.append(_Item(text, words=words))

    def play(self, slot: int, clip: Clip) -> None:
        """Queue a clip. Raises ValueError if it is not made for frames such as these."""
        if clip.tokens.shape[0] >= self._rows or clip.tokens.shape[1] == 0:
            raise ValueError(f"a clip of shape {list(clip.tokens.shape)} does not fit frames of {self._rows} ids")
        # An id beyond a table ends the whole process on a GPU, and every call in it.
        text, codes = clip.tokens[0], clip.tokens[1:]
        if min(text.min(), codes.min()) < 0 or text.max() >= self._tokenizer.size or codes.max() >= self._card:
            raise ValueError("the clip holds ids that this model does not have: it was made with another")
        self._slots[slot].later.append(_Item(clip.text, clip=clip))

    def busy(self, slot: int) -> bool:
        """Whether anything is being said, or waits."""
        return self._slots[slot].now is not None or bool(self._slots[slot].later)

    def reset(self, slot: int) -> None:
        """Make `slot` as good as new."""
        self._slots[slot] = _Slot()
        self._words.reset(slot)

    def rows(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the coming step of `slots` must be given: ids and mask, both `[b, rows]`, on the CPU."""
        forced = torch.zeros((len(slots), self._rows), dtype=torch.long)
        mask = torch.zeros((len(slots), self._rows), dtype=torch.bool)
        for place, slot in enumerate(slots):
            state = self._slots[slot]
            if state.now is None and state.later:
                self._begin(slot, state)
            if state.now is not None and (column := _clip_column(state)) is not None:
                forced[place, : len(column)] = column
                mask[place, : len(column)] = True
            state.steps += 1
        return forced, mask

    def returned(self, slot: int, tokens: Sequence[int]) -> Spoken | None:
        """Take note of the frame a step of `slot` returned, and tell when something has been said to its end."""
        state = self._slots[slot]
        item, frame = state.now, state.steps - 2
        if item is None or frame < item.first:
            return None
        item.came.append(tokens[0])
        if not _complete(item):
            return None
        state.now = None
        return self._account(item, len(item.came))

    def cut(self, slot: int, unheard: int = 0) -> list[Spoken]:
        """The caller interrupts: say no more. Returns how far each thing got, those that were waiting too.

        `unheard` is how many of the newest frames returned have not reached the caller's ear.
        """
        state = self._slots[slot]
        items = [item for item in (state.now, *state.later) if item is not None]
        state.now = None
        state.later.clear()
        self._words.stop(slot)
        return [self._account(item, max(0, len(item.came) - unheard)) for item in items]

    def speaking(self, slot: int) -> bool:
        """Whether words that were to be said have begun to come out, and are not at their end."""
        item = self._slots[slot].now
        return item is not None and item.clip is None and _said(item.pieces, item.came) > 0

    def let_go(self, slot: int) -> None:
        """Say no more of what is being said; what waits follows."""
        self._slots[slot].now = None
        self._words.stop(slot)

    def _begin(self, slot: int, state: _Slot) -> None:
        item = state.later.popleft()
        item.first = state.steps
        state.now = item
        if item.clip is None:
            self._words.start(slot, item.words)

    def _account(self, item: _Item, frames: int) -> Spoken:
        came = item.came[:frames]
        if item.clip is not None:
            return Spoken(item.text, self._tokenizer.text(came).strip(), frames, frames == item.clip.tokens.shape[1])
        said = _said(item.pieces, came)
        heard = self._tokenizer.text(item.pieces[:said]).strip()
        return Spoken(item.text, heard, frames, said == len(item.pieces))


def _clip_column(state: _Slot) -> Tensor | None:
    """The ids a clip forces in the step now coming, `[9]`."""
    item = state.now
    if item is None or item.clip is None:
        return None
    at = state.steps - item.first
    return item.clip.tokens[:, at] if at < item.clip.tokens.shape[1] else None


def _complete(item: _Item) -> bool:
    if item.clip is not None:
        return len(item.came) == item.clip.tokens.shape[1]
    left = _after(item.pieces, item.came)
    return left is not None and (len(left) >= LAST_WORD_FRAMES or any(not _padding(token) for token in left))


def _said(pieces: Sequence[int], came: Sequence[int]) -> int:
    """How many of `pieces` are among the text ids that came, in order. A word under way before is none of them."""
    said = 0
    for token in came:
        if said < len(pieces) and token == pieces[said]:
            said += 1
    return said


def _after(pieces: Sequence[int], came: Sequence[int]) -> Sequence[int] | None:
    """The text ids that came after the last of `pieces`; None if it has not come."""
    said = 0
    for place, token in enumerate(came):
        if token == pieces[said]:
            said += 1
            if said == len(pieces):
                return came[place + 1 :]
    return None


def _padding(token: int) -> bool:
    return token in (TEXT_PAD, TEXT_END_OF_PAD)
