"""How many files and sockets this process may hold open, against how many its calls need."""

from __future__ import annotations

import resource
from contextlib import suppress

A_CALL = 4
"""The carrier's socket, the worker's, the recording, and its spool."""


def most_descriptors() -> int:
    """How many the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16)


def raise_descriptor_limit() -> int:
    """Ask for as many as the system lets us have; returns how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_descriptors(), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
