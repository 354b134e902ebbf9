"""The walk of the codebooks in one launch against the plain one: logits, tokens, and what one row does to others.

One row walks alone, in a kernel of its own; so most is tried with one row and with more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import depformer_walk
from model.config import DepformerConfig, LMConfig
from model.cuda_graphs import Graph
from model.depformer_walk import TILES, DepformerWalk, Tiles, Way
from model.fp8_weights import shrink
from model.lm import LM, Chance
from model.sampling import SlotSampling, choose, exponential
from model.streaming import WindowKind
from model.wire import Sampling
from tests.model.tiny import CONFIG, FEW, ODD, VOICE, random_codes, random_lm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDE = replace(CONFIG, depformer=DepformerConfig(dim=256, heads=4, layers=3, hidden=352, steps=16), card=512)
MIDDLE = replace(CONFIG, depformer=DepformerConfig(dim=128, heads=2, layers=1, hidden=176, steps=16), card=200)
"""Each product has more than one tile of every way, and half of one is left over."""
STEPS = 4
SHARED = Tiles(64, 32, 2, 1, 64, 64, 128, 2, 1)
"""Of which the warps share each tile."""
NEAR = 0.04
"""How far off a walk in bfloat16 may be: a GPU is by 0.013."""
Walked = tuple[Tensor, Tensor]


class Frame:
    """What a walk starts from, for `count` rows whose settings lie in another order."""

    def __init__(self, lm: LM, count: int, *, heat: float = 0.0, forced: bool = False, seed: int = 0) -> None:
        draw, config = torch.Generator().manual_seed(seed), lm.config
        self.hidden = torch.randn(count, config.transformer.dim, generator=draw).to(lm.text_emb.weight.dtype)
        self.text = torch.randint(0, config.text_card, (count,), generator=draw)
        self.told = torch.randint(-1, config.card, (count, config.rows), generator=draw)
        self.told[:, 0] = torch.randint(-1, config.text_card, (count,), generator=draw)
        self.given = torch.rand(count, config.rows, generator=draw) < (0.4 if forced else 0.0)
        slots = torch.randperm(count + 2, generator=draw)[:count]
        heats, top_k = torch.full((count + 2,), heat), torch.randint(1, 9, (count + 2,), generator=draw)
        seeds, frame = torch.arange(count + 2) * 7919 - 3, torch.arange(count) + 40
        self.chance = Chance(heats, top_k, seeds, frame, slots)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Chance]:
        chance = Chance(*(part.to(device) for part in self._settings()))
        return self.hidden.to(device), self.text.to(device), self.given.to(device), self.told.to(device), chance

    def _settings(self) -> tuple[Tensor, ...]:
        chance = self.chance
        return chance.temperature, chance.top_k, chance.seed, chance.frame, chance.slots


def plain(lm: LM, frame: Frame, steps: int = STEPS, window: WindowKind = "reference") -> Walked:
    chosen = [frame.text]
    heat, top_k, seed, time, slots = frame._settings()

    def decide(step: int, logits: Tensor) -> Tensor:
        noise = exponential(seed[slots], time, step + 1, logits.shape[1])
        chosen.append(choose(logits, heat[slots], top_k[slots], noise))
        return torch.where(frame.given[:, step + 1], frame.told[:, step + 1], chosen[-1])

    with torch.no_grad():
        text = torch.where(frame.given[:, 0], frame.told[:, 0], frame.text)
        logits = lm.walk(frame.hidden, text, decide, steps, window)
    return logits, torch.stack(chosen, dim=1)


def walked(lm: LM, frame: Frame, steps: int = STEPS, window: WindowKind = "reference") -> Walked:
    logits, chosen = DepformerWalk(lm.to(DEVICE), window)(*frame.on(DEVICE), steps)
    lm.to("cpu")
    return logits.cpu(), chosen.cpu()


def assert_same(seen: Walked, expected: Walked, near: float = 2e-5) -> None:
    torch.testing.assert_close(seen[0], expected[0], rtol=near, atol=near)
    assert torch.equal(seen[1], expected[1])


def off(seen: Tensor, expected: Tensor) -> float:
    """Root mean square, in parts of the spread."""
    return float((seen.float() - expected.float()).square().mean().sqrt() / expected.float().std())


@pytest.mark.parametrize(("count", "config"), [(1, CONFIG), (3, ODD), (17, ODD)])
def test_it_walks_as_plain_pytorch(count: int, config: LMConfig) -> None:
    lm = random_lm(1, config)
    frame = Frame(lm, count)
    assert_same(walked(lm, frame), plain(lm, frame))


@pytest.mark.parametrize("way", [Tiles(16, 8, 2, 8, 16, 32, 64, 2, 8), SHARED])
def test_it_walks_so_however_its_products_are_cut(monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    monkeypatch.setitem(TILES, 1, way)
    monkeypatch.setattr(depformer_walk, "_SMALL", way)
    lm = random_lm(9, ODD)
    frame = Frame(lm, 1)
    assert_same(walked(lm, frame, 2), plain(lm, frame, 2))


@pytest.mark.parametrize("count", [1, 6])
def test_tokens_that_are_given_are_told_and_the_others_drawn(count: int) -> None:
    """Among those given is -1, which is nothing. What is chosen is reported where it was not told, too."""
    lm = random_lm(2)
    hot, cold = (Frame(lm, count, heat=heat, forced=True) for heat in (1.5, 0.0))
    for frame in (hot, cold):
        frame.told[0, 2], frame.given[0, 2] = -1, True
    seen, expected = walked(lm, hot), plain(lm, hot)
    assert_same(seen, expected)
    assert not torch.equal(plain(lm, cold)[1], expected[1])


@pytest.mark.parametrize("window", ["reference", "full"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_last_of_all_steps_sees_what_the_window_shows(window: WindowKind, count: int) -> None:
    lm = random_lm(3, FEW)
    frame = Frame(lm, count)
    assert_same(walked(lm, frame, 4, window), plain(lm, frame, 4, window))
    assert not torch.equal(plain(lm, frame, 4, "full")[0][:, -1], plain(lm, frame, 4, "reference")[0][:, -1])


@pytest.mark.parametrize("count", [1, 3])
def test_weights_in_fp8(count: int) -> None:
    lm = shrink(random_lm(4, ODD), "cpu")
    frame = Frame(lm, count)
    assert_same(walked(lm, frame, 3), plain(lm, frame, 3), 1e-4)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_weights_of_half_precision(small: bool, count: int) -> None:
    """Given tokens keep roundings from growing into other walks. A GPU is off by 0.013, the interpreter cuts off."""
    lm = random_lm(5).to(torch.bfloat16)
    if small:
        shrink(lm, "cpu")
    frame = Frame(lm, count, forced=True)
    frame.given.fill_(True)
    assert off(walked(lm, frame, 3)[0], plain(lm, frame, 3)[0]) < NEAR


def strong_lm() -> LM:
    """One of whose logits each product of the depformer has its part, as of a trained one; in bfloat16."""
    lm = random_lm(8, MIDDLE)
    for name, weight in lm.depformer.named_parameters():
        weight.mul_(4 if "linear_in" in name else 2 if "out_proj" in name else 1)
    return lm.to(torch.bfloat16)


def far(seen: Tensor, expected: Tensor) -> Tensor:
    """`off` of each row, `[N]`, in parts of the spread of all."""
    return (seen.float() - expected.float()).flatten(1).square().mean(dim=1).sqrt() / expected.float().std()


@pytest.mark.parametrize("count", [20, 40, 100, 130])
def test_more_rows_of_half_precision_are_cut_as_on_a_large_card(count: int) -> None:
    """Each class of batches by the tiles that production has for it, which is where there is much shared memory."""
    lm = strong_lm()
    frame = Frame(lm, count)
    frame.given.fill_(True)
    walk = DepformerWalk(lm.to(DEVICE), "reference")
    if DEVICE.type != "cuda":
        walk._form = replace(walk._form, roomy=True)
    seen = walk(*frame.on(DEVICE), 2)[0].cpu()
    assert float(far(seen, plain(lm.to("cpu"), frame, 2)[0]).max()) < NEAR


def test_a_piece_of_a_product_that_a_tile_leaves_out_is_not_near() -> None:
    """The least that it could: 16 outputs by 32 inputs. So the bound above finds a tile that is wrong."""
    lm = strong_lm()
    frame = Frame(lm, 20)
    frame.given.fill_(True)
    expected, layer = plain(lm, frame, 2)[0], "depformer.layers.0"
    queries_keys_values = lm.get_parameter(f"{layer}.self_attn.in_proj_weight")
    products = [f"{layer}.gating.{step}.linear_{side}.weight" for step in (0, 1) for side in ("in", "out")]
    products += ["depformer_in.0.weight", f"{layer}.self_attn.out_proj.weight", "linears.0.weight"]
    for weight in (queries_keys_values[2 * MIDDLE.depformer.dim :], *map(lm.get_parameter, products)):
        whole = weight.clone()
        weight[:16, :32] = 0
        assert float(far(plain(lm, frame, 2)[0], expected).median()) > NEAR
        weight.copy_(whole)


@pytest.mark.parametrize(("dtype", "turn"), [(torch.bfloat16, 1 << 16), (torch.float32, 1 << 31)])
def test_tags_begin_again_where_a_word_has_no_more_of_them(dtype: torch.dtype, turn: int) -> None:
    """Each walk moves the epoch on by its tags. The second goes over the turn, the third comes after it."""
    lm = random_lm(8, FEW).to(dtype)
    frame, walk = Frame(lm, 1), DepformerWalk(lm.to(DEVICE), "reference")
    first = walk(*frame.on(DEVICE), STEPS)
    tags = int(walk._epoch)
    walk._epoch.fill_(turn - tags - tags // 2)
    for _ in range(3):
        again = walk(*frame.on(DEVICE), STEPS)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
    passed = turn + 2 * tags - tags // 2
    assert int(walk._epoch) == (passed + (1 << 31)) % (1 << 32) - (1 << 31), "the epoch is an int32"


def test_a_row_of_numbers_that_are_none_still_has_tokens() -> None:
    """One that waited for a number which is none would not end."""
    lm = random_lm(6)
    frame = Frame(lm, 1)
    frame.hidden.fill_(float("nan"))
    logits, chosen = walked(lm, frame, 3)
    assert torch.isnan(logits).all()
    assert ((chosen >= 0) & (chosen < CONFIG.card)).all()


def test_a_row_of_numbers_that_are_none_keeps_them_to_itself() -> None:
    lm = random_lm(6)
    frame = Frame(lm, 4)
    expected = plain(lm, frame, 3)
    frame.hidden[2, 5] = float("nan")
    logits, chosen = walked(lm, frame, 3)
    others = torch.tensor([0, 1, 3])
    assert_same((logits[others], chosen[others]), (expected[0][others], expected[1][others]))
    assert torch.isnan(logits[2]).all()
    assert ((chosen[2] >= 0) & (chosen[2] < CONFIG.card)).all()


def test_a_step_takes_it_where_the_sampler_is_open() -> None:
    """The same conversation with and without; under the walk's own draws nobody is asked for an audio token."""
    lm = random_lm(7, FEW).to(DEVICE)
    slots, caller = torch.arange(2, device=DEVICE), random_codes(1, 4, VOICE).to(DEVICE)
    tokens = []
    for launched in (True, False):
        state, sampling = lm.streaming(2), SlotSampling(2, DEVICE)
        for slot in range(2):
            sampling.set(slot, Sampling(temperature=1.0, top_k=7, seed=slot))
        state.walk = DepformerWalk(lm, state.window) if launched else None
        asked: list[int] = []
        sampler = Asked(sampling, asked)
        steps = [lm.step(state, slots, column.expand(2, -1), sampler=sampler, depformer_steps=3) for column in caller.T]
        tokens.append(torch.stack([step.trace.chosen for step in steps[1:]]))
        assert set(asked) == ({0} if launched else {0, 1, 2, 3})
    assert torch.equal(tokens[0], tokens[1])


