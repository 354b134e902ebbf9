"""`callplex bench engine`: what one device holds, measured with random weights and full windows.

Owns the sweep over numbers of slots: what fits, what is measured of each, and what is said of it. Needs nothing but the
model's own packages, so that `python -m model.bench.engine` runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import torch

from model.bench.beside import Beside, BesideCalls
from model.bench.breakdown import Part, breakdown, measure
from model.bench.drive import Callers, Latency, lockstep
from model.bench.floor import ReadOnly, nbytes, step_reads
from model.bench.models import Size, Sizes, fill, random_models, sizes_of
from model.capacity import GB, batch_sizes, engine_bytes, fixed_bytes, kv_item, slot_bytes
from model.depformer_walk import load_tiles
from model.engine import Stepper
from model.fp8_weights import shrink
from model.kernels import tiles
from model.kv_cache import DTYPES, KVType
from model.warming import warm_long_passes

DEFAULT_SLOTS = "1,8,16,32,64,96,128,150"
_FEW = 5
"""Steps that tell what a step costs."""
_SHORT = 125
"""Frames of a call of ten seconds."""
Say = Callable[[str], None]


class CannotMeasure(Exception):
    """Nothing can be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be measured. seconds: of each run of one configuration.

    beside: the configurations measured with work beside the calls, None for all. steady: seconds of the run at random
    phases, 0 for as long as the others.
    """

    size: Size
    device: str
    slots: tuple[int, ...]
    kv_dtype: KVType
    weights_dtype: Literal["bf16", "fp8"] = "bf16"
    seconds: float = 10.0
    beside: tuple[int, ...] | None = None
    steady: float = 0.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was measured with `slots` slots, all windows full but in `lockstep_10s`."""

    slots: int
    lockstep: Latency
    lockstep_10s: Latency
    """With calls of ten seconds: a step reads what they hold."""
    random_phases: Latency
    memory_bytes: int
    """As the engine reckons before it loads, for just these slots; prompts that it keeps come on top."""
    launches: int | None
    """Nodes of the step's graph; elsewhere operations of its parts."""
    parts: dict[str, Part]
    host_ms: float
    """What a step takes beyond its parts."""
    read_bytes: int
    read_ms: float
    """What reading just these bytes takes a kernel that only reads."""
    ratio: float
    """A step in lockstep, at its median, to that."""
    beside: dict[str, Beside]


def bench_engine(order: Order, *, json_output: bool = False) -> int:
    """Measure and print. Returns the exit status: 1 if nothing could be measured."""
    say: Say = (lambda line: None) if json_output else (lambda line: print(line, flush=True))  # noqa: T201
    begun = time.perf_counter()
    try:
        device = _device(order.device)
        if device.type == "cpu":
            torch.set_num_threads(1)  # matrices are small there: threads would wait for each other
        found, skipped = _sweep(order, device, say)
    except CannotMeasure as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    if json_output:
        result = {
            **_about(order, device),
            "seconds": round(time.perf_counter() - begun, 1),
            "configurations": [asdict(one) for one in found],
            "skipped": [{"slots": slots, "reason": reason} for slots, reason in skipped.items()],
        }
        sys.stdout.write(json.dumps(result, default=float) + "\n")
    return 0


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotMeasure("this torch finds no CUDA device; --device cpu --size tiny runs anywhere")
    return torch.device(name)


def _sweep(order: Order, device: torch.device, say: Say) -> tuple[list[Configuration], dict[int, str]]:
    sizes = sizes_of(order.size)
    free = _free_bytes(device)
    models = random_models(sizes, device)
    if order.weights_dtype == "fp8":
        shrink(models.lm, device)
    weights = sum(tensor.nbytes for module in (models.lm, models.mimi) for tensor in module.state_dict().values())
    fixed, slot = fixed_bytes(weights, device.type), _slot_bytes(order, sizes)
    skipped = _too_large(order, fixed, slot, free)
    fitting = sorted(set(order.slots) - set(skipped))
    if not fitting:
        raise CannotMeasure(f"nothing fits: {skipped[min(skipped)]}")
    for reason in skipped.values():
        say(f"skipped: {reason}")
    kv_dtype = DTYPES[order.kv_dtype]
    batches = sorted(set(fitting).union(*(batch_sizes(slots) for slots in fitting)))
    stepper = Stepper(models, fitting[-1] + 1, kv_dtype=kv_dtype, batches=batches)
    warm_long_passes(stepper)
    # As the engine's process does: what is alive now stays so, and the collector need not walk it between two steps.
    gc.collect()
    gc.freeze()
    frames = 3 * sizes.lm.transformer.context
    fill(stepper, fitting[-1], frames)
    costs = {batch: lockstep(stepper, batch, 0.0, least=_FEW).p50 / 1000 for batch in batches}
    say("a step takes " + ", ".join(f"{batch}: {1000 * cost:.1f}" for batch, cost in costs.items()) + " ms")
    found = []
    for slots in fitting:
        fill(stepper, slots, frames)
        needed = engine_bytes(slots, fixed, slot)
        # What an engine for so many calls has measured, so that its frames are grouped as there.
        own = {batch: costs[batch] for batch in batch_sizes(slots)}
        found.append(_measure(order, stepper, slots, own, needed))
        say(_line(found[-1]))
    return found, skipped


