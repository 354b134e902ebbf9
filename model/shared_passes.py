"""Passes that several calls share: who waits for one, and which are done together.

Owns the order. A long pass costs a GPU what its work is and the thread that launches it some ten milliseconds, for one
call as for eight: that is why calls that are opened or taken over at once share theirs. Whoever came first is served to
its end first, with those that can go along: so some speak long before all do. Knows neither sound nor columns: what a
pass does is `model.codec_passes`' and `model.long_reads`'.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.codec_passes import CodecPasses, CodecWork
from model.long_reads import LongReads, Read


class Passes(Protocol):
    """One sort of pass."""

    def kind(self, work: Any) -> Hashable:
        """Only what is of one kind can be done in one pass."""
        ...

    def do(self, works: Sequence[Any]) -> Sequence[Tensor | None]:
        """Begin one pass for `works`, all of a kind, or for the first of them: the results of those it did."""
        ...


@dataclass(eq=False, slots=True)
class _Wish:
    """A pass that somebody waits for. turn: the lowest is served first."""

    turn: int
    passes: Passes
    work: Any
    kind: Hashable
    done: bool = False
    result: Tensor | None = None


class SharedPasses:
    """Generators wait for their pass, yielding False; when none of them can go on, `work` does the next.

    So nobody waits for partners that are not there already.
    """

    def __init__(self, codec: CodecPasses, reads: LongReads) -> None:
        self.codec, self.reads = codec, reads
        self._wishes: list[_Wish] = []

    def share(self, turn: int) -> Share:
        """For one call. Among those that wait, the lowest `turn` is served first."""
        return Share(self, turn)

    def wait(self, turn: int, passes: Passes, work: Any) -> Generator[bool, None, Tensor | None]:
        """Until a pass has been begun for `work`. Its result."""
        wish = _Wish(turn, passes, work, (passes, passes.kind(work)))
        self._wishes.append(wish)
        try:
            while not wish.done:
                yield False
            return wish.result
        finally:
            if wish in self._wishes:
                self._wishes.remove(wish)  # its call has hung up

    def work(self) -> bool:
        """Begin the pass of whose turn it is, together with all that wait for one alike. False if nobody waits."""
        if not self._wishes:
            return False
        first = min(self._wishes, key=lambda wish: wish.turn)
        alike = sorted((wish for wish in self._wishes if wish.kind == first.kind), key=lambda wish: wish.turn)
        for wish, result in zip(alike, first.passes.do([wish.work for wish in alike]), strict=False):
            wish.result, wish.done = result, True
            self._wishes.remove(wish)
        return True


class Share:
    """One call's share in the passes. Whoever iterates goes on when the pass has been begun."""

    def __init__(self, shared: SharedPasses, turn: int) -> None:
        self._shared, self._turn = shared, turn

    def hear(self, slot: int, sound: Tensor) -> Generator[bool, None, Tensor]:
        """The caller's next sound in `slot`, `[samples]` int16 of whole frames, not none: its codes `[8, n]`.

        In parts, and on the CPU: whoever iterates goes on when the device has done the part before.
        """
        codes = []
        for part in self._shared.codec.parts(sound):
            heard = yield from self._shared.wait(self._turn, self._shared.codec, CodecWork(slot, part))
            assert heard is not None
            codes.append(heard.cpu())
        return torch.cat(codes, dim=1)

    def speak(self, slot: int, codes: Tensor) -> Generator[bool]:
        """The agent's next `codes [8, n]` in `slot`, in parts. Nobody hears the sound; the codec remembers it."""
        for part in self._shared.codec.parts(codes):
            yield from self._shared.wait(self._turn, self._shared.codec, CodecWork(slot, part))

    def read(self, read: Read) -> Generator[bool]:
        """Let a language memory read its next columns."""
        yield from self._shared.wait(self._turn, self._shared.reads, read)
