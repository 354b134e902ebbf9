"""Columns that language memories read at once: prompts and histories, of one call or of several.

Owns the sizes of such passes. On a GPU they are few, and what is short is filled up: columns with such as no memory
counts, calls with nobody's. For a size never seen before libraries choose their kernels anew, and calls would wait.
Knows no calls. R is the rows of a column, T columns, D the model's width.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.engine import Stepper

CHUNK = 256
"""Columns that are read at once, so that a step of the calls never waits longer than for these."""
_LENGTHS = (4, 32, 128, CHUNK)
"""Columns in a pass on a GPU. Reading 128 costs it no more than reading the weights."""
_SIZES = (1, 2, 4, 8, 16)
"""Calls in a pass."""
_COLUMNS = 2_048
"""Of all calls in a pass. With so many a GPU is as busy as it gets; more would only make others wait."""
_CELLS = 8_192
"""Of all rings that a pass reads, so that it fits into the memory that is kept for activations."""


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """What `lm_slot`, which holds at most `held` positions, reads next: `[R, T]` ids or `[T, D]` floats, on the CPU."""

    lm_slot: int
    inputs: Tensor
    held: int

    @property
    def length(self) -> int:
        return self.inputs.shape[0 if self.inputs.is_floating_point() else 1]


class LongReads:
    """Such passes of one engine. Implements `model.shared_passes.Passes`."""

    def __init__(self, stepper: Stepper, *, padded: bool | None = None) -> None:
        """`padded`: whether passes have one of a few sizes; None: on a GPU."""
        self._stepper = stepper
        self._padded = stepper.device.type == "cuda" if padded is None else padded

    def kind(self, work: Read) -> Hashable:
        return work.inputs.dtype, self._length(work)

    def do(self, works: Sequence[Read]) -> Sequence[None]:
        """One pass for as many of `works` as it takes; the token grid stays as it is.

        Nothing is copied to the device once the pass has begun: the copy, and with it every call, would wait for it.
        """
        works = works[: self._fitting(works)]
        stepper, lengths = self._stepper, [work.length for work in works]
        length, state = self._length(works[0]), stepper.state
        missing = next(size for size in _SIZES if size >= len(works)) - len(works) if self._padded else 0
        inputs = torch.stack([_filled(work, length) for work in works])
        inputs = torch.cat((inputs, inputs.new_zeros(missing, *inputs.shape[1:]))).to(stepper.device)
        nobody = [stepper.lm_slot[-1]] * missing
        named = torch.tensor([[work.lm_slot for work in works] + nobody, lengths + [0] * missing])
        slots, counted = named.to(stepper.device)
        with state.kv.holding(max(work.held for work in works)):
            stepper.models.lm.read_together(state, slots, inputs, counted)
        return [None] * len(works)

    def alone(self, work: Read) -> Generator[bool]:
        """The same without partners, at once, and then a pause."""
        self.do([work])
        yield True

    def warm(self) -> None:
        """Read once for nobody, in every size, where there are only a few."""
        if not self._padded:
            return
        nobody, config = self._stepper.lm_slot[-1], self._stepper.models.config
        for length in _LENGTHS:
            ids = torch.zeros((config.rows, length), dtype=torch.long)
            for size in _SIZES[: 1 + sum(size < self._stepper.slots for size in _SIZES)]:
                if size * length <= _COLUMNS:
                    self.do([Read(nobody, ids, CHUNK)] * size)
            self.do([Read(nobody, torch.zeros((length, config.transformer.dim)), CHUNK)])
        self._stepper.reset_lm(nobody)

    def _length(self, work: Read) -> int:
        """Columns of the pass that `work` is done in: never so many that the last of them overwrite the first."""
        room = self._stepper.state.kv.window.capacity - work.held
        fitting = (length for length in _LENGTHS if work.length <= length <= room)
        return next(fitting, work.length) if self._padded else work.length

    def _fitting(self, works: Sequence[Read]) -> int:
        """How many of `works`, all of a kind, one pass takes: at least one."""
        length, capacity = self._length(works[0]), self._stepper.state.kv.window.capacity
        count, held, most = 1, works[0].held, min(_SIZES[-1], _COLUMNS // length)
        for work in works[1:most]:
            held = max(held, work.held)
            if (count + 1) * (min(held, capacity) + length) > _CELLS:
                break
            count += 1
        return count


def _filled(work: Read, length: int) -> Tensor:
    """Its inputs, made `length` columns long."""
    more = length - work.length
    return functional.pad(work.inputs, (0, 0, 0, more) if work.inputs.is_floating_point() else (0, more))
