"""`python -m model.bench.kernels`: each kernel against one that only reads the same bytes, in the same run.

Owns the data (rings of some layers and copies of a layer's matrices, more than the L2 cache holds), the clock and the
table. Needs nothing but the model's own packages. On a CPU the kernels run in Triton's interpreter: that shows that
they run, not how fast.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from model import fp8
from model.bench.device import CannotMeasure, about_device
from model.bench.models import Size, fill_rings, sizes_of
from model.config import TransformerConfig
from model.cuda_graphs import Graph
from model.kernels import tiles
from model.kernels.tiles import MatrixTile, Stored
from model.kv_cache import DTYPES, SlotKV
from model.streaming import Window

if TYPE_CHECKING:
    from model.kernels.attention import Chunks, Ring

Work = Callable[[], object]
_LAYERS = 4
_ROTATED = 400_000_000
"""Bytes that pass before any is read again: an H200's L2 cache holds 60 MB."""
_REPEATS = 5
STORED: tuple[Stored, ...] = ("bf16", "fp8")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be measured, on rings for the largest of `batches`."""

    size: Size
    device: str
    batches: tuple[int, ...]
    sweep: bool = False
    found: Path | None = None
    """Where a sweep writes the fastest tiles."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One kernel at one size. read_us: what reading its bytes takes a kernel that only reads."""

    kernel: str
    dtype: str
    batch: int
    microseconds: float
    bytes: int
    read_us: float

    @property
    def percent(self) -> float:
        """Of the bandwidth that reading alone gets."""
        return 100 * self.read_us / self.microseconds

    def __str__(self) -> str:
        width = 66 if " " in self.kernel else 12
        return (
            f"{self.kernel:<{width}} {self.dtype:<5} {self.batch:>4} {self.microseconds:>9.1f} us "
            f"{self.bytes / 1e6:>9.1f} MB {self.percent:>6.1f} %"
        )


class Clock:
    """Medians of a call within a round of many, each on other data."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def microseconds(self, rounds: Sequence[Work]) -> float:
        """Of one of `rounds`, which run in turn; on a GPU as one graph, so that no launch is waited for."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for work in rounds:
                work()
            return (time.perf_counter() - begin) * 1e6 / len(rounds)

        def all_in_turn() -> None:
            for work in rounds:
                work()

        graph = Graph(all_in_turn, self.device)
        graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        marks[-1].synchronize()
        took = [float(begin.elapsed_time(end)) for begin, end in itertools.pairwise(marks)]
        return statistics.median(took) * 1000 / len(rounds)


@dataclass(frozen=True, slots=True)
class Asked:
    """A step's attention in one layer: everything that its kernels are given."""

    ring: Ring
    joined: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    first: Tensor
    last: Tensor
    window: int

    def work(self, cut: Chunks) -> Work:
        from model.kernels import attention

        return lambda: attention.attend(
            self.ring, self.joined, self.cos, self.sin, self.slots, self.first, self.last, cut
        )

    def parts(self) -> list[Tensor]:
        """The bytes that it reads, as views."""
        rings = (self.ring.keys, self.ring.values, self.ring.key_scales, self.ring.value_scales)
        low, count = int(self.slots[0]), len(self.slots)
        return [ring[low : low + count].flatten(0, 1)[:, : self.window] for ring in rings if ring is not None]


