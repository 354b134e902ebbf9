"""Personas that are missing or invalid."""

from __future__ import annotations

from pathlib import Path

from tests.gateway.doctor.examined import wrong


def test_personas_that_are_missing_or_invalid(tmp_path: Path) -> None:
    (absent,) = wrong(personas=tmp_path / "absent")
    assert "CALLPLEX_PERSONAS" in absent.fix
    (tmp_path / "agent.yaml").write_text("nonsense: true\n")
    problems = wrong(personas=tmp_path)
    assert any("agent.yaml:1" in problem.detail for problem in problems)
    assert all(problem.fix.startswith("callplex personas check") for problem in problems)
