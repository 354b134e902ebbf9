"""The delayed token grid of a slot that takes another's place in time."""

from __future__ import annotations

import pytest
import torch

from model.token_cache import TokenCache
from tests.model.tiny import CONFIG, VOICE

CELLS = CONFIG.columns


@pytest.mark.parametrize("prompt", range(5, 5 + CELLS))
@pytest.mark.parametrize("offset", range(20, 20 + CELLS))
def test_a_grid_that_holds_what_another_held_goes_on_as_it_whatever_it_held_itself(prompt: int, offset: int) -> None:
    """As when a spare memory, put behind a prompt with rows of its next column given, takes a call's place."""
    cache, ids = TokenCache(CONFIG, 2), torch.arange(CONFIG.rows)
    cache.place(0, 31, ids, ids + 1, torch.zeros(CONFIG.rows, dtype=torch.bool))
    cache.place(1, prompt, ids + 2, ids + 3, torch.ones(CONFIG.rows, dtype=torch.bool))
    cache.move(0, 31, 1, offset)
    assert cache.offset.tolist() == [31, offset]
    for number in range(2 * CELLS):
        step = cache.begin(torch.arange(2), torch.full((2, CONFIG.codebooks), number))
        decided = step.finish(torch.full((2, 1 + VOICE), 10 + number))
        for part in (step.inputs, step.given, decided.column, decided.frame):
            assert torch.equal(part[0], part[1]), f"step {number}"
