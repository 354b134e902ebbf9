"""Python and packages that are too old or missing."""

from __future__ import annotations

import pytest

from gateway.doctor.examine import examine
from gateway.doctor.packages import python_version
from tests.gateway.doctor.examined import of, settings


def test_an_old_python() -> None:
    assert python_version((3, 11)).ok
    assert not python_version((3, 10)).ok


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["httpx>=99.1", "no-such-package>=1", "pytest; extra == 'dev'", "odd>=1; python_version >= '99.0'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found = of(examine(settings), "packages")
    assert "is older than 99.1; no-such-package is not installed" in found.detail
    assert found.detail.count(";") == 1
    assert "pip install" in found.fix
