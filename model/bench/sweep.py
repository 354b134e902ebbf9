"""Tiles of the kernels compared, each table sorted by time: how those of `model.kernels.tiles` were found.

Owns the candidates, the tables and the choice. Everything is compiled beforehand, in as many processes as there are
cores, since compiling is most of the time. A tile that does not compile or fit, or gives something else than the one
in use, is said, and left out.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from model.bench.device import CannotMeasure
from model.bench.kernels import STORED, Clock, Figure, Matrices, Order, Rings, Work, matrices_of, nbytes, read_only
from model.bench.models import sizes_of
from model.kernels import tiles
from model.kernels.tiles import AttentionTile, MatrixTile, Stored

WARPS_STEPS_STAGES = ((4, 4, 1), (4, 4, 3), (4, 2, 3), (4, 2, 4), (2, 4, 3), (8, 2, 3))
WARPS_AHEAD = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1))
"""On tensor cores, in FP8."""
OFF = 0.005
"""Root mean square by which a result may differ from that of the tile in use, of its own: on tensor cores the
attention rounds to float16 on the way, which makes it some 0.001 where bfloat16 comes out."""
CHUNKS = ((128, 160), (256, 512), (1024, 1536), (1024, 1536, 3072))
"""For each number of slots of `tiles.BATCHES`."""
MATRIX_TILES = (
    (
        MatrixTile(16, 32, 128, 4, 3),
        MatrixTile(16, 32, 128, 4, 6),
        MatrixTile(16, 32, 128, 2, 6),
        MatrixTile(16, 32, 256, 4, 4),
        MatrixTile(16, 32, 256, 4, 6),
        MatrixTile(16, 16, 256, 2, 4),
        MatrixTile(16, 16, 256, 4, 6),
        MatrixTile(16, 64, 128, 4, 6),
    ),
    (
        MatrixTile(64, 32, 128, 4, 3),
        MatrixTile(64, 32, 128, 4, 4),
        MatrixTile(64, 32, 128, 4, 6),
        MatrixTile(64, 64, 128, 4, 4),
        MatrixTile(64, 64, 128, 8, 4),
        MatrixTile(64, 128, 64, 8, 4),
    ),
    (
        MatrixTile(64, 128, 128, 8, 3),
        MatrixTile(128, 64, 128, 8, 3),
        MatrixTile(128, 128, 64, 8, 4),
        MatrixTile(128, 128, 128, 8, 3),
    ),
)
"""For each number of rows of `tiles.ROWS`."""


def sweep(order: Order, device: torch.device) -> list[Figure]:
    """Compile, measure at the most rows of each class, print, and save the fastest where `order` says."""
    left_out = _compile(order) if device.type == "cuda" else {}
    for tile, reason in left_out.items():
        _say(f"left out: {tile}: {reason}")
    gc.collect()
    gc.freeze()  # a capture collects: fast, if nothing old is looked at
    found: list[Figure] = []
    with torch.no_grad():
        attention = {stored: _sweep_attention(order, device, stored, left_out, found) for stored in STORED}
        matrix = _sweep_matrices(order, device, left_out, found)
    gc.unfreeze()
    if order.found is not None:
        tiles.save(order.found, attention=attention, matrix=matrix)
    return found


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _attention_tiles(stored: Stored, chunks: Sequence[int]) -> list[AttentionTile]:
    found = [AttentionTile(chunk, *shape) for shape, chunk in product(WARPS_STEPS_STAGES, chunks)]
    if stored == "fp8":
        on_tensor_cores = product(WARPS_AHEAD, chunks)
        found += [AttentionTile(chunk, warps, 2, ahead + 1, True) for (warps, ahead), chunk in on_tensor_cores]
    return found


def _compile(order: Order) -> dict[str, str]:
    """Fill Triton's cache on disk. Returns what does not compile, with the reason."""
    begun = time.perf_counter()
    jobs: dict[str, tuple[Any, ...]] = {}
    for stored in STORED:
        for tile in _attention_tiles(stored, (256,)):  # a chunk's length is no constant of the kernel
            jobs[_compiled_as(stored, tile)] = (_try_attention, order, stored, tile)
    for matrix in dict.fromkeys(tile for several in MATRIX_TILES for tile in several):
        jobs[str(matrix)] = (_try_matrix, order, matrix)
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        futures = {key: pool.submit(*job) for key, job in jobs.items()}
        reasons = {key: future.result(timeout=120) for key, future in futures.items()}
    _say(f"{len(jobs)} tiles compiled in {time.perf_counter() - begun:.1f} s")
    return {key: reason for key, reason in reasons.items() if reason is not None}


def _compiled_as(stored: Stored, tile: AttentionTile) -> str:
    return f"{stored} {replace(tile, chunk=256)}"


def _try_attention(order: Order, stored: Stored, tile: AttentionTile) -> str | None:
    """Run once, on rings of one slot, in a process of its own. Returns what went wrong."""
    from model.kernels import attention

    (step, *_) = Rings(sizes_of(order.size).lm.transformer, 1, stored, torch.device(order.device)).steps(1)
    return _try(step.work(attention.chunks(step.ring, 1, tile)))


def _try_matrix(order: Order, tile: MatrixTile) -> str | None:
    """One size stands for all, which are multiples of 16."""
    from model.kernels import matmul

    matrices = Matrices(*matrices_of(order.size)["out_proj"], torch.device(order.device), copies=1)
    x = matrices.rows(tile.rows)
    return _try(lambda: matmul.linear(x, *matrices.small[0], tile))


