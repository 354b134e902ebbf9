"""Properties of the language model that hold for any weights: prefill, slots, resets, forcing, graphs."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from model.config import UNGENERATED
from model.fp8_weights import shrink
from model.lm import LM, LMState, Sampler, StepOutput, greedy
from model.sampling import SlotSampling
from model.streaming import WindowKind
from model.wire import Sampling
from model.word_queue import WordQueue
from tests.model.recorder import Recorder
from tests.model.tiny import (
    CONFIG,
    CONTEXT,
    VOICE,
    random_codes,
    random_lm,
    same_memory,
    slot_memory,
    step_given,
    step_user,
)

WINDOWS: tuple[WindowKind, ...] = ("reference", "full")
SHORT, LONG = 5, 3 * CONTEXT + 1
ALL = torch.ones((1, CONFIG.rows), dtype=torch.bool)


@pytest.fixture(scope="module")
def lm() -> LM:
    return random_lm()


def assert_same_state(one: LMState, other: LMState, slot: int = 0) -> None:
    """Token grids exactly, keys and values of all positions written within summation order."""
    assert torch.equal(one.cache.tokens[slot], other.cache.tokens[slot])
    assert torch.equal(one.cache.provided[slot], other.cache.provided[slot])
    assert one.cache.offset[slot] == other.cache.offset[slot]
    assert one.kv.offsets[slot] == other.kv.offsets[slot]
    written = min(int(one.kv.offsets[slot]), one.kv.window.capacity)
    for mine, theirs in ((one.kv.keys, other.kv.keys), (one.kv.values, other.kv.values)):
        torch.testing.assert_close(mine[:, slot, :, :written], theirs[:, slot, :, :written], rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("length", [1, 2, SHORT, CONTEXT + 1, LONG])
def test_prefill_leaves_what_stepping_leaves(lm: LM, length: int, chunk: int, window: WindowKind) -> None:
    frames = random_codes(length, length)
    filled, stepped = lm.streaming(2, window), lm.streaming(2, window)
    hidden = lm.prefill(filled, 1, frames, chunk)
    outputs = step_given(lm, stepped, 1, frames)
    assert_same_state(filled, stepped, 1)
    if length > 1:
        assert hidden is not None
        torch.testing.assert_close(hidden, outputs[-1].trace.hidden[0], rtol=0, atol=2e-5)
    caller = random_codes(99, CONTEXT, VOICE)
    assert torch.equal(step_user(lm, filled, 1, caller), step_user(lm, stepped, 1, caller))


def test_prefill_continues_prefill_and_given_steps(lm: LM) -> None:
    frames = random_codes(1, LONG)
    pieces, stepped = lm.streaming(1), lm.streaming(1)
    lm.prefill(pieces, 0, frames[:, :4])
    step_given(lm, pieces, 0, frames[:, 4:7])
    lm.prefill(pieces, 0, frames[:, 7:7])
    lm.prefill(pieces, 0, frames[:, 7:], chunk=9)
    step_given(lm, stepped, 0, frames)
    assert_same_state(pieces, stepped)


def test_prefill_refuses_a_frame_half_decided(lm: LM) -> None:
    state = lm.streaming(1)
    step_user(lm, state, 0, random_codes(1, 4, VOICE))
    before = slot_memory(state, 0)
    with pytest.raises(ValueError, match="slot 0 has a frame under way"):
        lm.prefill(state, 0, random_codes(2, 3))
    assert same_memory(before, slot_memory(state, 0))


def test_a_conversation_is_rebuilt_from_the_frames_it_emitted(lm: LM) -> None:
    """The last frame's text and first codebook are still to come when the model's acoustic codes are."""
    prompt, caller = random_codes(1, 6), random_codes(2, 30, VOICE)
    state, rebuilt = lm.streaming(1), lm.streaming(1)
    lm.prefill(state, 0, prompt)
    emitted = step_user(lm, state, 0, caller)
    lm.prefill(rebuilt, 0, torch.cat((prompt[:, :-1], emitted[:, :21]), dim=1))
    assert torch.equal(step_user(lm, rebuilt, 0, caller[:, 20:])[:, 1:], emitted[:, 21:])


def test_a_voice_replayed_is_the_voice_prefilled(lm: LM) -> None:
    voice, role = random_codes(1, 9), random_codes(2, 8)
    replayed, filled = lm.streaming(1), lm.streaming(1)
    lm.replay_voice(replayed, 0, *lm.record_voice(voice), chunk=4)
    lm.prefill(filled, 0, voice)
    assert_same_state(replayed, filled)
    lm.prefill(replayed, 0, role)
    lm.prefill(filled, 0, role)
    assert_same_state(replayed, filled)


def test_a_voice_of_another_model_is_refused(lm: LM) -> None:
    state = lm.streaming(1)
    embeddings, cache = lm.record_voice(random_codes(1, 9))
    with pytest.raises(ValueError, match=r"embeddings are \[8, 31\], not \[frames, 32\]"):
        lm.replay_voice(state, 0, embeddings[..., :31], cache)
    with pytest.raises(ValueError, match=r"grid is \[17, 3\], not \[17, 4\]"):
        lm.replay_voice(state, 0, embeddings, cache[..., :3])
    lm.prefill(state, 0, random_codes(1, 2))
    with pytest.raises(ValueError, match="slot 0 is not fresh"):
        lm.replay_voice(state, 0, embeddings, cache)


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_streaming_in_the_full_window_is_teacher_forcing(lm: LM, length: int) -> None:
    """Step n decides column n, which is column n - 1 of teacher forcing: the first call's codes are lost."""
    codes = random_codes(3, length)
    traces = [output.trace for output in step_given(lm, lm.streaming(1, "full"), 0, codes, CONFIG.depformer.steps)]
    whole = lm(codes[None, :, 1:])
    text = torch.stack([trace.text_logits[0] for trace in traces[1:]])
    torch.testing.assert_close(whole.text_logits[0, 0], text, rtol=0, atol=5e-5)
    for step, delay in enumerate(CONFIG.delays[1:]):
        known = whole.audio_mask[0, step]
        audio = torch.stack([trace.audio_logits[0, step] for trace in traces[1 + delay :]])
        torch.testing.assert_close(whole.audio_logits[0, step][known], audio, rtol=0, atol=5e-5)


