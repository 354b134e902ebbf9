"""Where the engine's tests run: `CALLPLEX_TEST_DEVICE=cuda` runs the same ones on a GPU.

Those that look into tensors on the host, or compare bits with another device's, stay on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

DEVICE = os.environ.get("CALLPLEX_TEST_DEVICE", "cpu")
_Test = TypeVar("_Test", bound=Callable[..., None])


def long_without_a_gpu(test: _Test) -> _Test:
    """For a test that takes minutes in Triton's interpreter and seconds on a card."""
    return test if torch.cuda.is_available() else pytest.mark.long(test)
