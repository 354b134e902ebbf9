"""The codec's passes over sound and codes of calls taken over, of one call or of several.

Owns for how many calls a pass is; `model.codec_lengths` has its lengths. A pass over two seconds costs a GPU little and
the thread that launches it a few milliseconds, for one call as for many. Knows no sessions and no history.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.codec_lengths import CODEC_PART, HEARD, SPOKEN, cut
from model.engine import Stepper
from model.wire import FRAME_SAMPLES

SOUND = torch.int16
"""As it comes, and as it is copied to the device, in a quarter of the time that it takes the CPU in float32."""
_SCALE = 32_768.0
_MANY = 32
"""An engine with more slots has the memory for the largest passes: some 2 MB a frame while they last."""
_SIZES = (1, 8, 16)
"""Calls in a pass on a GPU, which is filled up with nobody's: a size never seen before might need a kernel compiled."""


@dataclass(frozen=True, eq=False, slots=True)
class CodecWork:
    """What the call in `slot` hears, `[samples]` int16 of whole frames, or has spoken, codes `[8, n]` int64.

    On the CPU.
    """

    slot: int
    given: Tensor


class CodecPasses:
    """Such passes of one engine. Implements `model.shared_passes.Passes`."""

    def __init__(self, stepper: Stepper, *, padded: bool | None = None) -> None:
        """`padded`: whether passes have one of a few sizes; None: on a GPU."""
        self._stepper = stepper
        self._padded = stepper.device.type == "cuda" if padded is None else padded

    def parts(self, given: Tensor) -> Iterator[Tensor]:
        """Sound or codes of one call, as `CodecWork` has them, cut into what goes through the codec at once."""
        unit, lengths = (FRAME_SAMPLES, HEARD) if given.dtype == SOUND else (1, SPOKEN)
        if not self._padded:
            step = CODEC_PART * unit
            yield from (given[..., begin : begin + step] for begin in range(0, given.shape[-1], step))
            return
        for length in cut(given.shape[-1] // unit, lengths):
            yield given[..., : length * unit]
            given = given[..., length * unit :]

    def kind(self, work: CodecWork) -> Hashable:
        return work.given.shape

    def do(self, works: Sequence[CodecWork]) -> Sequence[Tensor | None]:
        """One pass for the first of `works`: for each codes `[8, n]` of what it hears, None for what it has spoken."""
        works = works[: self._sizes[-1]]
        results = self._pass([work.slot for work in works], [work.given for work in works])
        return [None] * len(works) if results is None else list(results[: len(works)])

    def warm(self) -> None:
        """Do what will be done for calls once for nobody, in every size."""
        books = self._stepper.models.config.codebooks
        for size in self._sizes if self._padded else _SIZES[:1]:
            nobody = [self._stepper.slots] * size
            for length in HEARD if self._padded else HEARD[:1]:
                self._pass(nobody, [torch.zeros(length * FRAME_SAMPLES, dtype=SOUND)] * size)
            for length in SPOKEN if self._padded else HEARD[:1]:
                self._pass(nobody, [torch.zeros((books, length), dtype=torch.long)] * size)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return _SIZES if self._stepper.slots > _MANY else _SIZES[:-1]

    def _pass(self, slots: list[int], given: list[Tensor]) -> Tensor | None:
        """Of `given`, all alike, codes `[b, 8, n]` if it is sound; what fills up the pass comes last."""
        stepper = self._stepper
        mimi, codec, device = stepper.models.mimi, stepper.codec, stepper.device
        missing = next(size for size in _SIZES if size >= len(slots)) - len(slots) if self._padded else 0
        rows = torch.tensor([*slots, *[stepper.slots] * missing], device=device)
        here = torch.stack([*given, *[torch.zeros_like(given[0])] * missing])
        batch = here.to(device)
        heard = None
        if batch.dtype == SOUND:
            sound = batch[:, None].float().div_(_SCALE)
            heard = mimi.encode_step(codec, rows, sound, stepper.models.config.codebooks)
            sound.zero_()
        else:
            mimi.remember(codec, rows, batch)
        # Copies of what callers said: the memory is free from here on, and may be nobody's for long.
        here.zero_()
        batch.zero_()
        return heard