def test_teacher_forcing_reaches_every_weight() -> None:
    lm = random_lm().requires_grad_(True)
    out = lm(torch.stack((random_codes(1, 6), random_codes(2, 6))))
    audio = out.audio_logits.logsumexp(-1)[out.audio_mask].sum()
    (audio + out.text_logits.logsumexp(-1).sum()).backward()
    assert [name for name, weight in lm.named_parameters() if weight.grad is None or not weight.grad.any()] == []


class Stranger:
    """A conversation with its own pace: what it is prompted with, when it pauses, resets and starts."""

    def __init__(self, seed: int, length: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.present = torch.rand(length, generator=draw) < 0.7
        self.reset = torch.rand(length, generator=draw) < 0.05
        self.prompt = random_codes(seed + 100, int(torch.randint(0, LONG, (), generator=draw)))
        self.caller = random_codes(seed + 200, length, VOICE)

    def start(self, lm: LM, state: LMState, slot: int) -> None:
        state.reset(torch.tensor([slot]))
        lm.prefill(state, slot, self.prompt)


def drawing(*seeds: int) -> SlotSampling:
    """Slots that draw by chance, each from its own seed."""
    sampling = SlotSampling(len(seeds))
    for slot, seed in enumerate(seeds):
        sampling.set(slot, Sampling(seed=seed, top_k=20, text_top_k=10))
    return sampling


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_slot_among_strangers_says_what_it_says_alone(lm: LM, window: WindowKind, drawn: bool) -> None:
    length, count = 30, 4
    strangers = [Stranger(seed, length) for seed in range(count)]
    together, sampler = lm.streaming(count, window), drawing(*range(count)) if drawn else greedy
    for slot, stranger in enumerate(strangers):
        stranger.start(lm, together, slot)
    said: list[list[Tensor]] = [[] for _ in strangers]
    for time in range(length):
        for slot, stranger in enumerate(strangers):
            if stranger.reset[time]:
                stranger.start(lm, together, slot)
        slots = [slot for slot in torch.randperm(count).tolist() if strangers[slot].present[time]]
        if slots:
            codes = torch.stack([strangers[slot].caller[:, time] for slot in slots])
            output = lm.step(together, torch.tensor(slots), codes, sampler=sampler)
            for row, slot in enumerate(slots):
                said[slot].append(output.tokens[row])
    for slot, stranger in enumerate(strangers):
        state = lm.streaming(1, window)
        expected = alone(lm, state, stranger, length, drawing(slot) if drawn else greedy)
        assert torch.equal(torch.stack(said[slot]), expected), slot


def alone(lm: LM, state: LMState, stranger: Stranger, length: int, sampler: Sampler) -> Tensor:
    stranger.start(lm, state, 0)
    said = []
    for time in range(length):
        if stranger.reset[time]:
            stranger.start(lm, state, 0)
        if stranger.present[time]:
            said.append(lm.step(state, torch.tensor([0]), stranger.caller[None, :, time], sampler=sampler).tokens[0])
    return torch.stack(said)


def test_all_slots_unnamed_are_all_slots_in_order(lm: LM) -> None:
    named, unnamed = lm.streaming(3), lm.streaming(3)
    codes = random_codes(1, 3 * 20, VOICE).view(VOICE, 3, 20)
    for time in range(20):
        caller = codes[:, :, time].T
        one, other = lm.step(named, torch.arange(3), caller), lm.step(unnamed, None, caller)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.valid, other.valid)
    for slot in range(3):
        assert same_memory(slot_memory(named, slot), slot_memory(unnamed, slot))


