"""Words that slots have been told to say: the model chooses when each begins, the queue chooses which.

Owns, on the device, each slot's words and the rule by which a sampled text id is replaced. Knows no sound and no
reasons. b is the slots of a step, S all slots, L the most pieces of an utterance, V the text vocabulary.

In training a word's pieces take consecutive frames, padding fills the time until the next word, and the last frame
of padding is marked as its end. So while words are left: inside a word, its next piece; where the model begins a
word, or has just ended its padding, the next word's first piece; where it pads for too long, the end of padding;
else what the model sampled. All of it is arithmetic on tensors: nothing is read back during a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model import ops
from model.config import TEXT_END_OF_PAD, TEXT_PAD
from model.lm import Chance, OpenSampler, Sampler

START_FRAMES = 6
"""Padding before the first word ends by then: 0.48 s."""
PAUSE_FRAMES = 12
"""Padding after a word ends by then: 0.96 s, a long word or the pause between two sentences."""
LONGEST = 1024
"""Pieces of one utterance; a persona's longest sentence has fewer characters."""


class WordQueue:
    """A Sampler around another, which replaces the text ids of slots that have words to say."""

    def __init__(
        self, sampler: Sampler, word_starts: Sequence[bool], slots: int, device: torch.device | str = "cpu"
    ) -> None:
        """`word_starts [V]`: whether an id begins a word."""
        device = torch.device(device)
        self._sampler = sampler
        self._starts = torch.tensor(word_starts, dtype=torch.bool, device=device)
        self._pieces = torch.zeros((slots, LONGEST + 1), dtype=torch.long, device=device)
        self._begins = torch.zeros((slots, LONGEST + 1), dtype=torch.bool, device=device)
        self._here = [_here(part) for part in (self._pieces, self._begins)]
        """The two on the host, from where they are copied without a wait: words begin in the midst of a step."""
        self._length = torch.zeros(slots, dtype=torch.long, device=device)
        self._said = torch.zeros_like(self._length)
        self._waited = torch.zeros_like(self._length)
        self._last = torch.full_like(self._length, TEXT_PAD)

    def start(self, slot: int, words: Sequence[Sequence[int]]) -> None:
        """Let `slot` say `words`, each the ids of its pieces, in place of any it had left. Raises ValueError."""
        pieces = [piece for word in words for piece in word]
        if len(pieces) > LONGEST:
            raise ValueError(f"{len(pieces)} pieces of text are too many to say at once; {LONGEST} at most")
        begins = [place == 0 for word in words for place, _ in enumerate(word)]
        for here, there, told in zip(self._here, (self._pieces, self._begins), (pieces, begins), strict=True):
            row = here[slot, : len(pieces)]
            row.numpy()[:] = told
            if here is not there:
                there[slot, : len(pieces)].copy_(row, non_blocking=True)
        self._length[slot].fill_(len(pieces))
        self._said[slot].fill_(0)
        self._waited[slot].fill_(0)

    def stop(self, slot: int) -> None:
        """Forget the words `slot` has left: the model speaks for itself again."""
        # Filled and not assigned: on a GPU a number assigned to a place is copied there, and the copy waited for.
        self._length[slot].fill_(0)
        self._said[slot].fill_(0)

    def reset(self, slot: int) -> None:
        """Make `slot` as good as new."""
        self.stop(slot)
        for told in (*self._here, self._pieces, self._begins):
            told[slot].zero_()  # names and facts of a call
        self._waited[slot].fill_(0)
        self._last[slot].fill_(TEXT_PAD)

    def chance(self, frame: Tensor, slots: Tensor) -> Chance | None:
        """Audio is not subject to the queue."""
        return self._sampler.chance(frame, slots) if isinstance(self._sampler, OpenSampler) else None

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        """`logits [b, V]` to ids `[b]`, as a Sampler does; text (row 0) is subject to the queue."""
        sampled = self._sampler(logits, row, frame, slots)
        if row:
            return sampled
        if not ops.fused(sampled):
            return self._decide(sampled, frame > 0, slots)
        from model.kernels import word_queue

        queue = word_queue.Queue(
            self._pieces, self._begins, self._starts, self._length, self._said, self._waited, self._last
        )
        return word_queue.decide(queue, sampled, frame, slots, START_FRAMES, PAUSE_FRAMES)

    def _decide(self, sampled: Tensor, running: Tensor, slots: Tensor) -> Tensor:
        """Replace `sampled [b]` where words are left, and remember. A slot not `running [b]` keeps its memory."""
        said, waited, last = self._said[slots], self._waited[slots], self._last[slots]
        left = (said < self._length[slots]) & running
        inside = left & ~self._begins[slots, said]
        waiting = left & ~inside
        late = waited >= torch.where(said == 0, START_FRAMES, PAUSE_FRAMES) - 1
        padding = (sampled == TEXT_PAD) | (sampled == TEXT_END_OF_PAD)
        own = (last != TEXT_PAD) & (last != TEXT_END_OF_PAD) & (said == 0)
        finishes_own = own & ~padding & ~self._starts[sampled] & ~late
        begins = waiting & ((last == TEXT_END_OF_PAD) | (~padding & ~finishes_own))
        ends_padding = waiting & ~begins & late & (sampled == TEXT_PAD)
        speaks = inside | begins
        text = torch.where(speaks, self._pieces[slots, said], torch.where(ends_padding, TEXT_END_OF_PAD, sampled))
        self._said[slots] = said + speaks
        self._waited[slots] = torch.where(waiting & ~begins, waited + 1, 0)
        self._last[slots] = torch.where(running, text, last)
        return text


def _here(there: Tensor) -> Tensor:
    """Memory on the host like `there`, which is the same on the host; for a GPU such as it copies by itself."""
    if there.device.type == "cpu":
        return there
    return torch.zeros(there.shape, dtype=there.dtype, pin_memory=there.is_cuda)