class Asked:
    """An open sampler that notes for which rows it was called."""

    def __init__(self, sampling: SlotSampling, rows: list[int]) -> None:
        self._sampling, self._rows = sampling, rows

    def chance(self, frame: Tensor, slots: Tensor) -> Chance:
        return self._sampling.chance(frame, slots)

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        self._rows.append(row)
        return self._sampling(logits, row, frame, slots)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the interpreter runs one program after another")
@pytest.mark.parametrize(("count", "way"), [(1, None), (40, None), (130, None), (130, SHARED)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_programs_wait_for_each_other_every_time(
    monkeypatch: pytest.MonkeyPatch, count: int, way: Way | None, dtype: torch.dtype
) -> None:
    """A race would show as another result in some run; captured in a graph it walks the same, too."""
    if way is not None:
        monkeypatch.setitem(TILES, 256, way)
        if dtype == torch.float32:  # which gets these whatever the table says
            monkeypatch.setattr(depformer_walk, "_SMALL", way)
    lm = random_lm(8, WIDE).to(dtype).to(DEVICE)
    frame = Frame(lm, count, heat=0.8)
    frame.given.fill_(True)
    walk, inputs = DepformerWalk(lm, "reference"), frame.on(DEVICE)
    logits, chosen = walk(*inputs, VOICE)
    expected, _ = plain(random_lm(8, WIDE).to(dtype), frame, VOICE)
    if dtype == torch.float32:
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    else:
        assert off(logits.cpu(), expected) < NEAR
    same = torch.ones((), dtype=torch.bool, device=DEVICE)
    results: list[Walked] = []
    graph = Graph(lambda: results.append(walk(*inputs, VOICE)), DEVICE)
    for _ in range(100):
        again = walk(*inputs, VOICE)
        same &= (again[0] == logits).all() & (again[1] == chosen).all()
        graph.replay()
        same &= (results[-1][0] == logits).all() & (results[-1][1] == chosen).all()
    assert bool(same)
    assert graph.nodes in (None, 1)