def test_whoever_sits_out_is_not_touched(lm: LM) -> None:
    state = lm.streaming(4)
    for slot, length in enumerate((0, 1, SHORT, LONG)):
        lm.prefill(state, slot, random_codes(slot, length))
    before = [slot_memory(state, slot) for slot in range(4)]
    for others, here in (([0, 2], [1, 3]), ([3, 1], [0, 2])):
        for time in range(CONTEXT + 3):
            lm.step(state, torch.tensor(others), random_codes(time, len(others), VOICE).T)
        state.reset(torch.tensor(others[:1]))
        lm.prefill(state, others[0], random_codes(7, LONG))
        state.copy(others[0], torch.tensor(others[1:]))
        assert all(same_memory(before[slot], slot_memory(state, slot)) for slot in here)
        before = [slot_memory(state, slot) for slot in range(4)]


def test_a_reset_slot_is_a_fresh_one(lm: LM) -> None:
    used, fresh = lm.streaming(2), lm.streaming(2)
    lm.prefill(used, 1, random_codes(1, LONG))
    step_user(lm, used, 1, random_codes(2, 7, VOICE))
    used.kv.values[:, 1] = float("nan")
    used.reset(torch.tensor([1]))
    assert same_memory(slot_memory(used, 1), slot_memory(fresh, 1))
    caller = random_codes(3, 2 * CONTEXT, VOICE)
    assert torch.equal(step_user(lm, used, 1, caller), step_user(lm, fresh, 1, caller))
    assert same_memory(slot_memory(used, 1), slot_memory(fresh, 1))


def test_copies_of_a_prompt_go_their_own_ways(lm: LM) -> None:
    state = lm.streaming(3)
    lm.prefill(state, 0, random_codes(1, LONG))
    state.copy(0, torch.tensor([2, 1]))
    kept = slot_memory(state, 0)
    callers = [random_codes(seed, 15, VOICE) for seed in (1, 2)]
    said = [step_user(lm, state, slot, caller) for slot, caller in zip((1, 2), callers, strict=True)]
    assert same_memory(kept, slot_memory(state, 0))
    assert torch.equal(step_user(lm, state, 0, callers[1]), said[1])
    assert not torch.equal(*said)


def test_eight_depformer_steps_choose_what_sixteen_do(lm: LM) -> None:
    whole, half = lm.streaming(2), lm.streaming(2)
    for time in range(2 * CONTEXT):
        codes = random_codes(time, 2, VOICE).T
        one = lm.step(whole, None, codes)
        other = lm.step(half, None, codes, depformer_steps=VOICE)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.trace.chosen[:, : 1 + VOICE], other.trace.chosen)
    assert torch.equal(whole.cache.tokens, half.cache.tokens)


@pytest.mark.parametrize("small", [False, True], ids=["float32", "fp8"])
def test_a_conversation_is_the_same_without_the_weights_of_the_steps_that_it_does_not_walk(small: bool) -> None:
    whole, half = random_lm(3), random_lm(3)
    half.keep_steps(VOICE)
    for one in (whole, half):
        if small:
            shrink(one, "cpu")
    states = whole.streaming(2), half.streaming(2)
    for time in range(2 * CONTEXT):
        codes = random_codes(time, 2, VOICE).T
        expected = whole.step(states[0], None, codes, depformer_steps=VOICE)
        seen = half.step(states[1], None, codes, depformer_steps=VOICE)
        assert torch.equal(seen.tokens, expected.tokens)
        assert torch.equal(seen.trace.audio_logits, expected.trace.audio_logits)
    assert half.step(states[1], None, codes).trace.audio_logits.shape[1] == VOICE, "all that there are"


