"""Draws from a wide vocabulary by shortlists against plain PyTorch: the same seed draws the same token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.kernels import sampling
from model.kernels.wide_sampling import SHORT, USUAL
from model.sampling import choose, exponential

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEAT = torch.tensor([0.0, 0.3, 0.8, 1.0, 2.0, 30.0, 5.0])
SLOTS = torch.tensor([3, 1, 5, 0, 4, 2, 6])
FRAMES = torch.arange(len(SLOTS)) * 1000


def both(logits: Tensor, top_k: Tensor, heat: Tensor = HEAT) -> tuple[Tensor, Tensor]:
    """By the kernel, for slots in another order than their settings, and by the oracle."""
    seed = torch.tensor([0, 1, 42424242, 2**62 + 7, -5, 9, 77])
    here = [part.to(DEVICE) for part in (logits, FRAMES, SLOTS, heat, top_k, seed)]
    seen = sampling.draw(here[0], 0, here[1], here[2], here[3], here[4], here[5])
    noise = exponential(seed[SLOTS], FRAMES, 0, logits.shape[1])
    return seen.cpu(), choose(logits, heat[SLOTS], top_k[SLOTS], noise)


@pytest.mark.parametrize(("size", "dtype"), [(4100, torch.float32), (9000, torch.bfloat16), (32_000, torch.bfloat16)])
def test_the_same_seed_draws_the_same(size: int, dtype: torch.dtype) -> None:
    """Some draw from more than a shortlist holds, some parts hold less than one."""
    top_k = torch.tensor([1, USUAL, 25, USUAL + 1, SHORT, SHORT + 1, 10 * size])
    logits = (3 * torch.randn(len(SLOTS), size, generator=torch.Generator().manual_seed(size))).to(dtype)
    seen, expected = both(logits, top_k)
    assert torch.equal(seen, expected)


def test_of_equals_at_the_edge_the_first_are_kept() -> None:
    """Very hot, so that any of those kept may win; they lie in several parts, and most are equal."""
    logits = torch.zeros(len(SLOTS), 5000)
    logits[:, 2040:2060], logits[:, 4999] = -0.0, 1.0
    logits[:, :2030] = -1.0
    top_k, hot = torch.full((len(SLOTS),), 30), torch.full((len(SLOTS),), 1000.0)
    seen, expected = both(logits, top_k, hot)
    assert torch.equal(seen, expected)
    assert all(token == 4999 or 2030 <= token < 2059 for token in seen.tolist())


def test_the_likeliest_may_lie_anywhere_and_be_negative() -> None:
    logits = -torch.rand(len(SLOTS), 6000) - 1
    places = torch.tensor([0, 2047, 2048, 4095, 4096, 5999, 3000])
    logits[torch.arange(len(SLOTS)), places] = -0.5
    seen, expected = both(logits, torch.ones(len(SLOTS), dtype=torch.long))
    assert torch.equal(seen, expected)
    assert torch.equal(seen, places)


def test_of_numbers_that_are_none_a_token_comes_too() -> None:
    """The slot is lost, but its token is looked up in tables before that is known."""
    logits = torch.full((len(SLOTS), 5000), float("nan"))
    seen, _ = both(logits, torch.full((len(SLOTS),), 25))
    assert all(0 <= token < 5000 for token in seen.tolist())
