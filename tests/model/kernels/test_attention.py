"""The attention kernels against plain PyTorch: any offsets, windows, wraps and storage, each slot by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import fp8
from model.kernels import attention
from model.kernels.tiles import AttentionTile
from model.kv_cache import DTYPES, KVType, SlotKV, StepAttention
from model.rotary import Rotary
from model.streaming import Window, WindowKind
from tests.model.device import long_without_a_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED: tuple[KVType, ...] = ("float32", "bf16", "fp8")
HEADS, HEAD_DIM = 2, 16
CUT_OFF = {"float32": 2e-6, "bf16": 2e-2, "fp8": 2e-6}
"""The interpreter cuts bfloat16 off where a GPU and torch round; one position of many differs in its last place."""


def cache_of(
    slots: int, context: int, stored: KVType, kind: WindowKind = "reference", head_dim: int = HEAD_DIM
) -> SlotKV:
    """Full of NaN: whatever is read beyond what a slot holds shows."""
    window = Window(context, kind)
    cache = SlotKV(layers=2, slots=slots, heads=HEADS, head_dim=head_dim, window=window, dtype=DTYPES[stored])
    for ring in (cache.keys, cache.values):
        ring.view(torch.uint8).fill_(0x7F) if stored == "fp8" else ring.fill_(float("nan"))
    return cache


def fill(cache: SlotKV, slot: int, length: int, seed: int = 0) -> None:
    """Let `slot` have seen `length` positions."""
    generator = torch.Generator().manual_seed(seed + 17 * slot)
    last = min(length, cache.window.capacity)
    key, value = torch.randn(2, 1, HEADS, last, cache.keys.shape[-1], generator=generator)
    cells = torch.arange(length - last, length)[None] % cache.window.capacity
    for layer in range(2):
        cache.write(layer, torch.tensor([[slot]]), cells, key, value)
    cache.offsets[slot] = length


def ring_of(cache: SlotKV, layer: int) -> attention.Ring:
    """A copy of one layer."""
    keys, values = cache.keys[layer].to(DEVICE, copy=True), cache.values[layer].to(DEVICE, copy=True)
    if cache.key_scales is None or cache.value_scales is None:
        return attention.Ring(keys, values)
    scales = (ring[layer].to(DEVICE, copy=True) for ring in (cache.key_scales, cache.value_scales))
    return attention.Ring(keys, values, *scales)


def step_of(count: int, seed: int = 3, dtype: torch.dtype = torch.float32, head_dim: int = HEAD_DIM) -> Tensor:
    return torch.randn(count, 3, HEADS, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tile_of(chunk: int) -> AttentionTile:
    return AttentionTile(chunk, warps=4, steps=4, stages=1)


def both(
    cache: SlotKV, slots: Tensor, joined: Tensor, tile: AttentionTile | int = 32
) -> tuple[Tensor, Tensor, attention.Ring]:
    """A step by the kernels, on a copy of layer 1, and by the oracle, in place."""
    positions = cache.positions(slots, 1)
    rotary = Rotary(positions, joined.shape[-1], 10_000.0)
    ring, step = ring_of(cache, 1), cache.step(positions, slots)
    cut = attention.chunks(ring, len(slots), tile_of(tile) if isinstance(tile, int) else tile)
    seen = kernels(ring, joined, rotary, step, cut)
    return seen, step.attend(1, joined, rotary), ring


def kernels(ring: attention.Ring, joined: Tensor, rotary: Rotary, step: StepAttention, cut: attention.Chunks) -> Tensor:
    slots, first, last = (part.to(DEVICE) for part in (step.slots, step.first, step.last))
    cos, sin = rotary.cos[:, 0, 0].to(DEVICE), rotary.sin[:, 0, 0].to(DEVICE)
    seen = attention.attend(ring, joined.to(DEVICE), cos, sin, slots, first, last, cut).cpu()
    assert not cut.arrivals.any()
    return seen


def parts(ring: attention.Ring) -> tuple[Tensor | None, ...]:
    return ring.keys, ring.values, ring.key_scales, ring.value_scales


@pytest.mark.parametrize("kind", ["reference", "full"])
@pytest.mark.parametrize("stored", STORED)
def test_the_kernels_see_what_the_oracle_sees(stored: KVType, kind: WindowKind) -> None:
    """Fresh, short, exactly full, just wrapped and long-lived slots, in one batch and in any order."""
    context = 70
    lengths = [0, 1, 31, 32, context - 2, context - 1, context, context + 1, 5 * context + 13]
    cache = cache_of(len(lengths) + 1, context, stored, kind)
    for slot, length in enumerate(lengths):
        fill(cache, slot, length)
    slots = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4])
    seen, expected, _ = both(cache, slots, step_of(len(slots)))
    torch.testing.assert_close(seen, expected, rtol=0, atol=CUT_OFF[stored])


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("seed", range(3))
def test_random_batches_of_half_precision(seed: int, stored: KVType) -> None:
    draw = torch.Generator().manual_seed(seed)
    context = int(torch.randint(3, 120, (), generator=draw))
    cache = cache_of(6, context, stored)
    for slot in range(6):
        fill(cache, slot, int(torch.randint(0, 4 * context, (), generator=draw)), seed)
    slots = torch.randperm(6, generator=draw)[: 1 + seed * 2]
    seen, expected, _ = both(cache, slots, step_of(len(slots), seed, torch.bfloat16), 64)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(seen.float(), expected.float(), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("stored", STORED)
def test_what_is_written_is_what_the_oracle_writes(stored: KVType) -> None:
    cache = cache_of(4, 9, stored)
    for slot, length in enumerate((0, 8, 9, 31)):
        fill(cache, slot, length)
    slots = torch.tensor([3, 0, 1])
    before = cache.keys[1].view(torch.uint8).clone()
    *_, ring = both(cache, slots, step_of(3))
    for mine, theirs in zip(parts(ring), parts(ring_of(cache, 1)), strict=True):
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine.float(), theirs.float(), rtol=CUT_OFF[stored], atol=1e-6, equal_nan=True)
    changed = (cache.keys[1].view(torch.uint8) != before).any(-1).any(1).nonzero().tolist()
    assert changed == [[0, 0], [1, 8], [3, 31 % 9]]


def test_the_kernel_rounds_to_e4m3_as_torch_does() -> None:
    """Every order of magnitude, subnormals, ties and zeros, through a ring of one cell."""
    rows = torch.randn(64, HEAD_DIM, generator=torch.Generator().manual_seed(1)) * 8
    rows[:16] *= 2.0 ** torch.arange(-12.0, 4.0)[:, None] / 8
    rows[:, 0] = 448.0
    rows[1, 1:] = torch.arange(1, HEAD_DIM) * 2.0**-10
    rows[2, 1:] = 17 + torch.arange(1, HEAD_DIM)
    rows[3, 1:] = 0.0
    joined = rows[:, None, None].expand(-1, 3, HEADS, -1).contiguous()
    cache = cache_of(64, 2, "fp8")
    ring, still = ring_of(cache, 0), torch.zeros(64, HEAD_DIM // 2)
    slots, zero = torch.arange(64), torch.zeros(64, dtype=torch.long)
    row, cos, sin, slot, first = (part.to(DEVICE) for part in (joined, still + 1, still, slots, zero))
    attention.attend(ring, row, cos, sin, slot, first, first, attention.chunks(ring, 64))
    expected, scale = fp8.quantise(rows)
    assert torch.equal(ring.values[:, 0, 0].cpu().view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(ring.keys[:, 1, 0].cpu().view(torch.uint8), expected.view(torch.uint8))
    assert ring.key_scales is not None
    assert torch.equal(ring.key_scales[:, 1, 0].cpu(), scale)


def test_a_slot_with_a_nan_keeps_it_to_itself() -> None:
    cache = cache_of(3, 40, "float32")
    for slot in range(3):
        fill(cache, slot, 50)
    cache.keys[:, 1, :, 7] = float("nan")
    seen, expected, _ = both(cache, torch.arange(3), step_of(3))
    assert torch.isnan(seen[1]).all()
    torch.testing.assert_close(seen[[0, 2]], expected[[0, 2]], rtol=0, atol=2e-6)


@pytest.mark.parametrize("chunk", [32, 96, 256])
def test_how_the_window_is_cut_changes_nothing(chunk: int) -> None:
    cache = cache_of(2, 200, "float32")
    fill(cache, 0, 700)
    fill(cache, 1, 33)
    seen, expected, _ = both(cache, torch.tensor([1, 0]), step_of(2), chunk)
    torch.testing.assert_close(seen, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("head_dim", [6, 20])
@pytest.mark.parametrize("stored", STORED)
def test_heads_whose_width_is_no_power_of_two(stored: KVType, head_dim: int) -> None:
    cache = cache_of(3, 40, stored, head_dim=head_dim)
    for slot, length in enumerate((0, 33, 90)):
        fill(cache, slot, length)
    seen, expected, ring = both(cache, torch.tensor([2, 0, 1]), step_of(3, head_dim=head_dim))
    torch.testing.assert_close(seen, expected, rtol=0, atol=CUT_OFF[stored])
    mine, theirs = ring.keys.float().cpu(), cache.keys[1].float()
    torch.testing.assert_close(mine, theirs, rtol=CUT_OFF[stored], atol=1e-6, equal_nan=True)


def test_layers_share_what_the_chunks_leave() -> None:
    """Whatever a layer left there, the next one starts anew."""
    cache = cache_of(2, 100, "float32")
    fill(cache, 0, 90)
    fill(cache, 1, 33)
    slots, joined = torch.tensor([1, 0]), step_of(2)
    positions = cache.positions(slots, 1)
    rotary, step = Rotary(positions, HEAD_DIM, 10_000.0), cache.step(positions, slots)
    rings = [ring_of(cache, layer) for layer in (0, 1)]
    shared = attention.chunks(rings[0], 2, tile_of(32))
    shared.seen.fill_(float("nan"))
    shared.sums.fill_(float("nan"))
    shared.peaks.fill_(float("nan"))
    for layer, ring in enumerate(rings):
        seen = kernels(ring, joined, rotary, step, shared)
        torch.testing.assert_close(seen, step.attend(layer, joined, rotary), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 8, 2), (4, 2, 4), (8, 2, 3)])
def test_no_tile_changes_what_is_seen(shape: tuple[int, int, int]) -> None:
    """Of the second slot the newest position has a chunk to itself."""
    cache = cache_of(2, 200, "fp8")
    fill(cache, 0, 700)
    fill(cache, 1, 96)
    seen, expected, _ = both(cache, torch.tensor([1, 0]), step_of(2), AttentionTile(96, *shape))
    torch.testing.assert_close(seen, expected, rtol=0, atol=2e-6)


def test_rows_of_a_batch_that_fill_it_up_harm_nobody() -> None:
    """They name one slot, which no call has, several times over."""
    cache = cache_of(3, 40, "fp8")
    for slot in range(3):
        fill(cache, slot, 50 * slot)
    ring = ring_of(cache, 1)
    both_slots, joined = torch.tensor([1, 2, 0, 0, 0]), step_of(5)
    positions = cache.positions(both_slots, 1)
    rotary, step = Rotary(positions, HEAD_DIM, 10_000.0), cache.step(positions, both_slots)
    padded = kernels(ring, joined, rotary, step, attention.chunks(ring, 5, tile_of(32)))
    seen, _, alone = both(cache, both_slots[:2], joined[:2])
    assert torch.equal(padded[:2], seen)
    assert torch.equal(ring.values[1:].view(torch.uint8), alone.values[1:].view(torch.uint8))


@pytest.mark.parametrize("stored", STORED)
def test_outlying_channels_are_seen_as_the_oracle_sees_them(stored: KVType) -> None:
    """A few channels many times the others, as language models have them, in queries, keys and values."""
    cache = cache_of(2, 70, stored)
    generator, loud = torch.Generator().manual_seed(8), torch.ones(HEAD_DIM)
    loud[3], loud[10] = 40.0, -25.0
    key, value = torch.randn(2, 2, HEADS, 70, HEAD_DIM, generator=generator) * loud
    cache.write(1, torch.arange(2)[:, None], torch.arange(70)[None].expand(2, -1), key, value)
    cache.offsets[:] = torch.tensor([70, 300])
    joined = step_of(2) * loud
    joined[:, 0, :, 10] /= 25.0
    seen, expected, _ = both(cache, torch.arange(2), joined)
    # Scores are some hundreds here, so that their rounding in float32 shows.
    torch.testing.assert_close(seen, expected, rtol=2e-2 if stored == "bf16" else 1e-4, atol=1e-3)


@contextmanager
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NDArray[np.uint64]]]:
    """In Triton's interpreter: the addresses of each load that counts."""
    from triton.runtime.interpreter import InterpreterBuilder

    seen: list[NDArray[np.uint64]] = []
    load = InterpreterBuilder.create_masked_load

    def watched(self: Any, places: Any, mask: Any, *more: Any) -> Any:
        where, counts = np.broadcast_arrays(places.data, mask.data)
        seen.append(where[counts])
        return load(self, places, mask, *more)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", watched)
        yield seen


