"""The embeddings' sum by the kernel against the plain one, bit for bit where both round alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import ops
from model.config import TransformerConfig
from tests.model.tiny import CONFIG, random_lm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [44, 1064])
def test_the_sum_of_a_column(dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several columns of several slots; a width that is no multiple of 16 bytes, and one of two programs."""
    lm = random_lm(0, replace(CONFIG, transformer=TransformerConfig(dim=dim, heads=4, layers=1, context=4, hidden=8)))
    lm = lm.to(dtype)
    codes = torch.randint(-2, 41, (3, CONFIG.rows, 2), generator=torch.Generator().manual_seed(1))
    codes[0, :, 0] = -1
    codes[1, :, 1] = torch.tensor([CONFIG.text_card, *[CONFIG.card] * (CONFIG.rows - 1)])
    expected = lm.embed(codes)
    assert not expected[0, 0].any()
    there = lm.to(DEVICE)
    monkeypatch.setattr(ops, "fused", lambda x: True)
    seen = there.embed(codes.to(DEVICE)).cpu()
    assert seen.dtype == dtype
    # The interpreter cuts bfloat16 off where a GPU rounds: by 1 in 32 at most, sixteen times.
    exact = dtype is torch.float32 or DEVICE == "cuda"
    torch.testing.assert_close(seen, expected, rtol=0, atol=0 if exact else 0.5)


def test_tables_that_moved_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when weights are loaded into a model that has stepped."""
    lm, other = random_lm(0).to(DEVICE), random_lm(1).to(DEVICE)
    codes = torch.ones((1, CONFIG.rows, 1), dtype=torch.long, device=DEVICE)
    expected = other.embed(codes)
    monkeypatch.setattr(ops, "fused", lambda x: True)
    assert not torch.equal(lm.embed(codes), expected)
    lm.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(lm.embed(codes), expected)
