"""`python -m model.bench.codec FILE`: the fastest tiles of a codec's products, for `model.kernels.codec_tiles`.

Owns what is compiled, timed and chosen. Each result is checked against a plain product in float64, and a tile whose
result is off is left out. At last whole steps are timed: with the tiles of now, with those found, and with launches
chained, which must give the very same codes and sound. The file is what `model.bench.engine --tiles` loads, and what
`model/kernels/codec_tiles.json` is.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, replace
from itertools import takewhile
from pathlib import Path
from typing import cast

import torch

from model.bench.codec_cases import NEAR, SEARCH, Case, Data, candidates, cases, measured
from model.bench.codec_steps import Steps, search_work
from model.bench.device import CannotMeasure
from model.bench.kernels import Clock, device_of
from model.bench.models import Size, sizes_of
from model.config import MimiConfig
from model.kernels import codec_tiles
from model.kernels.codec_tiles import THIN, Entries, SearchTile, Shape, Tables, Tile

Point = tuple[Case, int]
"""A product, and for how many slots."""
_ALIKE = 1.04
"""Times that differ by less count as equal: of those tiles the one that most products take, to compile fewer."""
_ROTATED = 150_000_000
"""Bytes of weights that pass before any is read again: an H200's L2 cache holds 60 MB."""
_SEARCHED = (1, 32, 128, 400)
_STEPPED = (1, 32, 128)
"""Numbers of slots of the searches and of the whole steps that are timed."""


def sweep(config: MimiConfig, device: torch.device) -> Tables:
    """What is fastest on `device`; prints what was measured."""
    points = [(case, slots) for case in cases(config) for slots in measured(case)]
    clock, now = Clock(device), codec_tiles.used()
    codec_tiles.use(replace(now, chained_slots=0))
    with _pool(device) as compile_all, torch.no_grad():
        compile_all(points, {point: candidates(point[0].shape, point[1] * point[0].length) for point in points}, 0)
        with _no_old_garbage():
            times = {point: _times(point, clock) for point in points}
            found = Tables(_entries(_chosen(times)), _search(config, clock))
        codec_tiles.use(found)
        compile_all(points, {point: [_taken(point)] for point in points}, 1)
        with _no_old_garbage():
            return _with_steps(config, now, found, clock)


@contextmanager
def _no_old_garbage() -> Iterator[None]:
    """A capture collects: fast, if nothing old is looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


CompileAll = Callable[[Sequence[Point], Mapping[Point, Sequence[Tile]], int], None]
"""Tiles for each point, where launches are chained for so many slots."""


@contextmanager
def _pool(device: torch.device) -> Iterator[CompileAll]:
    """What fills Triton's cache on disk, in as many processes as there are cores."""
    if device.type != "cuda":
        yield lambda points, tiles, chained_slots: None
        return
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:

        def compile_all(points: Sequence[Point], tiles: Mapping[Point, Sequence[Tile]], chained_slots: int) -> None:
            begun = time.perf_counter()
            jobs = {_compiled_as(case, cut): (case, cut) for case, slots in points for cut in tiles[case, slots]}
            futures = [pool.submit(_compile, *job, device, chained_slots) for job in jobs.values()]
            for future in futures:
                if (reason := future.result(timeout=120)) is not None:
                    _say(reason)
            _say(f"{len(jobs)} kernels compiled in {time.perf_counter() - begun:.1f} s")

        yield compile_all


def _compiled_as(case: Case, cut: Tile) -> tuple[object, ...]:
    """What a kernel is compiled for: the constants, and numbers of 1 or a multiple of 16."""
    shape = case.shape
    whole = cut.way == "thin" and shape.inner <= cut.depth
    aligned = tuple((number == 1, number % 16 == 0) for number in (shape.outer, shape.inner, case.hop))
    return cut, case.norm, case.edge, whole, aligned


def _compile(case: Case, cut: Tile, device: torch.device, chained_slots: int) -> str | None:
    """Run once for as few rows as there are, in a process of its own. Returns what went wrong."""
    from model.kernels.failures import FAILURES

    codec_tiles.use(Tables(chained_slots=chained_slots))
    try:
        Data(case, 1, device).make(cut)
    except FAILURES as error:
        return f"left out: {case.name} {astuple(cut)}: {type(error).__name__}: {str(error)[:200]}"
    return None


