"""The next position of each slot, what it sees and how it turns, in one launch, in Triton.

Owns the arithmetic of a step's positions in `model.kv_cache` and `model.rotary`, which have the same in plain PyTorch.
Knows no weights and no rings. b is the slots of a step, S all slots, hd a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Taken:
    """position: `[b]`; first: `[b]`, the oldest position in sight; cos, sin: `[b, hd / 2]`, float32."""

    position: Tensor
    first: Tensor
    cos: Tensor
    sin: Tensor


def take(offsets: Tensor, slots: Tensor, running: Tensor, frequencies: Tensor, reach: int) -> Taken:
    """Give `slots [b]` their next positions out of `offsets [S]`, and count them where `running [b]`.

    `frequencies [hd / 2]`: radians by which neighbouring components turn from one position to the next; a query sees
    `reach` positions before its own.
    """
    count, half = slots.shape[0], frequencies.shape[0]
    position, first = torch.empty_like(slots), torch.empty_like(slots)
    cos, sin = (frequencies.new_empty((count, half)) for _ in range(2))
    _take[(count,)](
        offsets,
        slots,
        running.view(torch.uint8),
        frequencies,
        position,
        first,
        cos,
        sin,
        reach,
        half,
        width=triton.next_power_of_2(half),
        num_warps=1,
    )
    return Taken(position, first, cos, sin)


@triton.jit
def _take(offsets, slots, running, frequencies, position, first, cos, sin, reach, half, width: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + entry)
    now = tl.load(offsets + slot)
    pair = tl.arange(0, width)
    there = pair < half
    angle = now.to(tl.float32) * tl.load(frequencies + pair, mask=there, other=0.0)
    tl.store(cos + entry * half + pair, tl.cos(angle), mask=there)
    tl.store(sin + entry * half + pair, tl.sin(angle), mask=there)
    tl.store(position + entry, now)
    tl.store(first + entry, tl.maximum(now - reach, 0))
    tl.store(offsets + slot, now + tl.load(running + entry).to(tl.int64))
