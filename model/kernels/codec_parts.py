"""What the products of a codec's step have in common, in Triton.

Owns how the factors of a tile's shares lie side by side, layer norms, padding by the edge, and the epilogue of sums.
Knows no sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def as_left(x, shares: tl.constexpr):
    """A vector of rows as left factors have it, `[rows, depth]` or `[shares, rows, depth]`."""
    return x[:, None] if shares == 1 else x[None, :, None]


@triton.jit
def as_right(x, shares: tl.constexpr):
    """A vector of columns as right factors have it, `[depth, columns]` or `[shares, depth, columns]`."""
    return x[None, :] if shares == 1 else x[None, None, :]


@triton.jit
def steps(shares: tl.constexpr, depth: tl.constexpr):
    """Which factors of a sum all shares take first: as left factors have them, and as right ones have them."""
    step = tl.arange(0, depth)
    if shares == 1:
        left, right = step[None, :], step[:, None]
    else:
        steps = (tl.arange(0, shares) * depth)[:, None] + step[None, :]
        left, right = steps[:, None, :], steps[:, :, None]
    return left, right


@triton.jit
def zeros(rows: tl.constexpr, columns: tl.constexpr, shares: tl.constexpr):
    return tl.zeros([rows, columns], tl.float32) if shares == 1 else tl.zeros([shares, rows, columns], tl.float32)


@triton.jit
def elu(x):
    """exp(x) - 1 below 0; near 0, where that would cancel, by its series. Of what is no number none: a minimum of it is
    one on a GPU, so that it must not come that way."""
    series = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * (1.0 + x / 6)))))
    return tl.where(x > 0, x, tl.where(x <= -0.25, tl.exp(tl.minimum(x, 0.0)) - 1.0, series))


@triton.jit
def moments(left, there, inner, eps, rows: tl.constexpr, wide: tl.constexpr):
    """Mean and 1 / deviation of each row, in one pass around the mean of its beginning.

    That is no further from the row's mean than a few deviations, so that nothing cancels.
    """
    step = tl.arange(0, wide)[None, :]
    begin = tl.load(left + step, mask=there & (step < inner), other=0.0)
    near = (tl.sum(begin, axis=1) / tl.minimum(inner, wide))[:, None]
    total = tl.zeros([rows, wide], tl.float32)
    squares = tl.zeros([rows, wide], tl.float32)
    for start in tl.range(0, inner, wide, num_stages=3):
        live = there & (step < inner - start)
        away = tl.where(live, tl.load(left + start + step, mask=live, other=0.0) - near, 0.0)
        total += away
        squares += away * away
    off = tl.sum(total, axis=1) / inner
    variance = tl.maximum(tl.sum(squares, axis=1) / inner - off * off, 0.0)
    return tl.sum(near, axis=1) + off, tl.rsqrt(variance + eps)


@triton.jit
def moments_at_once(row, live, inner, eps):
    """The same of rows that are there, `[rows, 1, depth]`."""
    mean = (tl.sum(tl.sum(row, axis=2), axis=1) / inner)[:, None, None]
    away = tl.where(live, row - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(tl.sum(away * away, axis=2), axis=1) / inner + eps)[:, None, None]


@triton.jit
def edge_padded(place, fresh, begin, head, channels):
    """Where to read in a row that begins at `begin`: of a `fresh` stream, the chunk's first input before the chunk."""
    return tl.where(fresh & (begin + place < head), head + place % channels - begin, place)


@triton.jit
def bias_and_gain(bias, gain, column, known, has_bias, has_gain):
    """Bias and gain of some columns, 0 and 1 where there is none."""
    added = tl.load(bias + column, mask=known & (has_bias != 0), other=0.0)
    return added, tl.load(gain + column, mask=known & (has_gain != 0), other=1.0)


@triton.jit
def epilogue(total, added, strength, gelu):
    """Products with their bias, GELU (exact) and gain."""
    total += added[None, :]
    if gelu != 0:
        total = total * 0.5 * (1.0 + tl.erf(total * 0.7071067811865476))
    return total * strength[None, :]


@triton.jit
def store(total, out, active, stream, within, kept, out_stride, active_stride, has_plain, has_elu):
    """To where the result and its ELU go; `stream [rows]`, `within [rows, columns]` of its row."""
    tl.store(out + (stream * out_stride)[:, None] + within, total, mask=kept & (has_plain != 0))
    tl.store(active + (stream * active_stride)[:, None] + within, elu(total), mask=kept & (has_elu != 0))
