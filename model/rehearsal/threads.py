"""Threads for heavy work, which give way to those that keep a call's time.

Owns their number, names and priority; knows nothing of what runs on them.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor


def workers(name: str, count: int, *, behind: int = 0) -> ThreadPoolExecutor:
    """Up to `count` threads, made when needed, each `behind` steps of niceness behind this process.

    Linux has a niceness for each thread (sched(7)); elsewhere they are like any other.
    """
    return ThreadPoolExecutor(count, f"rehearsal-{name}", _step_back, (behind,))


def _step_back(steps: int) -> None:
    if steps and sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + steps))
