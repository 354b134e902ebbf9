"""`callplex worker` before it listens: what it refuses, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import load_settings
from gateway.worker_process import WorkerRefused, run_worker

pytestmark = pytest.mark.anyio


async def test_weights_that_are_not_there_are_missed_before_the_transcriber_looks_for_its_own(tmp_path: Path) -> None:
    settings = load_settings(engine="personaplex", weights_dir=tmp_path / "absent", worker_listen="127.0.0.1:0")
    with pytest.raises(WorkerRefused, match=r"absent is not a folder; get the weights with: callplex weights download"):
        await run_worker(settings)
