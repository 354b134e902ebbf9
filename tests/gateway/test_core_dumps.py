"""No process that holds what callers say leaves it on a disk when it fails."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.core_dumps import LIMIT
from tests.gateway.gateway_process import running_gateway
from tests.model.tiny_folder import make_folder


@pytest.fixture(autouse=True)
def dumps_allowed() -> Iterator[None]:
    """To whoever is started from here, as far as they can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_gateway_worker_and_engine_leave_no_dump(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    make_folder(weights)
    engine = {"ENGINE": "personaplex", "WEIGHTS_DIR": str(weights), "DEVICE": "cpu", "SLOTS": "1"}
    with running_gateway(tmp_path, **{f"CALLPLEX_{name}": value for name, value in engine.items()}) as gateway:
        until = time.monotonic() + 120
        while gateway.get("/readyz").status_code != 200:
            assert time.monotonic() < until, gateway.log.read_text()
            time.sleep(0.1)
        processes = {process.pid: process for process in psutil.Process(gateway.process.pid).children(recursive=True)}
        processes[gateway.process.pid] = psutil.Process(gateway.process.pid)
        commands = [" ".join(process.cmdline()) for process in processes.values()]
        for part in ("gateway.cli serve", "gateway.cli worker", "model.gpu_process"):
            assert any(part in command for command in commands), commands
        for process in processes.values():
            assert set(process.rlimit(psutil.RLIMIT_CORE)) <= {0, LIMIT}, process.cmdline()
        assert gateway.stop() == 0


def test_a_process_that_fails_leaves_no_file(tmp_path: Path) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r}); from gateway.core_dumps import forbid_core_dumps as forbid; "
    end = "forbid(); forbid(); os.abort()"
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", code + end], os.environ)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []
