"""The tensors of a safetensors file onto a GPU, fast: threads read it into pinned memory, the device copies from there.

Owns that much of the file's layout as this takes (safetensors, "Format": a length, JSON, bytes). By memory map one
thread would fault in each page and copy it once more: seconds, for 17 GB in the page cache, in which calls wait for
their engine to come back. Knows no modules; what a file must hold was checked before.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 8 << 20
"""Bytes that are read at once. Each thread has twice that in pinned memory, which torch keeps for good."""
THREADS = 4
_LENGTH = struct.Struct("<Q")
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class StagingError(Exception):
    """The file is not as it says of itself; the message says how."""


class Place(NamedTuple):
    """Where a tensor lies in the file, in bytes from its beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class _Piece(NamedTuple):
    """Bytes of a tensor on the device, `[n]`, and where they lie in the file."""

    target: Tensor
    start: int


def read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of the file by name, in its own types. Raises StagingError, OSError."""
    places = layout(path)
    tensors = {name: torch.empty(place.shape, dtype=place.dtype, device=device) for name, place in places.items()}
    pieces: deque[_Piece] = deque()
    for name, place in places.items():
        if place.end > place.start:
            for at, part in enumerate(torch.split(tensors[name].view(-1).view(torch.uint8), BLOCK)):
                pieces.append(_Piece(part, place.start + at * BLOCK))
    if device.type == "cuda":
        # The threads' streams know nothing of what was done before with the memory that they write.
        torch.cuda.current_stream(device).synchronize()
    largest = max((piece.target.numel() for piece in pieces), default=0)
    file = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(THREADS, "staging") as threads:
            for done in [threads.submit(_copy, file, pieces, largest, device) for _ in range(THREADS)]:
                done.result()
    finally:
        os.close(file)
    return tensors


def layout(path: Path) -> dict[str, Place]:
    """Where each tensor lies. Raises StagingError for a type that no model here has, OSError."""
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        about = json.loads(file.read(length))
    first, places = _LENGTH.size + length, {}
    for name, one in about.items():
        if name == "__metadata__":
            continue
        dtype, shape = _DTYPES.get(one["dtype"]), tuple(one["shape"])
        start, end = (first + offset for offset in one["data_offsets"])
        if dtype is None or end - start != math.prod(shape) * dtype.itemsize:
            raise StagingError(f"{name} is of type {one['dtype']}, {list(shape)} in {end - start} bytes")
        places[name] = Place(dtype, shape, start, end)
    return places


def _copy(file: int, pieces: deque[_Piece], largest: int, device: torch.device) -> None:
    """Work off what is left of `pieces`: while the device copies from one buffer, the other is read into."""
    buffers = [torch.empty(largest, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(2)]
    copied: list[torch.cuda.Event | None] = [None, None]
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    turn = 0
    while pieces:
        try:
            target, start = pieces.popleft()
        except IndexError:  # another thread took the last
            break
        if (event := copied[turn]) is not None:
            event.synchronize()
        here = buffers[turn][: target.numel()]
        _read(file, here.numpy().data, start)
        if stream is None:
            target.copy_(here)
        else:
            with torch.cuda.stream(stream):
                target.copy_(here, non_blocking=True)
                copied[turn] = stream.record_event()
        turn = 1 - turn
    if stream is not None:
        stream.synchronize()


def _read(file: int, into: memoryview, start: int) -> None:
    """Fill `into` from byte `start` on. Raises StagingError if the file ends before."""
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], start + done)
        if count == 0:
            raise StagingError("the file ends before its last tensor does")
        done += count
