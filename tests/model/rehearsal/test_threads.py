"""Heavy work gives way: its threads stand behind the process in the scheduler's eyes."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from model.rehearsal.threads import workers


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
@pytest.mark.parametrize("behind", [0, 5, 40])
def test_only_the_workers_step_back(behind: int) -> None:
    before = niceness()
    with workers("test", 1, behind=behind) as executor:
        assert executor.submit(niceness).result(10) == min(19, before + behind)
    assert niceness() == before
