"""The attention over FP8 on tensor cores against plain PyTorch; its assembly is emulated where there is no card.

Bounds are parts of each slot's spread. The query and the weights are rounded to float16, each by 2^-12 at most and
1.4e-4 in the mean square; a score is about as large as it is uncertain, so that both together make some 3e-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.kernels import attention, fp8_attention
from model.kernels.tiles import AttentionTile
from model.kv_cache import DTYPES, KVType, SlotKV
from model.rotary import Rotary
from model.streaming import Window, WindowKind
from tests.model.device import long_without_a_gpu
from tests.model.kernels import ptx
from tests.model.kernels.test_attention import (
    CUT_OFF,
    DEVICE,
    HEADS,
    both,
    cache_of,
    fill,
    kernels,
    parts,
    ring_of,
    step_of,
)

WIDTH = fp8_attention.WIDTH.value
NAN = 0x7F
"""Of e4m3."""
RMS, LARGEST = 1e-3, 2e-2
"""Three times what is expected; and what a single weight near 1 may be off, as a score of some tens is rounded."""
BFLOAT16 = 2**-7
"""More, relative to what is seen: its rounding, which may go the other way, and in the interpreter cuts off."""
SHAPES = [(1, 2), (4, 2), (2, 3)]
"""Warps and stages; other tests take 2 of each."""
_CONVERTS = fp8_attention._converts

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not _CONVERTS(torch.device("cuda")), reason="this card does not convert e4m3"
)


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.int64]]:
    """On a CPU its assembly runs, and it is taken; what that loads."""
    if DEVICE == "cuda":
        return []
    monkeypatch.setattr(fp8_attention, "_converts", lambda device: True)
    return ptx.interpret(monkeypatch)


def tile_of(chunk: int, warps: int = 2, stages: int = 2) -> AttentionTile:
    return AttentionTile(chunk, warps, steps=2, stages=stages, tensor_cores=True)


def filled(lengths: list[int], context: int, kind: WindowKind = "reference") -> SlotKV:
    cache = cache_of(len(lengths), context, "fp8", kind, WIDTH)
    for slot, length in enumerate(lengths):
        fill(cache, slot, length)
    return cache


def queries(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return step_of(count, dtype=dtype, head_dim=WIDTH)


def assert_near(seen: Tensor, expected: Tensor, rounded: float = 0.0) -> None:
    """Of each slot by itself: what a long one sees spreads much less than what a fresh one does."""
    gap = (seen.float() - expected.float()).flatten(1)
    spread = expected.float().flatten(1).std(dim=1)
    assert (gap.square().mean(1).sqrt() < (RMS + rounded) * spread).all()
    allowed = LARGEST * spread[:, None] + rounded * expected.float().flatten(1).abs()
    assert (gap.abs() < allowed).all()


@pytest.mark.parametrize("kind", ["reference", "full"])
@pytest.mark.parametrize(("warps", "stages"), SHAPES)
def test_the_kernel_sees_what_the_oracle_sees(warps: int, stages: int, kind: WindowKind) -> None:
    """Fresh, short, exactly full, just wrapped and long-lived slots, in one batch and in any order."""
    context = 70
    cache = filled([0, 1, 31, 32, context - 2, context - 1, context, context + 1, 5 * context + 13, 9], context, kind)
    slots = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4])
    seen, expected, _ = both(cache, slots, queries(9), tile_of(32, warps, stages))
    assert_near(seen, expected)


@pytest.mark.parametrize(("warps", "stages"), SHAPES)
def test_a_window_may_end_anywhere_in_a_turn(warps: int, stages: int) -> None:
    lengths = [15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129]
    seen, expected, _ = both(
        filled(lengths, 150), torch.arange(len(lengths)), queries(len(lengths)), tile_of(256, warps, stages)
    )
    assert_near(seen, expected)


@pytest.mark.parametrize(("warps", "stages"), SHAPES)
def test_a_ring_may_end_anywhere_in_a_turn(warps: int, stages: int) -> None:
    """So many cells after the window's first."""
    context, cells = 150, [1, 2, 3, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 147]
    cache, slots = filled([3 * context - 2 - left for left in cells], context), torch.arange(len(cells))
    step = cache.step(cache.positions(slots, 1), slots)
    assert (context - step.first % context).tolist() == cells
    seen, expected, _ = both(cache, slots, queries(len(cells)), tile_of(256, warps, stages))
    assert_near(seen, expected)


