"""A step's positions by the kernel against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from model import ops
from model.kv_cache import SlotKV
from model.streaming import Window, WindowKind

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFFSETS = torch.tensor([0, 1, 68, 69, 70, 71, 45_000, 3])


def cache_of(head_dim: int, kind: WindowKind) -> SlotKV:
    cache = SlotKV(layers=1, slots=len(OFFSETS), heads=1, head_dim=head_dim, window=Window(70, kind), device=DEVICE)
    cache.offsets[:] = OFFSETS.to(DEVICE)
    return cache


@pytest.mark.parametrize("kind", ["reference", "full"])
@pytest.mark.parametrize("head_dim", [10, 128])
def test_positions_windows_and_turns(head_dim: int, kind: WindowKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fresh slots, such as do not run, such as are about to lose a key, and such as are an hour old."""
    slots = torch.tensor([6, 0, 3, 2, 5, 1, 4], device=DEVICE)
    running = torch.tensor([True, False, True, True, False, True, True], device=DEVICE)
    plain, fused = cache_of(head_dim, kind), cache_of(head_dim, kind)
    monkeypatch.setattr(ops, "fused", lambda x: False)
    expected, rotary = plain.take(slots, running, 10_000.0)
    monkeypatch.setattr(ops, "fused", lambda x: True)
    taken, turn = fused.take(slots, running, 10_000.0)
    assert torch.equal(taken.first, expected.first)
    assert torch.equal(taken.last, expected.last)
    assert torch.equal(fused.offsets, plain.offsets)
    # On one device: at an hour's positions the last place of a frequency is 1e-3 of a turn.
    torch.testing.assert_close(turn.cos, rotary.cos, rtol=0, atol=2e-6)
    torch.testing.assert_close(turn.sin, rotary.sin, rtol=0, atol=2e-6)
    assert plain.offsets.tolist() == [0, 2, 69, 70, 71, 71, 45_001, 3]
