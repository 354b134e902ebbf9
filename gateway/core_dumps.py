"""That the system writes no memory of ours to a disk when a process fails: what is said in calls is in it."""

from __future__ import annotations

import resource

LIMIT = 1
"""Bytes, less than any dump has. With 0 Linux writes no file either, but still hands the whole dump to a program where
one is set in `core_pattern` (systemd-coredump, apport), which keeps it; with 1 it does not (core(5), fs/coredump.c)."""


def forbid_core_dumps() -> None:
    """For this process and all that it starts, for good."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    most = LIMIT if hard == resource.RLIM_INFINITY else min(LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
