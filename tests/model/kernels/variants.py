"""Prints which kernels calls would wait for, as nothing before launched them in that form: `python -m ... KV_DTYPE`.

A kernel is compiled for each set of its constants, its tensors' types and whether they begin at multiples of 16 bytes,
and whether whole numbers are 1 or multiples of 16. That takes seconds, in which an engine does nothing else. Networks
have the published widths and a part of the layers, which all are alike, and lie on the `meta` device. A process of its
own: in the tests' the kernels are interpreted, and keep nothing of what they are compiled for.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from model import engine, ops
from model.bench.asked import Asked, Asking
from model.bench.models import RandomVocabulary, sizes_of
from model.calls import Calls
from model.capacity import batch_sizes
from model.codec_passes import CodecPasses
from model.conversation import Models
from model.depformer_walk import DepformerWalk
from model.engine import Stepper
from model.fp8_weights import shrink
from model.kv_cache import DTYPES, KVType
from model.lm import LM, LMState
from model.long_reads import LongReads
from model.mimi.codec import Mimi
from model.prompt_cache import PromptCache
from model.scheduler import Scheduler
from model.streaming import WindowKind
from model.voice import voice_codes
from model.warming import _copy_once
from model.wire import FRAME_BYTES, FRAME_SAMPLES, AgentFrame, FromWorker

SLOTS = 9
"""Passes of calls are of one, two, four and eight; steps of some are filled up."""
_EARLY = ("attention", "codec_attention", "codec_codes", "codec_product", "few_rows", "fp8_attention")
"""Kernels that ask whether launches may overlap."""
_PROCESSORS = 132
Variant = tuple[object, ...]


def variant(kernel: Any, given: tuple[object, ...], named: dict[str, object]) -> Variant:
    """What Triton compiles anew for, of one launch (`triton.runtime.jit`)."""
    names = [one.name for one in kernel.params]
    values = {**dict(zip(names, given, strict=False)), **named}
    options = sorted((name, value) for name, value in named.items() if name not in names)
    kinds = (_kind(one, values[one.name]) for one in kernel.params)
    return (kernel.fn.__module__, kernel.fn.__name__, *kinds, *options)


def _kind(parameter: Any, value: Any) -> object:
    if parameter.is_constexpr:
        return repr(value)
    asked = not parameter.do_not_specialize
    if isinstance(value, Tensor):
        # What torch gives out begins at a multiple of more.
        begin = value.storage_offset() * value.element_size()
        return str(value.dtype), asked and begin % 16 == 0
    if isinstance(value, int):
        return "i32" if -(1 << 31) <= value < 1 << 31 else "i64", asked and (value == 1, value % 16 == 0)
    return type(value).__name__


class _ToHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies zeros where there is nothing to be copied from."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith("aten._to_copy") and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class _Walk(DepformerWalk):
    """As on a Hopper."""

    def __init__(self, lm: LM, window: WindowKind) -> None:
        super().__init__(lm, window)
        self._form = replace(self._form, roomy=True, interpreted=False, programs=_PROCESSORS)


@contextmanager
def as_on_a_gpu() -> Iterator[list[Variant]]:
    """The variants that are launched, in order; none is run."""
    launched: list[Variant] = []

    def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size < 1 << 16 for size in grid[1:]), f"{kernel.fn.__name__}: no GPU has a grid of {grid}"
        return lambda *given, **named: launched.append(variant(kernel, given, named))

    begin_state = LMState.__init__

    def state(self: LMState, lm: LM, slots: int, window: WindowKind, kv_dtype: torch.dtype | None = None) -> None:
        begin_state(self, lm, slots, window, kv_dtype)
        self.walk = _Walk(lm, window)

    def all_is_well(mirrored: Any) -> None:
        for part in mirrored.here:
            part.fill_(1)

    with pytest.MonkeyPatch.context() as patch, _ToHost():  # type: ignore[no-untyped-call]
        patch.setattr(JITFunction, "__getitem__", launch)
        patch.setattr(ops, "fused", lambda x: True)
        patch.setattr(LMState, "__init__", state)
        patch.setattr(engine._Mirrored, "download", all_is_well)
        for name in _EARLY:
            patch.setattr(importlib.import_module(f"model.kernels.{name}"), "possible", lambda device: True)
        for passes in (CodecPasses, LongReads):
            patch.setattr(passes.__init__, "__kwdefaults__", {"padded": True})
        yield launched


def published(small: bool) -> Models:
    """`small`: the language model's weights in FP8."""
    sizes = sizes_of("full")
    few = replace(sizes.lm, transformer=replace(sizes.lm.transformer, layers=2))
    with torch.device("meta"):
        lm, mimi = LM(few).to(sizes.dtype), Mimi(sizes.mimi, decoder_tf32=True)
    mimi.fused = True
    lm.keep_steps(few.codebooks)
    for network in (lm, mimi):
        network.eval().requires_grad_(False)
    return Models(shrink(lm, "meta") if small else lm, mimi, RandomVocabulary(few.text_card))


class Talk:
    """Calls of an engine, one after another, on a clock that does not wait."""

    def __init__(self, stepper: Stepper) -> None:
        self._now = 0.0
        self.asking = Asking(stepper.models.config)
        self._calls = Calls(
            stepper, Scheduler(SLOTS), PromptCache(stepper, 1 << 31), self.asking, self._tell, lambda: self._now
        )
        self._opened = self.answers = 0

    def _tell(self, session: int, message: FromWorker) -> None:
        self.answers += isinstance(message, AgentFrame)

    def together(self, *asked: Asked) -> None:
        """Open, let each speak, give it its prompt back, close."""
        sessions = {self._opened + number: one for number, one in enumerate(asked)}
        self._opened += len(asked)
        for session, one in sessions.items():
            self._calls.open(session, one.request, one.history)
        self._settle()
        for session, one in sessions.items():
            self._calls.frame(session, one.first, bytes(FRAME_BYTES), self._now)
        self._settle()
        self._calls.renew(min(sessions))
        self._settle()
        for session in sessions:
            self._calls.close(session)
        self._settle()

    def _settle(self) -> None:
        while True:
            if self._calls.work():
                continue
            if (wake := self._calls.wake_at()) is None:
                return
            self._now = max(self._now, wake)


def main(kv: KVType, small: bool) -> dict[str, list[str]]:
    """late: what calls would wait for, and a recorded voice that is read beside them. warmed: what they would, were it
    not launched for nobody before."""
    with as_on_a_gpu() as launched:
        batches = batch_sizes(SLOTS)
        stepper = Stepper(published(small), SLOTS, kv_dtype=DTYPES[kv], batches=batches)
        for batch in batches:
            stepper._run(batch)
        captured, begun = set(launched), len(launched)
        CodecPasses(stepper).warm()
        LongReads(stepper).warm()
        _copy_once(stepper)
        warmed, calls = set(launched[begun:]), len(launched)
        talk = Talk(stepper)
        asking = talk.asking
        talk.together(asking.plain())
        talk.together(asking.plain(), asking.fresh())
        talk.together(asking.resumed(asking.whole))
        talk.together(*(asking.resumed(frames) for frames in (1, 7, 40, 126, 131, 251, 400, 401, 402)))
        voice_codes(stepper.models.mimi, torch.zeros(31 * FRAME_SAMPLES - 5))
        talked = set(launched[calls:])
    assert talk.answers == 1 + 2 + 1 + 9
    found = {"late": talked - captured - warmed, "warmed": talked & warmed - captured}
    return {name: sorted(map(str, variants)) for name, variants in found.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], "small" in sys.argv)))  # type: ignore[arg-type]
