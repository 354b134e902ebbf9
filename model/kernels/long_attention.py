"""Around the attention of several positions a slot, in Triton: two launches that bring its keys and values together.

Owns what lies beside the positions of a pass: what the ring holds of those before them, as numbers of the activations'
type, and where the new ones go. A pass may overwrite what it still sees, so that it is read first and written then. The
attention itself is torch's. `model.streaming` and `model.kv_cache` have the same in plain PyTorch.

B is the slots of a pass, S all slots, T their new positions, H heads, C a ring's cells, hd a head's width, N the cells
that are read. Position p lies in cell p mod C.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.attention import LARGEST, SMALLEST, Ring, _e4m3, turned

_TILE = 4_096
"""Numbers that a program copies."""


def recall(ring: Ring, slots: Tensor, first: Tensor, begin: Tensor, keys: Tensor, values: Tensor, cells: int) -> None:
    """Copy the first `cells` of the rings of `slots [B]` into `keys` and `values [B, H, N + T, hd]`, N = `cells`.

    Zero where a cell holds none of the positions from `first [B]` up to `begin [B]`, which is the first new one.
    """
    heads, capacity, head_dim = ring.keys.shape[1:]
    if not cells:
        return
    width = triton.next_power_of_2(head_dim)
    block = max(1, _TILE // width)
    _recall[(triton.cdiv(cells, block), heads, len(slots))](
        *ring.arguments,
        slots,
        first,
        begin,
        keys,
        values,
        heads,
        capacity,
        cells,
        keys.shape[2],
        head_dim=head_dim,
        width=width,
        block=block,
        quantised=ring.key_scales is not None,
        num_warps=4,
    )


def take(
    ring: Ring,
    joined: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    begin: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Turn `joined [B, T, 3, H, hd]`, query, key and value of the positions from `begin [B]` on of `slots [B]`.

    `cos` and `sin` are `[B, T, hd / 2]`, float32; neighbouring components turn together. The queries go to
    `query [B, T, H, hd]`, keys and values to the last T places of `keys` and `values [B, H, N + T, hd]`, and into the
    ring.
    """
    batch, length, _, heads, head_dim = joined.shape
    _take[(heads, batch * length)](
        joined,
        cos,
        sin,
        *ring.arguments,
        slots,
        begin,
        query,
        keys,
        values,
        heads,
        ring.keys.shape[2],
        length,
        keys.shape[2],
        head_dim=head_dim,
        width=triton.next_power_of_2(head_dim),
        quantised=ring.key_scales is not None,
        num_warps=1,
    )


@triton.jit(do_not_specialize=["cells", "places"])
def _recall(
    ring_keys,
    ring_values,
    key_scales,
    value_scales,
    slots,
    firsts,
    begins,
    keys,
    values,
    heads,
    capacity,
    cells,
    places,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    quantised: tl.constexpr,
):
    head, row = tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    first, newest = tl.load(firsts + row), tl.load(begins + row) - 1
    cell = tl.program_id(0) * block + tl.arange(0, block)
    component = tl.arange(0, width)[None, :]
    wanted = (cell < cells)[:, None] & (component < head_dim)
    # From the newest back to the one that this cell held last; a capacity more keeps what is divided above zero.
    position = newest - (newest % capacity - cell + 2 * capacity) % capacity
    held = wanted & (position >= first)[:, None]
    base = (slot * heads + head) * capacity
    source = (base + cell)[:, None] * head_dim + component
    target = ((row * heads + head).to(tl.int64) * places + cell)[:, None] * head_dim + component
    narrow = keys.dtype.element_ty
    key = tl.load(ring_keys + source, mask=held, other=0.0).to(tl.float32)
    value = tl.load(ring_values + source, mask=held, other=0.0).to(tl.float32)
    if quantised:
        key *= tl.load(key_scales + base + cell, mask=cell < cells, other=0.0)[:, None]
        value *= tl.load(value_scales + base + cell, mask=cell < cells, other=0.0)[:, None]
        key, value = tl.where(held, key, 0.0), tl.where(held, value, 0.0)
    tl.store(keys + target, key.to(narrow), mask=wanted)
    tl.store(values + target, value.to(narrow), mask=wanted)


@triton.jit
def _keep(new, ring, scales, cell, component, there, head_dim: tl.constexpr, quantised: tl.constexpr):
    """Write a row of float32 to its cell, where `there`."""
    target = ring + cell * head_dim + component
    if quantised:
        scale = tl.maximum(tl.max(tl.abs(new), axis=0), SMALLEST) / LARGEST
        limited = tl.minimum(tl.maximum(new / scale, -LARGEST), LARGEST)
        small = _e4m3(tl.where(new == new, limited, new)).to(tl.float8e4nv, bitcast=True)
        tl.store(scales + cell, scale, mask=there)
        tl.store(target, small, mask=there)
    else:
        tl.store(target, new.to(ring.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["length", "places"])
def _take(
    joined,
    cos,
    sin,
    ring_keys,
    ring_values,
    key_scales,
    value_scales,
    slots,
    begins,
    query,
    keys,
    values,
    heads,
    capacity,
    length,
    places,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    quantised: tl.constexpr,
):
    head, entry = tl.program_id(0), tl.program_id(1)
    row, ahead = entry // length, entry % length
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(begins + row) + ahead
    # The last component stands in for those beyond: done twice, it changes nothing.
    component = tl.minimum(tl.arange(0, width), head_dim - 1)
    pair = entry.to(tl.int64) * (head_dim // 2) + component // 2
    turn, shift = tl.load(cos + pair), tl.load(sin + pair)
    part = heads * head_dim
    source = joined + (entry * 3 * heads + head).to(tl.int64) * head_dim
    narrow = query.dtype.element_ty
    asked = turned(source, turn, shift, component)
    tl.store(query + (entry * heads + head).to(tl.int64) * head_dim + component, asked.to(narrow))
    key = turned(source + part, turn, shift, component)
    value = tl.load(source + 2 * part + component).to(tl.float32)
    place = (row * heads + head).to(tl.int64) * places + places - length + ahead
    tl.store(keys + place * head_dim + component, key.to(narrow))
    tl.store(values + place * head_dim + component, value.to(narrow))
    # Of more positions than a ring has cells the last ones stay.
    stays = ahead >= length - capacity
    cell = (slot * heads + head) * capacity + position % capacity
    _keep(key, ring_keys, key_scales, cell, component, stays, head_dim, quantised)
    _keep(value, ring_values, value_scales, cell, component, stays, head_dim, quantised)
