"""Tokens are drawn from the right distribution, and the noise depends on seed, frame, row and id alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.sampling import _GOLDEN, SlotSampling, _mix, choose, exponential
from model.wire import Sampling
from tests.model.tiny import VOICE, random_codes, random_lm


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ones(count: int, value: float) -> Tensor:
    return torch.full((count,), value)


def test_the_mixer_is_splitmix64() -> None:
    """Its published first outputs for the seed 1234567."""
    outputs = _mix(1234567 + torch.arange(1, 6) * _GOLDEN)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in outputs.tolist()] == expected


def test_the_noise_is_exponential_and_finite() -> None:
    noise = exponential(torch.arange(40), torch.arange(40) * 7, 3, 25_000).double().flatten()
    assert noise.min() > 0
    assert torch.isfinite(noise).all()
    count = noise.numel()
    assert abs(noise.mean() - 1) < 5 / math.sqrt(count)
    ordered = noise.sort().values
    empirical = (torch.arange(count) + 0.5) / count
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) one time in a thousand.
    assert (1 - torch.exp(-ordered) - empirical).abs().max() < 1.95 / math.sqrt(count)


def test_the_noise_differs_by_seed_frame_row_and_id() -> None:
    base = exponential(torch.tensor([5]), torch.tensor([9]), 2, 1000)[0]
    others = [
        exponential(torch.tensor([6]), torch.tensor([9]), 2, 1000)[0],
        exponential(torch.tensor([5]), torch.tensor([10]), 2, 1000)[0],
        exponential(torch.tensor([5]), torch.tensor([9]), 3, 1000)[0],
        base.roll(1),
        exponential(torch.tensor([2**63 - 1]), torch.tensor([9]), 2, 1000)[0],
    ]
    for other in others:
        assert (base == other).float().mean() < 0.01
        assert abs(torch.corrcoef(torch.stack((base, other)))[0, 1]) < 0.12
    assert torch.equal(base[:10], exponential(torch.tensor([5]), torch.tensor([9]), 2, 10)[0])


def test_it_is_the_reference_s_race_on_probabilities() -> None:
    logits, noise = normal(1, 200, 300) * 4, exponential(torch.arange(200), torch.arange(200), 1, 300)
    likeliest = torch.softmax(logits / 0.8, dim=1).topk(25, dim=1)
    quotient = likeliest.values / noise.gather(1, likeliest.indices)
    expected = likeliest.indices.gather(1, quotient.argmax(dim=1, keepdim=True))[:, 0]
    assert torch.equal(choose(logits, ones(200, 0.8), torch.full((200,), 25), noise), expected)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 25), (0.8, 4), (1.5, 2), (1.0, 1000)])
def test_tokens_follow_the_softmax_of_the_k_likeliest(temperature: float, top_k: int) -> None:
    logits, draws = normal(2, 40) * 2, 40_000
    noise = exponential(torch.full((draws,), 11), torch.arange(draws), 1, 40)
    chosen = choose(logits.expand(draws, -1), ones(draws, temperature), torch.full((draws,), top_k), noise)
    kept = logits.topk(min(top_k, 40)).indices
    expected = torch.zeros(40).index_put((kept,), torch.softmax(logits[kept] / temperature, dim=0)) * draws
    counts = torch.bincount(chosen, minlength=40).float()
    assert counts[expected == 0].sum() == 0
    frequent = expected >= 10
    chi = ((counts - expected)[frequent].square() / expected[frequent]).sum()
    freedom = int(frequent.sum()) - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_temperature_0_and_top_1_are_greedy() -> None:
    logits, noise = normal(3, 8, 50), exponential(torch.arange(8), torch.arange(8), 0, 50)
    greedy = logits.argmax(dim=1)
    assert torch.equal(choose(logits, ones(8, 0.0), torch.full((8,), 50), noise), greedy)
    assert torch.equal(choose(logits, ones(8, 0.9), torch.ones(8, dtype=torch.long), noise), greedy)
    assert not torch.equal(choose(logits, ones(8, 0.9), torch.full((8,), 50), noise), greedy)


def test_exactly_k_are_kept_where_logits_are_equal() -> None:
    draws = 2000
    noise = exponential(torch.zeros(draws, dtype=torch.long), torch.arange(draws), 0, 30)
    chosen = choose(torch.zeros(draws, 30), ones(draws, 1.0), torch.full((draws,), 4), noise)
    assert sorted(set(chosen.tolist())) == [0, 1, 2, 3]


def test_each_slot_has_its_own_settings_for_text_and_sound() -> None:
    sampler = SlotSampling(3)
    sampler.set(0, Sampling(temperature=0, text_temperature=0))
    sampler.set(1, Sampling(temperature=2, text_temperature=0, top_k=40, seed=7))
    sampler.set(2, Sampling(temperature=0, text_temperature=2, text_top_k=40, seed=7))
    logits = normal(4, 1, 40).expand(3, -1)
    slots, greedy = torch.tensor([0, 1, 2]), logits[0].argmax()
    text = torch.stack([sampler(logits, 0, torch.full((3,), frame), slots) for frame in range(50)])
    sound = torch.stack([sampler(logits, 4, torch.full((3,), frame), slots) for frame in range(50)])
    assert (text == greedy).all(dim=0).tolist() == [True, True, False]
    assert (sound == greedy).all(dim=0).tolist() == [True, False, True]


@pytest.mark.parametrize("wrong", [Sampling(top_k=0), Sampling(text_top_k=0), Sampling(temperature=-1.0)])
def test_settings_that_draw_from_nothing_are_refused(wrong: Sampling) -> None:
    with pytest.raises(ValueError, match=r"top-k|temperature"):
        SlotSampling(1).set(0, wrong)


def test_the_same_seed_draws_the_same_whatever_else_is_in_the_batch() -> None:
    """A conversation alone, and in changing company at other slots, places and times."""
    lm, frames = random_lm(), 14
    mine = random_codes(1, frames, VOICE)
    alone = SlotSampling(1)
    alone.set(0, Sampling(temperature=1.0, text_temperature=1.0, top_k=30, text_top_k=20, seed=99))
    state = lm.streaming(1)
    expected = [lm.step(state, torch.tensor([0]), column[None], sampler=alone).tokens[0] for column in mine.T]

    crowd = SlotSampling(4)
    crowd.set(2, Sampling(temperature=1.0, text_temperature=1.0, top_k=30, text_top_k=20, seed=99))
    for other in (0, 1, 3):
        crowd.set(other, Sampling(seed=100 + other))
    state = lm.streaming(4)
    for column in random_codes(2, 5, VOICE).T:
        lm.step(state, torch.tensor([3, 0]), column.expand(2, -1), sampler=crowd)
    company = ([2], [1, 2], [2, 3, 0], [0, 1, 2, 3], [3, 2])
    for frame in range(frames):
        slots = torch.tensor(company[frame % len(company)])
        codes = random_codes(50 + frame, len(slots), VOICE).T.clone()
        place = company[frame % len(company)].index(2)
        codes[place] = mine[:, frame]
        output = lm.step(state, slots, codes, sampler=crowd)
        assert torch.equal(output.tokens[place], expected[frame]), frame
    assert len({tuple(tokens.tolist()) for tokens in expected}) > frames // 2
