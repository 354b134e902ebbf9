"""The parts of the depth transformer's walk, in Triton: products, attention over a frame's steps, and inputs.

Owns how the programs of a launch share each part: tiles, rows or groups of heads in turn. Knows neither the order of
the parts nor how they wait for each other. What other programs wrote is read past the first-level cache.

Rounding is that of the plain layers, but for a norm: whoever writes a row multiplies it by the gain and rounds, whoever
reads it takes the row's factor to the product. So no product waits for a factor.

N is the rows of a batch, D the width, K the depth of a product. What goes together is handed on together: a weight is
`(place, place of its scales)`; its form `(type, whether it has scales, whether places are multiples of 16 bytes, type
that is multiplied)`; a tile `(rows, columns, depth of a slice, stages, slices)`; the residual stream is `(stream
[N, D], the same times the next norm's gain [N, D], sums of its squares [N, marks])`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def numbers_at(place, kind: tl.constexpr, aligned: tl.constexpr):
    """A place as a pointer to numbers of `kind`."""
    found = place.to(tl.pointer_type(kind))
    if aligned:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def pointer(table, entry, kind: tl.constexpr, aligned: tl.constexpr):
    """A place in `table` as a pointer to numbers of `kind`."""
    return numbers_at(tl.load(table + entry), kind, aligned)


@triton.jit
def weight_at(table, scales, entry, form: tl.constexpr):
    """The weight at `entry` of both tables."""
    return pointer(table, entry, form[0], form[2]), pointer(scales, entry, tl.float32, False)


@triton.jit
def _squares(squares, row, count, marks: tl.constexpr):
    """The sums of squares that the tiles of each `row` left, `[rows, marks]`."""
    where = squares + row[:, None] * marks + tl.arange(0, marks)[None, :]
    return tl.load(where, mask=row[:, None] < count, other=0.0, cache_modifier=".cg")


@triton.jit
def _joined(parts, rows: tl.constexpr, columns: tl.constexpr):
    """The sum of `parts [8, rows, columns]`, each of a warp: halves added thrice, as a sum over warps would shuffle."""
    size: tl.constexpr = rows * columns
    first, second = tl.split(tl.reshape(tl.permute(tl.reshape(parts, (8, size)), (1, 0)), (size, 4, 2)))
    first, second = tl.split(tl.reshape(first + second, (size, 2, 2)))
    first, second = tl.split(first + second)
    return tl.reshape(first + second, (rows, columns))


@triton.jit
def _sliced(
    source,
    weight,
    channel,
    row,
    count,
    inner: tl.constexpr,
    channels: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
):
    """Of `_multiply`, for few rows: the depth is cut in slices, a warp's each, as there is nothing else to share."""
    narrow = source.dtype.element_ty
    slices: tl.constexpr = tile[4]
    depth: tl.constexpr = tile[2]
    place = tl.arange(0, slices)[:, None, None] * depth + tl.arange(0, depth)[None, None, :]
    left = source + row.to(tl.int64)[None, :, None] * inner + place
    right = weight + channel[None, :, None] * inner + place
    known, live = channel[None, :, None] < channels, row[None, :, None] < count
    total = tl.zeros([slices, tile[0], tile[1]], tl.float32)
    for start in tl.range(0, inner, slices * depth, num_stages=tile[3]):
        there = place < inner - start
        x = tl.load(left + start, mask=live & there, other=0.0, cache_modifier=".cg")
        w = tl.load(right + start, mask=known & there, other=0.0)
        x, w = x.to(form[3]), w.to(narrow).to(form[3])
        total = tl.dot(x, tl.permute(w, (0, 2, 1)), total, input_precision="ieee")
    return _joined(total, tile[0], tile[1])


@triton.jit
def _whole(
    source,
    weight,
    channel,
    row,
    count,
    inner: tl.constexpr,
    channels: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
):
    """Of `_multiply`, for many rows: the warps share the tile, which can be larger so and reads less."""
    narrow = source.dtype.element_ty
    place = tl.arange(0, tile[2])[None, :]
    left = source + row.to(tl.int64)[:, None] * inner + place
    right = weight + channel[:, None] * inner + place
    known, live = channel[:, None] < channels, row[:, None] < count
    total = tl.zeros([tile[0], tile[1]], tl.float32)
    for start in tl.range(0, inner, tile[2], num_stages=tile[3]):
        there = place < inner - start
        x = tl.load(left + start, mask=live & there, other=0.0, cache_modifier=".cg")
        w = tl.load(right + start, mask=known & there, other=0.0)
        x, w = x.to(form[3]), w.to(narrow).to(form[3])
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    return total