def test_forced_rows_come_out_and_win_over_the_caller(lm: LM) -> None:
    state = lm.streaming(1)
    lm.prefill(state, 0, random_codes(1, 5))
    forced, caller = random_codes(2, 12), random_codes(3, 12, VOICE)
    outputs = [
        lm.step(state, torch.tensor([0]), user[None], frame[None], ALL)
        for frame, user in zip(forced.T, caller.T, strict=True)
    ]
    emitted = torch.cat([output.tokens for output in outputs]).T
    assert torch.equal(emitted[:, 1:], forced[:, :-1])


def test_codebooks_follow_the_text_that_is_forced(lm: LM) -> None:
    mask = torch.zeros((1, CONFIG.rows), dtype=torch.bool)
    mask[:, 0] = True
    seen = []
    for text in (5, 6):
        state = lm.streaming(1)
        lm.prefill(state, 0, random_codes(1, 5))
        forced = torch.full((1, CONFIG.rows), text)
        seen.append(lm.step(state, None, random_codes(2, 1, VOICE).T, forced, mask).trace)
    assert torch.equal(seen[0].text_logits, seen[1].text_logits)
    assert not torch.equal(seen[0].audio_logits[:, 0], seen[1].audio_logits[:, 0])


def test_nothing_is_emitted_before_the_third_step(lm: LM) -> None:
    state = lm.streaming(1)
    outputs = [lm.step(state, None, random_codes(time, 1, VOICE).T) for time in range(4)]
    assert [bool(output.valid) for output in outputs] == [False, False, True, True]
    assert all((output.tokens == UNGENERATED).all() for output in outputs[:2])
    assert (outputs[2].tokens >= 0).all()


def test_the_sampler_learns_row_frame_and_slot(lm: LM) -> None:
    asked: list[tuple[int, list[int], list[int]]] = []

    def sampler(logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        asked.append((row, frame.tolist(), slots.tolist()))
        return torch.full_like(frame, 7)

    state = lm.streaming(3)
    lm.prefill(state, 2, random_codes(1, 5))
    output = lm.step(state, torch.tensor([2, 0]), random_codes(1, 2, VOICE).T, sampler=sampler)
    assert asked == [(row, [5, 0], [2, 0]) for row in range(CONFIG.rows)]
    assert (output.trace.chosen == 7).all()


def test_a_step_is_the_same_operations_whatever_the_data(lm: LM) -> None:
    """So that it can be captured as a CUDA graph: fixed shapes, nothing read back, words queued or not."""
    state, sampler = lm.streaming(3), WordQueue(drawing(1, 2, 3), [True] * CONFIG.text_card, 3)
    lm.prefill(state, 1, random_codes(1, LONG))
    sampler.start(1, [[7, 8], [9]])
    forced, mask = random_codes(1, 2).T, torch.rand((2, CONFIG.rows)) < 0.5
    recorded = []
    for slots in ([0, 1], [1, 0], [2, 0]):
        named, codes = torch.tensor(slots), random_codes(sum(slots), 2, VOICE).T
        with Recorder() as recorder:
            lm.step(state, named, codes, forced, mask, sampler=sampler, depformer_steps=VOICE)
        recorded.append(recorder)
    assert recorded[0].operations == recorded[1].operations == recorded[2].operations
    assert recorded[0].waits() == []


def test_half_precision_stays_near(lm: LM) -> None:
    half = random_lm().to(torch.bfloat16)
    codes = random_codes(1, CONTEXT)
    states = lm.streaming(1), half.streaming(1)
    assert states[1].kv.keys.dtype is torch.bfloat16
    exact, rough = (step_given(model, state, 0, codes)[-1] for model, state in zip((lm, half), states, strict=True))
    assert rough.trace.hidden.dtype is torch.bfloat16
    torch.testing.assert_close(rough.trace.hidden.float(), exact.trace.hidden, rtol=0, atol=0.15)


def test_outputs_have_the_shapes_they_state(lm: LM) -> None:
    output = lm.step(lm.streaming(2), None, random_codes(1, 2, VOICE).T)
    assert {field.name for field in fields(StepOutput)} == {"tokens", "valid", "column", "trace"}
    assert output.tokens.shape == output.column.shape == (2, CONFIG.rows)
    assert output.text.shape == output.valid.shape == (2,)
    trace = output.trace
    assert trace.inputs.shape == trace.chosen.shape == (2, CONFIG.rows)
    assert trace.hidden.shape == (2, CONFIG.transformer.dim)
    assert trace.text_logits.shape == (2, CONFIG.text_card)
    assert trace.audio_logits.shape == (2, CONFIG.depformer.steps, CONFIG.card)
