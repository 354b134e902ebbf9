"""A token for each slot in one launch, in Triton: noise, the k likeliest and the race of `model.sampling`.

Owns the arithmetic alone; the same seed draws the same token as there, up to rounding in the last place of a score.
The k-th largest logit is found bit by bit, from the highest: a count for each bit in place of a sort. Of logits in
bfloat16, as the published model's are, the upper half of the bits says all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)
"""SplitMix64's constants (Steele, Lea and Flood 2014)."""
ROWS = tl.constexpr(32)
_WIDEST = 4096
"""That one program draws from."""


def draw(
    logits: Tensor, row: int, frame: Tensor, slots: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor
) -> Tensor:
    """`logits [b, V]` of `row` in each slot's `frame [b]` to ids `[b]`, with the settings `[S]` of `slots [b]`."""
    count, size = logits.shape
    width = triton.next_power_of_2(size)
    if width > _WIDEST:
        from model.kernels import wide_sampling

        return wide_sampling.draw(logits, row, frame, slots, temperature, top_k, seed)
    chosen = torch.empty(count, dtype=torch.long, device=logits.device)
    _draw[(count,)](
        logits,
        frame,
        slots,
        temperature,
        top_k,
        seed,
        chosen,
        size,
        row,
        width=width,
        digits=digits_of(logits),
        num_warps=4,
    )
    return chosen


def digits_of(logits: Tensor) -> int:
    """Upper bits of a float32 that tell any of `logits` apart."""
    return 16 if logits.dtype == torch.bfloat16 else 32


@triton.jit
def _mix(x):
    """SplitMix64's finaliser; products wrap around."""
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)


@triton.jit
def _exponential(seed, frame, row, place):
    """A unit exponential variable for each of `place`, never 0: near 1, where a logarithm is coarse, by its series."""
    stream = _mix(_mix(seed.to(tl.uint64)) + frame.to(tl.uint64) * ROWS + row)
    bits = (_mix(stream + (place + 1).to(tl.uint64) * GOLDEN) >> 41).to(tl.int32).to(tl.float32)
    below = (8388607.5 - bits) * 1.1920928955078125e-07  # 1 less the variable, exactly
    series = below * (1.0 + below * (0.5 + below * (0.3333333333333333 + below * 0.25)))
    return tl.where(below < 0.00390625, series, -tl.log((bits + 0.5) * 1.1920928955078125e-07))


@triton.jit
def order_of(logit):
    """Bits of a float, so turned that they sort as unsigned numbers; -0 is 0."""
    bits = tl.where(logit == 0, 0.0, logit).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def largest(order, there, limit, digits: tl.constexpr):
    """Which of `order`, where `there`, are the `limit` largest, of equals the first. Its upper `digits` bits count."""
    order = order >> (32 - digits)
    least = tl.zeros([1], tl.uint32)
    for bit in range(digits):
        raised = least | (tl.full([1], 1, tl.uint32) << (digits - 1 - bit))
        reached = tl.sum((there & (order >= raised)).to(tl.int32), axis=0)
        least = tl.where(reached >= limit, raised, least)
    above = there & (order > least)
    equal = there & (order == least)
    room = limit - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))


@triton.jit
def choose(logit, place, size, row, heat, top_k, seed, frame, digits: tl.constexpr = 32):
    """One slot's token from `logit`, its logits in float32 at `place`, -inf from `size` on.

    `digits`: 16 where they were bfloat16, which is faster. Returns where in `logit` it is.
    """
    likeliest = tl.argmax(logit, axis=0)
    if heat > 0:
        limit = tl.minimum(top_k, size).to(tl.int32)
        kept = largest(order_of(logit), place < size, limit, digits)
        score = logit / heat - tl.log(_exponential(seed, frame, row, place))
        likeliest = tl.argmax(tl.where(kept, score, float("-inf")), axis=0)
    return tl.minimum(likeliest, size - 1).to(tl.int64)


@triton.jit
def _draw(
    logits,
    frames,
    slots,
    temperatures,
    top_ks,
    seeds,
    chosen,
    size,
    row,
    width: tl.constexpr,
    digits: tl.constexpr,
):
    entry = tl.program_id(0)
    slot = tl.load(slots + entry)
    place = tl.arange(0, width)
    source = logits + entry.to(tl.int64) * size + place
    logit = tl.load(source, mask=place < size, other=float("-inf")).to(tl.float32)
    heat, top_k, seed = tl.load(temperatures + slot), tl.load(top_ks + slot), tl.load(seeds + slot)
    tl.store(chosen + entry, choose(logit, place, size, row, heat, top_k, seed, tl.load(frames + entry), digits))
