"""Without a GPU the kernels run in Triton's interpreter, which must be asked for before Triton is first imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch


def patch_once() -> None:
    """Let the interpreter put its own in the place of Triton's language once, and leave it there.

    At every call of a function it looks through the whole language for what is still Triton's, and finds nothing:
    a third of a kernel's time.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    patched: dict[int, tuple[Any, type]] = {}

    def once(function: Any) -> Any:
        """What is to be put back afterwards: nothing."""
        names = function.__globals__
        if id(names) not in patched:
            patched[id(names)] = names, type(patch(function))
        return patched[id(names)][1]()

    interpreter._patch_lang = once


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    patch_once()


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
