"""The walk of one row by several programs, each a process: the interpreter runs a launch's programs one after another.

They share the memory that the walk works in, as on a GPU. So the tags are tried, and who waits for whom, without a GPU;
not the order in which a GPU may show what was stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import pytest
import torch
from torch import Tensor

from model.config import LMConfig
from model.depformer_walk import DepformerWalk, Launch
from tests.model.kernels.test_depformer import Frame, assert_same, plain, walked
from tests.model.tiny import FEW, ODD, random_lm

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has its programs at once")
_CONTEXT = get_context("fork")
"""The weights' places stay what they are."""
_PATIENCE = 120.0


@contextmanager
def _as_program(place: int, programs: int) -> Iterator[None]:
    """Let the interpreter take the one program that it runs for one of several."""
    from triton.runtime.interpreter import interpreter_builder as builder

    index, extent = builder.set_grid_idx, builder.set_grid_dim
    builder.set_grid_idx = lambda *_: index(place, 0, 0)
    builder.set_grid_dim = lambda *_: extent(programs, 1, 1)
    try:
        yield
    finally:
        builder.set_grid_idx, builder.set_grid_dim = index, extent


def _run(place: int, launches: list[Launch], ended: Barrier) -> None:
    """A launch begins on a GPU when the one before it has ended."""
    torch.set_num_threads(1)
    with _as_program(place, launches[0].programs):
        for launch in launches:
            launch.kernel[(1,)](*launch.arguments, **launch.options)
            ended.wait(_PATIENCE)


@pytest.mark.parametrize(
    ("config", "programs", "steps", "dtype"),
    [
        (FEW, 3, 2, torch.float32),
        (FEW, 3, 2, torch.bfloat16),
        pytest.param(ODD, 7, 3, torch.float32, marks=pytest.mark.long),
    ],
)
def test_programs_walk_one_row_together(config: LMConfig, programs: int, steps: int, dtype: torch.dtype) -> None:
    """More of them than the attention's product has columns for: the last one has nothing to do there.

    Twice in the same memory, where the second walk finds what the first has left, and where its tags begin again. The
    interpreter cuts bfloat16 off, so there the walk of one program is what is compared with.
    """
    lm = random_lm(10, config).to(dtype)
    walk = DepformerWalk(lm, "reference")
    walk._form = replace(walk._form, programs=programs)
    tags = 4 * config.depformer.layers * steps
    walk._epoch.fill_((1 << 16 if dtype == torch.bfloat16 else 1 << 31) - tags - tags // 2)
    frames = [Frame(lm, 1, heat=0.9, seed=seed) for seed in range(2)]
    launches = [walk.launch(*frame.on(torch.device("cpu")), steps) for frame in frames]
    assert all(launch.programs == programs > -(-config.depformer.dim // 8) for launch in launches)
    for launch in launches:
        for part in (*launch.arguments, launch.logits, launch.chosen):
            if isinstance(part, Tensor):
                part.share_memory_()  # type: ignore[no-untyped-call]
    ended = _CONTEXT.Barrier(programs)
    others = [_CONTEXT.Process(target=_run, args=(place, launches, ended)) for place in range(programs)]
    for other in others:
        other.start()
    for other in others:
        other.join(_PATIENCE)
        other.kill()
    assert [other.exitcode for other in others] == [0] * programs
    oracle = walked if dtype == torch.bfloat16 else plain
    for frame, launch in zip(frames, launches, strict=True):
        assert_same((launch.logits, launch.chosen), oracle(lm, frame, steps))
