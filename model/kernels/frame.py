"""The two ends of a step in a launch each, in Triton: what comes from the host, and what goes to it.

Owns the scale between int16 and float32, and the check that every number is one. `model.engine` says what it means, and
has the same in plain PyTorch. b is the slots of a step, S all slots, R the rows of a column, N samples of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

HALF_RANGE = tl.constexpr(32768.0)
ROUNDER = tl.constexpr(12582912.0)
"""1.5 x 2^23: a float32 of at most 2^22 added to it is rounded to a whole number, ties to even."""
_BLOCK = 1024
_WIDE = 4096


def begin(slots: Tensor, lm_slots: Tensor, counters: Tensor, pcm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Look `slots [b]` up in `lm_slots [S]` and `counters [S]`, `[b]` each, and scale `pcm [b, N]` int16 to float32."""
    count, samples = pcm.shape
    where, counter = torch.empty_like(slots), torch.empty_like(slots)
    sound = torch.empty((count, samples), device=slots.device)
    _begin[(count, triton.cdiv(samples, _BLOCK))](
        slots, lm_slots, counters, pcm, where, counter, sound, samples, block=_BLOCK, num_warps=4
    )
    return where, counter, sound


def end(
    slots: Tensor,
    counters: Tensor,
    results: Sequence[Tensor],
    column: Tensor,
    frame: Tensor,
    said: Tensor,
    tokens: Tensor,
    pcm: Tensor,
) -> None:
    """Write `column` and `frame [b, R]`, and whether four `results [b, ...]` and `said [b, N]` are finite, to `tokens
    [b, 2 R + 1]`, and `said` to `pcm [b, N]` int16, what is no number as 0. Count a step in `counters [S]`."""
    first, second, third, fourth = (result.flatten(1).contiguous() for result in results)
    _end[(slots.shape[0],)](
        slots,
        counters,
        first,
        second,
        third,
        fourth,
        said.contiguous(),
        column,
        frame,
        tokens,
        pcm,
        first.shape[1],
        second.shape[1],
        third.shape[1],
        fourth.shape[1],
        said.shape[1],
        column.shape[1],
        places=triton.next_power_of_2(column.shape[1]),
        block=_WIDE,
        num_warps=16,
    )


@triton.jit
def _begin(slots, lm_slots, counters, pcm, where, counter, sound, samples, block: tl.constexpr):
    entry, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if part == 0:
        slot = tl.load(slots + entry)
        tl.store(where + entry, tl.load(lm_slots + slot))
        tl.store(counter + entry, tl.load(counters + slot))
    place = part * block + tl.arange(0, block)
    there = place < samples
    level = tl.load(pcm + entry * samples + place, mask=there, other=0).to(tl.float32)
    tl.store(sound + entry * samples + place, level * (1.0 / HALF_RANGE), mask=there)


@triton.jit
def _strange(source, entry, size, block: tl.constexpr):
    """How many of a row's `size` numbers are none, or have no bounds."""
    place = tl.arange(0, block)
    found = tl.zeros([block], tl.int32)
    for start in range(0, size, block):
        value = tl.load(source + entry * size + start + place, mask=start + place < size, other=0.0).to(tl.float32)
        found += (~(tl.abs(value) < float("inf"))).to(tl.int32)
    return tl.sum(found, axis=0)


@triton.jit
def _end(
    slots,
    counters,
    first,
    second,
    third,
    fourth,
    said,
    column,
    frame,
    tokens,
    pcm,
    first_size,
    second_size,
    third_size,
    fourth_size,
    samples,
    rows,
    places: tl.constexpr,
    block: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    strange = _strange(first, entry, first_size, block) + _strange(second, entry, second_size, block)
    strange += _strange(third, entry, third_size, block) + _strange(fourth, entry, fourth_size, block)
    lane = tl.arange(0, block)
    for start in range(0, samples, block):
        place = start + lane
        there = place < samples
        level = tl.load(said + entry * samples + place, mask=there, other=0.0)
        strange += tl.sum((~(tl.abs(level) < float("inf"))).to(tl.int32), axis=0)
        level = tl.minimum(tl.maximum(tl.where(level == level, level, 0.0) * HALF_RANGE, -HALF_RANGE), HALF_RANGE - 1)
        tl.store(pcm + entry * samples + place, ((level + ROUNDER) - ROUNDER).to(tl.int16), mask=there)
    row = tl.arange(0, places)
    there = row < rows
    target = tokens + entry * (2 * rows + 1)
    tl.store(target + row, tl.load(column + entry * rows + row, mask=there, other=0), mask=there)
    tl.store(target + rows + row, tl.load(frame + entry * rows + row, mask=there, other=0), mask=there)
    tl.store(target + 2 * rows, (strange == 0).to(tl.int64))
    slot = tl.load(slots + entry)
    tl.store(counters + slot, tl.load(counters + slot) + 1)
