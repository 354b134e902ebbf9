"""Rings that a step reads only as far as a slot got: the same conversation as in plain rings, in any storage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import fp8, streaming
from model.kv_cache import DTYPES, KVType, SlotKV
from model.lm import LM, LMState
from model.rotary import Rotary
from model.streaming import Window, WindowKind
from tests.model.tiny import CONTEXT, VOICE, random_codes, random_lm, step_user

LENGTHS = (0, 1, 5, CONTEXT - 2, CONTEXT, 3 * CONTEXT + 1)
STORED: tuple[KVType, ...] = ("float32", "bf16", "fp8")


@pytest.fixture(scope="module")
def lm() -> LM:
    return random_lm()


def poison(state: LMState) -> None:
    """Leave a NaN wherever nothing was written yet."""
    for ring in state.kv.rings():
        spoil(ring)


def spoil(ring: Tensor) -> None:
    ring.view(torch.uint8).fill_(0x7F) if ring.dtype == fp8.E4M3 else ring.fill_(float("nan"))


@pytest.mark.parametrize("window", ["reference", "full"])
@pytest.mark.parametrize("chunk", [5, 1000])
def test_a_conversation_is_that_of_plain_rings(lm: LM, window: WindowKind, chunk: int) -> None:
    plain, slots = lm.streaming(len(LENGTHS), window), lm.streaming(len(LENGTHS), window, torch.float32)
    poison(slots)
    for slot, length in enumerate(LENGTHS):
        for state in (plain, slots):
            lm.prefill(state, slot, random_codes(slot, length), chunk)
    for time in range(2 * CONTEXT):
        codes = random_codes(100 + time, len(LENGTHS), VOICE)
        order = torch.randperm(len(LENGTHS))[:4]
        one = lm.step(plain, order, codes.T[:4], depformer_steps=VOICE)
        other = lm.step(slots, order, codes.T[:4], depformer_steps=VOICE)
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(other.trace.hidden, one.trace.hidden, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stored", STORED)
def test_a_reset_slot_remembers_nothing(lm: LM, stored: KVType) -> None:
    used, fresh = lm.streaming(2, kv_dtype=DTYPES[stored]), lm.streaming(2, kv_dtype=DTYPES[stored])
    lm.prefill(used, 1, random_codes(1, 3 * CONTEXT))
    poison(used)
    used.reset(torch.tensor([1]))
    for state in (used, fresh):
        lm.prefill(state, 1, random_codes(2, 4))
    caller = random_codes(3, 2 * CONTEXT, VOICE)
    assert torch.equal(step_user(lm, used, 1, caller), step_user(lm, fresh, 1, caller))
    assert isinstance(used.kv, SlotKV)
    lm.prefill(used, 0, random_codes(4, 3))
    before = [ring[:, 0].float() for ring in used.kv.rings()]
    used.kv.wipe(1)
    assert not any(ring[:, 1].float().any() for ring in used.kv.rings())
    for was, ring in zip(before, used.kv.rings(), strict=True):
        torch.testing.assert_close(ring[:, 0].float(), was, equal_nan=True)


@pytest.mark.parametrize("stored", STORED)
def test_a_prompt_saved_or_copied_is_the_prompt(lm: LM, stored: KVType) -> None:
    state, prompt = lm.streaming(4, kv_dtype=DTYPES[stored]), random_codes(1, 9)
    lm.prefill(state, 0, prompt)
    for slot in (1, 2):
        lm.prefill(state, slot, prompt)
    state.kv.reset(torch.tensor([1]))
    state.kv.load(1, state.kv.save(0, 8), 8)
    state.copy(0, torch.tensor([3]))
    caller = random_codes(3, 20, VOICE)
    said = [step_user(lm, state, slot, caller) for slot in range(4)]
    assert all(torch.equal(said[0], other) for other in said[1:])


@pytest.mark.parametrize("stored", STORED)
def test_what_lies_beyond_the_cells_a_slot_holds_is_not_even_looked_at(
    lm: LM, stored: KVType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_CELLS", 1)
    whole, part = lm.streaming(1, kv_dtype=DTYPES[stored]), lm.streaming(1, kv_dtype=DTYPES[stored])
    read, most = SlotKV.read, list[int]()

    def watched(kv: SlotKV, layer: int, slots: Tensor | None, cells: int | None = None) -> tuple[Tensor, Tensor]:
        most.append(CONTEXT if cells is None else cells)
        return read(kv, layer, slots, cells)

    frames, done = random_codes(1, CONTEXT + 6), 0
    for length in (4, 3, 2, CONTEXT - 3):
        chunk = frames[:, done : done + length]
        lm.read(whole, 0, chunk)
        with monkeypatch.context() as patch, part.kv.holding(done):
            patch.setattr(SlotKV, "read", watched)
            lm.read(part, 0, chunk)
        assert set(most) == {min(done, CONTEXT)}
        most.clear()
        done += length
    for one, other in zip(whole.kv.rings(), part.kv.rings(), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.0, atol=1e-5)
    assert part.kv.readable == CONTEXT


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("slots", "cells"), [([0], 16), ([0, 1], 48), ([1, 2], 100)])
def test_a_step_reads_as_many_cells_as_the_slot_that_holds_most_of_them(
    stored: KVType, slots: list[int], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no kernel, which reads of each slot what it has. Beyond lies what would show, were it read."""
    cache = SlotKV(layers=1, slots=3, heads=2, head_dim=8, window=Window(100), dtype=DTYPES[stored])
    key, value, joined = torch.randn(3, 3, 2, 100, 8, generator=torch.Generator().manual_seed(1))
    cache.write(0, torch.arange(3)[:, None], torch.arange(100)[None].expand(3, -1), key, value)
    cache.offsets.copy_(torch.tensor([5, 40, 250]))
    named = torch.tensor(slots)
    positions = cache.positions(named, 1)
    asked, rotary = joined[slots, :, :3].transpose(1, 2), Rotary(positions, 8, 10_000.0)
    expected = cache.step(positions, named).attend(0, asked, rotary)
    monkeypatch.setattr(streaming, "_CELLS", 16)
    for slot in slots:
        for ring in cache.rings():
            spoil(ring[:, slot, :, cells:])
    read, seen = SlotKV.read, list[int]()

    def watched(kv: SlotKV, layer: int, slots: Tensor | None, cells: int | None = None) -> tuple[Tensor, Tensor]:
        keys, values = read(kv, layer, slots, cells)
        seen.append(keys.shape[2])
        return keys, values

    monkeypatch.setattr(SlotKV, "read", watched)
    torch.testing.assert_close(cache.step(positions, named).attend(0, asked, rotary), expected)
    assert seen == [cells]


