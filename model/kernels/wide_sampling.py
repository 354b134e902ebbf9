"""A token for each slot out of a vocabulary too wide for one program, in Triton: text, of 32,000 ids.

Owns the shortlist: each part of the vocabulary names its k likeliest, many programs at a time, and the k likeliest of
all are among those. Where a slot's k is beyond a shortlist's length, one program looks at all of them after all. The
draw itself is that of `model.kernels.sampling`, and so is the token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.sampling import choose, digits_of, largest, order_of

_PART = 2048
"""Ids that a program lists from."""
SHORT = 128
"""Ids that it lists at most."""
USUAL = 32
"""Ids that it lists for the k of most: fewer lanes look at fewer."""


def draw(
    logits: Tensor, row: int, frame: Tensor, slots: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor
) -> Tensor:
    """As `model.kernels.sampling.draw`, for any width."""
    count, size = logits.shape
    parts = triton.cdiv(size, _PART)
    chosen = torch.empty(count, dtype=torch.long, device=logits.device)
    shortlist = torch.empty((count, parts, SHORT), dtype=torch.int32, device=logits.device)
    _list[(count, parts)](
        logits,
        slots,
        temperature,
        top_k,
        shortlist,
        size,
        part=_PART,
        short=SHORT,
        digits=digits_of(logits),
        num_warps=4,
    )
    _choose[(count,)](
        logits,
        frame,
        slots,
        temperature,
        top_k,
        seed,
        shortlist,
        chosen,
        size,
        row,
        parts,
        part=_PART,
        short=SHORT,
        usual=USUAL,
        places=triton.next_power_of_2(parts),
        digits=digits_of(logits),
        width=triton.next_power_of_2(size),
        num_warps=16,
    )
    return chosen


@triton.jit
def _limit(heats, top_ks, slot):
    """How many of the likeliest a slot draws from; the likeliest alone where it does not draw."""
    return tl.where(tl.load(heats + slot) > 0, tl.load(top_ks + slot), 1)


@triton.jit
def _list(
    logits,
    slots,
    temperatures,
    top_ks,
    shortlist,
    size,
    part: tl.constexpr,
    short: tl.constexpr,
    digits: tl.constexpr,
):
    """The likeliest of a part, in the order of their ids; of equals the first."""
    entry, mine = tl.program_id(0).to(tl.int64), tl.program_id(1)
    limit = tl.minimum(_limit(temperatures, top_ks, tl.load(slots + entry)), short).to(tl.int32)
    place = mine * part + tl.arange(0, part)
    there = place < size
    logit = tl.load(logits + entry * size + place, mask=there, other=float("-inf")).to(tl.float32)
    listed = largest(order_of(logit), there, limit, digits)
    target = shortlist + (entry * tl.num_programs(1) + mine) * short + tl.cumsum(listed.to(tl.int32), axis=0) - 1
    tl.store(target, place, mask=listed)


@triton.jit
def _choose(
    logits,
    frames,
    slots,
    temperatures,
    top_ks,
    seeds,
    shortlist,
    chosen,
    size,
    row,
    parts,
    part: tl.constexpr,
    short: tl.constexpr,
    usual: tl.constexpr,
    places: tl.constexpr,
    digits: tl.constexpr,
    width: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + entry)
    heat, top_k, seed = tl.load(temperatures + slot), tl.load(top_ks + slot), tl.load(seeds + slot)
    frame = tl.load(frames + entry)
    source, names = logits + entry * size, shortlist + entry * parts * short
    limit = _limit(temperatures, top_ks, slot)
    if limit <= usual:
        token = _among(
            source, names, limit, size, row, heat, top_k, seed, frame, parts, part, short, usual, places, digits
        )
    elif limit <= short:
        token = _among(
            source, names, limit, size, row, heat, top_k, seed, frame, parts, part, short, short, places, digits
        )
    else:
        token = _among_all(source, size, row, heat, top_k, seed, frame, digits, width)
    tl.store(chosen + entry, token)


@triton.jit
def _among(
    source,
    names,
    limit,
    size,
    row,
    heat,
    top_k,
    seed,
    frame,
    parts,
    part: tl.constexpr,
    short: tl.constexpr,
    read: tl.constexpr,
    places: tl.constexpr,
    digits: tl.constexpr,
):
    """One slot's token from the lists of all parts, of each the first `read`; a part lists `limit`, or all it has."""
    lane = tl.arange(0, places * read)
    mine, rank = lane // read, lane % read
    filled = (mine < parts) & (rank < tl.minimum(limit, size - mine * part))
    place = tl.load(names + mine * short + rank, mask=filled, other=size)
    logit = tl.load(source + place, mask=filled, other=float("-inf")).to(tl.float32)
    winner = choose(logit, place, size, row, heat, top_k, seed, frame, digits)
    # Of logits that are no numbers any lane may win, also one with no id.
    return tl.minimum(tl.sum(tl.where(lane == winner, place, 0), axis=0), size - 1).to(tl.int64)


@triton.jit
def _among_all(source, size, row, heat, top_k, seed, frame, digits: tl.constexpr, width: tl.constexpr):
    place = tl.arange(0, width)
    logit = tl.load(source + place, mask=place < size, other=float("-inf")).to(tl.float32)
    return choose(logit, place, size, row, heat, top_k, seed, frame, digits)
