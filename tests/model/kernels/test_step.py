"""The whole step the GPU's way, kernel by kernel, against the same step in plain PyTorch: token for token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from model import fp8, ops
from model.bench.models import random_models, sizes_of
from model.clip import Clip
from model.conversation import Models
from model.engine import Stepper, StepResult
from model.wire import Sampling
from tests.model.rig import MEMORIES, caller_pcm, memories

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS = 3
SAMPLINGS = (Sampling(0.0, 0.0), Sampling(seed=5, top_k=3000, text_top_k=7), Sampling(temperature=1.2, seed=6))


@pytest.fixture(scope="module")
def tiny_random() -> Models:
    """Heads and widths that are powers of two, as the published ones; vocabularies that are none."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = sizes_of("tiny")
        main = replace(sizes.lm.transformer, context=12, layers=1)
        lm = replace(sizes.lm, transformer=main, depformer=replace(sizes.lm.depformer, layers=1))
        return random_models(replace(sizes, lm=lm), DEVICE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Pair:
    """The same calls by kernels and in plain PyTorch."""

    def __init__(self, models: Models, kv_dtype: torch.dtype, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.plain, self.fused = (Stepper(models, SLOTS, kv_dtype=kv_dtype, batches=()) for _ in range(2))
        self.both = (self.plain, self.fused)

    def step(self, slots: list[int], sound: list[bytes]) -> StepResult:
        results = []
        for stepper in self.both:
            with self._patch.context() as patch:
                patch.setattr(ops, "fused", lambda x, fused=stepper is self.fused: fused)
                results.append(stepper.step(slots, sound))
        plain, fused = results
        assert fused.columns.tolist() == plain.columns.tolist()
        assert fused.tokens.tolist() == plain.tokens.tolist()
        assert abs(fused.pcm.astype(int) - plain.pcm).max() <= 1
        assert (fused.finite == plain.finite).all()
        return plain


def let_happen(stepper: Stepper, number: int, slot: int) -> None:
    """What befalls a slot between two steps."""
    kind = number % 7
    if number < SLOTS or kind == 6:
        stepper.reset(slot)
        stepper.set_slot(slot, SAMPLINGS[(number + slot) % 3], 1 + number)
    if kind in (0, 4):
        stepper.words.start(slot, [[7, 8], [9], [11, 12, 13]])
    elif kind in (1, 5):
        tokens = torch.randint(0, 200, (9, 3), generator=torch.Generator().manual_seed(number))
        stepper.speech.play(slot, Clip("hm", tokens))
    elif kind == 3:
        spare = stepper.spare_lm_slots[0]
        stepper.state.copy(stepper.lm_slot[slot], torch.tensor([spare], device=DEVICE))
        stepper.spare_lm_slots[0] = stepper.point(slot, spare)


def converse(pair: _Pair, steps: int, seed: int) -> set[int]:
    """Joins, pauses, clips, words to say and spare memories, greedily and by chance: the ids that came."""
    chance = random.Random(seed)
    seen: set[int] = set()
    for number in range(steps):
        slot = number if number < SLOTS else chance.randrange(SLOTS)
        for stepper in pair.both:
            let_happen(stepper, number, slot)
        slots = [other for other in range(min(number + 1, SLOTS)) if chance.random() < 0.7] or [slot]
        chance.shuffle(slots)
        result = pair.step(slots, [caller_pcm(other, number) for other in slots])
        assert result.finite.all()
        seen |= set(result.columns.flatten().tolist())
    for name in ("tokens", "provided", "offset"):
        plain, fused = (getattr(stepper.state.cache, name) for stepper in pair.both)
        assert torch.equal(plain, fused), name
    assert torch.equal(pair.plain.state.kv.offsets, pair.fused.state.kv.offsets)
    assert torch.equal(pair.plain._counter, pair.fused._counter)
    return seen


@pytest.mark.usefixtures("one_thread")
def test_a_step_by_kernels_says_what_the_plain_one_says(tiny_random: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = _Pair(tiny_random, torch.float32, monkeypatch)
    assert len(converse(pair, 5, seed=1)) > 40


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("where", MEMORIES)
def test_numbers_that_are_none_are_told_of_their_slot(
    tiny_random: Models, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they lie, and whichever codes are then the nearest; beside it the other slot is as it was."""
    pair = _Pair(tiny_random, torch.float32, monkeypatch)
    for stepper in pair.both:
        for slot in range(2):
            stepper.reset(slot)
            stepper.set_slot(slot, SAMPLINGS[slot], 1)
    for index in range(2):  # the model remembers nothing of the first
        pair.step([0, 1], [caller_pcm(slot, index) for slot in range(2)])
    monkeypatch.setattr(ops, "fused", lambda x: True)
    memories(pair.fused, 0)[where][..., 0] = float("nan")
    spoilt = pair.fused.step([0, 1], [caller_pcm(slot, 2) for slot in range(2)])
    assert spoilt.finite.tolist() == [False, True]
    monkeypatch.setattr(ops, "fused", lambda x: False)
    beside = pair.plain.step([0, 1], [caller_pcm(slot, 2) for slot in range(2)])
    assert spoilt.tokens[1].tolist() == beside.tokens[1].tolist()


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kv_dtype", [torch.float32, fp8.E4M3])
def test_they_say_the_same_for_longer(
    tiny_random: Models, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the windows have wrapped, more than once."""
    converse(_Pair(tiny_random, kv_dtype, monkeypatch), 40, seed=2)
