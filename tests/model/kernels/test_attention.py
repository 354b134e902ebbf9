"""The attention kernels against plain PyTorch: any offsets, windows, wraps and storage, each slot by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import fp8
from model.kernels import attention
from model.kv_cache import DTYPES, KVType, SlotKV, StepAttention
from model.rotary import Rotary
from model.streaming import Window, WindowKind

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED: tuple[KVType, ...] = ("float32", "bf16", "fp8")
HEADS, HEAD_DIM = 2, 16
CUT_OFF = {"float32": 2e-6, "bf16": 2e-2, "fp8": 2e-6}
"""The interpreter cuts bfloat16 off where a GPU and torch round; one position of many differs in its last place."""


def cache_of(slots: int, context: int, stored: KVType, kind: WindowKind = "reference") -> SlotKV:
    """Full of NaN: whatever is read beyond what a slot holds shows."""
    window = Window(context, kind)
    cache = SlotKV(layers=2, slots=slots, heads=HEADS, head_dim=HEAD_DIM, window=window, dtype=DTYPES[stored])
    for ring in (cache.keys, cache.values):
        ring.view(torch.uint8).fill_(0x7F) if stored == "fp8" else ring.fill_(float("nan"))
    return cache


def fill(cache: SlotKV, slot: int, length: int, seed: int = 0) -> None:
    """Let `slot` have seen `length` positions."""
    generator = torch.Generator().manual_seed(seed + 17 * slot)
    last = min(length, cache.window.capacity)
    key, value = torch.randn(2, 1, HEADS, last, HEAD_DIM, generator=generator)
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


def step_of(count: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(cache: SlotKV, slots: Tensor, joined: Tensor, chunk: int = 32) -> tuple[Tensor, Tensor, attention.Ring]:
    """A step by the kernels, on a copy of layer 1, and by the oracle, in place."""
    positions = cache.positions(slots, 1)
    rotary = Rotary(positions, HEAD_DIM, 10_000.0)
    ring, step = ring_of(cache, 1), cache.step(positions, slots)
    seen = kernels(ring, joined, rotary, step, chunk)
    return seen, step.attend(1, joined, rotary), ring


def kernels(ring: attention.Ring, joined: Tensor, rotary: Rotary, step: StepAttention, chunk: int) -> Tensor:
    slots, first, last = (part.to(DEVICE) for part in (step.slots, step.first, step.last))
    turn = rotary.cos[:, 0, 0].to(DEVICE), rotary.sin[:, 0, 0].to(DEVICE)
    query = attention.append(ring, joined.to(DEVICE), *turn, slots, last)
    return attention.attend(ring, query, slots, first, last, chunk=chunk).cpu()


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
    seen, expected, _ = both(cache, slots, step_of(len(slots), seed, torch.bfloat16), chunk=64)
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
    here = [part.to(DEVICE) for part in (joined, still + 1, still)]
    attention.append(ring, here[0], here[1], here[2], slots.to(DEVICE), zero.to(DEVICE))
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


@pytest.mark.long
@pytest.mark.parametrize("stored", STORED)
def test_the_published_shape(stored: KVType) -> None:
    """Heads of 128, 3,000 positions, a ring that wrapped beside one that did not."""
    cache = SlotKV(layers=1, slots=2, heads=4, head_dim=128, window=Window(3000), dtype=DTYPES[stored])
    key, value = torch.randn(2, 2, 4, 3000, 128)
    cache.write(0, torch.tensor([[0], [1]]), torch.arange(3000)[None].expand(2, -1), key, value)
    cache.offsets[:] = torch.tensor([7321, 2500])
    positions, joined = cache.positions(None, 1), torch.randn(2, 3, 4, 128)
    rotary, step = Rotary(positions, 128, 10_000.0), cache.step(positions, None)
    seen = kernels(ring_of(cache, 0), joined, rotary, step, 512)
    expected = step.attend(0, joined, rotary)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-3 if stored == "bf16" else 1e-5)
