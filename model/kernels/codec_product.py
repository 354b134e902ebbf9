"""A matrix product over overlapping rows, in Triton: every convolution and linear layer of a codec's step, one launch
each.

Owns what is done to a product's rows on their way in (layer norm) and out (bias, GELU, gain, residual, ELU), and its
two kernels: tiles, and for few rows a thin one that is done when the weights have come. Knows no layers. Time runs
before channels here, `[B, T, C]`: a causal convolution's input, with what came before it in front, is then one run of
floats for each stream, and what output t sees of it begins `t * hop` floats in.

Products are as exact as float32 unless told otherwise. `codec_tiles` says how each is cut and made, and whether
launches are chained: a program then begins while the kernel before it still runs, fetches weights, and waits
(`overlap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels import codec_tiles
from model.kernels.codec_parts import (
    as_left,
    as_right,
    bias_and_gain,
    edge_padded,
    epilogue,
    moments,
    moments_at_once,
    steps,
    store,
    zeros,
)
from model.kernels.codec_tiles import Tile
from model.kernels.overlap import begin_next, possible, wait_for_last

Precision = codec_tiles.Precision
_NORM_EPS = 1e-5
_WIDE = 1024
"""Factors that a warp reads at once for the moments of its rows: 32 a thread."""


def cut_for(device: torch.device) -> None:
    """From now on cut for this card, if it is one: for the shared memory that its programs have."""
    if device.type == "cuda":
        card = triton.runtime.driver.active.utils.get_device_properties(device.index)
        codec_tiles.fit_into(card["max_shared_mem"])


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

    @property
    def flags(self) -> tuple[int, ...]:
        """As the kernels take it whether there is a bias, a gain, a residual, either result, and GELU."""
        parts = (self.bias, self.gain, self.residual, self.plain, self.elu)
        return (*(int(part is not None) for part in parts), int(self.gelu))


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
    cut: Tile | None = None,
) -> None:
    """Multiply `length` rows of each of `source [B, floats]` with `weight [N, K]`, which may lie in memory as `[K, N]`.

    Row t is the K floats from `t * hop` on. `norm`: gain and shift of a layer norm over these K floats. `cut`: another
    tile than the one meant for these sizes. Where launches are chained, the weights must not come from the kernel
    before.
    """
    outer, inner = weight.shape
    count = source.shape[0] * length
    cut = cut or codec_tiles.tile(count, outer, inner, precision)
    chained = codec_tiles.chains(source.shape[0]) and possible(source.device)
    kernel, blocks, constants = _launch(cut, count, outer, inner, norm is not None)
    tensors = _tensors(source, weight, out, norm, edge)
    residual, _, target, active = tensors[6:]
    kernel[(blocks,)](
        *tensors,
        count,
        *(rows.stride(0) for rows in (source, residual, target, active)),
        *weight.stride(),
        *weight.shape,
        _NORM_EPS,
        length,
        hop,
        *((0, 1) if edge is None else (edge.head, edge.channels)),
        *out.flags,
        has_norm=norm is not None,
        has_edge=edge is not None,
        chained=chained,
        launch_pdl=chained,
        **constants,
    )


def _tensors(
    source: Tensor, weight: Tensor, out: Out, norm: tuple[Tensor, Tensor] | None, edge: Edge | None
) -> tuple[Tensor, ...]:
    """The kernels' ten, in their order; another one, which is not touched, where there is none."""
    target = out.plain if out.plain is not None else out.elu
    assert target is not None
    return (
        source,
        weight,
        *(weight if part is None else part for part in (out.bias, out.gain, *(norm or (None, None)))),
        target if out.residual is None else out.residual,
        source if edge is None else edge.begun,
        target,
        target if out.elu is None else out.elu,
    )


