"""The token grid's kernels against plain PyTorch: any delays, offsets, things given and slots, step after step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import ops
from model.token_cache import Decided, TokenCache
from tests.model.tiny import CONFIG

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = 5
DELAYS = [CONFIG.delays, (0, 0, 0), (1, 0, 2, 2, 0, 1, 3)]
STATE = ("tokens", "provided", "offset")


def same(mine: object, theirs: object, names: tuple[str, ...]) -> None:
    for name in names:
        assert torch.equal(getattr(mine, name).cpu(), getattr(theirs, name).cpu()), name


@pytest.mark.parametrize("delays", DELAYS)
def test_a_conversation_by_kernels_is_one_in_plain_pytorch(
    delays: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, delays=delays)
    rows, draw = len(delays), torch.Generator().manual_seed(1)
    plain, fused = TokenCache(config, SLOTS), TokenCache(config, SLOTS, DEVICE)
    for number in range(30):
        slots = torch.randperm(SLOTS, generator=draw)[: int(torch.randint(1, SLOTS, (), generator=draw))]
        count = len(slots)
        books = int(torch.randint(1, rows, (), generator=draw))
        codes = torch.randint(-1, 50, (count, books, 1), generator=draw)[:, :, 0]
        forced = torch.randint(-1, 50, (count, rows), generator=draw)
        mask = torch.rand(count, rows, generator=draw) < (0.3 if number % 3 else 1.0)
        given = (None if number % 5 == 4 else codes), forced, (None if number % 4 == 3 else mask)
        chosen = torch.randint(0, 50, (count, int(torch.randint(1, rows + 1, (), generator=draw))), generator=draw)

        opened = plain.begin(slots, *given)
        before = [getattr(fused, name).clone() for name in STATE]
        here = [None if part is None else part.to(DEVICE) for part in (slots, *given)]
        with monkeypatch.context() as patch:
            patch.setattr(ops, "fused", lambda x: True)
            assert here[0] is not None
            opened_there = fused.begin(here[0], *here[1:])
        same(opened_there, opened, ("inputs", "target", "given", "offset", "running"))
        assert all(torch.equal(getattr(fused, name), old) for name, old in zip(STATE, before, strict=True))

        decided, there = opened.finish(chosen), opened_there.finish(chosen.to(DEVICE))
        same(there, decided, tuple(Decided.__dataclass_fields__))
        same(fused, plain, STATE)
        if number % 7 == 6:
            plain.reset(slots[:1])
            fused.reset(slots[:1].to(DEVICE))


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("ahead", range(4))
def test_where_a_slot_takes_anothers_place_nothing_counts_as_given_that_it_held_before(
    ahead: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call primed anew: what the prompt left in the spare lies in any of the grid's cells."""
    monkeypatch.setattr(ops, "fused", lambda x: kernels)
    cache = TokenCache(CONFIG, SLOTS, DEVICE if kernels else "cpu")
    device, rows, books = cache.tokens.device, CONFIG.rows, CONFIG.codebooks
    call, spare, offset = 1, 3, 6
    ids = torch.arange(rows, device=device)
    cache.place(call, offset, ids, ids, ids > books)
    cache.place(spare, offset, ids, ids, ids >= 0)
    cache.move(call, offset, spare, offset + ahead)
    for number in range(4):
        codes, chosen = torch.full((1, books), number, device=device), torch.full((1, rows), number, device=device)
        opened = [cache.begin(torch.tensor([slot], device=device), codes) for slot in (call, spare)]
        assert [each.given.tolist() for each in opened] == 2 * [[[False] * (1 + books) + [True] * books]]
        theirs, mine = (each.finish(chosen) for each in opened)
        same(mine, theirs, ("column", "frame"))


def test_rows_that_fill_a_batch_up_harm_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They all name the same slot, which nobody reads."""
    plain, fused = TokenCache(CONFIG, SLOTS), TokenCache(CONFIG, SLOTS, DEVICE)
    monkeypatch.setattr(ops, "fused", lambda x: x is fused.offset)
    nobody = SLOTS - 1
    for number in range(6):
        codes = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(number))
        chosen = torch.randint(0, 50, (2, CONFIG.rows), generator=torch.Generator().manual_seed(number))
        frame = plain.begin(torch.tensor([3, 1]), codes).finish(chosen).frame
        slots = torch.tensor([3, 1, nobody, nobody, nobody], device=DEVICE)
        filled = torch.cat((codes, codes[:1].expand(3, -1))).to(DEVICE)
        step = fused.begin(slots, filled)
        padded = step.finish(torch.cat((chosen, chosen[:1].expand(3, -1))).to(DEVICE)).frame
        assert torch.equal(padded[:2].cpu(), frame)
        for name in STATE:
            assert torch.equal(getattr(fused, name)[:nobody].cpu(), getattr(plain, name)[:nobody])