@pytest.mark.parametrize("shape", [(16, 1, 2), (32, 2, 3), (96, 2, 2), (96, 4, 3), (96, 8, 1), (256, 4, 2)])
def test_how_the_window_is_cut_changes_nothing(shape: tuple[int, int, int]) -> None:
    """Of the second slot the newest position has a chunk to itself, but for the largest."""
    seen, expected, _ = both(filled([250, 96], 200), torch.tensor([1, 0]), queries(2), tile_of(*shape))
    assert_near(seen, expected)


def test_a_ring_may_be_shorter_than_a_turn() -> None:
    """And than all turns that are on their way at once, which begin beyond its second end."""
    for context in (2, 5, 17):
        cache = filled([0, context - 1, context, 7 * context + 1], context)
        seen, expected, _ = both(cache, torch.arange(4), queries(4), tile_of(64, 4, 3))
        assert_near(seen, expected)


def test_half_precision_goes_in_and_comes_out() -> None:
    cache = filled([0, 40, 99, 333], 100)
    seen, expected, _ = both(cache, torch.tensor([2, 0, 3, 1]), queries(4, torch.bfloat16), tile_of(64))
    assert seen.dtype == torch.bfloat16
    assert_near(seen, expected, BFLOAT16)


def test_what_is_written_is_what_the_oracle_writes() -> None:
    cache = filled([0, 8, 9, 31], 9)
    before = cache.keys[1].view(torch.uint8).clone()
    *_, ring = both(cache, torch.tensor([3, 0, 1]), queries(3), tile_of(32))
    expected = ring_of(cache, 1)
    for mine, theirs in zip(parts(ring), parts(expected), strict=True):
        assert mine is not None
        assert theirs is not None
        if mine.dtype == torch.float32:
            torch.testing.assert_close(mine, theirs, rtol=CUT_OFF["fp8"], atol=0)
        else:
            assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    changed = (cache.keys[1].view(torch.uint8) != before).any(-1).any(1).nonzero().tolist()
    assert changed == [[0, 0], [1, 8], [3, 31 % 9]]


@pytest.mark.parametrize("part", ["key", "value", "key scale", "value scale"])
def test_a_slot_with_a_nan_keeps_it_to_itself(part: str) -> None:
    """And of a value's, the component that has it."""
    cache = filled([50, 50, 50], 40)
    assert cache.key_scales is not None
    assert cache.value_scales is not None
    if part.endswith("scale"):
        (cache.key_scales if part == "key scale" else cache.value_scales)[:, 1, :, 7] = float("nan")
    else:
        (cache.keys if part == "key" else cache.values).view(torch.uint8)[:, 1, :, 7, 77] = NAN
    seen, expected, _ = both(cache, torch.arange(3), queries(3), tile_of(16))
    assert torch.equal(seen.isnan(), expected.isnan())
    assert seen[1].isnan().sum() == (HEADS if part == "value" else HEADS * WIDTH)
    assert_near(seen[[0, 2]], expected[[0, 2]])


def test_rows_of_a_batch_that_fill_it_up_harm_nobody() -> None:
    """They name one slot, which no call has, several times over."""
    cache, slots, joined = filled([0, 50, 100], 40), torch.tensor([1, 2, 0, 0, 0]), queries(5)
    ring, positions = ring_of(cache, 1), cache.positions(slots, 1)
    rotary, step = Rotary(positions, WIDTH, 10_000.0), cache.step(positions, slots)
    padded = kernels(ring, joined, rotary, step, attention.chunks(ring, 5, tile_of(32)))
    seen, _, alone = both(cache, slots[:2], joined[:2], tile_of(32))
    assert torch.equal(padded[:2], seen)
    assert torch.equal(ring.values[1:].view(torch.uint8), alone.values[1:].view(torch.uint8))


