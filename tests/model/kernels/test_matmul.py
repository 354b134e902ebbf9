"""The product with weights in e4m3 against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from model import fp8
from model.fp8_weights import Fp8Linear
from model.kernels import matmul

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("count", [1, 16, 21, 70])
def test_the_kernel_multiplies_as_plain_pytorch(count: int) -> None:
    """Sizes that are no multiples of a tile's, rows with scales far apart."""
    x, weight = torch.randn(count, 150), torch.randn(45, 150) * 10.0 ** torch.linspace(-3, 3, 45)[:, None]
    linear = Fp8Linear(weight)
    seen = matmul.linear(x.to(DEVICE), linear.weight.to(DEVICE), linear.scale.to(DEVICE)).cpu()
    torch.testing.assert_close(seen, linear(x), rtol=1e-4, atol=1e-4 * float(weight.abs().max()))
    assert torch.equal(linear.weight.view(torch.uint8), fp8.quantise(weight)[0].view(torch.uint8))
