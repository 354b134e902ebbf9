"""How far keys and values in 16 or 8 bits move what is computed from them: the table in `deploy/benchmarks.md`.

Random numbers, and the same with channels 20 times the others, as trained models have them. Errors are relative to the
spread of the exact output.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.kv_cache import DTYPES, KVType, SlotKV
from model.lm import LM
from model.rotary import Rotary
from model.streaming import Window
from tests.model.tiny import CONTEXT, VOICE, random_codes, random_lm

pytestmark = pytest.mark.usefixtures("one_thread")

LOUD = 20.0
HEADS, HEAD_DIM, POSITIONS = 32, 128, 2_999


def error(rough: Tensor, exact: Tensor) -> float:
    return float((rough - exact).square().mean().sqrt() / exact.std())


def attention(stored: KVType, outliers: bool) -> Tensor:
    """What one step of a layer as published sees of a full window."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, HEADS, POSITIONS, HEAD_DIM, generator=generator)
    joined = torch.randn(1, 3, HEADS, HEAD_DIM, generator=generator)
    if outliers:
        for keys, values in ((key, value), (joined[:, 1], joined[:, 2])):
            keys[..., ::32] *= LOUD
            values[..., ::64] *= LOUD
    window = Window(POSITIONS + 1)
    cache = SlotKV(layers=1, slots=1, heads=HEADS, head_dim=HEAD_DIM, window=window, dtype=DTYPES[stored])
    before = POSITIONS - 1
    cache.write(0, torch.tensor([[0]]), torch.arange(before)[None], key[:, :, :before], value[:, :, :before])
    cache.offsets[:] = before
    positions = cache.positions(None, 1)
    return cache.step(positions, None).attend(0, joined, Rotary(positions, HEAD_DIM, 10_000.0))


@pytest.mark.parametrize(
    ("stored", "outliers", "expected"),
    [("bf16", False, 0.0024), ("fp8", False, 0.037), ("bf16", True, 0.011), ("fp8", True, 0.085)],
)
def test_what_storage_adds_to_the_output_of_attention(stored: KVType, outliers: bool, expected: float) -> None:
    assert error(attention(stored, outliers), attention("float32", outliers)) == pytest.approx(expected, rel=0.1)


def text_logits(lm: LM, stored: KVType) -> Tensor:
    """Of eight calls of a tiny model that have talked for two windows."""
    state = lm.streaming(8, kv_dtype=DTYPES[stored])
    for slot in range(8):
        lm.prefill(state, slot, random_codes(slot, 2 * CONTEXT))
    return lm.step(state, None, random_codes(50, 8, VOICE).T, depformer_steps=VOICE).trace.text_logits


@pytest.mark.parametrize(
    ("stored", "outliers", "expected"),
    [("bf16", False, 0.0002), ("fp8", False, 0.0024), ("bf16", True, 0.009), ("fp8", True, 0.026)],
)
def test_what_storage_adds_to_the_logits_of_text(stored: KVType, outliers: bool, expected: float) -> None:
    lm = random_lm(3)
    for layer in lm.transformer.layers if outliers else ():
        weight = layer.self_attn.in_proj_weight.view(3, 4, 8, 32)  # type: ignore[union-attr, operator]
        weight[1:, :, 3] *= LOUD
    assert error(text_logits(lm, stored), text_logits(lm, "float32")) == pytest.approx(expected, rel=0.1)