def test_outlying_channels_are_seen_as_the_oracle_sees_them() -> None:
    """A few channels many times the others, as language models have them: in keys and values, and in the query."""
    cache, loud = cache_of(2, 70, "fp8", head_dim=WIDTH), torch.ones(WIDTH)
    loud[3], loud[10] = 40.0, -25.0
    generator = torch.Generator().manual_seed(8)
    key, value = torch.randn(2, 2, HEADS, 70, WIDTH, generator=generator) * loud
    cache.write(1, torch.arange(2)[:, None], torch.arange(70)[None].expand(2, -1), key, value)
    cache.offsets[:] = torch.tensor([70, 300])
    joined = queries(2) * loud
    joined[:, 0] /= loud.abs().square()  # what is loud in the keys is quiet in the query, as training leaves it
    seen, expected, _ = both(cache, torch.arange(2), joined, tile_of(32))
    assert_near(seen, expected)
    assert_near(seen / loud, expected / loud)


@pytest.mark.parametrize("factor", [0.0, 1e-5, 1e5, 1e7])
def test_a_query_may_be_of_any_size(factor: float) -> None:
    """0 sees all positions alike, and so nearly does a tiny one; a huge one sees one position alone."""
    cache, joined = filled([33, 100], 60), queries(2)
    joined[:, 0] *= factor
    seen, expected, _ = both(cache, torch.arange(2), joined, tile_of(32))
    assert_near(seen, expected)


@pytest.mark.parametrize("factor", [1e-30, 1e-5, 1e7])
def test_a_query_may_be_as_small_as_keys_are_large(factor: float) -> None:
    """So that scores are as ever, and all of the query counts, whether float16 would hold it or not."""
    cache, joined = filled([33, 100], 60), queries(2)
    assert cache.key_scales is not None
    cache.key_scales /= factor
    joined[:, 0] *= factor
    joined[:, 1] /= factor
    seen, expected, _ = both(cache, torch.arange(2), joined, tile_of(32))
    assert_near(seen, expected)


def test_values_of_most_different_sizes_are_seen_as_the_oracle_sees_them() -> None:
    """A value's scale may be 0 but for a trace, and a weight times it must still be a float16."""
    cache = filled([60, 200], 60)
    assert cache.value_scales is not None
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    cache.value_scales.mul_(10.0 ** torch.linspace(-10, 10, 60)[mixed])
    seen, expected, _ = both(cache, torch.arange(2), queries(2), tile_of(32))
    assert_near(seen, expected)


def test_layers_share_what_the_chunks_leave() -> None:
    """Whatever a layer left there, the next one starts anew."""
    cache, slots, joined = filled([90, 33], 100), torch.tensor([1, 0]), queries(2)
    positions = cache.positions(slots, 1)
    rotary, step = Rotary(positions, WIDTH, 10_000.0), cache.step(positions, slots)
    rings = [ring_of(cache, layer) for layer in (0, 1)]
    shared = attention.chunks(rings[0], 2, tile_of(32))
    for part in (shared.seen, shared.sums, shared.peaks):
        part.fill_(float("nan"))
    for layer, ring in enumerate(rings):
        seen = kernels(ring, joined, rotary, step, shared)
        assert_near(seen, step.attend(layer, joined, rotary))