@pytest.mark.skipif(DEVICE == "cuda", reason="a card does not tell what a kernel loads")
@pytest.mark.parametrize("stored", STORED)
def test_of_each_slot_the_cells_are_loaded_that_it_holds_and_no_other(
    stored: KVType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of three seconds beside one that has wrapped costs its own 40 positions; the newest is not read back."""
    context = 700
    cache = cache_of(3, context, stored)
    lengths = {0: 40, 1: 0, 2: 3 * context + 11}
    for slot, length in lengths.items():
        fill(cache, slot, length)
    slots = torch.tensor([2, 0, 1])
    positions, joined = cache.positions(slots, 1), step_of(3)
    ring, step = ring_of(cache, 1), cache.step(positions, slots)
    with loads(monkeypatch) as seen:
        kernels(ring, joined, Rotary(positions, HEAD_DIM, 10_000.0), step, attention.chunks(ring, 3, tile_of(96)))
    addresses = np.unique(np.concatenate(seen))
    for part in parts(ring):
        if part is None:
            continue
        cell_bytes = part[0, 0, 0].nbytes
        places = addresses[(addresses >= part.data_ptr()) & (addresses < part.data_ptr() + part.nbytes)]
        cells = np.unique((places - part.data_ptr()) // cell_bytes)
        touched = {slot: set[int]() for slot in lengths}
        for place in cells.tolist():
            touched[place // (HEADS * context)].add(place % context)
        assert len(cells) == HEADS * sum(len(held) for held in touched.values())
        oldest = lengths[2] + 2 - context
        in_sight = {position % context for position in range(oldest, lengths[2])}
        assert touched == {0: set(range(40)), 1: set(), 2: in_sight}


@long_without_a_gpu
@pytest.mark.parametrize("stored", STORED)
def test_the_published_shape(stored: KVType) -> None:
    """Heads of 128, 3,000 positions, a ring that wrapped beside one that did not."""
    cache = SlotKV(layers=1, slots=2, heads=2, head_dim=128, window=Window(3000), dtype=DTYPES[stored])
    generator = torch.Generator().manual_seed(4)
    key, value = torch.randn(2, 2, 2, 3000, 128, generator=generator)
    cache.write(0, torch.tensor([[0], [1]]), torch.arange(3000)[None].expand(2, -1), key, value)
    cache.offsets[:] = torch.tensor([7321, 2500])
    positions, joined = cache.positions(None, 1), torch.randn(2, 3, 2, 128, generator=generator)
    rotary, step = Rotary(positions, 128, 10_000.0), cache.step(positions, None)
    ring = ring_of(cache, 0)
    seen = kernels(ring, joined, rotary, step, attention.chunks(ring, 2))
    expected = step.attend(0, joined, rotary)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-3 if stored == "bf16" else 1e-5)
