"""`callplex worker` before it listens: what it refuses, what it tells its engine, and the prompts it prepares."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.personas import read_personas, session_request
from gateway.pool import _local_environment
from gateway.settings import load_settings
from gateway.worker_process import WorkerRefused, _engine, _routed_prompts, run_worker
from model.engine_options import EngineOptions
from model.personaplex import PersonaplexEngine
from tests.gateway.persona_files import BANK

pytestmark = pytest.mark.anyio


async def test_weights_that_are_not_there_are_missed_before_the_transcriber_looks_for_its_own(tmp_path: Path) -> None:
    settings = load_settings(engine="personaplex", weights_dir=tmp_path / "absent", worker_listen="127.0.0.1:0")
    with pytest.raises(WorkerRefused, match=r"absent is not a folder; get the weights with: callplex weights download"):
        await run_worker(settings)


def test_the_prompts_that_calls_will_bring_are_prepared(tmp_path: Path) -> None:
    (tmp_path / "bank.yaml").write_text(BANK)
    (tmp_path / "teacher.yaml").write_text("name: T\nvoice: NATF3\nrole: You are a kind teacher.\n")
    (tmp_path / "half.yaml").write_text("name: [\n")
    brought = session_request(read_personas(tmp_path, [])["teacher"], "c1", {"caller_number": "+1"}, seed=7)
    prompts = _routed_prompts(load_settings(personas=tmp_path))
    assert (brought.voice, brought.prompt) in prompts
    assert sorted(voice for voice, _ in prompts) == ["NATF2", "NATF3"]
    assert _routed_prompts(load_settings(personas=tmp_path / "absent")) == ()


@pytest.mark.parametrize("local", [False, True], ids=["by itself", "beside a gateway"])
@pytest.mark.parametrize("told", ["nothing", "everything"])
def test_the_engine_runs_as_it_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, local: bool) -> None:
    """By itself, and as a gateway's local worker, which is handed its settings in the environment."""
    monkeypatch.chdir(tmp_path)
    weights, personas = tmp_path / "weights", tmp_path / "personas"
    expected = EngineOptions(
        weights="weights",
        recordings="personas/voices",
        personas="personas",
        device="auto",
        slots=0,
        context="reprime",
        kv_dtype="auto",
        weights_dtype="auto",
        warm=(),
        log_level="INFO",
    )
    changed: dict[str, object] = {}
    if told == "everything":
        weights, personas = tmp_path / "other", tmp_path / "staff"
        personas.mkdir()
        (personas / "teacher.yaml").write_text("name: T\nvoice: NATF3\nrole: You are a kind teacher.\n")
        changed = {"device": "cpu", "slots": 3, "context": "sliding", "kv_dtype": "fp8", "weights_dtype": "fp8"}
        (prompt,) = _routed_prompts(load_settings(personas=personas))
        expected = EngineOptions(
            **changed,  # type: ignore[arg-type]
            weights=str(weights),
            recordings=str(personas / "voices"),
            personas=str(personas),
            warm=(prompt,),
            log_level="WARNING",
        )
        changed |= {"weights_dir": weights, "personas": personas, "log_level": "warning"}
    weights.mkdir()
    settings = load_settings(engine="personaplex", transcriber="none", **changed)
    if local:
        for name, value in _local_environment(settings).items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
    engine, _ = _engine(settings)
    assert isinstance(engine, PersonaplexEngine)
    assert engine._options == expected
    assert EngineOptions.from_json(expected.to_json()) == expected


def roles(names: str) -> list[str]:
    return [f"You are {name}. Your name is T." for name in names]


def test_the_prompts_of_personas_that_numbers_lead_to_come_first(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.yaml").write_text(f"name: T\nvoice: NATF3\nrole: You are {name}.\n")
    settings = load_settings(personas=tmp_path)
    assert [prompt for _, prompt in _routed_prompts(settings)] == roles("abcd")
    routes = "routes: [{number: '+1', persona: b}, {number: '+2', persona: absent}, {number: '+3', persona: c}]"
    (tmp_path / "routing.yaml").write_text(f"default: {{persona: c}}\n{routes}\n")
    assert [prompt for _, prompt in _routed_prompts(settings)] == roles("cbad")
