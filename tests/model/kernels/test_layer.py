"""The kernels of a layer's elementwise parts against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from model import ops
from model.kernels import layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [40, 64])
@pytest.mark.parametrize("adds", [False, True])
def test_sum_and_norm(dim: int, dtype: torch.dtype, adds: bool) -> None:
    x, branch = torch.randn(2, 3, dim).to(dtype)
    gain = torch.randn(1, 1, dim).to(dtype)
    added = branch if adds else None
    total, normed = layer.add_norm(
        x.to(DEVICE), None if added is None else added.to(DEVICE), gain.to(DEVICE), ops.RMS_EPS
    )
    expected = ops.add_norm(x, added, gain)
    near = 1e-6 if dtype is torch.float32 else 2**-6  # the interpreter cuts bfloat16 off
    torch.testing.assert_close(total.cpu(), expected[0], rtol=near, atol=near)
    torch.testing.assert_close(normed.cpu(), expected[1], rtol=near, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 1500])
def test_gate(width: int, dtype: torch.dtype) -> None:
    joined = (4 * torch.randn(3, 2 * width)).to(dtype)
    near = 1e-6 if dtype is torch.float32 else 2**-6
    torch.testing.assert_close(layer.silu_gate(joined.to(DEVICE)).cpu(), ops.silu_gate(joined), rtol=near, atol=near)
