"""Which tiles walk the codebooks soonest on this GPU, and from which batch on plain PyTorch does: `python -m ... FILE`.

Owns the candidates and their measurement at the published sizes, on random weights. What it finds is written for
`model.depformer_walk.load_tiles`. Each candidate must walk as the plain way does, or it is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from model import depformer_walk
from model.bench.breakdown import measure
from model.bench.models import randomise
from model.config import LMConfig, personaplex_7b
from model.depformer_walk import DepformerWalk, OneRow, Tiles, Way
from model.lm import LM, Chance
from model.load import on_meta
from model.sampling import SlotSampling
from model.wire import Sampling

CANDIDATES: dict[int, tuple[Way, ...]] = {
    1: (OneRow(), Tiles(16, 8, 4, 8, 16, 32, 64, 3, 8)),
    16: (Tiles(16, 16, 4, 8, 16, 32, 64, 3, 8), Tiles(16, 8, 4, 8, 16, 32, 64, 3, 8)),
    32: (Tiles(16, 16, 4, 8, 32, 32, 64, 3, 8), Tiles(16, 16, 4, 8, 16, 32, 64, 3, 8)),
    64: (
        Tiles(32, 16, 3, 8, 32, 64, 64, 3, 8),
        Tiles(32, 16, 3, 8, 64, 32, 64, 4, 1),
        Tiles(32, 16, 3, 8, 64, 64, 64, 4, 1),
    ),
    128: (
        Tiles(32, 32, 3, 8, 32, 64, 64, 3, 8),
        Tiles(32, 32, 3, 8, 64, 64, 128, 3, 1),
        Tiles(32, 32, 3, 8, 64, 64, 128, 4, 1),
        Tiles(64, 32, 4, 1, 64, 64, 128, 3, 1),
    ),
    256: (
        Tiles(32, 32, 3, 8, 64, 64, 128, 3, 1),
        Tiles(32, 32, 3, 8, 64, 128, 128, 3, 1),
        Tiles(64, 32, 4, 1, 64, 128, 128, 3, 1),
        Tiles(64, 32, 3, 8, 64, 128, 128, 3, 1),
        Tiles(32, 64, 3, 8, 64, 128, 128, 3, 1),
        Tiles(64, 32, 4, 1, 128, 64, 128, 3, 1),
    ),
}
"""By the largest batch that they are for."""
MEASURED = {1: 1, 16: 8, 32: 32, 64: 64, 128: 128, 256: 150}
"""The batch that stands for each."""
_STEPS = 8
_OFF = 0.03
"""Root mean square by which logits may differ from the plain ones, of their spread: bfloat16 makes it 0.013."""


class Frame:
    """What a walk starts from: random, with every token given, so that roundings cannot grow into other walks."""

    def __init__(self, config: LMConfig, count: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(count)
        self.hidden = torch.randn(
            (count, config.transformer.dim), device=device, dtype=torch.bfloat16, generator=generator
        )
        ids = min(config.card, config.text_card)
        self.told = torch.randint(0, ids, (count, config.rows), device=device, generator=generator)
        self.given = torch.ones((count, config.rows), dtype=torch.bool, device=device)
        self.slots = torch.arange(count, device=device)
        self.sampler = SlotSampling(count, device)
        for slot in range(count):
            self.sampler.set(slot, Sampling(seed=slot))

    @property
    def chance(self) -> Chance:
        return self.sampler.chance(self.slots, self.slots)

    def walked(self, walk: DepformerWalk) -> tuple[Tensor, Tensor]:
        return walk(self.hidden, self.told[:, 0], self.given, self.told, self.chance, _STEPS)

    def plain(self, lm: LM) -> Tensor:
        def decide(step: int, logits: Tensor) -> Tensor:
            self.sampler(logits, step + 1, self.slots, self.slots)
            return self.told[:, step + 1]

        return lm.walk(self.hidden, self.told[:, 0], decide, _STEPS, "reference")


def find(device: torch.device) -> dict[int, Way | None]:
    """The soonest for each class of batches; None where plain PyTorch is. Prints what was measured."""
    with get_context("spawn").Pool(sum(map(len, CANDIDATES.values()))) as pool:
        pool.starmap(_compile, [(way, MEASURED[largest]) for largest, each in CANDIDATES.items() for way in each])
    lm = _lm(_config(), device)
    randomise(lm)
    with torch.no_grad():
        return {largest: _soonest(lm, largest, device) for largest in CANDIDATES}


def _soonest(lm: LM, largest: int, device: torch.device) -> Way | None:
    from model.kernels.failures import FAILURES

    frame, walk = Frame(lm.config, MEASURED[largest], device), DepformerWalk(lm, "reference")
    expected = frame.plain(lm).float()
    times: dict[Way | None, float] = {None: measure(lambda: _ignore(frame.plain(lm)), device).milliseconds}
    print(f"{MEASURED[largest]} rows, plain: {times[None]:.3f} ms")  # noqa: T201
    for way in CANDIDATES[largest]:
        depformer_walk.TILES[largest] = way
        try:
            off = (frame.walked(walk)[0].float() - expected).square().mean().sqrt() / expected.std()
        except FAILURES as error:
            print(f"{MEASURED[largest]} rows, {way} left out: {error}")  # noqa: T201
            continue
        time = measure(lambda: _ignore(frame.walked(walk)[0]), device).milliseconds
        print(f"{MEASURED[largest]} rows, {way}: {time:.3f} ms, off by {float(off):.4f}")  # noqa: T201
        if off < _OFF:
            times[way] = time
    return min(times, key=lambda way: times[way])


def _ignore(_: Tensor) -> None:
    """Work that is measured returns nothing."""


def _config() -> LMConfig:
    """The published sizes, without what a walk does not need."""
    full = personaplex_7b()
    return replace(full, transformer=replace(full.transformer, layers=1))


def _lm(config: LMConfig, device: torch.device) -> LM:
    lm: LM = on_meta(lambda: LM(config)).to(torch.bfloat16).to_empty(device=device)
    return lm.eval().requires_grad_(False)


def _compile(way: Way, count: int) -> None:
    """Compile one candidate, in a process of its own, for Triton's cache."""
    from model.kernels.failures import FAILURES

    device = torch.device("cuda")
    depformer_walk.TILES.clear()
    depformer_walk.TILES[count] = way
    config = _config()
    walk = DepformerWalk(_lm(replace(config, depformer=replace(config.depformer, steps=_STEPS)), device), "reference")
    frame = Frame(config, count, device)
    launch = walk.launch(frame.hidden, frame.told[:, 0], frame.given, frame.told, frame.chance, _STEPS)
    with suppress(*FAILURES):  # what fails here fails again when it is measured, and is said there
        launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.options)


def main(arguments: Sequence[str]) -> None:
    depformer_walk.save_tiles(Path(arguments[0]), find(torch.device("cuda")))


if __name__ == "__main__":
    main(sys.argv[1:])