@triton.jit
def _multiply(
    source,
    weight,
    channel,
    row,
    count,
    inner: tl.constexpr,
    channels: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
):
    """Each `row` of `source [N, K]` times each `channel` of `weight [channels, K]`: `[rows, columns]` in float32."""
    if tile[4] == 1:
        product = _whole(source, weight[0], channel, row, count, inner, channels, form, tile)
    else:
        product = _sliced(source, weight[0], channel, row, count, inner, channels, form, tile)
    if form[1]:
        product *= tl.load(weight[1] + channel, mask=channel < channels, other=0.0)[None, :]
    return product


@triton.jit
def project(
    source,
    table,
    scales,
    entry,
    target,
    pitch,
    count,
    inner: tl.constexpr,
    channels: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
    parts=1,
    gap=0,
):
    """`source [N, K]` times a weight `[channels, K]`, to `target [N, channels]`, whose rows are `pitch` apart.

    With `parts`, that many weights `gap` entries apart, to `target [parts, N, channels]`.
    """
    heights, widths = tl.cdiv(count, tile[0]), tl.cdiv(channels, tile[1])
    for task in range(tl.program_id(0), parts * heights * widths, tl.num_programs(0)):
        part, place = task // (heights * widths), task % (heights * widths)
        row = place % heights * tile[0] + tl.arange(0, tile[0])
        channel = place // heights * tile[1] + tl.arange(0, tile[1])
        weight = weight_at(table, scales, entry + part * gap, form)
        product = _multiply(source, weight, channel, row, count, inner, channels, form, tile)
        where = target + (part * count + row).to(tl.int64)[:, None] * pitch + channel[None, :]
        live = (row[:, None] < count) & (channel[None, :] < channels)
        tl.store(where, product.to(target.dtype.element_ty), mask=live)


@triton.jit
def project_normed(
    residual,
    weight,
    target,
    count,
    dim: tl.constexpr,
    channels: tl.constexpr,
    eps: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
    marks: tl.constexpr,
):
    """The norm of `[N, D]` times a weight `[channels, D]`, to `target [N, channels]`."""
    _, scaled, squares = residual
    heights, widths = tl.cdiv(count, tile[0]), tl.cdiv(channels, tile[1])
    for task in range(tl.program_id(0), heights * widths, tl.num_programs(0)):
        row = task % heights * tile[0] + tl.arange(0, tile[0])
        channel = task // heights * tile[1] + tl.arange(0, tile[1])
        parts = _squares(squares, row, count, marks)
        product = _multiply(scaled, weight, channel, row, count, dim, channels, form, tile)
        product *= tl.rsqrt(eps + tl.sum(parts, axis=1) / dim)[:, None]
        where = target + row.to(tl.int64)[:, None] * channels + channel[None, :]
        live = (row[:, None] < count) & (channel[None, :] < channels)
        tl.store(where, product.to(target.dtype.element_ty), mask=live)


@triton.jit
def project_gated(
    residual,
    weight,
    target,
    count,
    dim: tl.constexpr,
    width: tl.constexpr,
    eps: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
    marks: tl.constexpr,
):
    """The same with a weight `[2 width, D]`, the SiLU of the first half times the second, to `target [N, width]`.

    A tile has half its columns of either half.
    """
    _, scaled, squares = residual
    narrow = scaled.dtype.element_ty
    half: tl.constexpr = tile[1] // 2
    heights, widths = tl.cdiv(count, tile[0]), tl.cdiv(width, half)
    column = tl.arange(0, tile[1])
    for task in range(tl.program_id(0), heights * widths, tl.num_programs(0)):
        row = task % heights * tile[0] + tl.arange(0, tile[0])
        first = task // heights * half
        # Where the last tile has columns too many, they repeat the last one and are not stored.
        channel = column // half * width + tl.minimum(first + column % half, width - 1)
        parts = _squares(squares, row, count, marks)
        product = _multiply(scaled, weight, channel, row, count, dim, 2 * width, form, tile)
        product *= tl.rsqrt(eps + tl.sum(parts, axis=1) / dim)[:, None]
        halves = tl.permute(tl.reshape(product.to(narrow).to(tl.float32), (tile[0], 2, half)), (0, 2, 1))
        opening, inner = tl.split(halves)
        opened = (opening / (1.0 + tl.exp(-opening))).to(narrow).to(tl.float32)
        own = first + tl.arange(0, half)
        where = target + row.to(tl.int64)[:, None] * width + own[None, :]
        tl.store(where, (opened * inner).to(narrow), mask=(row[:, None] < count) & (own[None, :] < width))


