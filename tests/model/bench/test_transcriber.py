"""What callers' words cost: the real recogniser, on a recorded caller and on silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.bench.transcriber import main

WAV = Path(__file__).parents[3] / "gateway" / "phone" / "callers" / "bank-hours.wav"


def test_words_cost_more_than_silence_and_all_of_a_caller_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(WAV), "--json"]) == 0
    silent, caller, together = json.loads(capsys.readouterr().out)
    assert (silent["utterances"], silent["words_seconds"]) == (0, 0)
    assert caller["utterances"] == 2
    assert 3 < caller["words_seconds"] < 8 < caller["seconds"]
    assert caller["cpu_seconds"] / caller["seconds"] > silent["cpu_seconds"] / silent["seconds"] > 0
    assert together == {**caller, "name": "together"}


def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.wav")]) == 1
    assert "absent.wav" in capsys.readouterr().err
