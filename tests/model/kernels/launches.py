"""Counts what a piece of work would launch on a GPU, without one: operations of torch that compute, and kernels.

Work runs on the `meta` device, where nothing is computed, so that networks of any size can be counted. A view, or
memory without contents, launches nothing; anything else counts once (a library may launch two kernels for a product).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from model import ops

_MEMORY_ONLY = (
    "aten.empty",
    "aten.new_empty",
    "aten.empty_like",
    "aten._unsafe_view",
    "aten.detach",
    "aten.lift_fresh",
)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations and kernels by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_view(func) and not str(func).startswith(_MEMORY_ONLY):
            self.by_name[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """By its schema: what it returns shares memory with what it takes, and is not written."""
    returned = [one.alias_info for one in func._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Let the way of a GPU be taken whatever the device, and each kernel be counted in place of being run."""
    launches = Launches()

    def launch(kernel: Any, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            launches.by_name[kernel.fn.__name__] += 1

        return run

    with monkeypatch.context() as patch, launches:
        patch.setattr(ops, "fused", lambda x: True)
        for kind in (triton.JITFunction, InterpretedFunction):
            patch.setattr(kind, "__getitem__", launch)
        yield launches
