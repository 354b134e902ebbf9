"""Numbers in 8 bits (e4m3) with scales: keys, values and weights, and what they become again.

Owns the rule: a row's largest magnitude becomes 448, the largest e4m3; the scale is kept in float32. Knows neither
rings nor layers. The format: Micikevicius et al. 2022, FP8 Formats for Deep Learning.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST = 1e-12
"""Of a scale's numerator: a row of zeros has a scale too."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., n]` to e4m3 of the same shape and scales `[...]` in float32; times its scale a row is `x` to 3 bits."""
    wide = x.float()
    scale = wide.abs().amax(dim=-1).clamp(min=SMALLEST) / LARGEST
    return (wide / scale[..., None]).clamp(-LARGEST, LARGEST).to(E4M3), scale


def restore(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 `[..., n]` with scales `[...]` to `dtype`."""
    return (x.float() * scale[..., None]).to(dtype)
