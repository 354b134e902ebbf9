"""What a step does, operation by operation: whether it could be captured as a CUDA graph shows without a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.default", "lift_fresh")
"""Operations that wait for the device or make shapes from data; the last copies from the host."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation with the shapes it met."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, Tensor)]
        self.operations.append((str(func), shapes))
        return func(*args, **(kwargs or {}))

    def waits(self) -> list[str]:
        """The operations among them for which the host would wait."""
        return [name for name, _ in self.operations if any(part in name for part in READS_BACK)]
