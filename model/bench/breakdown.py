"""Where a step's time goes: its parts, each timed by itself, and how many launches they are.

Owns the cut of a step into encode, temporal, depformer and decode. On a GPU each part is a graph of its own; what the
whole step takes beyond them is the host's. On a CPU the operations are counted in place of launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.cuda_graphs import Graph
from model.engine import Stepper

_REPEATS = 20
Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Part:
    """milliseconds: of one run; launches: graph nodes on a GPU, operations of torch elsewhere."""

    milliseconds: float
    launches: int | None


def breakdown(stepper: Stepper, slots: int, aside: torch.cuda.Stream | None = None) -> dict[str, Part]:
    """The parts of a step of the first `slots`, at their present windows; their time does not go on."""
    return {name: measure(work, stepper.device, aside) for name, work in _parts(stepper, slots).items()}


def measure(work: Work, device: torch.device, aside: torch.cuda.Stream | None = None) -> Part:
    """The shortest of some runs: what others did to the device meanwhile is not counted.

    `aside`: the stream that captures on a GPU, another each time if None.
    """
    with torch.no_grad():
        launches: int | None
        if device.type == "cuda":
            graph = Graph(work, device, aside=aside)
            work, launches = graph.replay, graph.nodes
        else:
            with _Counter() as counter:
                work()
            launches = counter.count
        return Part(1000 * min(_time(work, device) for _ in range(_REPEATS)), launches)


def _time(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _parts(stepper: Stepper, slots: int) -> dict[str, Work]:
    models, state, device = stepper.models, stepper.state, stepper.device
    lm, mimi, config = models.lm, models.mimi, models.config
    rows = torch.arange(slots, device=device)
    sound = torch.zeros((slots, 1, mimi.frame_size), device=device)
    columns = torch.ones((slots, config.rows, 1), dtype=torch.long, device=device)
    codes = columns[:, : config.codebooks]
    hidden = torch.randn((slots, config.transformer.dim), device=device, dtype=lm.text_emb.weight.dtype)
    given = torch.zeros((slots, config.rows), dtype=torch.bool, device=device)
    still = torch.zeros(slots, dtype=torch.bool, device=device)
    frame, text = torch.ones(slots, dtype=torch.long, device=device), columns[:, 0, 0]

    def encode() -> None:
        mimi.encode_step(stepper.codec, rows, sound, config.codebooks)

    def temporal() -> None:
        stepper.words(lm.text_linear(lm.read_column(state, rows, columns[..., 0], still)), 0, frame, rows)

    def depformer() -> None:
        lm.choose_audio(state, hidden, text, given, columns[..., 0], stepper.words, frame, rows, config.codebooks)

    def decode() -> None:
        mimi.decode_step(stepper.codec, rows, codes)

    return {"encode": encode, "temporal": temporal, "depformer": depformer, "decode": decode}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
