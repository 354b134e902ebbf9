"""Attention of one query a slot over rings of keys and values, in Triton: each slot costs what it holds.

Owns one kernel, which turns query and key, writes key and value where they belong, and attends. A program has one chunk
of one slot's window for one head; whichever of them finishes last joins them. Knows no weights and no windows' rules:
which positions a query sees comes in as numbers. Imported only where there is a GPU, and by the tests, which run it in
Triton's interpreter. `model.kv_cache` has the same in plain PyTorch.

b is the slots of a step, S all slots, H heads, C a ring's cells, hd a head's width. Position p lies in cell p mod C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.overlap import begin_next, possible, wait_for_last
from model.kernels.tiles import AttentionTile, attention_tile

LARGEST = tl.constexpr(448.0)
"""The largest number of e4m3."""
SMALLEST = tl.constexpr(1e-12)
"""Of a scale's numerator: a row of zeros has a scale too."""
LOG2_E = 1.4426950408889634
SHORT = 1
"""Slots whose attention is so short that it is worth to begin it early, and the product after it."""
PLACES = 32
"""Chunks that are joined at once, at least: one kernel serves chunks of any length."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One layer's rings: keys and values `[S, H, C, hd]`, in FP8 with scales `[S, H, C]` in float32."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, values and the scales of both, as kernels take them: where there are none, what is not read."""
        key_scales = self.keys if self.key_scales is None else self.key_scales
        return self.keys, self.values, key_scales, self.values if self.value_scales is None else self.value_scales


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the chunks of a step's windows meet; its layers use it in turn.

    seen `[b, H, chunks, hd]`, peaks and sums `[b, H, chunks]` in float32: each chunk's softmax; arrivals `[b, H]`: how
    many are done, 0 between layers.
    """

    tile: AttentionTile
    seen: Tensor
    peaks: Tensor
    sums: Tensor
    arrivals: Tensor


def chunks(ring: Ring, count: int, tile: AttentionTile | None = None) -> Chunks:
    """For `count` slots of a step."""
    heads, capacity, head_dim = ring.keys.shape[1:]
    tile = tile or attention_tile("bf16" if ring.key_scales is None else "fp8", count)
    shape = (count, heads, triton.cdiv(capacity, tile.chunk))
    device = ring.keys.device
    peaks = torch.empty(shape, dtype=torch.float32, device=device)
    seen = torch.empty((*shape, head_dim), dtype=torch.float32, device=device)
    return Chunks(tile, seen, peaks, torch.empty_like(peaks), torch.zeros(shape[:2], dtype=torch.int32, device=device))


def attend(
    ring: Ring,
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    first: Tensor,
    last: Tensor,
    cut: Chunks,
) -> Tensor:
    """Write `joined [b, 3, H, hd]`, query, key and value, at positions `last [b]` of `slots [b]`, and attend.

    `cos` and `sin` are `[b, hd / 2]`, float32; neighbouring components turn together. Returns what the queries see of
    positions `first [b]` to `last [b]`: `[b, H, hd]`, of the type of `joined`.
    """
    from model.kernels import fp8_attention  # which is made of parts of this module

    if cut.tile.tensor_cores and fp8_attention.takes(ring):
        return fp8_attention.attend(ring, joined, cos, sin, slots, first, last, cut)
    count, _, heads, head_dim = joined.shape
    width, splits, tile = triton.next_power_of_2(head_dim), cut.peaks.shape[2], cut.tile
    result = joined.new_empty((count, heads, head_dim))
    _attend[(splits, heads, count)](
        joined,
        cos,
        sin,
        *ring.arguments,
        slots,
        first,
        last,
        cut.seen,
        cut.peaks,
        cut.sums,
        cut.arrivals,
        result,
        heads,
        ring.keys.shape[2],
        tile.chunk,
        head_dim**-0.5 * LOG2_E,
        head_dim=head_dim,
        width=width,
        lanes=tile.lanes(width * ring.keys.element_size()),
        steps=tile.steps,
        stages=tile.stages,
        places=max(PLACES, triton.next_power_of_2(splits)),
        quantised=ring.key_scales is not None,
        early=(early := count <= SHORT and possible(joined.device)),
        num_warps=tile.warps,
        launch_pdl=early,
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
def turned(source, turn, shift, component):
    """A row, turned in neighbouring pairs, in float32 as it is in the row's type."""
    own, other = tl.load(source + component).to(tl.float32), tl.load(source + (component ^ 1)).to(tl.float32)
    other = tl.where(component % 2 == 0, -other, other)
    return (own * turn + other * shift).to(source.dtype.element_ty).to(tl.float32)