def _launch(cut: Tile, count: int, outer: int, inner: int, normed: bool) -> tuple[Any, int, dict[str, Any]]:
    """The kernel, its programs, and what it is compiled for."""
    wide = triton.cdiv(outer, cut.columns)
    sizes = {"rows": cut.rows, "columns": cut.columns, "depth": cut.depth, "num_warps": cut.warps}
    if cut.way == "thin":
        assert count <= cut.rows
        return _thin, wide, sizes | {"whole": inner <= cut.depth}
    read = max(32, min(triton.next_power_of_2(inner), _WIDE * cut.warps // cut.rows)) if normed else 1
    sizes |= {"shares": cut.shares, "wide": read, "num_stages": cut.stages}
    return _product, triton.cdiv(count, cut.rows) * wide, sizes | {"precision": _DOTS[cut.way]}


_DOTS = {"fma": "ieee", "tf32": "tf32", "tf32x3": "tf32x3"}


@triton.jit
def _blocks(count, outer, inner, rows: tl.constexpr, columns: tl.constexpr):
    """This program's block of rows and of columns.

    Neighbours share what is large: the rows where all of them are more than the weights, else the columns. What the
    others of a wave read is then in the L2 cache.
    """
    high, wide = tl.cdiv(count, rows), tl.cdiv(outer, columns)
    program = tl.program_id(0)
    by_rows = count > outer
    return tl.where(by_rows, program // wide, program % high), tl.where(by_rows, program % wide, program // high)


# What varies from layer to layer and costs nothing is asked while it runs: every kernel less is a second's start less.
_AT_RUN_TIME = [
    *("count", "length", "head", "channels"),
    *("has_bias", "has_gain", "has_residual", "has_plain", "has_elu", "gelu"),
]


@triton.jit(do_not_specialize=_AT_RUN_TIME)
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
    chained: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    shares: tl.constexpr,
    depth: tl.constexpr,
    wide: tl.constexpr,
    precision: tl.constexpr,
):
    if chained:
        begin_next()
        wait_for_last()
    row_block, column_block = _blocks(count, outer, inner, rows, columns)
    row = row_block * rows + tl.arange(0, rows)
    column = column_block * columns + tl.arange(0, columns)
    stream, time = (row // length).to(tl.int64), row % length
    there, known = row < count, column < outer
    left = source + stream * source_stride + time * hop
    if has_norm:
        mean, spread = moments(left[:, None], there[:, None], inner, eps, rows, wide)
        mean, spread = as_left(mean, shares), as_left(spread, shares)
    if has_edge:
        fresh = as_left(tl.load(begun + stream * source_stride, mask=there, other=1.0) <= 0, shares)
    left, here = as_left(left, shares), as_left(there, shares)
    right, used = weight + as_right(column.to(tl.int64) * column_stride, shares), as_right(known, shares)
    along, below = steps(shares, depth)
    if shares > 1:  # a small tile has registers for what is needed last, too
        added, strength = bias_and_gain(bias, gain, column, known, has_bias, has_gain)
    total = zeros(rows, columns, shares)
    for start in range(0, inner, depth * shares):
        place = start + along
        live = place < inner
        if has_edge:
            place = edge_padded(place, fresh, as_left(time * hop, shares), head, channels)
        value = tl.load(left + place, mask=here & live, other=0.0)
        if has_norm:
            slope = tl.load(norm_gain + place, mask=live, other=0.0)
            shift = tl.load(norm_shift + place, mask=live, other=0.0)
            value = (value - mean) * spread * slope + shift
        place = start + below
        factor = tl.load(right + place * factor_stride, mask=used & (place < inner), other=0.0)
        total = tl.dot(value, factor, total, input_precision=precision)
    if shares > 1:
        total = tl.sum(total, axis=0)
    else:
        added, strength = bias_and_gain(bias, gain, column, known, has_bias, has_gain)
    total = epilogue(total, added, strength, gelu)
    within, kept = (time * outer)[:, None] + column[None, :], there[:, None] & known[None, :]
    where = residual + (stream * residual_stride)[:, None] + within
    total += tl.load(where, mask=kept & (has_residual != 0), other=0.0)
    store(total, out, active, stream, within, kept, out_stride, active_stride, has_plain, has_elu)


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def _thin(
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
    chained: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    whole: tl.constexpr,
):
    """All rows, and some columns, whose weights are on their way before anything is waited for.

    whole: all factors are read at once.
    """
    row = tl.arange(0, rows)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    stream, time = (row // length).to(tl.int64), row % length
    there, known = row < count, column < outer
    along = tl.arange(0, depth)[None, None, :]
    live = along < inner
    right, used = weight + (column.to(tl.int64) * column_stride)[None, :, None], known[None, :, None]
    factor = tl.load(right + along * factor_stride, mask=used & live, other=0.0)
    added, strength = bias_and_gain(bias, gain, column, known, has_bias, has_gain)
    if has_norm and whole:
        slope = tl.load(norm_gain + along, mask=live, other=0.0)
        shift = tl.load(norm_shift + along, mask=live, other=0.0)
    if chained:
        begin_next()
        wait_for_last()
    within, kept = (time * outer)[:, None] + column[None, :], there[:, None] & known[None, :]
    where = residual + (stream * residual_stride)[:, None] + within
    rest = tl.load(where, mask=kept & (has_residual != 0), other=0.0)
    left = source + stream * source_stride + time * hop
    if has_edge:
        fresh = (tl.load(begun + stream * source_stride, mask=there, other=1.0) <= 0)[:, None, None]
    if has_norm and not whole:
        mean, spread = moments(left[:, None], there[:, None], inner, eps, rows, depth)
        mean, spread = mean[:, None, None], spread[:, None, None]
    left, here = left[:, None, None], there[:, None, None]
    total = tl.zeros([rows, columns, depth], tl.float32)
    for start in range(0, inner, depth):
        if not whole:
            place = start + depth + along
            following = tl.load(right + place * factor_stride, mask=used & (place < inner), other=0.0)
        place = start + along
        live = place < inner
        if has_edge:
            place = edge_padded(place, fresh, (time * hop)[:, None, None], head, channels)
        value = tl.load(left + place, mask=here & live, other=0.0)
        if has_norm:
            if whole:
                mean, spread = moments_at_once(value, here & live, inner, eps)
            else:
                slope = tl.load(norm_gain + place, mask=live, other=0.0)
                shift = tl.load(norm_shift + place, mask=live, other=0.0)
            value = (value - mean) * spread * slope + shift
        total += value * factor
        if not whole:
            factor = following
    total = epilogue(tl.sum(total, axis=2), added, strength, gelu) + rest
    store(total, out, active, stream, within, kept, out_stride, active_stride, has_plain, has_elu)
