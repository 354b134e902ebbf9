"""A matrix product over overlapping rows, in Triton: every convolution and linear layer of a codec's step, one launch
each.

Owns the cut into tiles, and what is done to a product's rows on their way in (layer norm) and out (bias, GELU, gain,
residual, ELU). Knows no layers. Time runs before channels here, `[B, T, C]`: a causal convolution's input, with what
came before it in front, is then one run of floats for each stream, and what output t sees of it begins `t * hop` floats
in. Products are full float32 (FMA, no tensor cores) unless told otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

Precision = Literal["ieee", "tf32"]
_NORM_EPS = 1e-5
_PROCESSORS = 132
"""Of the GPU that the tiles are cut for (H100, H200)."""
_TILES = (
    (128, 64, 8),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (32, 32, 2),
    (128, 16, 4),
    (16, 16, 1),
)
"""Rows, columns and warps, from the one that reads least to the one that spreads most."""
_SIDES = 320
"""Rows and columns of all shares of a tile: their factors lie in shared memory, 32 of each, twice or three times."""
_FEWEST = 2
"""Rows of the smallest tile, one slot's of a transformer; from 3 rows on it has 16. Every other tile is compiled."""
_SMALL = 1024
"""Products of a tile whose shares tensor cores can take."""
_LONG = 2048
"""Factors from which a sum is worth sixteen warps."""
_WIDE = 1024
"""Factors that a warp reads at once for the moments of its rows: 32 a thread."""
_DEPTH = 32
"""Factors of each sum that a share of a tile takes at once."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program makes: `rows` x `columns`, by `shares` groups of warps that each sum a part of the factors."""

    rows: int
    columns: int
    shares: int
    warps: int


