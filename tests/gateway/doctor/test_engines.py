"""What the local worker's engine needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.doctor.examine import examine
from tests.gateway.doctor.examined import of, settings, wrong


def test_the_rehearsal_engine_finds_its_weights_or_says_what_to_install(tmp_path: Path) -> None:
    findings = examine(lambda: settings(engine="rehearsal"))
    assert of(findings, "rehearsal").ok
    assert not of(findings, "weights").fails
    absent = of(examine(lambda: settings(engine="rehearsal", weights_dir=tmp_path / "absent")), "weights")
    assert str(tmp_path / "absent") in absent.detail
    assert "CALLPLEX_WEIGHTS_DIR" in absent.fix


def test_the_personaplex_engine_needs_packages_a_gpu_and_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = wrong(engine="personaplex", weights_dir=tmp_path / "absent")
    by_name = {finding.name: finding for finding in found}
    assert by_name.keys() >= {"gpu", "weights"}
    assert by_name["weights"].fix == "callplex weights download"
    assert "nvidia-smi" in by_name["gpu"].detail


def test_the_personaplex_engine_on_a_cpu_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = wrong(engine="personaplex", device="cpu", weights_dir=tmp_path / "absent")
    assert [finding.name for finding in found] == ["weights"]


def test_a_gpu_check_that_cannot_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = of(examine(lambda: settings(engine="personaplex")), "gpu")
    assert not found.ok
    assert found.fix.startswith("/bin/false -m model.gpu_check --json")


def test_the_chat_endpoint() -> None:
    assert "not an http(s) URL" in wrong(chat_url="localhost:8000")[0].detail
    assert "without a model" in wrong(chat_url="http://127.0.0.1:8000/v1")[0].detail
    assert wrong(chat_url="http://127.0.0.1:8000/v1", chat_model="small") == []
