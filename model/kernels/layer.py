"""The elementwise parts of a layer in one launch each, in Triton: residual sum with norm, and the gate of an MLP.

Owns rounding as the plain layer has it: sums and gates are rounded to the activations' type where that would round.
Knows no weights but the norm's gain. `model.ops` has the same in plain PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(x: Tensor, branch: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x [N, D]` plus `branch [N, D]`, and the root-mean-square norm of that times `gain [D]`."""
    count, dim = x.shape
    normed = torch.empty_like(x)
    total = x if branch is None else torch.empty_like(x)
    _add_norm[(count,)](
        x,
        x if branch is None else branch,
        gain,
        total,
        normed,
        dim,
        eps,
        width=triton.next_power_of_2(dim),
        adds=branch is not None,
        num_warps=8 if dim > 1024 else 4,
    )
    return total, normed


def silu_gate(joined: Tensor) -> Tensor:
    """`[N, 2 W]` to `[N, W]`: the SiLU of the first half times the second."""
    count, width = joined.shape[0], joined.shape[1] // 2
    result = joined.new_empty((count, width))
    _silu_gate[(count, triton.cdiv(width, 1024))](joined, result, width, block=1024, num_warps=4)
    return result


@triton.jit
def _add_norm(x, branch, gain, total, normed, dim, eps, width: tl.constexpr, adds: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, width)
    there = place < dim
    narrow = x.dtype.element_ty
    value = tl.load(x + row * dim + place, mask=there, other=0.0).to(tl.float32)
    if adds:
        value += tl.load(branch + row * dim + place, mask=there, other=0.0).to(tl.float32)
        value = value.to(narrow).to(tl.float32)
        tl.store(total + row * dim + place, value.to(narrow), mask=there)
    root = tl.rsqrt(eps + tl.sum(value * value, axis=0) / dim)
    strength = tl.load(gain + place, mask=there, other=0.0).to(tl.float32)
    tl.store(normed + row * dim + place, (value * (strength * root)).to(narrow), mask=there)


@triton.jit
def _silu_gate(joined, result, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    there = place < width
    narrow = joined.dtype.element_ty
    gate = tl.load(joined + row * 2 * width + place, mask=there, other=0.0).to(tl.float32)
    inner = tl.load(joined + row * 2 * width + width + place, mask=there, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(narrow).to(tl.float32)
    tl.store(result + row * width + place, (opened * inner).to(narrow), mask=there)