def tile(count: int, outer: int, inner: int, precision: Precision = "ieee") -> Tile:
    """For `count` rows, `outer` columns and sums of `inner` factors.

    The first tile that occupies three quarters of the GPU, else the one that comes nearest; sums are shared out while
    its schedulers would have few warps to choose from, on tensor cores only those of small tiles.
    """
    fitting = [entry for entry in _TILES if entry[1] < 2 * max(outer, 16)]
    enough = (entry for entry in fitting if 4 * _programs(count, outer, entry) >= 3 * _PROCESSORS)
    entry = next(enough, fitting[-1])
    rows, columns = (_FEWEST if count <= _FEWEST else min(entry[0], max(16, triton.next_power_of_2(count)))), entry[1]
    warps, shares = max(1, entry[2] * rows // entry[0]), 1
    if precision == "tf32" and rows * columns > _SMALL:
        return Tile(rows, columns, shares, warps)
    busy, most = warps * _programs(count, outer, entry), 16 if inner >= _LONG else 8
    while shares * warps < most and shares * busy < 12 * _PROCESSORS and 2 * shares * _DEPTH < inner:
        if 2 * shares * (rows + columns) > _SIDES:
            break
        shares *= 2
    return Tile(rows, columns, shares, shares * warps)


def _programs(count: int, outer: int, entry: tuple[int, int, int]) -> int:
    found: int = triton.cdiv(count, entry[0]) * triton.cdiv(outer, entry[1])
    return found


@dataclass(frozen=True, slots=True)
class Edge:
    """A convolution whose first chunk is preceded by repetitions of its first input.

    begun: `[B]`, over 0 where the stream has begun, in the same rows as the source; head: floats before the chunk;
    channels: floats of one input.
    """

    begun: Tensor
    head: int
    channels: int


@dataclass(frozen=True, slots=True)
class Out:
    """What is done to the products `y [B, length, N]`, in this order: `y + bias`, GELU, `y * gain`, `y + residual`.

    plain, elu: where the result and its ELU go, `[B, length * N]`, rows in any distance; either may be None.
    """

    plain: Tensor | None = None
    elu: Tensor | None = None
    bias: Tensor | None = None
    gelu: bool = False
    gain: Tensor | None = None
    residual: Tensor | None = None


def product(
    source: Tensor,
    weight: Tensor,
    out: Out,
    *,
    length: int,
    hop: int,
    norm: tuple[Tensor, Tensor] | None = None,
    edge: Edge | None = None,
    precision: Precision = "ieee",
) -> None:
    """Multiply `length` rows of each of `source [B, floats]` with `weight [N, K]`, which may lie in memory as `[K, N]`.

    Row t is the K floats from `t * hop` on. `norm`: gain and shift of a layer norm over these K floats.
    """
    outer, inner = weight.shape
    count = source.shape[0] * length
    cut = tile(count, outer, inner, precision)
    target = out.plain if out.plain is not None else out.elu
    assert target is not None
    active = target if out.elu is None else out.elu
    residual = target if out.residual is None else out.residual
    _product[(triton.cdiv(count, cut.rows), triton.cdiv(outer, cut.columns))](
        source,
        weight,
        *(weight if part is None else part for part in (out.bias, out.gain, *(norm or (None, None)))),
        residual,
        source if edge is None else edge.begun,
        target,
        active,
        count,
        source.stride(0),
        residual.stride(0),
        target.stride(0),
        active.stride(0),
        weight.stride(0),
        weight.stride(1),
        outer,
        inner,
        _NORM_EPS,
        length,
        hop,
        0 if edge is None else edge.head,
        1 if edge is None else edge.channels,
        *(int(part is not None) for part in (out.bias, out.gain, out.residual, out.plain, out.elu)),
        int(out.gelu),
        has_norm=norm is not None,
        has_edge=edge is not None,
        rows=cut.rows,
        columns=cut.columns,
        shares=cut.shares,
        depth=16 if inner < _DEPTH else _DEPTH,
        wide=max(_DEPTH, min(triton.next_power_of_2(inner), _WIDE * cut.warps // cut.rows)) if norm else 1,
        precision=precision,
        num_warps=cut.warps,
        num_stages=3,
    )


@triton.jit
def _elu(x):
    """exp(x) - 1 below 0; near 0, where that would cancel, by its series."""
    series = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * (1.0 + x / 6)))))
    return tl.where(x > 0, x, tl.where(x > -0.25, series, tl.exp(tl.minimum(x, 0.0)) - 1.0))


@triton.jit
def _moments(left, there, inner, eps, rows: tl.constexpr, wide: tl.constexpr):
    """Mean and 1 / deviation of each row, in two passes."""
    step = tl.arange(0, wide)[None, :]
    total = tl.zeros([rows, wide], tl.float32)
    for start in range(0, inner, wide):
        total += tl.load(left + start + step, mask=there & (step < inner - start), other=0.0)
    mean = tl.sum(total, axis=1) / inner
    squares = tl.zeros([rows, wide], tl.float32)
    for start in range(0, inner, wide):
        live = there & (step < inner - start)
        away = tl.where(live, tl.load(left + start + step, mask=live, other=0.0) - mean[:, None], 0.0)
        squares += away * away
    return mean, tl.rsqrt(tl.sum(squares, axis=1) / inner + eps)


@triton.jit
def _inside(place, fresh, begin, head, channels):
    """Where to read in a row that begins at `begin`: of a `fresh` stream, the chunk's first input before the chunk."""
    return tl.where(fresh & (begin + place < head), head + place % channels - begin, place)


@triton.jit
def _down(x, shares: tl.constexpr):
    """A vector of rows as left factors have it, `[rows, depth]` or `[shares, rows, depth]`."""
    return x[:, None] if shares == 1 else x[None, :, None]


@triton.jit
def _across(x, shares: tl.constexpr):
    """A vector of columns as right factors have it, `[depth, columns]` or `[shares, depth, columns]`."""
    return x[None, :] if shares == 1 else x[None, None, :]


