"""Away from the settings of this machine, and from what it swaps to."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.doctor import swap


@pytest.fixture(autouse=True)
def _away_from_the_machines_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swap, "SWAPS", tmp_path / "swaps")
