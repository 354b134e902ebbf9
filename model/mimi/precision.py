"""Full float32 on GPUs whose libraries would otherwise round the factors of a product to 10 bits (TF32).

Owns the process's TF32 settings while a stage runs; knows no stage. The settings belong to the process, not to a
thread: one thread computes at a time. A captured CUDA graph keeps what was set when it was captured.

Torch allows TF32 in convolutions unless told otherwise. A process that wants it for other matrix products should ask
by operator (`torch.backends.cuda.matmul.fp32_precision`): the older global switch cannot be read in here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products inside use all of float32; before and after, what the process asked for."""
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    full: object
    if hasattr(convolution, "conv"):  # settings by operator: torch 2.9 and later
        places, name, full = (convolution.conv, product), "fp32_precision", "ieee"
    else:
        places, name, full = (convolution, product), "allow_tf32", False
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, full)
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            setattr(place, name, old)
