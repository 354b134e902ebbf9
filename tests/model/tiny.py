"""A language model small enough for property tests, with random weights, and conversations for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from model.config import DepformerConfig, LMConfig, TransformerConfig
from model.lm import LM, LMState, StepOutput

CONTEXT = 12
CONFIG = LMConfig(
    transformer=TransformerConfig(dim=32, heads=4, layers=2, context=CONTEXT, hidden=40),
    depformer=DepformerConfig(dim=16, heads=2, layers=2, hidden=24, steps=16),
    text_card=40,
    card=50,
    delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
)
ODD = replace(CONFIG, depformer=DepformerConfig(dim=36, heads=3, layers=2, hidden=27, steps=16), card=21)
"""Nothing of the depformer is a power of two, nor a multiple of a tile's sides."""
FEW = replace(CONFIG, depformer=DepformerConfig(dim=16, heads=2, layers=1, hidden=24, steps=4))
"""As little of a depformer as has steps and a window."""
VOICE = CONFIG.codebooks


def random_lm(seed: int = 0, config: LMConfig = CONFIG) -> LM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LM(config).eval().requires_grad_(False)


def random_codes(seed: int, length: int, rows: int = CONFIG.rows) -> Tensor:
    """`[rows, length]`, ids that any row may hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(CONFIG.card, CONFIG.text_card), (rows, length), generator=generator)


def step_given(lm: LM, state: LMState, slot: int, frames: Tensor, depformer_steps: int = VOICE) -> list[StepOutput]:
    """Step `slot` once for each of `frames [R, P]`, everything given."""
    mask, slots = torch.ones((1, frames.shape[0]), dtype=torch.bool), torch.tensor([slot])
    return [lm.step(state, slots, None, frame[None], mask, depformer_steps=depformer_steps) for frame in frames.T]


def step_user(lm: LM, state: LMState, slot: int, codes: Tensor) -> Tensor:
    """Step `slot` once for each column of the caller's `codes [8, T]`: the frames emitted, `[R, T]`."""
    slots = torch.tensor([slot])
    return torch.cat([lm.step(state, slots, column[None], depformer_steps=VOICE).tokens for column in codes.T]).T


def slot_memory(state: LMState, slot: int) -> list[Tensor]:
    """Copies of all that belongs to one slot."""
    cache, kv = state.cache, state.kv
    mine = [cache.tokens[slot], cache.provided[slot], cache.offset[slot], kv.offsets[slot]]
    return [part.clone() for part in (*mine, kv.keys[:, slot], kv.values[:, slot])]


def same_memory(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
