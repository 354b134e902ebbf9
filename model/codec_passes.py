"""The codec's passes over sound and codes of calls taken over, of several calls together.

Owns who waits for one and which are done at once. A pass over two seconds costs a GPU little and the thread that
launches it a few milliseconds, for one call as for eight: that is why calls resumed together share theirs. Knows no
sessions and no history.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine import Stepper
from model.wire import FRAME_SAMPLES

CODEC_PART = 25
"""Frames of sound of one call that go through the codec at once: what lies between its layers takes 0.5 MB for each."""
_SIZES = (1, 8)
"""Calls in a pass on a GPU, which is filled up with nobody's: for a size never seen before, libraries choose anew."""


@dataclass(eq=False, slots=True)
class _Wish:
    """A pass that the call in `slot` waits for. given: `[samples]` to be heard, or `[8, n]` codes to be spoken."""

    slot: int
    given: Tensor
    result: Tensor | None = None

    @property
    def kind(self) -> torch.Size:
        return self.given.shape


class CodecPasses:
    """Generators wait for their pass, yielding False; when none of them can go on, `work` does the next."""

    def __init__(self, stepper: Stepper, *, padded: bool | None = None) -> None:
        """`padded`: whether passes have one of a few sizes; None: on a GPU."""
        self._stepper = stepper
        self._padded = stepper.device.type == "cuda" if padded is None else padded
        self._wishes: list[_Wish] = []

    def hear(self, slot: int, sound: Tensor) -> Generator[bool, None, Tensor]:
        """The caller's next sound in `slot`, `[samples]` float32 of whole frames: its codes `[8, n]`, on the device."""
        return self._wait(_Wish(slot, sound))

    def speak(self, slot: int, codes: Tensor) -> Generator[bool, None, Tensor]:
        """The agent's next `codes [8, n]` in `slot`: their sound, `[1, samples]` on the device."""
        return self._wait(_Wish(slot, codes))

    def _wait(self, wish: _Wish) -> Generator[bool, None, Tensor]:
        self._wishes.append(wish)
        try:
            while wish.result is None:
                yield False
            return wish.result
        finally:
            if wish in self._wishes:
                self._wishes.remove(wish)  # its call has hung up

    def work(self) -> bool:
        """Begin the pass of who has waited longest, together with all that wait for one alike. False if nobody does."""
        if not self._wishes:
            return False
        kind = self._wishes[0].kind
        alike = [wish for wish in self._wishes if wish.kind == kind][: _SIZES[-1]]
        for wish, result in zip(
            alike, self._pass([wish.slot for wish in alike], [w.given for w in alike]), strict=False
        ):
            wish.result = result
            self._wishes.remove(wish)
        return True

    def warm(self) -> None:
        """Do what will be done for calls once for nobody, in every size."""
        books = self._stepper.models.config.codebooks
        for size in _SIZES if self._padded else _SIZES[:1]:
            nobody = [self._stepper.slots] * size
            self._pass(nobody, [torch.zeros(CODEC_PART * FRAME_SAMPLES)] * size)
            self._pass(nobody, [torch.zeros((books, CODEC_PART), dtype=torch.long)] * size)

    def _pass(self, slots: list[int], given: list[Tensor]) -> Tensor:
        """Of `given`, all alike, codes `[b, 8, n]` or sound `[b, 1, samples]`; what fills up the pass comes last."""
        stepper = self._stepper
        mimi, codec, device = stepper.models.mimi, stepper.codec, stepper.device
        missing = next(size for size in _SIZES if size >= len(slots)) - len(slots) if self._padded else 0
        rows = torch.tensor([*slots, *[stepper.slots] * missing], device=device)
        batch = torch.stack([*given, *[torch.zeros_like(given[0])] * missing]).to(device)
        if batch.is_floating_point():
            return mimi.encode_step(codec, rows, batch[:, None], stepper.models.config.codebooks)
        return mimi.decode_step(codec, rows, batch)
