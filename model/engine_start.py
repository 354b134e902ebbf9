"""The engine's start: what device, how many slots, the models loaded, the step measured, prompts warmed.

Owns the order of it, so that what cannot work is refused before it takes long. Knows no calls and no processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from model import fp8, toolchain
from model.assets import FileAssets, find_clip
from model.capacity import (
    READS_FP8,
    SPARES,
    batch_sizes,
    fixed_bytes,
    kv_item,
    prompt_bytes,
    set_aside,
    slot_bytes,
    slots_by_memory,
    slots_by_speed,
    unwalked_bytes,
    weights_bytes,
)
from model.conversation import Models, load_models
from model.cuda_graphs import HIGH_PRIORITY, stream
from model.engine import Stepper
from model.engine_options import EngineOptions, EngineRefused
from model.folder import ModelFolder
from model.prompt import PromptTooLong
from model.prompt_cache import PromptCache
from model.voice import VoiceError
from model.voice_store import VoiceStore
from model.voices import VoiceRefused
from model.warming import warm_long_passes

log = logging.getLogger(__name__)

CPU_SLOTS = 4
"""A CPU is for trying: so many, unless told."""
_RUNS = 2
_ENGINE_CORES = 2
"""Cores that the engine keeps to itself on a machine with a GPU: one that launches, one of the driver's."""
_ENOUGH_CORES = 6
_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""Of PCI devices the vendor, and how the class of displays and 3D controllers begins: no switches, no sound."""
_LONGEST_ADDRESS = 32
"""Bytes, more than any PCI address takes."""
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp8": fp8.E4M3}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that could take calls."""

    stepper: Stepper
    slots: int
    costs: dict[int, float]
    """Seconds of a step by number of slots."""
    prompts: PromptCache
    assets: FileAssets


def start(options: EngineOptions) -> Started:
    """Load, measure and warm. Raises EngineRefused, FolderInvalid, WeightsError, TokenizerError.

    The log says how long each phase took, from the process's beginning on.
    """
    phases = Phases(time.time() - psutil.Process().create_time())
    folder = ModelFolder(Path(options.weights))
    folder.require()
    device = usable_device(options.device)
    if device.type == "cuda":
        check_card(torch.cuda.get_device_capability(device), options)
        check_toolchain()
    prepare(device)
    free = free_memory(device)
    phases.over("device")
    dtype = kv_dtype(options, folder)
    fixed = fixed_bytes(_weights(options, folder), device.type)
    item = kv_item(_NAMES[dtype], folder.lm_config().transformer.head_dim)
    slot = slot_bytes(folder.lm_config(), folder.mimi_config(), item)
    slots = slots_by_memory(options.slots, free, fixed + set_aside(options.slots, free), slot)
    if device.type == "cpu" and not options.slots:
        slots = min(slots, CPU_SLOTS)
    models = load_models(folder, device, fp8=options.weights_dtype == "fp8")
    _give_back(device)  # what loading took beside them: CUDA's own allocations do not make torch let go of it
    keep_cores(device)
    phases.over("weights")
    stepper = _stepper(models, slots, dtype)
    phases.over("slots and graphs")
    costs = measure(stepper)
    phases.over("measuring")
    fitting = _fitting(options, device, costs)
    if fitting < slots:
        log.warning(
            "memory holds %d calls, steps are on time for %d: the rest is given back; --slots %d saves that time",
            *(slots, fitting, fitting),
        )
        del stepper
        _give_back(device)
        stepper = _stepper(models, fitting, dtype)
        costs = measure(stepper)
        phases.over("fewer slots")
    warm_long_passes(stepper)
    phases.over("long passes")
    voices = VoiceStore(models, folder.voices, Path(options.recordings))
    find = partial(find_clip, Path(options.personas))
    assets = FileAssets(models, voices, find, reprimed=options.context == "reprime")
    prompts = PromptCache(stepper, prompt_bytes(fitting, free, fixed, slot))
    if cold := [not warm(prompts, assets, *one) for one in options.warm].count(True):
        log.warning(
            "the memory for prompts is full: of %d personas' prompts %d are not prepared; whoever calls one of those"
            " first waits for it",
            *(len(options.warm), cold),
        )
    phases.over("prompts")
    log.info("the engine took %s", phases)
    return Started(stepper, fitting, costs, prompts, assets)


