"""The restart's benchmark, run for real on a model small enough for a CPU."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import pytest
import torch

from model.bench import restart
from model.bench.memory import give_back
from model.bench.models import Sizes, random_models
from model.bench.restart_worker import PAUSE, CannotRestart, Kind, engine_of, measure_worker
from model.conversation import Models
from model.lm import LM
from model.wire import SessionRequest


@pytest.mark.long
def test_calls_speak_again_after_their_engine_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights"
    arguments = ["--size", "tiny", "--device", "cpu", "--slots", "2", "--seconds", "0.8", "--weights", str(weights)]
    assert restart.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["opened_ms"]) == len(found["resumed_ms"]) == 2
    assert len(found["talk_ms"]) == 20
    assert all(0 < found[name] < 60 for name in ("first_start_seconds", "restart_seconds"))
    assert found["worker"]["kind"] == "model"
    assert found["worker"]["ready"] > found["worker"]["ended"]
    made = (weights / "model.safetensors").stat().st_mtime_ns
    restart.make_weights(restart.Order(weights, "tiny", "cpu"))
    assert (weights / "model.safetensors").stat().st_mtime_ns == made, "what is there is used"


def test_networks_whose_weights_are_written_leave_the_device_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take 17 GB of it, which an engine in another process would not find free."""
    made: list[weakref.ref[LM]] = []
    kept: list[bool] = []

    def watched(sizes: Sizes, device: torch.device) -> Models:
        models = random_models(sizes, device)
        made.append(weakref.ref(models.lm))
        return models

    def given_back(device: torch.device) -> None:
        give_back(device)
        kept.append(made[0]() is not None)

    monkeypatch.setattr(restart, "random_models", watched)
    monkeypatch.setattr(restart, "give_back", given_back)
    restart.make_weights(restart.Order(tmp_path, "tiny", "cpu"))
    assert kept == [False]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["model", pytest.param("callplex", marks=pytest.mark.long)])
async def test_a_worker_whose_engine_was_killed_ends_and_the_next_is_ready(tmp_path: Path, kind: Kind) -> None:
    order = restart.Order(tmp_path, "tiny", "cpu", slots=2, worker=kind)
    restart.make_weights(order)
    asked = SessionRequest("call", prompt=restart.PROMPT, voice=restart.VOICE)
    found = await measure_worker(kind, restart._options(order), asked, 0.2)
    assert (found.kind, found.transcriber, found.sessions) == (kind, "none", 2)
    assert 0 < found.told < found.ended
    assert found.ended + PAUSE < found.listening < found.ready
    assert "a frame" in restart._shown(restart.Found(0, 0, 0, [1.0], [1.0], [1.0], found))
    assert "was ready after" in restart._shown_worker(found)


@pytest.mark.anyio
async def test_a_worker_that_cannot_start_is_said_to(tmp_path: Path) -> None:
    order = restart.Order(tmp_path, "tiny", "cpu", slots=1)
    with pytest.raises(CannotRestart, match="ended before it listened"):
        await measure_worker("model", restart._options(order), SessionRequest("call"), 0.1)


def test_a_process_without_an_engine_has_none_to_be_killed() -> None:
    with pytest.raises(CannotRestart, match="no engine's process"):
        engine_of(os.getpid())
