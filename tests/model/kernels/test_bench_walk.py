"""The choice among tiles: the soonest of those that walk rightly, and none where plain PyTorch is sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from model import depformer_walk
from model.bench import walk
from model.bench.breakdown import Part
from model.depformer_walk import TILES, DepformerWalk, Way
from tests.model.tiny import FEW, random_lm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST, SLOW = walk.CANDIDATES[16][:2]


@pytest.fixture(autouse=True)
def _as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = dict(TILES)
    monkeypatch.setattr(walk, "CANDIDATES", {16: (SLOW, FAST)})
    monkeypatch.setattr(walk, "MEASURED", {16: 2})
    monkeypatch.setattr(walk, "_STEPS", 2)
    yield
    TILES.clear()
    TILES.update(kept)


def chosen(monkeypatch: pytest.MonkeyPatch, plain: float) -> Way | None:
    """With a clock by which the plain walk takes so long, one of the tiles 2 ms and the other 1."""
    times = iter([plain, 2.0, 1.0])

    def clock(work: Callable[[], None], device: torch.device) -> Part:
        return Part(next(times), None)

    monkeypatch.setattr(walk, "measure", clock)
    with torch.no_grad():
        return walk._soonest(random_lm(1, FEW).to(DEVICE, torch.bfloat16), 16, DEVICE)


def test_the_soonest_is_taken_or_the_plain_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, plain=3.0) == FAST
    assert chosen(monkeypatch, plain=0.5) is None


def test_tiles_that_walk_wrongly_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepformerWalk.__call__

    def wrong(self: DepformerWalk, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        logits, ids = right(self, *arguments)  # type: ignore[arg-type]
        return (logits * 1.1 if depformer_walk.TILES[16] == FAST else logits), ids

    monkeypatch.setattr(DepformerWalk, "__call__", wrong)
    assert chosen(monkeypatch, plain=3.0) == SLOW