class Phases:
    """How long each phase of a start took. `packages`: seconds that it took before, to import what it needs."""

    def __init__(self, packages: float) -> None:
        self._took = {"packages": packages}
        self._since = time.perf_counter()

    def over(self, name: str) -> None:
        """All since the last one was phase `name`."""
        now = time.perf_counter()
        self._took[name], self._since = now - self._since, now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {took:.1f}" for name, took in self._took.items())
        return f"{sum(self._took.values()):.1f} s to be ready: {parts}"


def _weights(options: EngineOptions, folder: ModelFolder) -> int:
    """Bytes of the networks on the device."""
    whole = weights_bytes(folder.lm.stat().st_size, folder.mimi.stat().st_size, options.weights_dtype)
    return whole - unwalked_bytes(folder.lm_config(), 2 if folder.published else 4, options.weights_dtype)


def _stepper(models: Models, slots: int, dtype: torch.dtype) -> Stepper:
    batches = batch_sizes(slots) if models.device.type == "cuda" else []
    return Stepper(models, slots, spares=SPARES, kv_dtype=dtype, batches=batches)


def _give_back(device: torch.device) -> None:
    """Let the device have what is no longer used. A stepper and its captured step hold each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fitting(options: EngineOptions, device: torch.device, costs: dict[int, float]) -> int:
    """Slots that are on time. On a CPU, which is for trying and is shared, those asked for, with a warning."""
    try:
        return slots_by_speed(options.slots, costs)
    except EngineRefused as error:
        if device.type == "cuda" or not options.slots:
            raise
        log.warning("frames will run late: %s", error)
        return options.slots


def usable_device(name: str) -> torch.device:
    """The device of that name, or the best there is for `auto`. Raises EngineRefused."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise EngineRefused("torch finds no CUDA device here; say --device cpu, or look at: callplex doctor")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def check_card(capability: tuple[int, int], options: EngineOptions) -> None:
    """Raises EngineRefused for a card that cannot do what is asked of it."""
    eight = [name for name in ("kv_dtype", "weights_dtype") if getattr(options, name) == "fp8"]
    if eight and capability < READS_FP8:
        flags = " and ".join(f"--{name.replace('_', '-')} fp8" for name in eight)
        raise EngineRefused(
            f"this card has compute capability {capability[0]}.{capability[1]}, and {flags} needs 8.9 or later (Ada,"
            " Hopper); leave it out"
        )


def check_toolchain() -> None:
    """Raises EngineRefused where kernels could not be launched."""
    if (lack := toolchain.lacks()) is not None:
        raise EngineRefused(f"{lack.what}; get it with: {lack.fix}")


def engine_cores(cores: Sequence[int], number: int | None) -> Sequence[int]:
    """Those of `cores` that the engine of GPU `number` keeps to itself; none where they are too few.

    Engines of a machine's other GPUs take others. None, too, where the number is not known (None).
    """
    if number is None:
        return ()
    end = len(cores) - _ENGINE_CORES * number
    return cores[end - _ENGINE_CORES : end] if end >= _ENOUGH_CORES else ()


def gpu_number(own: str, devices: Mapping[str, tuple[str, str]], visible: str, granted: str) -> int | None:
    """The number of a GPU by which engines of the same machine tell theirs apart; None where it cannot be known.

    `own` is its PCI address, empty if unknown, and `devices` as `pci_devices` has them: a container sees its machine's,
    of which its GPU is one. Else its number in `visible`, which is CUDA_VISIBLE_DEVICES: that counts only where the
    process may see all of the machine's, not where the container was `granted` some (NVIDIA_VISIBLE_DEVICES).
    """
    gpus = [_place(name) for name, (vendor, kind) in devices.items() if vendor == _NVIDIA and kind.startswith(_DISPLAY)]
    if own and _place(own) in gpus:
        return sorted(gpus).index(_place(own))
    number = visible.partition(",")[0].strip() or "0"
    return int(number) if number.isdecimal() and granted in ("", "all") else None


