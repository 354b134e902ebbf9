"""Bands of a product's columns for a walk of one row, and how what they give goes from program to program, in Triton.

Owns how a program cuts its columns of a weight, holds them in registers, and hands on or collects numbers with tags
(`model.kernels.grid`). Knows not what is multiplied when: that is `model.kernels.depformer_row`.

K is the depth of a product. How a vector is laid out goes together: `(K, how many numbers lie together, how many places
they take, all places)`, since what heads saw has gaps where a head's width is no power of two. A weight's form is that
of `model.kernels.depformer_parts`, but that its last entry is the type that layers' outputs are rounded to.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.grid import empty, late, number, publish

BAND = tl.constexpr(8)
"""Columns that a program multiplies at once, each by a warp: so their sums need no other."""
WARP = tl.constexpr(512)
"""Bytes that it reads at once."""
SPREAD = tl.constexpr(8 * 32 * 128)
"""Bits that a program's eight warps read at once, 16 bytes a thread.

Of fewer, several threads have each number, and may have read it at different times; that all are there may be seen by
one of them, and another have them as they were before. Read once more after that, all have what the one saw.
"""


@triton.jit
def _depth(shape: tl.constexpr, byte: tl.constexpr):
    """Where in a column each place of a block lies, `[pieces, 1, lanes]`, and whether there is anything."""
    most: tl.constexpr = WARP // byte
    lanes: tl.constexpr = most if shape[3] > most else shape[3]
    place = tl.arange(0, shape[3] // lanes)[:, None, None] * lanes + tl.arange(0, lanes)[None, None, :]
    if shape[1] == shape[2]:
        depth, live = place, place < shape[0]
    else:
        inside = place % shape[2]
        depth = place // shape[2] * shape[1] + inside
        live = (inside < shape[1]) & (depth < shape[0])
    return depth, live


@triton.jit
def channels_of(turn):
    return (turn * tl.num_programs(0) + tl.program_id(0)) * BAND + tl.arange(0, BAND)


@triton.jit
def load_band(weight, channel, there, form: tl.constexpr, shape: tl.constexpr):
    """Of a weight `[channels, K]` one band, `[pieces, BAND, lanes]`, and its scales."""
    depth, live = _depth(shape, form[0].primitive_bitwidth // 8)
    source = weight[0] + channel[None, :, None] * shape[0] + depth
    if shape[1] == shape[2] and depth.shape[2] > 2:
        # Columns are not contiguous, but said to be more so than pieces: the compiler then gives its warps the columns.
        source = tl.max_contiguous(source, (1, 2, depth.shape[2]))
    block = tl.load(source, mask=live & there[None, :, None], other=0.0)
    scale = tl.full([BAND], 1.0, tl.float32)
    if form[1]:
        scale = tl.load(weight[1] + channel, mask=there, other=0.0)
    return block, scale


@triton.jit
def bands_of(
    weight, channels: tl.constexpr, halves: tl.constexpr, form: tl.constexpr, shape: tl.constexpr, turns: tl.constexpr
):
    """All bands of this program, of each half of the channels in turn: asked for now, there when they are used."""
    held = ()
    for turn in tl.static_range(turns):
        channel = channels_of(turn)
        for half in tl.static_range(halves):
            band = load_band(weight, half * channels + channel, channel < channels, form, shape)
            held += (band,)  # type: ignore[assignment]
    return held


@triton.jit
def times(vector, band, form: tl.constexpr):
    """`[K]` in float32 times a band: `[BAND]`, rounded as a layer's output is."""
    block = band[0].to(form[3]).to(tl.float32)
    spread = tl.reshape(vector, (block.shape[0], block.shape[2]))[:, None, :]
    product = tl.sum(tl.sum(spread * block, axis=0), axis=1)
    if form[1]:
        product *= band[1]
    return product.to(form[3]).to(tl.float32)


@triton.jit
def by_warp(target, channel, channels: tl.constexpr):
    """Where a band's numbers go, `[BAND, 32]`, and which lane writes: so each warp writes what it has itself."""
    lane = tl.arange(0, 32)[None, :]
    return target + channel[:, None] + lane, (channel[:, None] < channels) & (lane == 0)


@triton.jit
def give(mail, channel, value, tag, channels: tl.constexpr):
    """A band's numbers to the others."""
    where, writes = by_warp(mail, channel, channels)
    publish(where, value[:, None], tag, writes)


@triton.jit
def collect(mail, tag, size: tl.constexpr, width: tl.constexpr):
    """`size` numbers with this `tag`, as soon as all are there; 0 up to `width`."""
    place = tl.arange(0, width)
    none = empty(mail, tag)
    word = tl.load(mail + place, mask=place < size, other=none, volatile=True)
    while tl.max(late(word, tag)) > 0:
        word = tl.load(mail + place, mask=place < size, other=none, volatile=True)
    if width * mail.dtype.element_ty.primitive_bitwidth < SPREAD:
        word = tl.load(mail + place, mask=place < size, other=none, volatile=True)
    return number(word)


@triton.jit
def collect_heads(mail, tag, lane, there, dim: tl.constexpr):
    """Query, key and value with this `tag`, each `[heads, a head's width]`."""
    none = empty(mail, tag)
    query = tl.load(mail + lane, mask=there, other=none, volatile=True)
    key = tl.load(mail + dim + lane, mask=there, other=none, volatile=True)
    value = tl.load(mail + 2 * dim + lane, mask=there, other=none, volatile=True)
    while tl.max(late(query, tag) | late(key, tag) | late(value, tag)) > 0:
        query = tl.load(mail + lane, mask=there, other=none, volatile=True)
        key = tl.load(mail + dim + lane, mask=there, other=none, volatile=True)
        value = tl.load(mail + 2 * dim + lane, mask=there, other=none, volatile=True)
    if lane.shape[0] * lane.shape[1] * mail.dtype.element_ty.primitive_bitwidth < SPREAD:
        query = tl.load(mail + lane, mask=there, other=none, volatile=True)
        key = tl.load(mail + dim + lane, mask=there, other=none, volatile=True)
        value = tl.load(mail + 2 * dim + lane, mask=there, other=none, volatile=True)
    return number(query), number(key), number(value)