@triton.jit
def _steps(shares: tl.constexpr, depth: tl.constexpr):
    """Which factors of a sum all shares take first: as left factors have them, and as right ones have them."""
    step = tl.arange(0, depth)
    if shares == 1:
        left, right = step[None, :], step[:, None]
    else:
        steps = (tl.arange(0, shares) * depth)[:, None] + step[None, :]
        left, right = steps[:, None, :], steps[:, :, None]
    return left, right


@triton.jit
def _zeros(rows: tl.constexpr, columns: tl.constexpr, shares: tl.constexpr):
    return tl.zeros([rows, columns], tl.float32) if shares == 1 else tl.zeros([shares, rows, columns], tl.float32)


@triton.jit
def _finished(total, bias, gain, column, known, has_bias, has_gain, gelu):
    """Products with their bias, GELU (exact) and gain."""
    total += tl.load(bias + column, mask=known & (has_bias != 0), other=0.0)[None, :]
    if gelu != 0:
        total = total * 0.5 * (1.0 + tl.erf(total * 0.7071067811865476))
    return total * tl.load(gain + column, mask=known & (has_gain != 0), other=1.0)[None, :]


# What varies from layer to layer and costs nothing is asked while it runs: every kernel less is a second's start less.
_ASKED = ["count", "length", "head", "channels", "has_bias", "has_gain", "has_residual", "has_plain", "has_elu", "gelu"]


@triton.jit(do_not_specialize=_ASKED)
def _product(
    source,
    weight,
    bias,
    gain,
    norm_gain,
    norm_shift,
    residual,
    begun,
    out,
    active,
    count,
    source_stride,
    residual_stride,
    out_stride,
    active_stride,
    column_stride,
    factor_stride,
    outer,
    inner,
    eps,
    length,
    hop,
    head,
    channels,
    has_bias,
    has_gain,
    has_residual,
    has_plain,
    has_elu,
    gelu,
    has_norm: tl.constexpr,
    has_edge: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    shares: tl.constexpr,
    depth: tl.constexpr,
    wide: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    stream, time = (row // length).to(tl.int64), row % length
    there, known = row < count, column < outer
    left = source + stream * source_stride + time * hop
    if has_norm:
        mean, spread = _moments(left[:, None], there[:, None], inner, eps, rows, wide)
        mean, spread = _down(mean, shares), _down(spread, shares)
    if has_edge:
        fresh = _down(tl.load(begun + stream * source_stride, mask=there, other=1.0) <= 0, shares)
    left, here = _down(left, shares), _down(there, shares)
    right, used = weight + _across(column.to(tl.int64) * column_stride, shares), _across(known, shares)
    along, down = _steps(shares, depth)
    total = _zeros(rows, columns, shares)
    for start in range(0, inner, depth * shares):
        place = start + along
        live = place < inner
        if has_edge:
            place = _inside(place, fresh, _down(time * hop, shares), head, channels)
        value = tl.load(left + place, mask=here & live, other=0.0)
        if has_norm:
            strength = tl.load(norm_gain + place, mask=live, other=0.0)
            shift = tl.load(norm_shift + place, mask=live, other=0.0)
            value = (value - mean) * spread * strength + shift
        place = start + down
        factor = tl.load(right + place * factor_stride, mask=used & (place < inner), other=0.0)
        total = tl.dot(value, factor, total, input_precision=precision)
    if shares > 1:
        total = tl.sum(total, axis=0)
    total = _finished(total, bias, gain, column, known, has_bias, has_gain, gelu)
    kept = there[:, None] & known[None, :]
    within = (time * outer)[:, None] + column[None, :]
    added = kept & (has_residual != 0)
    total += tl.load(residual + (stream * residual_stride)[:, None] + within, mask=added, other=0.0)
    tl.store(out + (stream * out_stride)[:, None] + within, total, mask=kept & (has_plain != 0))
    tl.store(active + (stream * active_stride)[:, None] + within, _elu(total), mask=kept & (has_elu != 0))
