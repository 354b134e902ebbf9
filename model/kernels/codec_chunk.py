"""Attention of the codec's passes over several frames, in Triton: a slot's ring and its new positions side by side.

Owns three kernels. `turns` works out by what the new positions turn, once a pass; `attend` lets their queries see what
their windows show, one launch a layer; `store` puts keys and values of all layers into the rings, once a pass and last:
more than a step's positions would overwrite what is still in sight. Knows no weights. Everything is float32 but the
factors of products, where the caller asks for TF32.
`model.kernels.codec_attention` is the same for one frame, `model.streaming` in plain PyTorch.

b is the slots of a pass, S all slots, T new positions of each, at most as many as a window shows, L layers, H heads, C
a ring's cells, hd a head's width. Position p lies in cell p mod C.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.codec_attention import LOG2_E, oldest_in_sight
from model.kernels.codec_product import Precision
from model.streaming import Window

_QUERIES, _KEYS, _WARPS = 32, 64, 4
"""Positions whose queries a program takes, positions that it reads at once, and its warps."""
_BLOCK = 16
"""Positions that a program stores, or turns."""


Turn = tuple[Tensor, Tensor]
"""Cosines and sines."""


def turns(slots: Tensor, offsets: Tensor, frequency: Tensor, length: int) -> Turn:
    """Cosines and sines of the next `length` positions of `slots [b]`, after their `offsets [S]`: `[b, T, hd / 2]`.

    `frequency [hd / 2]`: radians by which neighbouring components turn from one position to the next.
    """
    count, half = slots.shape[0], frequency.shape[0]
    cos, sin = (frequency.new_empty((count, length, half)) for _ in range(2))
    _turns[(count, triton.cdiv(length, _BLOCK))](
        slots, offsets, frequency, cos, sin, length, half, block=_BLOCK, width=triton.next_power_of_2(half), num_warps=1
    )
    return cos, sin


def attend(
    joined: Tensor,
    turn: Turn,
    slots: Tensor,
    offsets: Tensor,
    keys: Tensor,
    values: Tensor,
    window: Window,
    result: Tensor,
    precision: Precision = "ieee",
) -> None:
    """Let the queries of `joined [b, T, 3, H, hd]`, query, key and value, see the ring and the keys beside them.

    What they see goes to `result [b, T, H, hd]`. `turn` is of these positions; `offsets [S]` are the positions that
    slots hold; `keys` and `values [S, H, C, hd]`, one layer's rings, are only read.
    """
    count, length, _, heads, head_dim = joined.shape
    _attend[(triton.cdiv(length, _QUERIES), heads, count)](
        joined,
        *turn,
        slots,
        offsets,
        keys,
        values,
        result,
        heads,
        window.capacity,
        window.context,
        length,
        head_dim**-0.5 * LOG2_E,
        full=window.kind == "full",
        head_dim=head_dim,
        width=max(16, triton.next_power_of_2(head_dim)),
        queries=_QUERIES,
        places=_KEYS,
        precision=precision,
        num_warps=_WARPS,
    )


def store(joined: Tensor, turn: Turn, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
    """Put the keys, turned, and values of `joined [L, b, T, 3, H, hd]` into the rings of `slots [b]`.

    `keys` and `values [L, S, H, C, hd]`; `offsets [S]` do not go on.
    """
    layers, count, length, _, heads, head_dim = joined.shape
    _store[(triton.cdiv(length, _BLOCK), heads, layers * count)](
        joined,
        *turn,
        slots,
        offsets,
        keys,
        values,
        keys.stride(0),
        count,
        heads,
        keys.shape[3],
        length,
        head_dim=head_dim,
        width=triton.next_power_of_2(head_dim),
        block=_BLOCK,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["length"])
def _turns(slots, offsets, frequency, cos, sin, length, half, block: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(offsets + tl.load(slots + row))
    ahead = (tl.program_id(1) * block + tl.arange(0, block))[:, None]
    pair = tl.arange(0, width)[None, :]
    there = (ahead < length) & (pair < half)
    angle = (begin + ahead).to(tl.float32) * tl.load(frequency + pair, mask=pair < half, other=0.0)
    place = (row * length + ahead) * half + pair
    tl.store(cos + place, tl.cos(angle), mask=there)
    tl.store(sin + place, tl.sin(angle), mask=there)


@triton.jit
def _turned(source, cos, sin, ahead, live, apart, head_dim: tl.constexpr, width: tl.constexpr):
    """Rows `ahead` of `source`, `apart` from each other, whose neighbouring components turn together."""
    component = tl.arange(0, width)[None, :]
    there = live[:, None] & (component < head_dim)
    place = ahead[:, None] * (head_dim // 2) + component // 2
    sign = tl.where(component % 2 == 0, -1.0, 1.0)
    row = source + ahead[:, None] * apart
    one = tl.load(row + component, mask=there, other=0.0)
    other = tl.load(row + (component ^ 1), mask=there, other=0.0)
    return one * tl.load(cos + place, mask=there, other=0.0) + other * sign * tl.load(
        sin + place, mask=there, other=0.0
    )


@triton.jit
def _weighed(query, key, value, visible, peak, total, seen, precision: tl.constexpr):
    """A running softmax goes on with keys and values, of which each query sees what is `visible` to it."""
    score = tl.dot(query, tl.trans(key), input_precision=precision)
    score = tl.where(visible, score, float("-inf"))
    higher = tl.maximum(peak, tl.max(score, axis=1))
    level = tl.where(higher == float("-inf"), 0.0, higher)
    fade, weight = tl.exp2(peak - level), tl.exp2(score - level[:, None])
    total = total * fade + tl.sum(weight, axis=1)
    return higher, total, tl.dot(weight, value, seen * fade[:, None], input_precision=precision)


@triton.jit(do_not_specialize=["length"])
def _attend(
    joined,
    cos,
    sin,
    slots,
    offsets,
    keys,
    values,
    result,
    heads,
    capacity,
    context,
    length,
    scale,
    full: tl.constexpr,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    queries: tl.constexpr,
    places: tl.constexpr,
    precision: tl.constexpr,
):
    """Some queries of one slot and head, over its ring and then over its new positions up to theirs."""
    block, head, row = tl.program_id(0) * queries, tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    begin = tl.load(offsets + slot)
    part = heads * head_dim
    source = joined + row * length * 3 * part + head * head_dim
    cos += row * length * (head_dim // 2)
    sin += row * length * (head_dim // 2)
    # The last query stands in for those beyond, whose results nobody keeps.
    ahead = tl.minimum(block + tl.arange(0, queries), length - 1)
    query = _turned(source, cos, sin, ahead, ahead >= 0, 3 * part, head_dim, width) * scale
    first = oldest_in_sight(begin + ahead, context, full)
    peak = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    seen = tl.zeros([queries, width], tl.float32)

    component = tl.arange(0, width)[None, :]
    there = component < head_dim
    oldest = oldest_in_sight(begin + block, context, full)
    count = tl.maximum(begin - oldest, 0).to(tl.int32)
    start, base = (oldest % capacity).to(tl.int32), (slot * heads + head) * capacity
    for offset in tl.range(0, count, places, num_stages=2):  # the next keys and values come while these are weighed
        place = offset + tl.arange(0, places)
        cell = start + place
        where = (base + tl.where(cell >= capacity, cell - capacity, cell))[:, None] * head_dim + component
        live = (place < count)[:, None] & there
        key = tl.load(keys + where, mask=live, other=0.0)
        value = tl.load(values + where, mask=live, other=0.0)
        visible = (place < count)[None, :] & ((oldest + place)[None, :] >= first[:, None])
        peak, total, seen = _weighed(query, key, value, visible, peak, total, seen, precision)
    for offset in tl.range(0, tl.minimum(block + queries, length), places, num_stages=1):  # one turn, or two
        place = offset + tl.arange(0, places)
        live = place < length
        key = _turned(source + part, cos, sin, place, live, 3 * part, head_dim, width)
        value = tl.load(
            source + 2 * part + place[:, None] * 3 * part + component, mask=live[:, None] & there, other=0.0
        )
        visible = (place[None, :] <= ahead[:, None]) & ((begin + place)[None, :] >= first[:, None])
        peak, total, seen = _weighed(query, key, value, visible, peak, total, seen, precision)

    ahead = block + tl.arange(0, queries)
    target = result + (row * length + ahead)[:, None] * part + head * head_dim + component
    tl.store(target, seen / total[:, None], mask=(ahead < length)[:, None] & there)


@triton.jit(do_not_specialize=["length", "count"])
def _store(
    joined,
    cos,
    sin,
    slots,
    offsets,
    keys,
    values,
    layer_stride,
    count,
    heads,
    capacity,
    length,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """Some positions of one layer, slot and head."""
    head, entry = tl.program_id(1), tl.program_id(2)
    layer, row = (entry // count).to(tl.int64), (entry % count).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    begin = tl.load(offsets + slot)
    part = heads * head_dim
    source = joined + entry.to(tl.int64) * length * 3 * part + head * head_dim
    cos += row * length * (head_dim // 2)
    sin += row * length * (head_dim // 2)
    ahead = tl.program_id(0) * block + tl.arange(0, block)
    live = ahead < length
    component = tl.arange(0, width)[None, :]
    there = live[:, None] & (component < head_dim)
    key = _turned(source + part, cos, sin, ahead, live, 3 * part, head_dim, width)
    value = tl.load(source + 2 * part + ahead[:, None] * 3 * part + component, mask=there, other=0.0)
    cell = layer * layer_stride + ((slot * heads + head) * capacity + (begin + ahead) % capacity)[:, None] * head_dim
    tl.store(keys + cell + component, key, mask=there)
    tl.store(values + cell + component, value, mask=there)
