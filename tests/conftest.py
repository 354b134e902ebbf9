"""Shared by all tests: coroutine tests run on asyncio, and arithmetic on one thread."""

from __future__ import annotations

import os

import pytest

# The matrices here are small, and threads that wait for a busy core cost tenfold. Read when torch is first loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
