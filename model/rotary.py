"""Rotary positions (Su et al. 2021), of neighbouring components. Knows no layers and no memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Rotary:
    """Rotation of neighbouring components (2i, 2i + 1) by position x frequency i, in float32.

    Made once for a pass, from positions `[B or 1, T]`, and used by all its layers.
    """

    def __init__(self, positions: Tensor, head_dim: int, max_period: float) -> None:
        index = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
        frequency = torch.exp(index * (-math.log(max_period) * 2 / head_dim))
        angle = (positions[..., None].float() * frequency)[:, None]
        self.cos, self.sin = torch.cos(angle), torch.sin(angle)

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, H, T, hd]` to the same shape and type."""
        real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
