"""The choice among tiles for a handful of rows, run for real on a layer small enough for Triton's interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.bench import row_products
from model.bench.kernels import Clock, Work
from model.kernels import few_rows, tiles
from model.kernels.tiles import RowTile

SMALL = ["--size", "tiny", "--device", "cpu"]
QUICK, SLOW = RowTile(16, 64, 4), RowTile(32, 64, 4)
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for a GPU")


@pytest.fixture(autouse=True)
def _two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_attention", "_rows"):
        monkeypatch.setattr(tiles, name, dict(getattr(tiles, name)))
    monkeypatch.setattr(row_products, "CANDIDATES", {"bf16": (SLOW, QUICK), "fp8": (QUICK, SLOW)})


def run(monkeypatch: pytest.MonkeyPatch, found: Path) -> dict[str, list[list[int]]]:
    """With a clock by which the launches of a round of `SLOW` take twice as long."""
    real, launched = few_rows._launch, []

    def launch(x: torch.Tensor, weight: object, result: torch.Tensor, tile: RowTile, **more: object) -> None:
        launched.append(tile)
        real(x, weight, result, tile, **more)  # type: ignore[arg-type]

    def microseconds(self: Clock, rounds: list[Work]) -> float:
        launched.clear()
        for work in rounds:
            work()
        return 2.0 if SLOW in launched else 1.0

    monkeypatch.setattr(few_rows, "_launch", launch)
    monkeypatch.setattr(Clock, "microseconds", microseconds)
    assert row_products.main([str(found), *SMALL]) == 0
    rows: dict[str, list[list[int]]] = json.loads(found.read_text())["rows"]
    return rows


@needs_interpreter
def test_the_soonest_are_written_and_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    assert run(monkeypatch, found) == {stored: [[16, 64, 4]] * 2 for stored in ("bf16", "fp8")}
    shown = capsys.readouterr().out
    assert all(f"-- {name}, {stored}" in shown for name in ("in_proj", "linear_out") for stored in ("bf16", "fp8"))
    tiles.load(found)
    assert tiles.row_tile("fp8", adds=True) == QUICK


@needs_interpreter
def test_a_tile_that_multiplies_wrongly_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = few_rows.add_projected

    def wrong(
        x: torch.Tensor, weight: few_rows.Weight, residual: torch.Tensor, tile: RowTile | None = None
    ) -> torch.Tensor:
        return right(x, weight, residual, tile) * (1.1 if tile == QUICK else 1.0)

    monkeypatch.setattr(few_rows, "add_projected", wrong)
    assert run(monkeypatch, tmp_path / "found.json")["bf16"] == [[16, 64, 4], [32, 64, 4]]
    assert f"left out: {QUICK}" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert row_products.main([str(tmp_path / "found.json")]) == 1
    assert "--device cpu --size tiny" in capsys.readouterr().err