def _slot_bytes(order: Order, sizes: Sizes) -> int:
    return slot_bytes(sizes.lm, sizes.mimi, kv_item(order.kv_dtype, sizes.lm.transformer.head_dim))


def _too_large(order: Order, fixed: int, slot: int, free: int) -> dict[int, str]:
    """Why configurations are skipped; one slot more than measured is needed, to open calls in."""
    needs = {slots: engine_bytes(slots + 1, fixed, slot) for slots in order.slots}
    return {
        slots: (
            f"{_counted(slots)} with {order.kv_dtype} keys and values need{'s' * (slots == 1)} {needed / GB:.1f} GB, "
            f"and {free / GB:.1f} GB are free"
        )
        for slots, needed in needs.items()
        if needed > free
    }


def _counted(slots: int) -> str:
    return f"{slots} slot{'s' * (slots > 1)}"


def _measure(order: Order, stepper: Stepper, slots: int, costs: dict[int, float], needed: int) -> Configuration:
    context = stepper.models.config.transformer.context
    full = lockstep(stepper, slots, order.seconds)
    parts = breakdown(stepper, slots)
    reads = step_reads(stepper, slots)
    read_ms = measure(ReadOnly(reads), stepper.device).milliseconds
    launches = stepper.launches(slots)
    if launches is None:
        launches = sum(part.launches or 0 for part in parts.values())
    phases = Callers(stepper, slots, costs).run(order.steady or order.seconds)
    wanted = order.beside is None or slots in order.beside
    beside = BesideCalls(stepper, slots, costs, order.seconds).measure() if wanted else {}
    fill(stepper, slots, min(_SHORT, context // 4))
    short = lockstep(stepper, slots, order.seconds / 4)
    return Configuration(
        slots=slots,
        lockstep=full,
        lockstep_10s=short,
        random_phases=phases,
        memory_bytes=needed,
        launches=launches,
        parts=parts,
        host_ms=full.p50 - sum(part.milliseconds for part in parts.values()),
        read_bytes=nbytes(reads),
        read_ms=read_ms,
        ratio=full.p50 / read_ms,
        beside=beside,
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _commit() -> str | None:
    """The commit that is measured; None where there is no git, or no checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def about_device(device: torch.device) -> dict[str, Any]:
    """When, at which commit and on what something is measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "device_name": name,
    }


def _about(order: Order, device: torch.device) -> dict[str, Any]:
    return {
        "bench": "engine",
        **about_device(device),
        **{key: value for key, value in asdict(order).items() if key not in ("slots", "seconds")},
    }


def _line(found: Configuration) -> str:
    lock, phases = found.lockstep, found.random_phases
    shown = ", ".join(f"{name} {part.milliseconds:.2f}" for name, part in found.parts.items())
    lines = [
        f"{_counted(found.slots)}: lockstep {lock.p50:.2f} / {lock.p99:.2f} / {lock.max:.2f} ms (p50 / p99 / max), "
        f"{lock.misses} of {lock.frames} frames late; calls of 10 s {found.lockstep_10s.p50:.2f} ms",
        f"  random phases {phases.p50:.2f} / {phases.p99:.2f} / {phases.p999:.2f} / {phases.max:.2f} ms (p99.9 third), "
        f"{phases.misses} of {phases.frames} late, {phases.mean_batch:.1f} slots a step",
        f"  {shown}, host {found.host_ms:.2f} ms; {found.launches} launches",
        f"  reads {found.read_bytes / 1e9:.3f} GB, alone {found.read_ms:.2f} ms; a step {found.ratio:.2f} times that",
    ]
    for name, one in found.beside.items():
        took = sorted(one.took)
        line = f"  {name}: {took[len(took) // 2]:.1f} ms (median of {len(took)}), {took[-1]:.1f} the longest"
        if (others := one.others) is not None:
            line += f"; others {others.p50:.2f} / {others.p99:.2f} ms, {others.misses} late"
        lines.append(line)
    return "\n".join(lines)


def slots_of(text: str) -> tuple[int, ...]:
    """`1,8,16` to numbers. Raises ValueError."""
    slots = tuple(sorted({int(part) for part in text.split(",")}))
    if slots[0] < 1:
        raise ValueError("a number of slots is 1 or more")
    return slots


def beside_of(text: str) -> tuple[int, ...] | None:
    """`all`, `none`, or `64,128`: which configurations are measured with work beside the calls. Raises ValueError."""
    return {"all": None, "none": ()}[text] if text in ("all", "none") else slots_of(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The same without `callplex`, for a machine that has only the model's packages."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.engine")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--slots", type=slots_of, default=slots_of(DEFAULT_SLOTS), help=DEFAULT_SLOTS)
    parser.add_argument("--kv-dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--weights-dtype", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run of one configuration")
    parser.add_argument("--steady", type=float, default=0.0, help="seconds of the run at random phases instead")
    parser.add_argument("--beside", type=beside_of, help="64,128: only these with work beside the calls; or none")
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
