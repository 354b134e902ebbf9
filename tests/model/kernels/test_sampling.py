"""The sampling kernel against plain PyTorch: the same seed draws the same token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.kernels import sampling
from model.sampling import choose, exponential

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = 6


def drawn(logits: Tensor, row: int, heat: Tensor, top_k: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """By the kernel, for slots in another order than their settings, and by the oracle."""
    slots = torch.tensor([3, 1, 5, 0, 4, 2])
    seed = torch.tensor([0, 1, 42424242, 2**62 + 7, -5, 9])
    here = [part.to(DEVICE) for part in (frame, slots, heat, top_k, seed)]
    seen = sampling.draw(logits.to(DEVICE), row, here[0], here[1], here[2], here[3], here[4])
    noise = exponential(seed[slots], frame, row, logits.shape[1])
    return seen.cpu(), choose(logits, heat[slots], top_k[slots], noise)


@pytest.mark.parametrize(("size", "dtype"), [(50, torch.float32), (2048, torch.bfloat16), (3000, torch.float32)])
def test_the_same_seed_draws_the_same(size: int, dtype: torch.dtype) -> None:
    heat = torch.tensor([0.0, 0.3, 0.8, 1.0, 2.0, 30.0])
    top_k = torch.tensor([1, 1, 25, 40, size, 10 * size])
    for row in (0, 1, 16):
        logits = (3 * torch.randn(SLOTS, size, generator=torch.Generator().manual_seed(row))).to(dtype)
        frame = torch.arange(SLOTS) * 1000 + row
        seen, expected = drawn(logits, row, heat, top_k, frame)
        assert torch.equal(seen, expected), row


def test_of_equals_at_the_edge_the_first_are_kept() -> None:
    """Very hot, so that any of those kept may win: over many frames all of them do, and no other."""
    logits = torch.zeros(SLOTS, 20)
    logits[:, 7], logits[:, 3] = 1.0, -0.0
    heat, top_k = torch.full((SLOTS,), 1000.0), torch.full((SLOTS,), 4)
    won = {int(one) for frame in range(20) for one in drawn(logits, 2, heat, top_k, torch.full((SLOTS,), frame))[0]}
    assert won == {7, 0, 1, 2}


def test_the_noise_is_never_nothing() -> None:
    """Where the variable is nearest to 1 a rough logarithm would give 0, and that candidate would always win."""
    bits = torch.tensor([0.0, 2.0**23 - 2, 2.0**23 - 1], dtype=torch.float64)
    below = (8388607.5 - bits) * 2.0**-23
    series = below * (1 + below * (0.5 + below * (1 / 3 + below * 0.25)))
    exact = -torch.log1p(-below)
    torch.testing.assert_close(series[1:], exact[1:], rtol=1e-12, atol=0)
    edge = torch.tensor(2.0**-8, dtype=torch.float64)
    at_edge = edge * (1 + edge * (0.5 + edge * (1 / 3 + edge * 0.25)))
    torch.testing.assert_close(at_edge, -torch.log1p(-edge), rtol=1e-9, atol=0)
