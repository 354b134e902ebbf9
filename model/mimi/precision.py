"""Full float32 on GPUs whose libraries would otherwise round the factors of a product to 10 bits (TF32).

Owns the process's TF32 settings while a stage runs; knows no stage. The settings belong to the process, not to a
thread: one thread computes at a time. A captured CUDA graph keeps what was set when it was captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Convolutions and matrix products inside use full float32 or, if `tf32`, may use TF32."""
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(convolution, "conv"):  # settings by operator: torch 2.9 and later
        places = ((convolution.conv, "fp32_precision"), (product, "fp32_precision"))
        value: object = "tf32" if tf32 else "ieee"
    else:
        places = ((convolution, "allow_tf32"), (product, "allow_tf32"))
        value = tf32
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name), old in zip(places, before, strict=True):
            setattr(place, name, old)
