"""`callplex bench engine`: what one device holds, measured with random weights and full windows.

Owns the command: what is asked for, and how what was found is shown. Needs nothing but the model's own packages, so
that `python -m model.bench.engine` runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from model.bench.configurations import Configuration, Order, Sweep, counted
from model.bench.device import CannotMeasure, about_device
from model.bench.drive import Latency
from model.bench.memory import Memory
from model.capacity import GB
from model.depformer_walk import load_tiles
from model.kernels import tiles
from model.kv_cache import DTYPES

DEFAULT_SLOTS = "1,8,16,32,64,96,128,150"


def bench_engine(order: Order, *, json_output: bool = False) -> int:
    """Measure and print. Returns the exit status: 1 if nothing could be measured, or the device failed meanwhile.

    As JSON all of it comes at the end, on standard output. Each configuration is a line of standard error when it is
    measured: it is not lost with what comes after it.
    """
    begun = time.perf_counter()
    out = sys.stderr if json_output else sys.stdout

    def say(line: str) -> None:
        out.write(line + "\n")
        out.flush()

    def show(found: Configuration) -> None:
        say(_json(asdict(found)) if json_output else _lines(found))

    try:
        device = _device(order.device)
        if device.type == "cpu":
            torch.set_num_threads(1)  # matrices are small there: threads would wait for each other
        about = about_device(device)  # now: one that fails tells nothing
        sweep = Sweep(order, device, say, show)
        with _quiet():
            sweep.run()
    except CannotMeasure as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    seconds = round(time.perf_counter() - begun, 1)
    if json_output:
        sys.stdout.write(_json(_result(order, about, sweep, seconds)) + "\n")
    else:
        say(f"all of it took {seconds:.1f} s: {_seconds(sweep.start)}, and the configurations as above")
    if sweep.lost:
        sys.stderr.write(f"the device failed, so that not all was measured: {sweep.lost}\n")
    return 1 if sweep.lost else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for each call that was answered late: figures say it."""
    log = logging.getLogger("model.calls")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotMeasure("this torch finds no CUDA device; --device cpu --size tiny runs anywhere")
    return torch.device(name)


def _result(order: Order, about: dict[str, Any], sweep: Sweep, seconds: float) -> dict[str, Any]:
    return {
        "bench": "engine",
        **about,
        **{key: value for key, value in asdict(order).items() if key not in ("slots", "seconds")},
        "run_seconds": order.seconds,
        "seconds": seconds,
        "start_seconds": sweep.start,
        "configurations": [asdict(one) for one in sweep.found],
        "skipped": [{"slots": slots, "reason": reason} for slots, reason in sorted(sweep.skipped.items())],
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, default=float)


def _lines(found: Configuration) -> str:
    shown = ", ".join(f"{name} {part.milliseconds:.2f}" for name, part in found.parts.items())
    lines = [
        f"{counted(found.slots)}: lockstep {_quantiles(found.lockstep)} of {found.lockstep.steps} steps, "
        f"{found.lockstep.misses} of {found.lockstep.frames} frames late; "
        f"{', '.join(f'{took:.1f}' for took in found.first_steps)} ms before them; "
        f"calls of 10 s {found.lockstep_10s.p50:.2f} ms, {found.lockstep_10s.steps} steps",
        f"  random phases {_quantiles(found.random_phases)}, {found.random_phases.misses} of "
        f"{found.random_phases.frames} frames late, {found.random_phases.mean_batch:.1f} slots a step",
        f"  with prompts given back {_quantiles(found.repriming.latency)}, {found.repriming.latency.misses} of "
        f"{found.repriming.latency.frames} frames late; {len(found.repriming.took)} given back, one each "
        f"{found.repriming.every:.2f} s",
        f"  {shown}, host {found.host_ms:.2f} ms; {found.launches} launches",
        f"  reads {found.read_bytes / 1e9:.3f} GB, alone {found.read_ms:.2f} ms; a step {found.ratio:.2f} times that",
        f"  memory {found.memory_bytes / GB:.2f} GB as reckoned; {_memory(found.memory)}",
    ]
    for name, one in found.beside.items():
        took = sorted(one.took)
        line = f"  {name}: "
        line += f"{took[len(took) // 2]:.1f} ms (median of {len(took)}), {took[-1]:.1f} the longest" if took else "none"
        if (others := one.others) is not None:
            line += f"; others meanwhile {others.p50:.2f} / {others.p99:.2f} / {others.max:.2f} ms (p50 / p99 / max), "
            line += f"{others.misses} late of {others.frames}, of the {one.frames} in all of the run"
        if one.refused:
            line += f"; refused {len(one.refused)}: {one.refused[-1]}"
        lines.append(line)
    lines.append(f"  measured in {found.seconds:.1f} s: {_seconds(found.phases)}")
    return "\n".join(lines)


def _quantiles(found: Latency) -> str:
    return f"{found.p50:.2f} / {found.p99:.2f} / {found.p999:.2f} / {found.max:.2f} ms (p50 / p99 / p99.9 / max)"


def _memory(seen: Memory) -> str:
    parts = [
        f"engine of {counted(seen.slots)}: {seen.reckoned / GB:.2f} GB as reckoned, its tensors {seen.tensors / GB:.2f}"
    ]
    for name, value in (("allocated", seen.peak_allocated), ("reserved", seen.peak_reserved), ("device", seen.device)):
        if value is not None:
            parts.append(f"{name} {value / GB:.2f}")
    return ", ".join(parts)


def _seconds(took: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in took.items())


def slots_of(text: str) -> tuple[int, ...]:
    """`1,8,16` to numbers. Raises ValueError."""
    slots = tuple(sorted({int(part) for part in text.split(",")}))
    if slots[0] < 1:
        raise ValueError("a number of slots is 1 or more")
    return slots


def some_of(text: str) -> tuple[int, ...] | None:
    """`all`, `none`, or `64,128`: of which configurations something is measured. Raises ValueError."""
    return {"all": None, "none": ()}[text] if text in ("all", "none") else slots_of(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The same without `callplex`, for a machine that has only the model's packages."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.engine")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--slots", type=slots_of, default=slots_of(DEFAULT_SLOTS), help=DEFAULT_SLOTS)
    parser.add_argument("--kv-dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--weights-dtype", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--seconds", type=float, default=3.5, help="of each run of one configuration")
    parser.add_argument("--steady", type=float, default=0.0, help="seconds of the run with prompts given back instead")
    parser.add_argument("--steady-for", type=some_of, help="128: only these run for so long")
    parser.add_argument("--beside", type=some_of, help="64,128: only these with work beside the calls; or none")
    parser.add_argument(
        "--tiles",
        type=Path,
        action="append",
        default=[],
        help="what `model.bench.kernels --sweep`, `model.bench.row_products` or `model.bench.codec` found, to be used",
    )
    parser.add_argument("--walk-tiles", type=Path, help="a file of what `model.bench.walk` found, to be used")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    json_output = cast(bool, options.pop("json"))
    walk_tiles = options.pop("walk_tiles")
    found = [(tiles.load, file) for file in options.pop("tiles")]
    for load, file in [*found, *([(load_tiles, walk_tiles)] if walk_tiles else [])]:
        try:
            load(file)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return bench_engine(Order(**options), json_output=json_output)


if __name__ == "__main__":
    sys.exit(main())
