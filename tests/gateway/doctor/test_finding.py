"""How findings are shown, and which of them fail."""

from __future__ import annotations

import json

import pytest

from gateway.doctor.finding import Finding, report


def test_something_wrong_is_status_1_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("listen", False, "in use", "ss -ltnp")]) == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown
    assert "fix: ss -ltnp" in shown
    assert "1 thing is wrong." in shown


def test_a_warning_is_shown_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("disk", False, "nearly full", "du", warning=True)]) == 0
    assert "note" in capsys.readouterr().out


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("listen", False, "in use", "ss -ltnp")], as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert shown["findings"] == [
        {"name": "listen", "ok": False, "detail": "in use", "fix": "ss -ltnp", "warning": False}
    ]
