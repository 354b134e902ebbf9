"""The restart's benchmark, run for real on a model small enough for a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.bench import restart


@pytest.mark.long
def test_calls_speak_again_after_their_engine_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights"
    arguments = ["--size", "tiny", "--device", "cpu", "--slots", "2", "--seconds", "0.8", "--weights", str(weights)]
    assert restart.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["opened_ms"]) == len(found["resumed_ms"]) == 2
    assert len(found["talk_ms"]) == 20
    assert all(0 < found[name] < 60 for name in ("first_start_seconds", "restart_seconds"))
    made = (weights / "model.safetensors").stat().st_mtime_ns
    restart.make_weights(restart.Order(weights, "tiny", "cpu"))
    assert (weights / "model.safetensors").stat().st_mtime_ns == made, "what is there is used"
