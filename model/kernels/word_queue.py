"""The rule of `model.word_queue` in one launch, in Triton: which text ids are replaced, and what is remembered.

Owns the arithmetic alone, a lane for each slot. b is the slots of a step, S all slots, L the most pieces, V the text
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TEXT_PAD = tl.constexpr(3)
TEXT_END_OF_PAD = tl.constexpr(0)
_LANES = 32


@dataclass(frozen=True, slots=True)
class Queue:
    """pieces: `[S, L + 1]` ids; begins: `[S, L + 1]` bool; starts: `[V]` bool; length, said, waited, last: `[S]`."""

    pieces: Tensor
    begins: Tensor
    starts: Tensor
    length: Tensor
    said: Tensor
    waited: Tensor
    last: Tensor


def decide(queue: Queue, sampled: Tensor, frame: Tensor, slots: Tensor, start_frames: int, pause_frames: int) -> Tensor:
    """`sampled [b]` with ids replaced where `slots [b]` have words left and run (`frame [b]` is above 0)."""
    count = sampled.shape[0]
    text = torch.empty_like(sampled)
    _decide[(triton.cdiv(count, _LANES),)](
        queue.pieces,
        queue.begins.view(torch.uint8),
        queue.starts.view(torch.uint8),
        queue.length,
        queue.said,
        queue.waited,
        queue.last,
        sampled,
        frame,
        slots,
        text,
        count,
        queue.pieces.shape[1],
        start_frames,
        pause_frames,
        lanes=_LANES,
        num_warps=1,
    )
    return text


@triton.jit(do_not_specialize=["count"])
def _decide(
    pieces,
    begin_flags,
    starts,
    lengths,
    said_of,
    waited_of,
    last_of,
    sampled,
    frames,
    slots,
    text,
    count,
    length,
    start_frames,
    pause_frames,
    lanes: tl.constexpr,
):
    entry = tl.program_id(0) * lanes + tl.arange(0, lanes)
    there = entry < count
    slot = tl.load(slots + entry, mask=there, other=0)
    token = tl.load(sampled + entry, mask=there, other=0)
    running = there & (tl.load(frames + entry, mask=there, other=0) > 0)
    said = tl.load(said_of + slot, mask=there, other=0)
    waited = tl.load(waited_of + slot, mask=there, other=0)
    last = tl.load(last_of + slot, mask=there, other=0)
    left = running & (said < tl.load(lengths + slot, mask=there, other=0))
    place = slot * length + said
    inside = left & (tl.load(begin_flags + place, mask=there, other=0) == 0)
    waiting = left & ~inside
    late = waited >= tl.where(said == 0, start_frames, pause_frames) - 1
    padding = (token == TEXT_PAD) | (token == TEXT_END_OF_PAD)
    own = (last != TEXT_PAD) & (last != TEXT_END_OF_PAD) & (said == 0)
    goes_on = tl.load(starts + token, mask=there, other=0) == 0
    finishes_own = own & ~padding & goes_on & ~late
    begins = waiting & ((last == TEXT_END_OF_PAD) | (~padding & ~finishes_own))
    ends_padding = waiting & ~begins & late & (token == TEXT_PAD)
    speaks = inside | begins
    piece = tl.load(pieces + place, mask=there, other=0)
    told = tl.where(speaks, piece, tl.where(ends_padding, TEXT_END_OF_PAD, token))
    tl.store(text + entry, told, mask=there)
    tl.store(said_of + slot, said + speaks.to(tl.int64), mask=there)
    tl.store(waited_of + slot, tl.where(waiting & ~begins, waited + 1, 0), mask=there)
    tl.store(last_of + slot, told, mask=running)
