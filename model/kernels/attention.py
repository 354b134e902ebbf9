"""Attention of one query a slot over rings of keys and values, in Triton: each slot costs what it holds.

Owns three kernels: `append` turns the queries and keys, and writes the keys and values where they belong; `split` lets
one program attend one chunk of one slot's window for one head; `combine` joins the chunks. Knows no weights and no
windows' rules: which positions a query sees comes in as numbers. Imported only where there is a GPU, and by the tests,
which run it in Triton's interpreter. `model.kv_cache` has the same in plain PyTorch.

b is the slots of a step, S all slots, H heads, C a ring's cells, hd a head's width. Position p lies in cell p mod C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = tl.constexpr(448.0)
"""The largest number of e4m3."""
SMALLEST = tl.constexpr(1e-12)
"""Of a scale's numerator: a row of zeros has a scale too."""
_LOG2_E = 1.4426950408889634
_ROWS = 32
"""Positions that a program reads at once."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One layer's rings: keys and values `[S, H, C, hd]`, in FP8 with scales `[S, H, C]` in float32."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


def append(ring: Ring, joined: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    """Write `joined [b, 3, H, hd]`, query, key and value, at `positions [b]` of `slots [b]`.

    Returns the turned queries, `[b, H, hd]`. `cos` and `sin` are `[b, hd / 2]`, float32; neighbouring components turn
    together.
    """
    count, _, heads, head_dim = joined.shape
    keys, values = ring.keys, ring.values
    if ring.key_scales is not None:
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    query = joined.new_empty((count, heads, head_dim))
    _append[(count, heads)](
        joined,
        cos,
        sin,
        slots,
        positions,
        query,
        keys,
        values,
        keys if ring.key_scales is None else ring.key_scales,
        values if ring.value_scales is None else ring.value_scales,
        heads,
        keys.shape[2],
        half=head_dim // 2,
        quantised=ring.key_scales is not None,
        num_warps=1,
    )
    return query


def attend(
    ring: Ring, query: Tensor, slots: Tensor, first: Tensor, last: Tensor, *, chunk: int | None = None
) -> Tensor:
    """What `query [b, H, hd]` sees of positions `first [b]` to `last [b]` of `slots [b]`: `[b, H, hd]`, of its type.

    `chunk` positions, a multiple of 32, go to one program: by default fewer for a small batch, which would not fill
    the GPU otherwise.
    """
    count, heads, head_dim = query.shape
    capacity = ring.keys.shape[2]
    chunk = chunk or (128 if count <= 4 else 256 if count <= 16 else 512)
    splits = triton.cdiv(capacity, chunk)
    partial = torch.empty((count, heads, splits, head_dim), dtype=torch.float32, device=query.device)
    peaks = torch.empty((count, heads, splits), dtype=torch.float32, device=query.device)
    sums = torch.empty_like(peaks)
    _split[(splits, heads, count)](
        query,
        ring.keys,
        ring.values,
        ring.keys if ring.key_scales is None else ring.key_scales,
        ring.values if ring.value_scales is None else ring.value_scales,
        slots,
        first,
        last,
        partial,
        peaks,
        sums,
        heads,
        capacity,
        head_dim**-0.5 * _LOG2_E,
        head_dim=head_dim,
        rows=_ROWS,
        chunk=chunk,
        quantised=ring.key_scales is not None,
        num_warps=4,
    )
    result = torch.empty_like(query)
    _combine[(count * heads,)](
        partial, peaks, sums, result, splits, head_dim=head_dim, places=triton.next_power_of_2(splits), num_warps=4
    )
    return result


@triton.jit
def _e4m3(x):
    """float32 within +-448 to the nearest e4m3, ties to even, as its byte: the same on every card, and in tests."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20
    small = (tl.abs(x) * 512.0 + 8388608.0) - 8388608.0  # adding 2^23 rounds to a whole number, ties to even
    code = tl.where(tl.abs(x) < 0.015625, small.to(tl.int32), rounded - 960)
    code = tl.where(x == x, code, 0x7F)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _append(
    joined,
    cos,
    sin,
    slots,
    positions,
    query,
    keys,
    values,
    key_scales,
    value_scales,
    heads,
    capacity,
    half: tl.constexpr,
    quantised: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    cell = (slot * heads + head) * capacity + tl.load(positions + row) % capacity
    pair = tl.arange(0, half)
    turn, shift = tl.load(cos + row * half + pair), tl.load(sin + row * half + pair)
    even = 2 * pair
    source = joined + (row * 3 * heads + head) * 2 * half + even
    part = heads * 2 * half
    narrow = joined.dtype.element_ty

    a, b = tl.load(source).to(tl.float32), tl.load(source + 1).to(tl.float32)
    target = query + (row * heads + head) * 2 * half + even
    tl.store(target, (a * turn - b * shift).to(narrow))
    tl.store(target + 1, (a * shift + b * turn).to(narrow))

    a, b = tl.load(source + part).to(tl.float32), tl.load(source + part + 1).to(tl.float32)
    turned_a = (a * turn - b * shift).to(narrow).to(tl.float32)
    turned_b = (a * shift + b * turn).to(narrow).to(tl.float32)
    _store(keys, key_scales, cell, even, turned_a, turned_b, half, quantised)
    a, b = tl.load(source + 2 * part).to(tl.float32), tl.load(source + 2 * part + 1).to(tl.float32)
    _store(values, value_scales, cell, even, a, b, half, quantised)


@triton.jit
def _store(ring, scales, cell, even, a, b, half: tl.constexpr, quantised: tl.constexpr):
    """One head's row, whose even components are `a` and odd ones `b`."""
    target = ring + cell * 2 * half + even
    if quantised:
        largest = tl.max(tl.maximum(tl.abs(a), tl.abs(b)), axis=0)
        scale = tl.maximum(largest, SMALLEST) / LARGEST
        tl.store(scales + cell, scale)
        limit_a = tl.minimum(tl.maximum(a / scale, -LARGEST), LARGEST)
        limit_b = tl.minimum(tl.maximum(b / scale, -LARGEST), LARGEST)
        tl.store(target, _e4m3(tl.where(a == a, limit_a, a)))
        tl.store(target + 1, _e4m3(tl.where(b == b, limit_b, b)))
    else:
        tl.store(target, a.to(ring.dtype.element_ty))
        tl.store(target + 1, b.to(ring.dtype.element_ty))


@triton.jit
def _split(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    firsts,
    lasts,
    partial,
    peaks,
    sums,
    heads,
    capacity,
    scale,
    head_dim: tl.constexpr,
    rows: tl.constexpr,
    chunk: tl.constexpr,
    quantised: tl.constexpr,
):
    """Softmax over one chunk. Each of `rows` lanes runs one of its own, so the loop never waits across warps."""
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(firsts + row) + split * chunk
    count = tl.minimum(tl.load(lasts + row) - begin + 1, chunk).to(tl.int32)
    place = (row * heads + head) * tl.num_programs(0) + split
    if count <= 0:
        tl.store(peaks + place, float("-inf"))
        tl.store(sums + place, 0.0)
        return
    slot = tl.load(slots + row).to(tl.int64)
    base = (slot * heads + head) * capacity
    start = (begin % capacity).to(tl.int32)
    component = tl.arange(0, head_dim)
    asked = tl.load(query + (row * heads + head) * head_dim + component).to(tl.float32) * scale
    lane = tl.arange(0, rows)
    peak = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    seen = tl.zeros([rows, head_dim], tl.float32)
    for offset in range(0, count, rows):
        live = offset + lane < count
        cell = start + offset + lane
        cell = base + tl.where(cell >= capacity, cell - capacity, cell)
        where = cell[:, None] * head_dim + component[None, :]
        key = tl.load(keys + where, mask=live[:, None], other=0.0).to(tl.float32)
        score = tl.sum(key * asked[None, :], axis=1)
        if quantised:
            score *= tl.load(key_scales + cell, mask=live, other=0.0)
        score = tl.where(live, score, float("-inf"))
        higher = tl.maximum(peak, score)
        level = tl.where(higher == float("-inf"), 0.0, higher)
        fade, weight = tl.exp2(peak - level), tl.exp2(score - level)
        total = total * fade + weight
        if quantised:
            weight *= tl.load(value_scales + cell, mask=live, other=0.0)
        value = tl.load(values + where, mask=live[:, None], other=0.0).to(tl.float32)
        seen = seen * fade[:, None] + weight[:, None] * value
        peak = higher
    top = tl.max(peak, axis=0)
    share = tl.exp2(peak - top)
    tl.store(peaks + place, top)
    tl.store(sums + place, tl.sum(total * share, axis=0))
    tl.store(partial + place * head_dim + component, tl.sum(seen * share[:, None], axis=0))


@triton.jit
def _combine(partial, peaks, sums, result, splits, head_dim: tl.constexpr, places: tl.constexpr):
    """Join the chunks of one head of one slot; chunks with nothing in sight have a sum of 0, and are not read."""
    place = tl.program_id(0).to(tl.int64)
    split, component = tl.arange(0, places), tl.arange(0, head_dim)
    there = split < splits
    total = tl.load(sums + place * splits + split, mask=there, other=0.0)
    peak = tl.load(peaks + place * splits + split, mask=there, other=float("-inf"))
    used = total != 0.0
    share = tl.where(used, tl.exp2(peak - tl.max(peak, axis=0)), 0.0)
    rows = (place * splits + split)[:, None] * head_dim + component[None, :]
    seen = tl.load(partial + rows, mask=used[:, None], other=0.0)
    joined = tl.sum(seen * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(result + place * head_dim + component, joined.to(result.dtype.element_ty))
