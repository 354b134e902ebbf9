"""Matrix products for a handful of rows, in Triton: with the norm before them, and the gate or the sum after them.

Owns three forms of one kernel, which take the place of a layer's products and of all that lies between them. With so
few rows a product is its weights' way from memory: they go to registers as they come, each turn's asked for before the
last turn's are multiplied, the first turn's, where launches may overlap, while the one before has still to end. Tensor
cores would wait like everything else. Rounding is that of the plain layers. Weights may be in e4m3, with a scale for
each output. `model.decode` chooses between this and the layers' own products.

N is the rows, at most `MOST` (or ValueError), D the width, K the factors of a sum, W the inner width of an MLP.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.overlap import begin_next, possible, wait_for_last
from model.kernels.tiles import RowTile, row_tile

MOST = 4
"""Rows: as many as it was measured with, if only with tiles found for one, which is all that a step gives it."""
Weight = tuple[Tensor, Tensor | None]
"""A matrix `[outputs, K]`, and the scale of each output where it is in e4m3."""


def project_normed(x: Tensor, gain: Tensor, weight: Weight, eps: float, tile: RowTile | None = None) -> Tensor:
    """The root-mean-square norm of `x [N, D]` times `gain`, times `weight [outputs, D]`: `[N, outputs]`."""
    result = x.new_empty((x.shape[0], weight[0].shape[0]))
    _launch(x, weight, result, tile, gain=gain, eps=eps)
    return result


def project_gated(x: Tensor, gain: Tensor, weight: Weight, eps: float, tile: RowTile | None = None) -> Tensor:
    """The same with `weight [2 W, D]`, and then the SiLU of the first half times the second: `[N, W]`."""
    result = x.new_empty((x.shape[0], weight[0].shape[0] // 2))
    _launch(x, weight, result, tile, gain=gain, eps=eps, gated=True)
    return result


def add_projected(x: Tensor, weight: Weight, residual: Tensor, tile: RowTile | None = None) -> Tensor:
    """`residual [N, D]` plus `x [N, K]` times `weight [D, K]`."""
    result = residual.new_empty(residual.shape)
    _launch(x, weight, result, tile, residual=residual)
    return result


def _launch(
    x: Tensor,
    weight: Weight,
    result: Tensor,
    tile: RowTile | None,
    *,
    gain: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> None:
    (count, inner), outer = x.shape, result.shape[1]
    if count > MOST:
        raise ValueError(f"{count} rows are more than these products take; {MOST} at most")
    matrix, scale = weight
    tile = tile or row_tile("bf16" if scale is None else "fp8", adds=residual is not None)
    rows = triton.next_power_of_2(count)
    columns = max(1, tile.columns // (rows * (1 + gated)))  # as many sums as one row has in all
    _product[(triton.cdiv(outer, columns),)](
        x,
        matrix,
        x if scale is None else scale,
        x if gain is None else gain,
        x if residual is None else residual,
        result,
        count,
        outer,
        inner,
        eps,
        rows=rows,
        columns=columns,
        depth=tile.depth,
        width=1 if gain is None else triton.next_power_of_2(inner),
        normed=gain is not None,
        gated=gated,
        adds=residual is not None,
        scaled=scale is not None,
        early=(early := possible(x.device)),
        num_warps=tile.warps,
        launch_pdl=early,
    )


@triton.jit
def _root(x, row, count, inner, eps, width: tl.constexpr):
    """1 / the root of the mean square of each `row`."""
    place = tl.arange(0, width)[None, :]
    there = (row[:, None] < count) & (place < inner)
    value = tl.load(x + row[:, None] * inner + place, mask=there, other=0.0).to(tl.float32)
    return tl.rsqrt(eps + tl.sum(value * value, axis=1) / inner)


@triton.jit
def _asked(weight, channel, outer, place, inner):
    """The factors at `place [depth]` of the sums of each `channel`: `[1, columns, depth]`, as they are stored."""
    live = (channel < outer)[None, :, None] & (place < inner)[None, None, :]
    where = weight + channel.to(tl.int64)[None, :, None] * inner + place[None, None, :]
    return tl.load(where, mask=live, other=0.0)


@triton.jit
def _summed(total, scales, channel, known, scaled: tl.constexpr, narrow: tl.constexpr):
    """`[rows, columns]` from what each place of a turn has, rounded as a product is."""
    product = tl.sum(total, axis=2)
    if scaled:
        product *= tl.load(scales + channel, mask=known, other=0.0)[None, :]
    return product.to(narrow)


@triton.jit(do_not_specialize=["count"])
def _product(
    x,
    weight,
    scales,
    gain,
    residual,
    result,
    count,
    outer,
    inner,
    eps,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    width: tl.constexpr,
    normed: tl.constexpr,
    gated: tl.constexpr,
    adds: tl.constexpr,
    scaled: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        begin_next()
    narrow: tl.constexpr = x.dtype.element_ty
    row, channel = tl.arange(0, rows), tl.program_id(0) * columns + tl.arange(0, columns)
    known, step = channel < outer, tl.arange(0, depth)
    factors = _asked(weight, channel, outer, step, inner)
    if gated:
        second = weight + outer.to(tl.int64) * inner
        others = _asked(second, channel, outer, step, inner)
        other_total = tl.zeros([rows, columns, depth], tl.float32)
    if early:
        wait_for_last()
    if normed:
        root = _root(x, row, count, inner, eps, width)
    total = tl.zeros([rows, columns, depth], tl.float32)
    for start in range(0, inner, depth):
        place = start + step
        there = (row < count)[:, None, None] & (place < inner)[None, None, :]
        value = tl.load(x + row[:, None, None] * inner + place[None, None, :], mask=there, other=0.0).to(tl.float32)
        if normed:
            strength = tl.load(gain + place[None, None, :], mask=(place < inner)[None, None, :], other=0.0)
            value = (value * (strength.to(tl.float32) * root[:, None, None])).to(narrow).to(tl.float32)
        now, factors = factors, _asked(weight, channel, outer, place + depth, inner)
        total += value * now.to(tl.float32)
        if gated:
            now, others = others, _asked(second, channel, outer, place + depth, inner)
            other_total += value * now.to(tl.float32)

    product = _summed(total, scales, channel, known, scaled, narrow)
    where, live = row[:, None] * outer + channel[None, :], (row[:, None] < count) & known[None, :]
    if gated:
        gate = product.to(tl.float32)
        inside = _summed(other_total, scales, outer + channel, known, scaled, narrow)
        opened = (gate / (1.0 + tl.exp(-gate))).to(narrow).to(tl.float32)
        product = (opened * inside.to(tl.float32)).to(narrow)
    if adds:
        before = tl.load(residual + where, mask=live, other=0.0).to(tl.float32)
        product = (before + product.to(tl.float32)).to(narrow)
    tl.store(result + where, product, mask=live)
