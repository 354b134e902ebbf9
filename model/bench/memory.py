"""What an engine takes of its device's memory, as it was seen, beside what was reckoned before it was loaded.

Owns the counting. On a GPU torch's allocator and the driver are asked; anywhere the tensors are counted that can be
reached.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import FunctionType, ModuleType

import torch
from torch import Tensor

_NOT_HELD = (type, ModuleType, FunctionType)
"""Through classes, modules and functions everything there is can be reached."""
_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
"""What CUDA, its libraries and torch on a CPU say of it where they have no error of a class of its own."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of an engine with `slots` slots: those of the largest configuration, and one to open calls in."""

    slots: int
    reckoned: int
    """By the formula with which an engine judges before it loads, without the prompts that it keeps."""
    tensors: int
    """Of the weights and of all that the engine holds, each storage once."""
    peak_allocated: int | None = None
    """The most that torch's allocator had given out since the engine began to be built, activations included; on a
    GPU only, as what follows."""
    peak_reserved: int | None = None
    """The same with what it keeps for itself: graphs' pools, and what is too small for what is asked."""
    device: int | None = None
    """So much less is free on the device than before anything was loaded: libraries, kernels and graphs included."""


def measured(slots: int, reckoned: int, free_before: int, holders: Iterable[object], device: torch.device) -> Memory:
    """Of an engine that is loaded and has worked. `free_before`: what was free on the device before."""
    tensors = tensor_bytes(holders, device.type)
    if device.type != "cuda":
        return Memory(slots, reckoned, tensors)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return Memory(slots, reckoned, tensors, allocated, reserved, free_before - free_bytes(device))


def begin_peaks(device: torch.device) -> None:
    """Let peaks be those from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    """On the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def tensor_bytes(holders: Iterable[object], kind: str) -> int:
    """Of all tensors on a `kind` of device that can be reached from `holders`, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    to_see = list(holders)
    while to_see:
        one = to_see.pop()
        if id(one) in seen or isinstance(one, _NOT_HELD):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor) and one.device.type == kind:
            storage = one.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        to_see += gc.get_referents(one)
    return sum(storages.values())


def out_of_memory(error: BaseException | None) -> str:
    """What `error`, or one that it came after, says of too little memory; empty if none does.

    A graph's capture that has failed for it may end with another error.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _SIGNS):
            return text.strip().splitlines()[0] if text.strip() else "out of memory"
        error = error.__cause__ or error.__context__
    return ""


def give_back(device: torch.device) -> None:
    """Let the device have what is no longer used, also of what was frozen: an engine and its captured step hold each
    other. An error that is being handled still holds what it passed through."""
    gc.unfreeze()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