def _place(address: str) -> list[int]:
    """Domain, bus, device and function of a PCI address such as 0000:1b:00.0."""
    return [int(part, 16) for part in re.split("[:.]", address)]


def pci_devices(folder: Path = Path("/sys/bus/pci/devices")) -> dict[str, tuple[str, str]]:
    """Vendor and class of the machine's PCI devices by address; none where the system does not tell."""
    found = {}
    with contextlib.suppress(OSError):
        for device in folder.iterdir():
            with contextlib.suppress(OSError):
                found[device.name] = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
    return found


def _pci_address(device: torch.device) -> str:
    """Of a GPU that is used whole (cuDeviceGetPCIBusId, CUDA Driver API, Device Management); empty if unknown."""
    address = ctypes.create_string_buffer(_LONGEST_ADDRESS)
    number = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if not torch.cuda.is_available() or "MIG" in torch.cuda.get_device_name(device):
            return ""  # of a part of one, engines of the other parts would have the same
        failed = driver.cuDeviceGet(ctypes.byref(number), torch.cuda.current_device())
        failed = failed or driver.cuDeviceGetPCIBusId(address, len(address), number)
    except (OSError, AttributeError, RuntimeError):
        return ""
    return "" if failed else address.value.decode()


def prepare(device: torch.device) -> None:
    """This process's garbage, threads and stream."""
    # What is imported by now stays. A capture has the collector run before it: that takes 0.1 s for each of them with
    # torch's objects to walk, and next to nothing without.
    gc.collect()
    gc.freeze()
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(_cores()) // 2))
        return
    torch.set_num_threads(1)
    torch.cuda.set_stream(stream(device, HIGH_PRIORITY))


def keep_cores(device: torch.device) -> None:
    """Let this process run on cores of its own, once the threads that read weights are done with all of them."""
    if device.type != "cuda":
        return
    visible, granted = (os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"))
    number = gpu_number(_pci_address(device), pci_devices(), visible, granted)
    if own := engine_cores(_cores(), number):
        os.sched_setaffinity(0, own)


def _cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def kv_dtype(options: EngineOptions, folder: ModelFolder) -> torch.dtype:
    """The type of keys and values; `auto` is that of the weights."""
    if options.kv_dtype == "auto":
        return torch.bfloat16 if folder.published else torch.float32
    return _DTYPES[options.kv_dtype]


def measure(stepper: Stepper) -> dict[int, float]:
    """Seconds of a step by number of slots whose windows are full, the best of a few.

    With empty ones a step of many calls would seem to take half of what it comes to when they have talked for a while.
    Every slot is as good as new afterwards.
    """
    costs = {}
    stepper.state.kv.offsets[: stepper.slots] = 2 * stepper.models.config.transformer.context
    for count in batch_sizes(stepper.slots):
        slots, silence = list(range(count)), [b""] * count
        stepper.step(slots, silence)
        times = []
        for _ in range(_RUNS):
            begun = time.perf_counter()
            stepper.step(slots, silence)
            times.append(time.perf_counter() - begun)
        costs[count] = min(times)
    for slot in range(stepper.slots):
        stepper.reset(slot)
    return costs


def warm(prompts: PromptCache, assets: FileAssets, voice: str, prompt: str) -> bool:
    """Read a persona's prompt before its first caller comes; one that cannot be is left for that call to tell.

    False where there is no room for it.
    """
    try:
        made = assets.read(voice, prompt)
    except (VoiceError, VoiceRefused, PromptTooLong) as error:
        log.warning("a persona's prompt is not prepared: %s", error)
        return True
    return prompts.warm(made)
