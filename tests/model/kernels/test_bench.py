"""The kernels' benchmark, run for real on a size small enough for Triton's interpreter."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.bench import engine, kernels, sweep
from model.bench.models import fill_rings
from model.fp8 import E4M3
from model.kernels import attention, tiles
from model.kernels.attention import Ring
from model.kernels.tiles import AttentionTile, MatrixTile

SMALL = ["--size", "tiny", "--device", "cpu", "--batches", "1"]
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for a GPU")


@needs_interpreter
def test_every_kernel_is_measured_against_reading(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([*SMALL, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"date", "torch", "device_name", "size", "commit", "seconds"} <= shown.keys()
    found = {(one["kernel"], one["dtype"]): one for one in shown["figures"]}
    attention = {"read", "attend"}
    matrices = {"in_proj", "out_proj", "linear_in", "linear_out", "text_linear"}
    assert set(found) == {(name, dtype) for name in attention | matrices for dtype in ("bf16", "fp8")}
    assert all(one["microseconds"] > 0 and one["bytes"] > 0 and one["percent"] > 0 for one in found.values())
    window, heads, head_dim = 95, 4, 16
    assert found["attend", "fp8"]["bytes"] == 2 * window * heads * (head_dim + 4)


@needs_interpreter
def test_a_sweep_saves_the_fastest_tiles_and_leaves_out_what_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep, "WARPS_STEPS_STAGES", ((4, 4, 1),))
    monkeypatch.setattr(sweep, "CHUNKS", ((64,),))
    monkeypatch.setattr(tiles, "BATCHES", ())
    monkeypatch.setattr(tiles, "ROWS", (16,))
    fits, fails = MatrixTile(16, 64, 64, 4, 3), MatrixTile(16, 48, 64, 4, 3)  # 48 is no power of two
    monkeypatch.setattr(sweep, "MATRIX_TILES", ((fits, fails), (fails,)))
    found = tmp_path / "tiles.json"
    assert kernels.main([*SMALL, "--sweep", "--tiles", str(found)]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [place for place, line in enumerate(lines) if line.startswith("-- ")]
    assert lines[titles[0]] == "-- attention, bf16 keys and values, 1 slots"
    assert titles[1] - titles[0] == 3  # reading alone, and the one tile
    assert sum(line.startswith(f"failed: {fails}: InterpreterError") for line in lines) == 2 * 4
    saved = json.loads(found.read_text())
    assert [tile[0] for tile in saved["attention"]["fp8"]] == [64]
    assert saved["matrix"][0] == list(astuple(fits))
    assert saved["matrix"][1] == list(astuple(tiles.matrix_tile(1)))  # nothing was measured: the present one stays


@needs_interpreter
def test_a_tile_that_attends_wrongly_is_left_out_however_fast_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right, wrong = AttentionTile(64, 4, 4, 1), AttentionTile(64, 2, 4, 1)
    monkeypatch.setattr(sweep, "_attention_tiles", lambda stored, chunks: [wrong, right])
    monkeypatch.setattr(sweep, "MATRIX_TILES", ((), ()))
    monkeypatch.setattr(tiles, "BATCHES", ())
    monkeypatch.setattr(tiles, "ROWS", (16,))
    attend, made = attention.attend, dict[int, tuple[Tensor, Tensor]]()

    def broken(ring: Ring, joined: Tensor, *others: Any) -> Tensor:
        """Takes no time but for the first of each."""
        if others[-1].tile != wrong:
            return attend(ring, joined, *others)
        if id(joined) not in made:  # and kept, so that its id is no other's
            made[id(joined)] = joined, attend(ring, joined, *others) * 1.1
        return made[id(joined)][1]

    monkeypatch.setattr(attention, "attend", broken)
    found = tmp_path / "tiles.json"
    assert kernels.main([*SMALL, "--sweep", "--tiles", str(found)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(f"left out: {wrong}: off by 0.1000") == 2
    assert json.loads(found.read_text())["attention"] == {"bf16": [list(astuple(right))], "fp8": [list(astuple(right))]}


def test_rings_are_filled_with_numbers_of_either_sign_none_of_them_too_large() -> None:
    """Else what attention sees would hardly differ from one slot to another."""
    bytes_ = torch.zeros((2, 1, 2, 64, 64), dtype=torch.uint8)
    fill_rings((bytes_.view(E4M3),))
    found = bytes_.view(E4M3).float()
    assert found.isfinite().all()
    assert abs(float(found.mean())) < 0.05 * float(found.std())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--device", "cuda"]) == 1
    assert "--device cpu --size tiny" in capsys.readouterr().err


def test_a_file_without_tiles_is_a_wrong_argument(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for main in (kernels.main, engine.main):
        with pytest.raises(SystemExit, match="2"):
            main(["--tiles", str(tmp_path / "absent.json")])
        assert "absent.json" in capsys.readouterr().err
