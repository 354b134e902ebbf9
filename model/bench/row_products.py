"""Which tiles make products for a handful of rows soonest on this GPU: `python -m model.bench.row_products FILE`.

Owns the candidates and their measurement on the matrices of one layer, beside PyTorch's products and a kernel that only
reads them. What it finds is written for `model.kernels.tiles.load`. A candidate must give what PyTorch gives, or it is
left out. On a CPU the kernels run in Triton's interpreter, on a tiny layer: that shows that they run, not how fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from model import ops
from model.bench.kernels import STORED, Clock, Figure, Matrices, Work, matrices_of, read_only
from model.bench.models import Size
from model.kernels import tiles
from model.kernels.tiles import RowTile, Stored

CANDIDATES: dict[Stored, tuple[RowTile, ...]] = {
    "bf16": (
        RowTile(8, 1024, 4),
        RowTile(4, 1024, 4),
        RowTile(8, 512, 4),
        RowTile(8, 1024, 8),
        RowTile(16, 1024, 8),
        RowTile(4, 2048, 8),
        RowTile(8, 512, 2),
        RowTile(4, 512, 2),
    ),
    "fp8": (
        RowTile(16, 1024, 4),
        RowTile(8, 1024, 4),
        RowTile(16, 1024, 8),
        RowTile(8, 2048, 4),
        RowTile(8, 1024, 2),
        RowTile(4, 1024, 2),
        RowTile(4, 2048, 4),
    ),
}
AFTER_NORM, ADDING = ("in_proj", "linear_in"), ("out_proj", "linear_out")
"""The matrices that share a tile."""
ROWS = 1
_OFF = 0.02
"""Root mean square by which a product may differ from PyTorch's, of its spread: bfloat16 makes it some 0.003."""
Product = Callable[[Tensor, tuple[Tensor, Tensor | None]], Tensor]
Sides = dict[str, tuple[Product, Product]]
"""For each matrix what our kernel makes of it, and what PyTorch does."""


def find(size: Size, device: torch.device) -> dict[Stored, list[RowTile]]:
    """The soonest after a norm and the soonest that adds. Prints what was measured."""
    if device.type == "cuda":
        jobs = [(size, stored, tile) for stored in STORED for tile in CANDIDATES[stored]]
        with ProcessPoolExecutor(min(16, os.cpu_count() or 1), get_context("spawn")) as pool:
            list(pool.map(_compile, *zip(*jobs, strict=True)))
    gc.collect()
    gc.freeze()  # a capture collects: fast, if nothing old is looked at
    with torch.no_grad():
        found = {stored: [_soonest(size, stored, names, device) for names in (AFTER_NORM, ADDING)] for stored in STORED}
    gc.unfreeze()
    return found


def _soonest(size: Size, stored: Stored, names: Sequence[str], device: torch.device) -> RowTile:
    """Of both matrices of `names` together."""
    clock, times = Clock(device), dict.fromkeys(CANDIDATES[stored], 0.0)
    for name in names:
        matrices = Matrices(*matrices_of(size)[name], device)
        weights = [(one, None) for one in matrices.wide] if stored == "bf16" else matrices.small
        read_us = clock.microseconds(read_only([[weight] for weight, _ in weights]))
        moved, x = weights[0][0].nbytes, matrices.rows(ROWS)
        plain = products(name, matrices, None)[1]
        took = clock.microseconds(_rounds(plain, x, [(one, None) for one in matrices.wide]))
        _say(f"-- {name}, {stored}\n{Figure('torch, in bf16', 'bf16', ROWS, took, moved, read_us)}")
        for tile in list(times):
            taken = _taken(products(name, matrices, tile), x, weights, clock)
            if taken is None:
                _say(f"left out: {tile}")
                del times[tile]
            else:
                times[tile] += taken
                _say(str(Figure(str(tile), stored, ROWS, taken, moved, read_us)))
    return min(times, key=times.__getitem__, default=tiles.row_tile(stored, adds=names == ADDING))


def products(name: str, matrices: Matrices, tile: RowTile | None) -> tuple[Product, Product]:
    """What our kernel and PyTorch make of a row and the matrix `name`, with all that lies around it in a layer."""
    from model.kernels import few_rows

    inner, outer = matrices.wide[0].shape[1], matrices.wide[0].shape[0]
    gain = torch.ones(inner, device=matrices.wide[0].device, dtype=matrices.dtype)
    residual = torch.zeros((ROWS, outer), device=gain.device, dtype=gain.dtype)

    def normed(x: Tensor) -> Tensor:
        return ops.add_norm(x, None, gain)[1]

    def plain(x: Tensor, weight: tuple[Tensor, Tensor | None]) -> Tensor:
        wide = weight[0].to(x.dtype) if weight[1] is None else (weight[0].float() * weight[1][:, None]).to(x.dtype)
        return torch.nn.functional.linear(x, wide)

    sides: Sides = {
        "in_proj": (
            lambda x, weight: few_rows.project_normed(x, gain, weight, ops.RMS_EPS, tile),
            lambda x, weight: plain(normed(x), weight),
        ),
        "linear_in": (
            lambda x, weight: few_rows.project_gated(x, gain, weight, ops.RMS_EPS, tile),
            lambda x, weight: ops.silu_gate(plain(normed(x), weight)),
        ),
    }
    adding: tuple[Product, Product] = (
        lambda x, weight: few_rows.add_projected(x, weight, residual, tile),
        lambda x, weight: residual + plain(x, weight),
    )
    return sides.get(name, adding)


def _rounds(made: Product, x: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]]) -> list[Work]:
    return [lambda weight=weight: made(x, weight) for weight in weights]  # type: ignore[misc]


def _taken(
    both: tuple[Product, Product], x: Tensor, weights: Sequence[tuple[Tensor, Tensor | None]], clock: Clock
) -> float | None:
    """Microseconds of one product; None where it is wrong, or cannot be made."""
    from model.kernels.failures import FAILURES

    ours, theirs = both
    try:
        expected = theirs(x, weights[0]).float()
        off = (ours(x, weights[0]).float() - expected).square().mean().sqrt() / expected.std()
        return clock.microseconds(_rounds(ours, x, weights)) if off < _OFF else None
    except FAILURES:
        return None


def _compile(size: Size, stored: Stored, tile: RowTile) -> None:
    """Run each product once, in a process of its own, for Triton's cache."""
    device = torch.device("cuda")
    for name in (*AFTER_NORM, *ADDING):
        matrices = Matrices(*matrices_of(size)[name], device, copies=1)
        weights = [(matrices.wide[0], None)] if stored == "bf16" else matrices.small
        _taken(products(name, matrices, tile), matrices.rows(ROWS), weights, _Once(device))


class _Once(Clock):
    """Looks at no clock."""

    def microseconds(self, rounds: Sequence[Work]) -> float:
        return 0.0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.row_products")
    parser.add_argument(
        "file", type=Path, help="where the fastest tiles are written, for --tiles of the other benchmarks"
    )
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    elif not torch.cuda.is_available():
        sys.stderr.write("this torch finds no CUDA device; --device cpu --size tiny runs in Triton's interpreter\n")
        return 1
    tiles.save(options.file, rows=find(options.size, torch.device(options.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
