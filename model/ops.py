"""Operations that a step does in one launch on a GPU, and in plain PyTorch elsewhere; the two agree up to rounding.

Owns the choice, by where the tensors lie; with gradients the plain way is taken. Triton is imported only where there
is a GPU. Whatever has both ways asks `fused`, so that tests can send a whole step the GPU's way, in Triton's
interpreter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RMS_EPS = 1e-8


def fused(x: Tensor) -> bool:
    """Whether work on `x` is done by kernels of our own."""
    return x.is_cuda and not torch.is_grad_enabled()


def add_norm(x: Tensor, branch: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
    """`x [N, D]` plus `branch [N, D]` (None: nothing), and its root-mean-square norm, in float32, times `gain`."""
    if fused(x):
        from model.kernels import layer

        return layer.add_norm(x, branch, gain, RMS_EPS)
    total = x if branch is None else x + branch
    wide = total.float()
    root = torch.rsqrt(RMS_EPS + wide.square().mean(dim=-1, keepdim=True))
    return total, (wide * (gain.float().flatten() * root)).to(x.dtype)


def silu_gate(joined: Tensor) -> Tensor:
    """`[N, 2 W]` to `[N, W]`: the SiLU of the first half times the second."""
    if fused(joined):
        from model.kernels import layer

        return layer.silu_gate(joined)
    gate, inner = joined.chunk(2, dim=-1)
    return functional.silu(gate) * inner