@triton.jit
def _stored(new, ring, scales, cell, component, head_dim: tl.constexpr, quantised: tl.constexpr):
    """Write a row to its cell. Returns it as it is read from there, and its scale."""
    target = ring + cell * head_dim + component
    if quantised:
        scale = tl.maximum(tl.max(tl.abs(new), axis=0), SMALLEST) / LARGEST
        limited = tl.minimum(tl.maximum(new / scale, -LARGEST), LARGEST)
        small = _e4m3(tl.where(new == new, limited, new)).to(tl.float8e4nv, bitcast=True)
        tl.store(scales + cell, scale)
        tl.store(target, small)
        return small.to(tl.float32), scale
    plain = new.to(ring.dtype.element_ty)
    tl.store(target, plain)
    return plain.to(tl.float32), 1.0


@triton.jit
def _attend(
    joined,
    cos,
    sin,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    firsts,
    lasts,
    seen,
    peaks,
    sums,
    arrivals,
    result,
    heads,
    capacity,
    chunk,
    scale,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    lanes: tl.constexpr,
    steps: tl.constexpr,
    stages: tl.constexpr,
    places: tl.constexpr,
    quantised: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        begin_next()
        wait_for_last()
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # A call would last five years before its positions no longer fit into 32 bits, which are divided much faster.
    first, last = tl.load(firsts + row).to(tl.int32), tl.load(lasts + row).to(tl.int32)
    slot = tl.load(slots + row).to(tl.int64)
    component = tl.arange(0, width)
    if width != head_dim:
        # The last component stands in for those beyond: done twice, it changes nothing. The query is 0 there.
        component = tl.minimum(component, head_dim - 1)
    pair = row * (head_dim // 2) + component // 2
    turn, shift = tl.load(cos + pair), tl.load(sin + pair)
    source = joined + (row * 3 * heads + head).to(tl.int64) * head_dim
    asked = turned(source, turn, shift, component) * scale
    if width != head_dim:
        asked = tl.where(tl.arange(0, width) < head_dim, asked, 0.0)
    # All of these are on their way by now, so that they are waited for once.
    begin = first + split * chunk
    if begin > last:
        return

    used = (last - first) // chunk + 1
    base = (slot * heads + head) * capacity
    start = begin % capacity
    count = tl.minimum(last - begin, chunk)  # the newest is not read back
    top, total, view = _window(
        asked,
        keys + base * head_dim,
        values + base * head_dim,
        key_scales + base,
        value_scales + base,
        start,
        count,
        capacity,
        component,
        head_dim,
        width,
        lanes,
        steps,
        stages,
        quantised,
    )
    if split == used - 1:
        top, total, view = newest(
            top,
            total,
            view,
            asked,
            source,
            turn,
            shift,
            keys,
            values,
            key_scales,
            value_scales,
            base + last % capacity,
            heads * head_dim,
            component,
            head_dim,
            quantised,
        )

    place = (row * heads + head).to(tl.int64)
    many = place * tl.num_programs(0)
    tl.store(peaks + many + split, top)
    tl.store(sums + many + split, total)
    tl.store(seen + (many + split) * head_dim + component, view)
    tl.debug_barrier()  # every thread's part is written before one of them counts it
    if tl.atomic_add(arrivals + place, 1, sem="acq_rel") == used - 1:
        tl.store(arrivals + place, 0)
        view = join(seen, peaks, sums, many, used, component, head_dim, places)
        tl.store(result + place * head_dim + component, view.to(result.dtype.element_ty))


@triton.jit
def _window(
    asked,
    keys,
    values,
    key_scales,
    value_scales,
    start,
    count,
    capacity,
    component,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    lanes: tl.constexpr,
    steps: tl.constexpr,
    stages: tl.constexpr,
    quantised: tl.constexpr,
):
    """The softmax over `count` cells from `start` on: its peak, the sum of its weights, and the values so weighed.

    Each lane runs one of its own over `steps` positions a turn, so that the loop never waits across warps.
    """
    ahead = tl.arange(0, steps)[:, None] * lanes + tl.arange(0, lanes)[None, :]
    peak = tl.full([lanes], float("-inf"), tl.float32)
    total = tl.zeros([lanes], tl.float32)
    view = tl.zeros([lanes, width], tl.float32)
    for offset in tl.range(0, count, steps * lanes, num_stages=stages):
        # Beyond the last the last is read again, and weighs nothing.
        cell = start + tl.minimum(offset + ahead, count - 1)
        cell = tl.where(cell >= capacity, cell - capacity, cell)
        where = cell[:, :, None] * head_dim + component[None, None, :]
        key, value = tl.load(keys + where), tl.load(values + where)
        score = tl.sum(key.to(tl.float32) * asked[None, None, :], axis=2)
        if quantised:
            score *= tl.load(key_scales + cell)
        score = tl.where(offset + ahead < count, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        fade, weight = tl.exp2(peak - level), tl.exp2(score - level[None, :])
        total = total * fade + tl.sum(weight, axis=0)
        if quantised:
            weight *= tl.load(value_scales + cell)
        view = view * fade[:, None] + tl.sum(weight[:, :, None] * value.to(tl.float32), axis=0)
        peak = higher
    top = tl.max(peak, axis=0)
    share = tl.exp2(peak - tl.where(top == float("-inf"), 0.0, top))
    return top, tl.sum(total * share, axis=0), tl.sum(view * share[:, None], axis=0)


@triton.jit
def newest(
    top,
    total,
    view,
    asked,
    source,
    turn,
    shift,
    keys,
    values,
    key_scales,
    value_scales,
    cell,
    part,
    component,
    head_dim: tl.constexpr,
    quantised: tl.constexpr,
):
    """Write the newest key and value to their cell, and add what is seen there. `part`: from query to key to value."""
    new = turned(source + part, turn, shift, component)
    key, key_scale = _stored(new, keys, key_scales, cell, component, head_dim, quantised)
    new = tl.load(source + 2 * part + component).to(tl.float32)
    value, value_scale = _stored(new, values, value_scales, cell, component, head_dim, quantised)
    score = tl.sum(key * asked, axis=0) * key_scale
    higher = tl.maximum(top, score)
    fade, weight = tl.exp2(top - higher), tl.exp2(score - higher)
    return higher, total * fade + weight, view * fade + value * (weight * value_scale)


@triton.jit
def join(seen, peaks, sums, many, used, component, head_dim: tl.constexpr, places: tl.constexpr):
    """What all chunks together see; read past the first cache, which other programs' writes do not reach."""
    other = tl.arange(0, places)
    there = other < used
    peak = tl.load(peaks + many + other, mask=there, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(sums + many + other, mask=there, other=0.0, cache_modifier=".cg")
    share = tl.exp2(peak - tl.max(peak, axis=0))
    rows = (many + other)[:, None] * head_dim + component[None, :]
    views = tl.load(seen + rows, mask=there[:, None], other=0.0, cache_modifier=".cg")
    return tl.sum(views * share[:, None], axis=0) / tl.sum(total * share, axis=0)
