"""Several positions of each slot by kernels, against plain PyTorch: attention, and the whole pass of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import fp8, ops
from model.bench.models import random_models, sizes_of
from model.config import TransformerConfig
from model.conversation import Models
from model.engine import Stepper
from model.kv_cache import DTYPES, KVType, SlotKV
from model.lm import LM
from model.long_pass import LongAttention
from model.long_reads import LongReads, Read
from model.rotary import Rotary
from tests.model.kernels.launches import counting
from tests.model.kernels.test_attention import HEADS, STORED, cache_of, fill

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONTEXT = 12
A_LAYER = 10
"""Two norms, four products, the gate, two around attention and attention itself."""


def moved(cache: SlotKV) -> SlotKV:
    """To the device of the tests."""
    for name in ("offsets", "keys", "values", "key_scales", "value_scales"):
        if (part := getattr(cache, name)) is not None:
            setattr(cache, name, part.to(DEVICE))
    return cache


def attended(cache: SlotKV, slots: Tensor, joined: Tensor, *, fused: bool, held: int | None) -> Tensor:
    """`[B, T, H * hd]` of layer 1."""
    positions = cache.positions(slots, joined.shape[1])
    rotary = Rotary(positions, joined.shape[-1], 10_000.0)
    with cache.holding(cache.window.capacity if held is None else held):
        if fused:
            return LongAttention(cache, positions, slots, rotary).attend(1, joined)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        seen = cache.begin(positions, slots).attend(1, rotary(query), rotary(key), value)
        return seen.transpose(1, 2).flatten(-2)


def same_rings(one: SlotKV, other: SlotKV) -> None:
    """As much as slots 0 to 3 hold, up to rounding; in 8 bits a number may fall to either side."""
    for mine, theirs in zip(one.rings(), other.rings(), strict=True):
        a, b = mine.float().nan_to_num(-7.0), theirs.float().nan_to_num(-7.0)
        torch.testing.assert_close(a, b, rtol=0.07 if mine.dtype == fp8.E4M3 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("head_dim", "length"), [(16, 2), (10, 5), (16, CONTEXT + 3)])
def test_new_positions_see_what_the_rings_hold_and_themselves(stored: KVType, head_dim: int, length: int) -> None:
    """Fresh slots, half full ones and wrapped ones in one pass, the rest of the rings full of NaN."""
    slots = torch.tensor([2, 0, 3], device=DEVICE)
    joined = torch.randn(3, length, 3, HEADS, head_dim, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results, caches = [], []
    for fused in (False, True):
        cache = cache_of(4, CONTEXT, stored, head_dim=head_dim)
        for slot, before in ((0, 0), (2, 7), (3, 3 * CONTEXT + 5), (1, 4)):
            fill(cache, slot, before)
        caches.append(moved(cache))
        results.append(attended(cache, slots, joined, fused=fused, held=None))
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
    same_rings(*caches)


@pytest.mark.parametrize("held", [0, 4])
def test_of_rings_that_fill_up_no_more_is_read_than_they_hold(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.streaming._CELLS", 1)
    slots = torch.tensor([1, 2], device=DEVICE)
    joined = torch.randn(2, 3, 3, HEADS, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for fused in (False, True):
        cache = cache_of(4, CONTEXT, "float32")
        for slot in (1, 2):
            fill(cache, slot, held)
        results.append(attended(moved(cache), slots, joined, fused=fused, held=held))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)


def test_activations_in_bf16_are_rounded_once_and_kept_as_they_are() -> None:
    slots = torch.tensor([0, 1], device=DEVICE)
    joined = torch.randn(2, 4, 3, HEADS, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)
    results, caches = [], []
    for fused in (False, True):
        cache = cache_of(2, CONTEXT, "bf16")
        for slot in (0, 1):
            fill(cache, slot, 5)
        caches.append(moved(cache))
        results.append(attended(cache, slots, joined, fused=fused, held=None))
    assert results[1].dtype == torch.bfloat16
    torch.testing.assert_close(results[1].float(), results[0].float(), rtol=0, atol=2e-2)
    same_rings(*caches)


@pytest.fixture(scope="module")
def small() -> Models:
    """Two layers, widths that are no powers of two."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = sizes_of("tiny")
        main: TransformerConfig = replace(sizes.lm.transformer, context=40, layers=2)
        return random_models(replace(sizes, lm=replace(sizes.lm, transformer=main)), DEVICE)


@pytest.mark.parametrize("kv_dtype", ["float32", "fp8"])
def test_reads_by_kernels_leave_what_plain_ones_leave(
    small: Models, kv_dtype: KVType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several calls at once, filled up to a few sizes, part after part."""
    steppers = [Stepper(small, 3, kv_dtype=DTYPES[kv_dtype]) for _ in range(2)]
    rows = small.config.rows
    for stepper, fused in zip(steppers, (False, True), strict=True):
        reads, held = LongReads(stepper, padded=True), 0
        with monkeypatch.context() as patch:
            patch.setattr(ops, "fused", lambda x, fused=fused: fused)
            for length in (3, 4):
                ids = [
                    torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(10 * held + slot))
                    for slot in range(3)
                ]
                reads.do([Read(slot, one, held) for slot, one in enumerate(ids)])
                held += length
        assert stepper.state.kv.offsets.tolist() == [held] * 3 + [0, 0]
    plain, fused_kv = (stepper.state.kv for stepper in steppers)
    for mine, theirs in zip(fused_kv.rings(), plain.rings(), strict=True):
        # A number next to the middle between two of 8 bits may fall to either side: one step is an eighth at most.
        a, b = mine[:, :3, :, :7].float(), theirs[:, :3, :, :7].float()
        torch.testing.assert_close(a, b, rtol=0.13 if mine.dtype == fp8.E4M3 else 1e-4, atol=1e-4)


def test_what_a_pass_of_eight_calls_launches_at_the_published_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention counts once: on the `meta` device torch takes it apart."""
    sizes = sizes_of("full")
    with torch.device("meta"):
        lm = LM(sizes.lm).to(sizes.dtype).eval().requires_grad_(False)
    state = lm.streaming(9, kv_dtype=torch.bfloat16)
    slots, columns = torch.arange(8, device="meta"), torch.zeros((8, 17, 256), dtype=torch.long, device="meta")
    attention = torch.nn.functional.scaled_dot_product_attention
    with counting(monkeypatch) as launches, monkeypatch.context() as patch:

        def once(query: Tensor, *args: object, **kwargs: object) -> Tensor:
            before = launches.by_name.copy()
            result = torch.empty_like(query)
            launches.by_name = before
            launches.by_name[attention.__name__] += 1
            return result

        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", once)
        lm.read_together(state, slots, columns)
    layers = sizes.lm.transformer.layers
    assert launches.count <= layers * A_LAYER + 50, (launches.count, launches.by_name)
    assert launches.by_name["_recall"] == launches.by_name["_take"] == layers