def _try(work: Work) -> str | None:
    from model.kernels.failures import FAILURES

    try:
        work()
    except FAILURES as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def _timed(clock: Clock, rounds: Sequence[Work], name: str, expected: Tensor) -> float | None:
    """Microseconds of one; None where the first is not as `expected`, or it fails."""
    from model.kernels.failures import FAILURES

    try:
        off = float((_made(rounds[0]) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        if not off < OFF:  # nor is what is no number
            _say(f"left out: {name}: off by {off:.4f}")
            return None
        return clock.microseconds(rounds)
    except FAILURES as error:
        _say(f"failed: {name}: {type(error).__name__}: {str(error)[:200]}")
        return None


def _first_made(works: Sequence[Work]) -> Tensor:
    """By the tile in use, or where that does not run on this card by the first that does. Raises CannotMeasure."""
    from model.kernels.failures import FAILURES

    for work in works:
        with suppress(*FAILURES):  # what fails here fails again when it is measured, and is said there
            return _made(work)
    raise CannotMeasure("no tile runs on this device")


def _made(work: Work) -> Tensor:
    return cast(Tensor, work()).float()


def _table(title: str, figures: list[Figure]) -> list[Figure]:
    _say(f"-- {title}")
    for figure in sorted(figures, key=lambda one: one.microseconds):
        _say(str(figure))
    return figures


def _sweep_attention(
    order: Order, device: torch.device, stored: Stored, left_out: dict[str, str], found: list[Figure]
) -> list[AttentionTile]:
    """At `order.batches`, each of which stands for its class; the last for those above, too."""
    from model.kernels import attention

    clock, best = Clock(device), []
    rings = Rings(sizes_of(order.size).lm.transformer, max(order.batches), stored, device)
    for place in range(len(tiles.BATCHES) + 1):
        batch = _stands_for(place, tiles.BATCHES, order.batches)
        steps = rings.steps(batch)
        moved = nbytes(steps[0].parts())
        read_us = clock.microseconds(read_only([step.parts() for step in steps]))
        figures = [Figure("read", stored, batch, read_us, moved, read_us)]
        candidates = [
            tile for tile in _attention_tiles(stored, CHUNKS[place]) if _compiled_as(stored, tile) not in left_out
        ]
        expected = _first_made(
            [steps[0].work(attention.chunks(steps[0].ring, batch, tile)) for tile in (None, *candidates)]
        )
        times: dict[AttentionTile, float] = {}
        for tile in candidates:
            cut = attention.chunks(steps[0].ring, batch, tile)
            took = _timed(clock, [step.work(cut) for step in steps], str(tile), expected)
            if took is not None:
                times[tile] = took
                figures.append(Figure(str(tile), stored, batch, took, moved, read_us))
        found += _table(f"attention, {stored} keys and values, {batch} slots", figures)
        best.append(min(times, key=times.__getitem__, default=tiles.attention_tile(stored, batch)))
    return best


def _stands_for(place: int, classes: Sequence[int], measured: Sequence[int]) -> int:
    """Of `measured` the largest within a class, or else the nearest below it."""
    most = (*classes, 1 << 30)[place]
    return max((one for one in measured if one <= most), default=min(measured))


def _sweep_matrices(
    order: Order, device: torch.device, left_out: dict[str, str], found: list[Figure]
) -> list[MatrixTile]:
    """The matrices of one layer; the fastest is so in all of them together."""
    sizes = {name: size for name, size in matrices_of(order.size).items() if name != "text_linear"}
    layer = {name: Matrices(*size, device) for name, size in sizes.items()}
    clock, best = Clock(device), []
    for place in range(len(tiles.ROWS) + 1):
        batch = _stands_for(place, tiles.ROWS, order.batches)
        times: dict[MatrixTile, float] = {}
        for name, matrices in layer.items():
            figures = _plain_figures(matrices, batch, clock)
            x = matrices.rows(batch)
            candidates = [tile for tile in MATRIX_TILES[place] if str(tile) not in left_out]
            expected = _first_made([matrices.ours(x, tile)[0] for tile in (None, *candidates)])
            for tile in candidates:
                took = _timed(clock, matrices.ours(x, tile), str(tile), expected)
                if took is not None:
                    times[tile] = times.get(tile, 0.0) + took
                    figures.append(Figure(str(tile), "fp8", batch, took, figures[0].bytes, figures[0].read_us))
            found += _table(f"{name}, {batch} rows", figures)
        _say("-- all four: " + ", ".join(f"{tile} {times[tile]:.1f} us" for tile in sorted(times, key=times.get)[:3]))  # type: ignore[arg-type]
        best.append(min(times, key=times.__getitem__, default=tiles.matrix_tile(batch)))
    return best


def _plain_figures(matrices: Matrices, batch: int, clock: Clock) -> list[Figure]:
    """Reading the bytes in FP8, and the product in twice as many by torch."""
    moved = matrices.small[0][0].nbytes
    read_us = clock.microseconds(read_only([[weight] for weight, _ in matrices.small]))
    took = clock.microseconds(matrices.plain(matrices.rows(batch)))
    return [
        Figure("read", "fp8", batch, read_us, moved, read_us),
        Figure("torch, twice the bytes", "bf16", batch, took, 2 * moved, 2 * read_us),
    ]
