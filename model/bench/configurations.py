"""The sweep of the engine's benchmark over numbers of slots: what fits, and what is measured of each.

Owns the order of it. One engine is built for the largest number and measured with fewer, too; where its device's
memory does not suffice after all, the next smaller one is built. A number whose kernels fail is left out. Knows no
command line and prints nothing itself.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from model.bench.beside import Beside, BesideCalls, Repriming
from model.bench.breakdown import Part, breakdown, measure
from model.bench.device import CannotMeasure, device_error, one_line
from model.bench.drive import Latency, first_steps, lockstep
from model.bench.floor import ReadOnly, nbytes, step_reads
from model.bench.memory import Memory, begin_peaks, free_bytes, give_back, measured, out_of_memory
from model.bench.models import Size, random_models, sizes_of, stand
from model.bench.talk import CallEnded
from model.capacity import GB, batch_sizes, engine_bytes, fixed_bytes, kv_item, slot_bytes
from model.conversation import Models
from model.cuda_graphs import HIGH_PRIORITY, stream
from model.engine import Stepper
from model.fp8_weights import shrink
from model.kv_cache import DTYPES, KVType
from model.standstill import DeviceHung
from model.warming import warm_long_passes

_FEW = 5
"""Steps that tell what a step costs."""
_MANY, _SOME = 200, 20
"""Steps in lockstep, at least: so many that of a GPU's the longest is not all that p99 shows, and as many as elsewhere
show that they run."""
_SHORT = 125
"""Frames of a call of ten seconds."""
_ALIKE = 2
"""Engines that cannot be built for one reason, before the smallest is tried."""
_MEASURED = "configurations"
"""What is not the start."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be measured. seconds: of each run of one configuration.

    beside: the configurations measured with work beside the calls, None for all. steady: seconds of the run in which
    calls get their prompts back, 0 for as long as the others; steady_for: the configurations of which that is so, None
    for all.
    """

    size: Size
    device: str
    slots: tuple[int, ...]
    kv_dtype: KVType
    weights_dtype: Literal["bf16", "fp8"] = "bf16"
    seconds: float = 10.0
    beside: tuple[int, ...] | None = None
    steady: float = 0.0
    steady_for: tuple[int, ...] | None = None

    def seconds_at_random(self, slots: int) -> float:
        """Of the run at random phases in which calls get their prompts back."""
        return self.steady if self.steady and (self.steady_for is None or slots in self.steady_for) else self.seconds


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was measured with `slots` slots, all windows full but in `lockstep_10s`."""

    slots: int
    first_steps: tuple[float, ...]
    """Milliseconds of the steps in lockstep before those of `lockstep`, just after windows were filled."""
    lockstep: Latency
    lockstep_10s: Latency
    """With calls of ten seconds: a step reads what they hold."""
    random_phases: Latency
    """No call gets its prompt back meanwhile."""
    repriming: Repriming
    """The same where calls do, as often as in a worker."""
    memory_bytes: int
    """As the engine reckons before it loads, for just these slots; prompts that it keeps come on top."""
    memory: Memory
    """Of the engine that this was measured with, as it was seen."""
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
    seconds: float
    """That measuring it took."""
    phases: dict[str, float]
    """The same, by what was measured."""


