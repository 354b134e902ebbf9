"""No call waits for a kernel to be compiled: whatever its work launches was launched before there were calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.long
@pytest.mark.parametrize("stored", [("bf16",), ("fp8",), ("fp8", "small")], ids=" ".join)
def test_calls_launch_no_kernel_in_a_form_that_nothing_launched_before_them(stored: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.model.kernels.variants", *stored]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["late"] == []
    assert len(found["warmed"]) > 20, "it tells late ones from others"
