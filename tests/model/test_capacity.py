"""How many calls a device holds, from numbers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.capacity import (
    MOST_SLOTS,
    PROMPT_LEAST,
    PROMPT_PART,
    WORKSPACE,
    batch_sizes,
    check_asked,
    engine_bytes,
    fitting_slots,
    fixed_bytes,
    kv_item,
    prompt_bytes,
    set_aside,
    slot_bytes,
    slots_by_memory,
    slots_by_speed,
    unwalked_bytes,
    weights_bytes,
)
from model.config import mimi_full, personaplex_7b
from model.engine_options import EngineRefused

GB = 10**9
SLOT = slot_bytes(personaplex_7b(), mimi_full(), 2)
WEIGHTS = 17 * GB


def test_a_call_of_the_published_model_takes_one_and_a_half_gigabytes_and_half_in_fp8() -> None:
    assert 1.57 * GB < SLOT < 1.65 * GB
    assert slot_bytes(personaplex_7b(), mimi_full(), 1) < 0.53 * SLOT


@pytest.mark.parametrize(
    ("slots", "kv_dtype", "least", "most"),
    [(64, "bf16", 118, 128), (128, "fp8", 122, 133), (96, "bf16", 151, 185)],
)
def test_the_published_sizes_need_what_is_known(slots: int, kv_dtype: str, least: int, most: int) -> None:
    """64 slots in bfloat16, or 128 in FP8, fill most of an H200; the figures of the design."""
    model = personaplex_7b()
    slot = slot_bytes(model, mimi_full(), kv_item(kv_dtype, model.transformer.head_dim))
    needed = engine_bytes(slots, fixed_bytes(WEIGHTS, "cuda"), slot)
    assert least * GB < needed < most * GB


def published(kv_dtype: str, weights_dtype: str = "auto", free: float = 0) -> tuple[int, int]:
    """What an engine of the published model takes whatever its slots, and each of them; `free`: prompts get a part."""
    model = personaplex_7b()
    weights = weights_bytes(16_742_817_792, 385_000_000, weights_dtype) - unwalked_bytes(model, 2, weights_dtype)
    slot = slot_bytes(model, mimi_full(), kv_item(kv_dtype, model.transformer.head_dim))
    return fixed_bytes(weights, "cuda", int(PROMPT_PART * free)), slot


def test_the_figures_that_are_written_down_are_those_of_the_code() -> None:
    lines = (Path(__file__).parents[2] / "deploy" / "benchmarks.md").read_text().splitlines()
    cells = dict(line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and line.count(" | ") == 1)
    gb = {
        (slots, kv): engine_bytes(slots, *published(kv)) / GB for slots in (64, 96, 128, 150) for kv in ("bf16", "fp8")
    }
    beside = "engine for 64 slots, bfloat16, with a spare, one for padding, 3.2 GB room to work, but no prompts kept"
    assert f"{WORKSPACE['cuda'] / GB:.1f}" == "3.2"
    assert cells[beside] == f"{gb[64, 'bf16']:.0f} GB: fits an H200; 96 would need {gb[96, 'bf16']:.0f} GB"
    eight = cells["the same for 128 / 150 slots, FP8"]
    assert eight.startswith(f"{gb[128, 'fp8']:.0f} / {gb[150, 'fp8']:.0f} GB: ")
    many = [fitting_slots(149 * GB, *published(kv, free=149 * GB)) for kv in ("bf16", "fp8")]
    assert cells["slots of a worker with 149 GB free, 4 % of them for prompts"] == (
        f"{many[0]} in bfloat16, {many[1]} in FP8"
    )
    assert f"{PROMPT_LEAST / GB:.1f}" == "1.1"
    fixed, slot = published("fp8")
    asked = [fitting_slots(149 * GB, fixed + PROMPT_LEAST, slot) for fixed, slot in map(published, ("bf16", "fp8"))]
    left = prompt_bytes(150, 149 * GB, fixed, slot)
    assert cells["the same where that number is asked for, with 1.1 GB or more for prompts"] == (
        f"{asked[0]} in bfloat16, {asked[1]} in FP8; with 150 in FP8 prompts have {left / GB:.1f} GB"
    )
    small = published("fp8", "fp8", free=16.5 * GB)
    one = cells["a worker for 1 call, weights and keys in FP8, 4 % of 16.5 GB free for prompts"]
    fitting = fitting_slots(int(16.5 * GB), *small)
    assert one.startswith(f"{engine_bytes(1, *small) / GB:.1f} GB; {fitting} calls fit: ")


def test_one_slot_more_than_fits_does_not() -> None:
    fixed = fixed_bytes(WEIGHTS, "cpu", prompts=GB)
    fitting = fitting_slots(139 * GB, fixed, SLOT)
    assert engine_bytes(fitting, fixed, SLOT) <= 139 * GB < engine_bytes(fitting + 1, fixed, SLOT)


def test_as_many_slots_as_memory_holds_beside_the_weights_and_the_spares() -> None:
    slots = slots_by_memory(0, 139 * GB, WEIGHTS, SLOT)
    assert 64 <= slots < 80
    assert WEIGHTS + (slots + 2) * SLOT <= 139 * GB < WEIGHTS + (slots + 3) * SLOT
    assert slots_by_memory(64, 139 * GB, WEIGHTS, SLOT) == 64


def test_where_slots_are_asked_for_prompts_have_what_these_leave() -> None:
    """150 calls in FP8 on an H200, where as many as fit beside all that prompts may have are fewer."""
    free = 149 * GB
    fixed, slot = published("fp8")
    assert slots_by_memory(150, free, fixed + set_aside(150, free), slot) == 150
    left = prompt_bytes(150, free, fixed, slot)
    assert engine_bytes(150, fixed, slot) + left == free
    frames = 300 * personaplex_7b().transformer.layers * 2 * 4096 * kv_item("fp8", 128)
    assert left > 25 * frames, "of 300 frames each"
    unasked = slots_by_memory(0, free, fixed + set_aside(0, free), slot)
    assert 140 < unasked < 150
    for slots in (64, unasked):
        assert prompt_bytes(slots, free, fixed, slot) == int(PROMPT_PART * free)
    most = slots_by_memory(153, free, fixed + set_aside(153, free), slot)
    assert prompt_bytes(most, free, fixed, slot) >= PROMPT_LEAST
    with pytest.raises(
        EngineRefused, match=r"154 slots need 149\.\d GB and 149\.0 GB are free; start it with --slots 153"
    ):
        slots_by_memory(154, free, fixed + set_aside(154, free), slot)


def test_of_little_memory_no_more_is_set_aside_for_prompts_than_they_may_have() -> None:
    assert set_aside(1, 16 * GB) == set_aside(0, 16 * GB) == int(PROMPT_PART * 16 * GB) < PROMPT_LEAST
    assert set_aside(1, 80 * GB) == PROMPT_LEAST < set_aside(0, 80 * GB)


def test_slots_that_do_not_fit_are_refused_with_the_number_that_does() -> None:
    with pytest.raises(EngineRefused, match=r"128 slots need .* GB and 139.0 GB are free; start it with --slots 7\d"):
        slots_by_memory(128, 139 * GB, WEIGHTS, SLOT)
    with pytest.raises(EngineRefused, match=r"one call needs .* GB with the model's weights, and 16.0 GB are free"):
        slots_by_memory(1, 16 * GB, WEIGHTS, SLOT)


def test_more_slots_than_any_device_is_asked_for_are_refused() -> None:
    check_asked(MOST_SLOTS)
    with pytest.raises(
        EngineRefused, match=r"257 slots are more than the 256 of one device; start it with --slots 256"
    ):
        check_asked(257)


def test_speed_leaves_room_unless_a_number_was_asked_for() -> None:
    costs = {1: 0.005, 32: 0.02, 64: 0.036, 128: 0.075}
    assert slots_by_speed(0, costs) == 64
    assert slots_by_speed(128, costs) == 128


def test_what_is_too_slow_is_refused_with_the_reason() -> None:
    with pytest.raises(EngineRefused, match=r"a step of 64 slots takes 90 ms .* 112 % of its time.* with --slots 32"):
        slots_by_speed(64, {1: 0.01, 16: 0.03, 32: 0.05, 64: 0.09})
    with pytest.raises(EngineRefused, match=r"62 % .* up to 130 ms of a frame's 80; start it with --slots 16"):
        slots_by_speed(32, {1: 0.01, 8: 0.03, 16: 0.045, 32: 0.05})
    with pytest.raises(EngineRefused, match=r"a step of 1 call takes 900 ms .* too slow for the model"):
        slots_by_speed(0, {1: 0.9})


@pytest.mark.parametrize("slots", [1, 2, 3, 16, 100, 128, 150])
def test_batches_hold_every_number_of_slots_without_much_padding(slots: int) -> None:
    sizes = batch_sizes(slots)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == slots
    for count in range(1, slots + 1):
        batch = next(size for size in sizes if size >= count)
        assert batch <= max(2 * count - 1, 1) if count < 24 else batch <= 1.5 * count
