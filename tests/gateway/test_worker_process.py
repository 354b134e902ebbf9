"""`callplex worker` before it listens: what it refuses, in one sentence, and the prompts it prepares."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.personas import read_personas, session_request
from gateway.settings import load_settings
from gateway.worker_process import WorkerRefused, _routed_prompts, run_worker
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
