"""The doctor names what is wrong, each with a command, and keeps quiet about what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.doctor.examine import examine
from gateway.doctor.finding import report
from gateway.settings import load_settings
from tests.gateway.doctor.examined import PERSONAS, of, settings


def test_nothing_wrong_is_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    findings = examine(settings)
    assert [finding for finding in findings if not finding.ok] == []
    assert report(findings) == 0
    assert capsys.readouterr().out.endswith("Nothing is wrong.\n")


def test_a_setting_that_is_invalid_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPLEX_LISTEN", "nowhere")
    found = of(examine(load_settings), "settings")
    assert not found.ok
    assert "CALLPLEX_LISTEN" in found.detail
    assert found.fix.startswith("unset CALLPLEX_LISTEN ")


def test_the_doctor_creates_nothing(tmp_path: Path) -> None:
    examine(lambda: settings(data_dir=tmp_path / "new" / "data"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_exits_with_1_and_shows_no_secret(tmp_path: Path) -> None:
    environment = {
        "CALLPLEX_WEBHOOK_URL": "https://example.com/hook",
        "CALLPLEX_WEBHOOK_SECRET": "hunter2-is-no-secret",
        "CALLPLEX_ENGINE": "echo",
        "CALLPLEX_PERSONAS": str(PERSONAS),
        "CALLPLEX_LISTEN": "127.0.0.1:0",
        "CALLPLEX_ADMIN_LISTEN": "127.0.0.1:0",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert [one["name"] for one in json.loads(done.stdout)["findings"] if not one["ok"] and not one["warning"]] == [
        "webhook"
    ]
    assert "hunter2" not in done.stdout + done.stderr