class Rings:
    """Rings of some layers with full windows, and steps over them."""

    def __init__(self, config: TransformerConfig, slots: int, stored: Stored, device: torch.device) -> None:
        self.stored = stored
        self._config = config
        self._slots = slots
        self.cache = SlotKV(
            layers=_LAYERS,
            slots=slots,
            heads=config.heads,
            head_dim=config.dim // config.heads,
            window=Window(config.context),
            dtype=DTYPES[stored],
            device=device,
        )
        fill_rings(self.cache.rings())

    def steps(self, batch: int) -> list[Asked]:
        """Steps of `batch` slots on different layers and slots, as many as their bytes need to pass the L2 cache."""
        each = self.cache.bytes_per_position // _LAYERS * self._config.context * batch
        groups = self._slots // batch
        count = min(_LAYERS * groups, max(_LAYERS, -(-_ROTATED // each)))
        return [self._step(index % _LAYERS, index // _LAYERS * batch, batch) for index in range(count)]

    def _step(self, layer: int, low: int, batch: int) -> Asked:
        from model.kernels.attention import Ring

        cache, config, device = self.cache, self._config, self.cache.keys.device
        head_dim = config.dim // config.heads
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        last = 3 * config.context + torch.arange(batch, device=device) % 7
        joined = torch.randn((batch, 3, config.heads, head_dim), device=device).to(dtype)
        scales = (
            (None, None)
            if cache.key_scales is None or cache.value_scales is None
            else (cache.key_scales[layer], cache.value_scales[layer])
        )
        first = cache.window.first(last)
        return Asked(
            ring=Ring(cache.keys[layer], cache.values[layer], *scales),
            joined=joined,
            cos=torch.ones((batch, head_dim // 2), device=device),
            sin=torch.zeros((batch, head_dim // 2), device=device),
            slots=torch.arange(low, low + batch, device=device),
            first=first,
            last=last,
            window=int(last[0] - first[0]) + 1,
        )


def read_only(parts: Sequence[Sequence[Tensor]]) -> list[Work]:
    """Reading each of `parts`, in one launch."""
    from model.kernels.read import Reads

    return [Reads(tensors) for tensors in parts]


def nbytes(parts: Sequence[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def attention_figures(rings: Rings, batch: int, clock: Clock) -> Iterator[Figure]:
    """What a layer's attention takes, and reading what it reads."""
    from model.kernels import attention

    steps = rings.steps(batch)
    moved = nbytes(steps[0].parts())
    read_us = clock.microseconds(read_only([step.parts() for step in steps]))
    cut = attention.chunks(steps[0].ring, batch)
    took = clock.microseconds([step.work(cut) for step in steps])
    yield Figure("read", rings.stored, batch, read_us, moved, read_us)
    yield Figure("attend", rings.stored, batch, took, moved, read_us)


def matrices_of(size: Size) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the matrices of a layer, and of the text head."""
    lm = sizes_of(size).lm
    main = lm.transformer
    return {
        "in_proj": (main.dim, 3 * main.dim),
        "out_proj": (main.dim, main.dim),
        "linear_in": (main.dim, 2 * main.hidden),
        "linear_out": (main.hidden, main.dim),
        "text_linear": (main.dim, lm.text_card),
    }


class Matrices:
    """Copies of one matrix in bfloat16 (float32 on a CPU) and e4m3, more than the L2 cache holds."""

    def __init__(self, inner: int, outer: int, device: torch.device, copies: int | None = None) -> None:
        copies = copies or (-(-_ROTATED // (inner * outer)) if device.type == "cuda" else 2)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.wide = [torch.randn((outer, inner), device=device).to(self.dtype) for _ in range(-(-copies // 2))]
        self.small = [fp8.quantise(self.wide[index % len(self.wide)]) for index in range(copies)]

    def rows(self, count: int) -> Tensor:
        return torch.randn((count, self.wide[0].shape[1]), device=self.wide[0].device).to(self.dtype)

    def plain(self, x: Tensor) -> list[Work]:
        """Products by torch, which is cuBLAS on a GPU, with each copy."""

        def product(weight: Tensor) -> Work:
            return lambda: functional.linear(x, weight)

        return [product(weight) for weight in self.wide]

    def ours(self, x: Tensor, tile: MatrixTile | None = None) -> list[Work]:
        """Products in FP8 by our kernel."""
        from model.kernels import matmul

        def product(weight: Tensor, scale: Tensor) -> Work:
            return lambda: matmul.linear(x, weight, scale, tile)

        return [product(*pair) for pair in self.small]


def matrix_figures(name: str, matrices: Matrices, batches: Sequence[int], clock: Clock) -> Iterator[Figure]:
    """A product in both types, and reading the matrix."""
    wide, small = matrices.wide, [weight for weight, _ in matrices.small]
    read_wide, read_small = (clock.microseconds(read_only([[one] for one in several])) for several in (wide, small))
    for batch in batches:
        x = matrices.rows(batch)
        yield Figure(name, "bf16", batch, clock.microseconds(matrices.plain(x)), wide[0].nbytes, read_wide)
        yield Figure(name, "fp8", batch, clock.microseconds(matrices.ours(x)), small[0].nbytes, read_small)


def bench_kernels(order: Order, *, json_output: bool = False) -> int:
    """Measure and print. Returns the exit status: 1 if nothing could be measured."""
    begun = time.perf_counter()
    try:
        found = _measured(order, show=not json_output)
    except CannotMeasure as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    if json_output:
        result = {
            "bench": "kernels",
            **about_device(torch.device(order.device)),
            "size": order.size,
            "seconds": round(time.perf_counter() - begun, 1),
            "figures": [{**asdict(one), "percent": round(one.percent, 1)} for one in found],
        }
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _measured(order: Order, *, show: bool) -> list[Figure]:
    """Raises CannotMeasure."""
    device, found = device_of(order.device), list[Figure]()
    if order.sweep:
        from model.bench.sweep import sweep

        return sweep(order, device)
    with torch.no_grad():
        for figure in _figures(order, device):
            found.append(figure)
            if show:
                print(figure, flush=True)  # noqa: T201
    return found


def device_of(name: str) -> torch.device:
    """The device; on a CPU kernels are interpreted. Raises CannotMeasure."""
    if name == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    elif not torch.cuda.is_available():
        raise CannotMeasure("this torch finds no CUDA device; --device cpu --size tiny runs in Triton's interpreter")
    return torch.device(name)


def _figures(order: Order, device: torch.device) -> Iterator[Figure]:
    clock = Clock(device)
    config = sizes_of(order.size).lm.transformer
    for stored in STORED:
        rings = Rings(config, max(order.batches), stored, device)
        for batch in order.batches:
            yield from attention_figures(rings, batch, clock)
        del rings
    for name, (inner, outer) in matrices_of(order.size).items():
        yield from matrix_figures(name, Matrices(inner, outer, device), order.batches, clock)


def _batches(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.kernels")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", type=_batches, default=(1, 8, 32, 64, 128), help="1,8,32,64,128")
    parser.add_argument("--sweep", action="store_true", help="tiles and chunks of our kernels, sorted by time")
    parser.add_argument("--tiles", type=Path, help="a file: --sweep writes what it finds, else it is used")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    json_output, file = cast(bool, options.pop("json")), cast(Path | None, options.pop("tiles"))
    if file is not None and not options["sweep"]:
        use_tiles(file, parser)
    return bench_kernels(Order(**options, found=file), json_output=json_output)


def use_tiles(file: Path, parser: argparse.ArgumentParser) -> None:
    """Take the tiles of `file`, or end as for any other wrong argument."""
    try:
        tiles.load(file)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