@pytest.mark.skipif(DEVICE == "cuda", reason="a card does not tell what a kernel loads")
@pytest.mark.parametrize(("warps", "stages"), SHAPES)
def test_of_each_slot_the_cells_are_loaded_that_it_holds_and_no_other(
    warps: int, stages: int, loads: list[NDArray[np.int64]]
) -> None:
    """The newest is not read back. Where there is nothing else, its cell is, and what is there does not count."""
    context, lengths = 150, [40, 0, 3 * 150 + 11]
    cache, slots = filled(lengths, context), torch.tensor([2, 0, 1])
    positions, joined = cache.positions(slots, 1), queries(3)
    ring, step = ring_of(cache, 1), cache.step(positions, slots)
    cut = attention.chunks(ring, 3, tile_of(96, warps, stages))
    kernels(ring, joined, Rotary(positions, WIDTH, 10_000.0), step, cut)
    addresses = np.unique(np.concatenate(loads))
    oldest = lengths[2] + 2 - context
    in_sight = {position % context for position in range(oldest, lengths[2])}
    for part in parts(ring):
        assert part is not None
        places = addresses[(addresses >= part.data_ptr()) & (addresses < part.data_ptr() + part.nbytes)]
        cells = np.unique((places - part.data_ptr()) // part[0, 0, 0].nbytes)
        touched: dict[int, set[int]] = {slot: set() for slot in range(3)}
        for cell in cells.tolist():
            touched[cell // (HEADS * context)].add(cell % context)
        assert touched == {0: set(range(40)), 1: {0}, 2: in_sight}


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("can", [True, False])
def test_this_kernel_runs_where_the_tile_says_so_and_it_can(
    says: bool, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[AttentionTile] = []
    real = fp8_attention.attend

    def watched(*arguments: Any) -> Tensor:
        taken.append(arguments[-1].tile)
        return real(*arguments)

    monkeypatch.setattr(fp8_attention, "attend", watched)
    monkeypatch.setattr(fp8_attention, "takes", lambda ring: can)
    tile = AttentionTile(32, 2, 2, 2, tensor_cores=says)
    seen, expected, _ = both(filled([33], 40), torch.tensor([0]), queries(1), tile)
    assert taken == ([tile] if says and can else [])
    assert_near(seen, expected)


@pytest.mark.parametrize(
    ("stored", "width", "taken"),
    [("fp8", 128, True), ("fp8", 64, False), ("fp8", 256, False), ("bf16", 128, False), ("float32", 128, False)],
)
def test_it_takes_heads_of_its_width_in_fp8(stored: KVType, width: int, taken: bool) -> None:
    assert fp8_attention.takes(ring_of(cache_of(1, 4, stored, head_dim=width), 0)) == taken


def test_it_takes_no_ring_where_e4m3_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and on cards before Ada (PTX ISA, `cvt`: e4m3x2 from 8.9 on)."""
    cache = cache_of(1, 4, "fp8", head_dim=WIDTH)
    monkeypatch.setattr(fp8_attention, "_converts", _CONVERTS)
    assert not fp8_attention.takes(attention.Ring(cache.keys[0], cache.values[0], *cache.layer(0)[2:]))
    for capability, converts in (((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, is_of=capability: is_of)
        assert _CONVERTS.__wrapped__(torch.device("cuda")) == converts, capability


@long_without_a_gpu
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("chunk", [512, 3072])
def test_the_published_shape(chunk: int, stages: int) -> None:
    """Heads of 128, 3,000 positions, a ring that wrapped beside one that did not."""
    cache = SlotKV(layers=1, slots=2, heads=HEADS, head_dim=WIDTH, window=Window(3000), dtype=DTYPES["fp8"])
    generator = torch.Generator().manual_seed(4)
    key, value = torch.randn(2, 2, HEADS, 3000, WIDTH, generator=generator)
    cache.write(0, torch.tensor([[0], [1]]), torch.arange(3000)[None].expand(2, -1), key, value)
    cache.offsets[:] = torch.tensor([7321, 2500])
    positions, joined = cache.positions(None, 1), queries(2)
    rotary, step = Rotary(positions, WIDTH, 10_000.0), cache.step(positions, None)
    ring = ring_of(cache, 0)
    seen = kernels(ring, joined, rotary, step, attention.chunks(ring, 2, tile_of(chunk, 4, stages)))
    assert_near(seen, step.attend(0, joined, rotary))