class Stopwatch:
    """Seconds that each part of something takes, one after another."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self._since = time.perf_counter()

    def over(self, name: str) -> None:
        """All since the last part was part `name`, or more of it."""
        now = time.perf_counter()
        self.took[name] = self.took.get(name, 0.0) + now - self._since
        self._since = now


class Sweep:
    """All configurations of an order. found, skipped: what was measured and what was not, with the reason.

    start: seconds until the first could be measured, and those of every engine built later, by phase.
    """

    def __init__(self, order: Order, device: torch.device, say: Say, show: Callable[[Configuration], None]) -> None:
        """`show` is told each configuration as soon as it is measured."""
        self.found: list[Configuration] = []
        self.skipped: dict[int, str] = {}
        self._order, self._device, self._say, self._show = order, device, say, show
        self._watch = Stopwatch()
        sizes = sizes_of(order.size)
        self._frames = 3 * sizes.lm.transformer.context
        self._slot = slot_bytes(sizes.lm, sizes.mimi, kv_item(order.kv_dtype, sizes.lm.transformer.head_dim))
        self._free = free_bytes(device)
        self._fixed = 0
        self._at = 0
        """Slots that are measured; 0 while the engine is built."""
        self._unbuilt: list[str] = []
        """Why the last engines could not be built, if it was one reason."""
        self._nothing = "fits"
        """What is to be said if nothing at all was found."""
        self.lost = ""
        """What the device said if it failed, so that nothing after it could be measured."""
        cuda = device.type == "cuda"
        self._steps, self._aside = (stream(device, HIGH_PRIORITY) if cuda else None for _ in range(2))
        """Where steps run, and where their parts are captured: cuBLAS keeps memory for each stream that it has seen."""

    @property
    def start(self) -> dict[str, float]:
        return {name: took for name, took in self._watch.took.items() if name != _MEASURED}

    def run(self) -> None:
        """Measure. Raises CannotMeasure if not one configuration fits."""
        self._take_stream()
        models = self._load()
        left = self._fitting()
        while left:
            # Whether the reason is the size's, the smallest tells.
            tried = left[:1] if len(self._unbuilt) == _ALIKE else left
            try:
                self._measure_with_one_engine(models, tried)
            except _failures() as error:
                self._fail(error, tried, left)
            if self.lost:
                gc.unfreeze()  # of a device that failed nothing can be given back
                break
            give_back(self._device)  # only now: the error held the engine
            self._take_stream()  # a capture that failed may have left another
            done = {one.slots for one in self.found}.union(self.skipped)
            left = [slots for slots in left if slots not in done]
        if not self.found:
            raise CannotMeasure(f"nothing {self._nothing}: {self.skipped[min(self.skipped)]}")

    def _fail(self, error: Exception, tried: Sequence[int], left: Sequence[int]) -> None:
        """Skip what could not be measured of `tried` for `error`: all of `left` if the device takes no more work.

        An engine that cannot be built is the largest's: it steps all the sizes that a worker with so many slots does.
        If the next one, and then the smallest, cannot be for the same reason no other is tried: each takes as long to
        fail.
        """
        before, self._unbuilt = self._unbuilt, []
        if reason := out_of_memory(error):
            self._skip(tried[-1], f"{self._asked(tried[-1])} more memory than there is: {reason}")
            return
        self._nothing = "could be measured"
        failed, reason = self._at or tried[-1], f"{type(error).__name__}: {one_line(error)}"
        self._skip(failed, f"{counted(failed)}: {reason}")
        # One that hangs does not say how it is: who asks it waits for it.
        self.lost = one_line(error) if isinstance(error, DeviceHung) else device_error(self._device)
        if self.lost:
            self._skip_all(left, f"the device failed before: {self.lost}")
        elif not self._at:
            self._unbuilt = [*(one for one in before if one == reason), reason]
            if len(self._unbuilt) > _ALIKE:
                self._skip_all(left, f"larger engines and the smallest could not be built before: {reason}")

    def _skip_all(self, left: Sequence[int], reason: str) -> None:
        """That are neither measured nor skipped."""
        done = {one.slots for one in self.found}.union(self.skipped)
        for slots in left:
            if slots not in done:
                self._skip(slots, f"{counted(slots)}: {reason}")

    def _take_stream(self) -> None:
        """Let steps run where they do in the engine's process, before other work."""
        if self._steps is not None:
            torch.cuda.set_stream(self._steps)

    def _load(self) -> Models:
        """The networks, once for all engines."""
        order, device = self._order, self._device
        try:
            models = random_models(sizes_of(order.size), device)
            models.lm.keep_steps(models.config.codebooks)
            if order.weights_dtype == "fp8":
                shrink(models.lm, device)
        except RuntimeError as error:
            if reason := out_of_memory(error):
                raise CannotMeasure(f"the weights alone need more memory than there is: {reason}") from error
            raise
        give_back(device)
        weights = sum(tensor.nbytes for module in (models.lm, models.mimi) for tensor in module.state_dict().values())
        self._fixed = fixed_bytes(weights, device.type)
        self._watch.over("weights")
        return models

    def _fitting(self) -> list[int]:
        """Slots of the configurations that fit by what is reckoned, the fewest first."""
        for slots in self._order.slots:
            needed = self._reckoned(slots + 1)  # a slot more, to open calls in
            if needed > self._free:
                free = f"{self._free / GB:.1f} GB are free"
                self.skipped[slots] = f"{self._asked(slots)} {needed / GB:.1f} GB, and {free}"
        fitting = sorted(set(self._order.slots) - set(self.skipped))
        if not fitting:
            raise CannotMeasure(f"nothing fits: {self.skipped[min(self.skipped)]}")
        for reason in self.skipped.values():
            self._say(f"skipped: {reason}")
        return fitting

    def _reckoned(self, slots: int) -> int:
        return engine_bytes(slots, self._fixed, self._slot)

    def _asked(self, slots: int) -> str:
        return f"{counted(slots)} with {self._order.kv_dtype} keys and values need{'s' * (slots == 1)}"

    def _skip(self, slots: int, reason: str) -> None:
        self.skipped[slots] = reason
        self._say(f"skipped: {reason}")

    def _measure_with_one_engine(self, models: Models, left: Sequence[int]) -> None:
        """All of `left`, with an engine for the last, which is the largest."""
        self._at = 0
        stepper, costs = self._build(models, left)
        self._unbuilt = []
        for slots in left:
            self._at = slots
            # What an engine for so many calls has measured, so that its frames are grouped as there.
            own = {batch: costs[batch] for batch in batch_sizes(slots)}
            try:
                self.found.append(self._measure(stepper, slots, own))
            except CallEnded as error:
                self._skip(slots, f"{counted(slots)}: {error}")
                continue
            finally:
                self._watch.over(_MEASURED)
            self._show(self.found[-1])

    def _build(self, models: Models, left: Sequence[int]) -> tuple[Stepper, dict[int, float]]:
        """An engine for `left`, and what steps of so many slots take, seconds."""
        begin_peaks(self._device)
        batches = sorted(set(left).union(*(batch_sizes(slots) for slots in left)))
        stepper = Stepper(models, left[-1] + 1, kv_dtype=DTYPES[self._order.kv_dtype], batches=batches)
        self._watch.over("slots and graphs")
        warm_long_passes(stepper)
        self._watch.over("long passes")
        # As the engine's process does: what is alive now stays so, and the collector need not walk it beside steps.
        gc.collect()
        gc.freeze()
        stand(stepper, left[-1], self._frames)
        costs = {batch: lockstep(stepper, batch, 0.0, least=_FEW).p50 / 1000 for batch in batches}
        self._say("a step takes " + ", ".join(f"{batch}: {1000 * cost:.1f}" for batch, cost in costs.items()) + " ms")
        self._watch.over("costs of steps")
        return stepper, costs

    def _measure(self, stepper: Stepper, slots: int, costs: Mapping[int, float]) -> Configuration:
        order, device, watch = self._order, self._device, Stopwatch()
        gc.collect()  # calls and who is told of them hold each other, and prompts on the device
        stand(stepper, slots, self._frames)
        first = first_steps(stepper, slots)
        full = lockstep(stepper, slots, order.seconds, least=_MANY if device.type == "cuda" else _SOME)
        watch.over("lockstep")
        parts = breakdown(stepper, slots, self._aside)
        reads = step_reads(stepper, slots)
        read_ms = measure(ReadOnly(reads), device, self._aside).milliseconds
        launches = stepper.launches(slots)
        if launches is None:
            launches = sum(part.launches or 0 for part in parts.values())
        watch.over("parts")
        phases, repriming, beside = self._talk(stepper, slots, costs, watch)
        stand(stepper, slots, min(_SHORT, stepper.models.config.transformer.context // 4))
        first_steps(stepper, slots)
        short = lockstep(stepper, slots, order.seconds / 4)
        watch.over("lockstep_10s")
        return Configuration(
            slots=slots,
            first_steps=first,
            lockstep=full,
            lockstep_10s=short,
            random_phases=phases,
            repriming=repriming,
            memory_bytes=self._reckoned(slots),
            memory=measured(stepper.slots, self._reckoned(stepper.slots), self._free, [stepper], device),
            launches=launches,
            parts=parts,
            host_ms=full.p50 - sum(part.milliseconds for part in parts.values()),
            read_bytes=nbytes(reads),
            read_ms=read_ms,
            ratio=full.p50 / read_ms,
            beside=beside,
            seconds=sum(watch.took.values()),
            phases=watch.took,
        )

    def _talk(
        self, stepper: Stepper, slots: int, costs: Mapping[int, float], watch: Stopwatch
    ) -> tuple[Latency, Repriming, dict[str, Beside]]:
        """Calls at phases of their own: alone, with their prompts given back, and with work beside them if asked."""
        order = self._order
        wanted = order.beside is None or slots in order.beside
        calls = BesideCalls(stepper, slots, costs, order.seconds, self._frames)
        watch.over("opening calls")
        phases = calls.random_phases(order.seconds)
        watch.over("random_phases")
        repriming = calls.repriming(order.seconds_at_random(slots))
        watch.over("repriming")
        beside = calls.measure() if wanted else {}
        calls.close()
        watch.over("beside")
        return phases, repriming, beside


def _failures() -> tuple[type[Exception], ...]:
    """What an engine fails with whose kernels do not compile or fit, or whose device does not go on.

    Kernels are imported only here: a CPU needs none.
    """
    try:
        from model.kernels.failures import FAILURES
    except ImportError:
        return (RuntimeError, DeviceHung)
    return (*FAILURES, DeviceHung)


def counted(slots: int) -> str:
    return f"{slots} slot{'s' * (slots > 1)}"
