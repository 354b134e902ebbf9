"""Without a GPU the kernels run in Triton's interpreter, which must be asked for before Triton is first imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _as_strict_as_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler refuses a range whose length is no power of two; the interpreter would not mind.

    And of a number and what is none, the lesser and the greater are the number on a GPU (PTX ISA, `min`, `max`).
    """
    if torch.cuda.is_available():
        return
    from triton.runtime.interpreter import InterpreterBuilder

    make = InterpreterBuilder.create_make_range

    def checked(self: Any, kind: Any, start: int, stop: int) -> Any:
        length = stop - start
        assert length & (length - 1) == 0, f"a range of {length}, which is no power of two"
        return make(self, kind, start, stop)

    monkeypatch.setattr(InterpreterBuilder, "create_make_range", checked)
    for name, of_two in (("create_minnumf", np.fmin), ("create_maxnumf", np.fmax)):

        def of_numbers(self: Any, left: Any, right: Any, of_two: np.ufunc = of_two) -> Any:
            return self.binary_op(left, right, of_two)

        monkeypatch.setattr(InterpreterBuilder, name, of_numbers)
