"""Full float32 on GPUs whose libraries would otherwise round the factors of a product to 10 bits (TF32).

Owns the process's TF32 settings while a stage runs; knows no stage. The settings belong to the process, not to a
thread: while a voice is read beside the calls, whoever leaves first must not undo what the other still needs. A
captured CUDA graph keeps what was set when it was captured.

Torch allows TF32 in convolutions unless told otherwise. A process that wants it for other matrix products should ask
by operator (`torch.backends.cuda.matmul.fp32_precision`): the older global switch cannot be read in here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class _Inside:
    """Who is in there now, in any thread, and what was set before the first of them came."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0
    before: list[object] = field(default_factory=list)


_inside = _Inside()


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products inside use all of float32; before and after, what the process asked for."""
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    full: object
    if hasattr(convolution, "conv"):  # settings by operator: torch 2.9 and later
        places, name, full = (convolution.conv, product), "fp32_precision", "ieee"
    else:
        places, name, full = (convolution, product), "allow_tf32", False
    with _inside.lock:
        _inside.count += 1
        if _inside.count == 1:
            _inside.before = [getattr(place, name) for place in places]
            for place in places:
                setattr(place, name, full)
    try:
        yield
    finally:
        with _inside.lock:
            _inside.count -= 1
            if not _inside.count:
                for place, old in zip(places, _inside.before, strict=True):
                    setattr(place, name, old)