@triton.jit
def add_projected(
    source,
    weight,
    residual,
    gain,
    count,
    inner: tl.constexpr,
    dim: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
    marks: tl.constexpr,
):
    """`source [N, K]` times a weight `[D, K]`, added to the residual stream, whose next norm has `gain [D]`."""
    stream, scaled, squares = residual
    narrow = stream.dtype.element_ty
    heights, widths = tl.cdiv(count, tile[0]), tl.cdiv(dim, tile[1])
    for task in range(tl.program_id(0), heights * widths, tl.num_programs(0)):
        row = task % heights * tile[0] + tl.arange(0, tile[0])
        channel = task // heights * tile[1] + tl.arange(0, tile[1])
        where = row.to(tl.int64)[:, None] * dim + channel[None, :]
        live = (row[:, None] < count) & (channel[None, :] < dim)
        strength = tl.load(gain + channel, mask=channel < dim, other=0.0).to(tl.float32)
        before = tl.load(stream + where, mask=live, other=0.0, cache_modifier=".cg")
        product = _multiply(source, weight, channel, row, count, inner, dim, form, tile)
        after = (before.to(tl.float32) + product.to(narrow).to(tl.float32)).to(narrow)
        wide = tl.where(live, after.to(tl.float32), 0.0)
        tl.store(stream + where, after, mask=live)
        tl.store(scaled + where, (wide * strength[None, :]).to(narrow), mask=live)
        tl.store(squares + row * marks + task // heights, tl.sum(wide * wide, axis=1), mask=row < count)


@triton.jit
def attend(joined, seen, layer, step, steps, first, count, dim: tl.constexpr, shape: tl.constexpr):
    """What each row's query sees of the frame's steps from `step + first` to its own: `seen [N, D]`.

    `joined [layers, steps, N, 3 D]` holds query, key and value. `shape`: heads, how many of them a program takes at
    once, and the powers of two that hold the steps and a head's width.
    """
    heads: tl.constexpr = shape[0]
    together: tl.constexpr = shape[1]
    head_dim: tl.constexpr = dim // heads
    groups: tl.constexpr = (heads + together - 1) // together
    past, component = tl.arange(0, shape[2]), tl.arange(0, shape[3])
    sight = (past <= step) & (past >= step + first)
    for task in range(tl.program_id(0), count * groups, tl.num_programs(0)):
        row = task // groups
        head = task % groups * together + tl.arange(0, together)
        lane = head[:, None] * head_dim + component[None, :]
        there = (head[:, None] < heads) & (component[None, :] < head_dim)
        own = joined + ((layer * steps + step).to(tl.int64) * count + row) * 3 * dim
        query = tl.load(own + lane, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32)
        lines = ((layer * steps + past).to(tl.int64) * count + row) * 3 * dim
        source = joined + lines[None, :, None] + lane[:, None, :]
        mask = there[:, None, :] & sight[None, :, None]
        key = tl.load(source + dim, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        value = tl.load(source + 2 * dim, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        score = tl.sum(query[:, None, :] * key, axis=2) * head_dim**-0.5
        score = tl.where(sight[None, :], score, float("-inf"))
        peak = tl.max(score, axis=1)  # of numbers that are none it is -inf
        weight = tl.exp(score - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
        weight = weight / tl.sum(weight, axis=1)[:, None]
        found = tl.sum(weight[:, :, None] * value, axis=1)
        tl.store(seen + row * dim + lane, found.to(seen.dtype.element_ty), mask=there)


@triton.jit
def begin(
    token,
    vectors,
    inputs,
    residual,
    gain,
    count,
    row,
    step,
    dim: tl.constexpr,
    dim_width: tl.constexpr,
    marks: tl.constexpr,
):
    """Start `row` on `step`: its part of `inputs [steps, N, D]`, plus the vector of `token`, of which -1 has none."""
    stream, scaled, squares = residual
    narrow = stream.dtype.element_ty
    place = tl.arange(0, dim_width)
    there = place < dim
    given = inputs + (step * count + row).to(tl.int64) * dim + place
    x = tl.load(given, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32)
    looked_up = tl.load(vectors + tl.maximum(token, 0) * dim + place, mask=there & (token != -1), other=0.0)
    total = (x + looked_up.to(tl.float32)).to(narrow)
    tl.store(stream + row * dim + place, total, mask=there)
    wide = total.to(tl.float32)
    strength = tl.load(gain + place, mask=there, other=0.0).to(tl.float32)
    tl.store(scaled + row * dim + place, (wide * strength).to(narrow), mask=there)
    mark = tl.arange(0, marks)
    tl.store(squares + row * marks + mark, tl.where(mark == 0, tl.sum(wide * wide, axis=0), 0.0))
