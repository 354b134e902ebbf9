"""What Triton would fail without is said in a sentence before it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import engine_start, toolchain
from model.engine_options import EngineRefused
from model.toolchain import Lack, lacks


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A folder with something that can be called as gcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcc").write_text("#!/bin/sh\n")
    (folder / "gcc").chmod(0o755)
    return folder


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    (tmp_path / "Python.h").touch()
    return tmp_path


def test_a_machine_with_compiler_and_headers_lacks_nothing(compiler: Path, headers: Path) -> None:
    assert lacks({"PATH": str(compiler)}, headers) is None


def test_what_is_missing_is_named_with_what_gets_it(compiler: Path, headers: Path, tmp_path: Path) -> None:
    nothing = lacks({"PATH": str(tmp_path)}, headers)
    assert nothing is not None
    assert nothing.what.startswith("there is no C compiler, gcc or clang")
    assert nothing.fix == "apt-get install gcc"
    other = lacks({"PATH": str(compiler), "CC": "icc"}, headers)
    assert other is not None
    assert "no C compiler icc, which CC names" in other.what
    bare = lacks({"PATH": str(compiler)}, compiler)
    assert bare is not None
    assert bare.what.startswith(f"there is no Python.h in {compiler}")
    assert bare.fix == "apt-get install python3-dev"


def test_the_engine_refuses_to_start_where_its_kernels_could_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "lacks", lambda: Lack("there is no C compiler", "apt-get install gcc"))
    with pytest.raises(EngineRefused, match=r"^there is no C compiler; get it with: apt-get install gcc$"):
        engine_start.check_toolchain()
