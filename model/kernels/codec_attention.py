"""Attention of a codec's step over rings of keys and values, in Triton: a slot's new positions, one launch a layer.

Owns one kernel, one program for each slot and head: it turns queries and keys, stores keys and values where they
belong, and lets both queries attend what their windows show. Knows no weights. Rings are read where they lie, each slot
as far as it is filled. Everything is float32. `model.streaming` has the same in plain PyTorch.

b is the slots of a step, S all slots, H heads, C a ring's cells, hd a head's width. Position p lies in cell p mod C.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels import codec_tiles
from model.kernels.overlap import begin_next, possible, wait_for_last
from model.streaming import Window

STEP = 2
"""Positions of one step: 25 Hz against 12.5."""
_CUT, _CUT_FOR_FEW = (64, 4), (128, 8)
"""Positions that a program reads at once, and its warps; few programs do not fill the GPU, so each then reads more."""
LOG2_E = 1.4426950408889634
"""Scores are scaled by it, too, so that powers of two weigh them."""


def attend(
    joined: Tensor,
    frequency: Tensor,
    slots: Tensor,
    offsets: Tensor,
    keys: Tensor,
    values: Tensor,
    window: Window,
    result: Tensor,
) -> None:
    """Let `joined [b, 2, 3, H, hd]`, query, key and value, be the next positions of `slots [b]`.

    What they see goes to `result [b, 2, H, hd]`. `offsets [S]` are the positions that slots hold, and do not go on;
    `keys` and `values [S, H, C, hd]` are one layer's rings. `frequency [hd / 2]` turns neighbouring components, by
    radians a position.
    """
    count, _, _, heads, head_dim = joined.shape
    rows, warps = _CUT_FOR_FEW if count * heads <= 128 else _CUT
    chained = codec_tiles.chains(count) and possible(joined.device)
    _attend[(count, heads)](
        joined,
        frequency,
        slots,
        offsets,
        keys,
        values,
        result,
        heads,
        window.capacity,
        window.context,
        head_dim**-0.5 * LOG2_E,
        full=window.kind == "full",
        head_dim=head_dim,
        width=triton.next_power_of_2(head_dim),
        rows=rows,
        chained=chained,
        num_warps=warps,
        launch_pdl=chained,
    )


@triton.jit
def _turned(source, component, there, cos, sin):
    """A row whose neighbouring components turn together; `sin` has its sign already."""
    other = tl.load(source + (component ^ 1), mask=there, other=0.0)
    return tl.load(source + component, mask=there, other=0.0) * cos + other * sin


@triton.jit
def oldest_in_sight(position, context, full: tl.constexpr):
    """The oldest position in sight, as `Window.first` has it for steps of two."""
    first = position - (context - 1) if full else position - position % 2 + (3 - context)
    return tl.maximum(first, 0)


@triton.jit
def _weigh(peak, score):
    """A running softmax goes on: its new peak, by how much what was seen fades, and the weight of what is new."""
    higher = tl.maximum(peak, score)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, tl.exp2(peak - level), tl.exp2(score - level)


@triton.jit
def _attend(
    joined,
    frequency,
    slots,
    offsets,
    keys,
    values,
    result,
    heads,
    capacity,
    context,
    scale,
    full: tl.constexpr,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    chained: tl.constexpr,
):
    if chained:  # as the products before and after it are: see `codec_product`
        begin_next()
        wait_for_last()
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    begin = tl.load(offsets + slot)
    base = (slot * heads + head) * capacity
    component = tl.arange(0, width)
    there = component < head_dim
    speed = tl.load(frequency + component // 2, mask=there, other=0.0)
    sign = tl.where(component % 2 == 0, -1.0, 1.0)
    angle_a, angle_b = begin.to(tl.float32) * speed, (begin + 1).to(tl.float32) * speed
    cos_a, sin_a, cos_b, sin_b = tl.cos(angle_a), sign * tl.sin(angle_a), tl.cos(angle_b), sign * tl.sin(angle_b)

    part = heads * head_dim
    source = joined + row.to(tl.int64) * 6 * part + head * head_dim
    query_a = _turned(source, component, there, cos_a, sin_a) * scale
    query_b = _turned(source + 3 * part, component, there, cos_b, sin_b) * scale
    key_a = _turned(source + part, component, there, cos_a, sin_a)
    key_b = _turned(source + 4 * part, component, there, cos_b, sin_b)
    value_a = tl.load(source + 2 * part + component, mask=there, other=0.0)
    value_b = tl.load(source + 5 * part + component, mask=there, other=0.0)
    # None of these two cells is read below: a ring has room for a step beside all that is in sight.
    cell_a, cell_b = (base + begin % capacity) * head_dim, (base + (begin + 1) % capacity) * head_dim
    tl.store(keys + cell_a + component, key_a, mask=there)
    tl.store(keys + cell_b + component, key_b, mask=there)
    tl.store(values + cell_a + component, value_a, mask=there)
    tl.store(values + cell_b + component, value_b, mask=there)

    first_a, first_b = oldest_in_sight(begin, context, full), oldest_in_sight(begin + 1, context, full)
    count = (begin - first_a).to(tl.int32)
    start, skipped = (first_a % capacity).to(tl.int32), (first_b - first_a).to(tl.int32)
    lane = tl.arange(0, rows)
    peak_a = tl.full([rows], float("-inf"), tl.float32)
    peak_b = tl.full([rows], float("-inf"), tl.float32)
    total_a, total_b = tl.zeros([rows], tl.float32), tl.zeros([rows], tl.float32)
    seen_a, seen_b = tl.zeros([rows, width], tl.float32), tl.zeros([rows, width], tl.float32)
    for offset in tl.range(0, count, rows, num_stages=2):  # the next keys and values come while these are weighed
        place = offset + lane
        cell = start + place
        cell = base + tl.where(cell >= capacity, cell - capacity, cell)
        where = cell[:, None] * head_dim + component[None, :]
        live = (place < count)[:, None] & there[None, :]
        key = tl.load(keys + where, mask=live, other=0.0)
        value = tl.load(values + where, mask=live, other=0.0)
        score_a = tl.where(place < count, tl.sum(key * query_a[None, :], axis=1), float("-inf"))
        score_b = tl.where((place < count) & (place >= skipped), tl.sum(key * query_b[None, :], axis=1), float("-inf"))
        peak_a, fade, weight = _weigh(peak_a, score_a)
        total_a = total_a * fade + weight
        seen_a = seen_a * fade[:, None] + weight[:, None] * value
        peak_b, fade, weight = _weigh(peak_b, score_b)
        total_b = total_b * fade + weight
        seen_b = seen_b * fade[:, None] + weight[:, None] * value

    own = tl.sum(query_a * key_a, axis=0)
    top = tl.maximum(tl.max(peak_a, axis=0), own)
    share, weight = tl.exp2(peak_a - top), tl.exp2(own - top)
    seen = tl.sum(seen_a * share[:, None], axis=0) + weight * value_a
    target = result + row.to(tl.int64) * 2 * part + head * head_dim + component
    tl.store(target, seen / (tl.sum(total_a * share, axis=0) + weight), mask=there)

    before, own = tl.sum(query_b * key_a, axis=0), tl.sum(query_b * key_b, axis=0)
    top = tl.maximum(tl.maximum(tl.max(peak_b, axis=0), own), before)
    share, weight = tl.exp2(peak_b - top), tl.exp2(own - top)
    weight_before = tl.exp2(before - top)
    seen = tl.sum(seen_b * share[:, None], axis=0) + weight * value_b + weight_before * value_a
    tl.store(target + part, seen / (tl.sum(total_b * share, axis=0) + weight + weight_before), mask=there)
