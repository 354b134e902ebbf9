"""A matrix product with weights in e4m3, in Triton: weights are read once, as bytes, and widened on their way.

Owns the cut into tiles. Activations stay as they are, so any card that Triton reads e4m3 on will do (capability 8.9 and
later). `model.fp8_weights` has the same in plain PyTorch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.tiles import MatrixTile, matrix_tile


def linear(x: Tensor, weight: Tensor, scale: Tensor, tile: MatrixTile | None = None) -> Tensor:
    """`x [M, K]` times `weight [N, K]` in e4m3, transposed, times `scale [N]`: `[M, N]` of the type of `x`."""
    (count, inner), outer = x.shape, weight.shape[0]
    tile = tile or matrix_tile(count)
    rows = min(tile.rows, max(16, triton.next_power_of_2(count)))
    result = x.new_empty((count, outer))
    _linear[(triton.cdiv(outer, tile.columns), triton.cdiv(count, rows))](
        x,
        weight,
        scale,
        result,
        count,
        outer,
        inner,
        rows=rows,
        columns=tile.columns,
        depth=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result


@triton.jit(do_not_specialize=["count"])  # it is another one for each prompt: nothing may compile for that
def _linear(
    x,
    weight,
    scale,
    result,
    count,
    outer,
    inner,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    step = tl.arange(0, depth)
    left = x + row[:, None].to(tl.int64) * inner + step[None, :]
    right = weight + column[:, None].to(tl.int64) * inner + step[None, :]
    total = tl.zeros([rows, columns], tl.float32)
    for start in range(0, inner, depth):
        there = step[None, :] < inner - start
        wide = tl.load(left + start, mask=(row[:, None] < count) & there, other=0.0)
        small = tl.load(right + start, mask=(column[:, None] < outer) & there, other=0.0)
        total = tl.dot(wide, tl.trans(small.to(wide.dtype)), total, input_precision="ieee")
    total *= tl.load(scale + column, mask=column < outer, other=0.0)[None, :]
    place = result + row[:, None].to(tl.int64) * outer + column[None, :]
    tl.store(place, total.to(x.dtype.element_ty), mask=(row[:, None] < count) & (column[None, :] < outer))
