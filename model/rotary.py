"""Rotary positions (Su et al. 2021), of neighbouring components. Knows no layers and no memory."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


@cache
def frequencies(head_dim: int, max_period: float, device: torch.device) -> Tensor:
    """Radians by which each pair of components turns from one position to the next, `[hd / 2]` float32."""
    index = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    return torch.exp(index * (-math.log(max_period) * 2 / head_dim))


class Rotary:
    """Rotation of neighbouring components (2i, 2i + 1) by position x frequency i, in float32.

    Made once for a pass, from positions `[B or 1, T]`, and used by all its layers.
    """

    def __init__(self, positions: Tensor, head_dim: int, max_period: float) -> None:
        angle = (positions[..., None].float() * frequencies(head_dim, max_period, positions.device))[:, None]
        self.cos, self.sin = torch.cos(angle), torch.sin(angle)

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> Rotary:
        """The rotation whose cosines and sines, `[B, hd / 2]` float32, are known: one position for each row."""
        rotary = cls.__new__(cls)
        rotary.cos, rotary.sin = cos[:, None, None], sin[:, None, None]
        return rotary

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, H, T, hd]` to the same shape and type."""
        real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
