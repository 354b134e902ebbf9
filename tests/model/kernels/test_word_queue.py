"""The queue of words by the kernel against plain PyTorch: any vocabulary, words and sampled ids, step after step."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from model import ops
from model.config import TEXT_END_OF_PAD, TEXT_PAD
from model.word_queue import WordQueue

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, CARD = 40, 30
STATE = ("_length", "_said", "_waited", "_last")


def first(logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
    """A Sampler that is told what to choose."""
    return logits[:, 0].long()


@pytest.mark.parametrize("seed", range(2))
def test_the_same_is_said_and_remembered(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    starts = [token % 3 == 1 for token in range(CARD)]
    plain, fused = WordQueue(first, starts, SLOTS), WordQueue(first, starts, SLOTS, DEVICE)
    usual = [TEXT_PAD] * 8 + [TEXT_END_OF_PAD]
    replaced = 0
    for _ in range(60):
        for slot in range(SLOTS):
            if chance.random() < 0.08:
                words = [[chance.randrange(4, CARD) for _ in range(chance.randint(1, 4))] for _ in range(3)]
                plain.start(slot, words)
                fused.start(slot, words)
            if chance.random() < 0.01:
                plain.reset(slot)
                fused.reset(slot)
        slots = torch.tensor(chance.sample(range(SLOTS), chance.randint(1, SLOTS)))
        ids = [chance.choice([*usual, chance.randrange(CARD)]) for _ in slots]
        sampled, frame = torch.tensor(ids)[:, None], torch.tensor([int(chance.random() < 0.95) for _ in slots])
        expected = plain(sampled, 0, frame, slots)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "fused", lambda x: True)
            said = fused(sampled.to(DEVICE), 0, frame.to(DEVICE), slots.to(DEVICE))
        assert torch.equal(said.cpu(), expected)
        replaced += int((expected != sampled[:, 0]).sum())
        for name in STATE:
            mine, theirs = getattr(fused, name)[slots.to(DEVICE)].cpu(), getattr(plain, name)[slots]
            assert torch.equal(mine, theirs), name
    assert replaced > 100