def _times(point: Point, clock: Clock) -> dict[Tile, float]:
    """Microseconds of each candidate that is right."""
    from model.kernels.failures import FAILURES

    case, slots = point
    shape, count = case.shape, slots * case.length
    likely = 2 * count * shape.outer * shape.inner / 60e6  # microseconds at 60 TFLOP/s
    launches = 1 if clock.device.type != "cuda" else min(24, max(4, int(2000 / (likely + 3))))
    copies = min(launches, 1 + _ROTATED // (4 * shape.outer * shape.inner))
    data, found = Data(case, slots, clock.device, copies), {}
    for cut in candidates(shape, count):
        data.result.fill_(math.nan)
        try:
            data.make(cut)
            off = data.off()
            if off > NEAR[shape.precision]:
                _say(f"wrong: {case.name}, {slots} slots, {astuple(cut)}: off by {off:.1e}")
                continue
            rounds = [lambda copy=copy: data.make(cut, copy % copies) for copy in range(launches)]  # noqa: B023
            found[cut] = clock.microseconds(rounds)
        except FAILURES as error:
            _say(f"failed: {case.name} {astuple(cut)}: {type(error).__name__}: {str(error)[:200]}")
    shown = "  ".join(f"{_short(cut)} {took:.1f}" for cut, took in sorted(found.items(), key=lambda one: one[1])[:3])
    _say(f"{case.name:<17} {slots:>3} x {case.length:<4} now {found.get(_taken(point), math.nan):>6.1f} us; {shown}")
    return found


def _short(cut: Tile) -> str:
    return f"{cut.way} {cut.rows}x{cut.columns}s{cut.shares}d{cut.depth}w{cut.warps}n{cut.stages}"


def _chosen(times: Mapping[Point, Mapping[Tile, float]]) -> dict[Point, Tile]:
    """The fastest for each point; among equals that which is among the fastest of most."""
    near = {
        point: [cut for cut, took in each.items() if took <= _ALIKE * min(each.values())]
        for point, each in times.items()
        if each
    }
    liked = Counter(cut for each in near.values() for cut in each)
    return {point: max(each, key=lambda cut: (liked[cut], -times[point][cut])) for point, each in near.items()}


def _entries(chosen: Mapping[Point, Tile]) -> dict[Shape, Entries]:
    """Tables by rows: a tile serves up to half way, as a ratio, to the next number that was measured."""
    by_shape: dict[Shape, list[tuple[int, Tile]]] = {}
    for (case, slots), cut in chosen.items():
        by_shape.setdefault(case.shape, []).append((slots * case.length, cut))
    return {shape: _with_bounds(sorted(rows, key=lambda one: one[0])) for shape, rows in by_shape.items()}


def _with_bounds(rows: Sequence[tuple[int, Tile]]) -> list[tuple[int, Tile]]:
    """A thin tile serves its rows only; one of fewer columns then serves the few more that may be thin."""
    entries: list[tuple[int, Tile]] = []
    following = [count for count, _ in rows[1:]] + [rows[-1][0]]
    for (count, cut), after in zip(rows, following, strict=True):
        if cut.way == "thin":
            more = replace(cut, rows=THIN, columns=max(2, cut.columns * cut.rows // THIN))
            entries += [(cut.rows, cut), (THIN, more)]
        else:
            entries.append((math.isqrt(count * after), cut))
    return entries


def _taken(point: Point) -> Tile:
    """The tile that a point has now."""
    case, slots = point
    return codec_tiles.tile(slots * case.length, case.shape.outer, case.shape.inner, case.shape.precision)


def _search(config: MimiConfig, clock: Clock) -> list[tuple[int, SearchTile]]:
    """The fastest for each number of slots; all must find the same codes."""
    from model.kernels.failures import FAILURES

    found: list[tuple[int, SearchTile]] = []
    for slots in _SEARCHED:
        expected, times = None, {}
        for cut in dict.fromkeys([codec_tiles.search_tile(slots), *SEARCH]):
            if cut.rows >= 2 * max(16, slots):
                continue
            work = search_work(config, slots, clock.device, cut)
            try:
                codes = work()
                expected = codes if expected is None else expected
                if not torch.equal(codes, expected):
                    _say(f"wrong: search, {slots} slots, {astuple(cut)}")
                    continue
                times[cut] = clock.microseconds([work])
            except FAILURES as error:
                _say(f"failed: search {astuple(cut)}: {type(error).__name__}: {str(error)[:200]}")
        best = min(times, key=times.__getitem__, default=codec_tiles.search_tile(slots))
        _say(f"search, {slots} slots: " + ", ".join(f"{astuple(cut)} {took:.1f} us" for cut, took in times.items()))
        found.append((slots, best))
    following = [slots for slots, _ in found[1:]] + [found[-1][0]]
    return [(math.isqrt(slots * after), cut) for (slots, cut), after in zip(found, following, strict=True)]


def _with_steps(config: MimiConfig, now: Tables, found: Tables, clock: Clock) -> Tables:
    """Time whole steps, and say for how many slots launches are to be chained: as long as that is sooner."""
    steps = Steps(config, max(_STEPPED), clock)
    chained = replace(found, chained_slots=_STEPPED[-1])
    ways = {"now": now, "found": found, "chained": chained} if clock.device.type == "cuda" else {"found": found}
    times: dict[str, list[tuple[float, float]]] = {}
    for name, tables in ways.items():
        codec_tiles.use(tables)
        times[name] = [steps.times(slots) for slots in _STEPPED]
        shown = "; ".join(
            f"{slots}: {encode:.3f} + {decode:.3f} ms"
            for slots, (encode, decode) in zip(_STEPPED, times[name], strict=True)
        )
        _say(f"steps, {name}: {shown}")
    if "chained" not in times:
        return found
    plain, linked = ([sum(both) for both in times[name]] for name in ("found", "chained"))
    sooner = takewhile(lambda one: one[0] < one[1], zip(linked, plain, _STEPPED, strict=True))
    most = max((slots for _, _, slots in sooner), default=0)
    same = steps.alike(found, chained)
    _say(f"chained: sooner for up to {most} slots, {'the same' if same else 'NOT THE SAME'}")
    return replace(found, chained_slots=most) if same else found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.codec")
    parser.add_argument("file", type=Path, help="where to write what is found")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    try:
        found = sweep(sizes_of(cast(Size, options.size)).mimi, device_of(options.device))
    except CannotMeasure as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    codec_tiles.save(options.file, found)
    _say(f"{time.perf_counter() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