@pytest.mark.parametrize("stored", STORED)
def test_steps_write_what_a_prefill_writes(lm: LM, stored: KVType) -> None:
    state, length = lm.streaming(2, kv_dtype=DTYPES[stored]), CONTEXT + 3
    frames = random_codes(1, length)
    lm.prefill(state, 0, frames, 1000)
    mask = torch.ones((1, frames.shape[0]), dtype=torch.bool)
    for frame in frames.T:
        lm.step(state, torch.tensor([1]), None, frame[None], mask, depformer_steps=VOICE)
    keys, values = state.kv.read(0, None)
    # In the first layer both read the same; one step of the coarsest storage's last place may lie between them.
    near = {"float32": 1e-5, "bf16": 2**-7, "fp8": 2**-3}[stored]
    torch.testing.assert_close(keys[0].float(), keys[1].float(), rtol=near, atol=1e-4)
    torch.testing.assert_close(values[0].float(), values[1].float(), rtol=near, atol=1e-4)


def test_fp8_scales_belong_to_one_token_and_head() -> None:
    cache = SlotKV(layers=1, slots=1, heads=2, head_dim=8, window=Window(4), dtype=fp8.E4M3)
    key = torch.ones(1, 2, 3, 8) * torch.tensor([1e-3, 1.0, 1e4])[:, None]
    key[:, 1] *= 7
    cache.write(0, torch.tensor([[0]]), torch.tensor([[0, 1, 2]]), key, key)
    keys, values = cache.read(0, None)
    torch.testing.assert_close(keys[:, :, :3], key)
    torch.testing.assert_close(values[:, :, :3], key)
    assert cache.bytes_per_position == 2 * 2 * (8 + 4)
