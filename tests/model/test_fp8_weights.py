"""A language model whose matrices are FP8: how far it moves, and that all of it still works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import fp8
from model.capacity import unwalked_bytes, weights_bytes
from model.config import personaplex_7b
from model.fp8_weights import Fp8Linear, shrink
from model.lm import LM
from tests.model.tiny import CONFIG, VOICE, random_codes, random_lm, step_given


def test_a_row_keeps_three_bits_at_any_scale() -> None:
    weight = torch.randn(20, 300) * 10.0 ** torch.linspace(-5, 5, 20)[:, None]
    error = (fp8.restore(*fp8.quantise(weight), torch.float32) - weight).abs()
    limit = torch.maximum(weight.abs() * 2**-4, weight.abs().amax(1, keepdim=True) / 448 * 2**-10)
    assert (error <= limit * 1.001).all()


def test_every_matrix_but_the_heads_and_tables_is_small() -> None:
    lm = shrink(random_lm(), "cpu")
    large = {name for name, module in lm.named_modules() if isinstance(module, nn.Linear)}
    assert large == {"text_linear", *(f"linears.{step}" for step in range(CONFIG.depformer.steps))}
    assert [name for name, weight in lm.named_parameters() if weight.ndim == 2 and "emb" not in name] == [
        "text_linear.weight",
        *(f"linears.{step}.weight" for step in range(CONFIG.depformer.steps)),
    ]
    small = sum(isinstance(module, Fp8Linear) for module in lm.modules())
    main, depth = CONFIG.transformer, CONFIG.depformer
    assert small == main.layers * 4 + depth.layers * depth.steps * 4 + depth.steps


def test_the_published_model_takes_as_much_as_is_reckoned_with() -> None:
    with torch.device("meta"):
        lm = LM(personaplex_7b()).bfloat16()
    stored = _bytes(lm)
    kept = _bytes(shrink(lm, "meta"))
    assert kept <= weights_bytes(stored, 0, "fp8") < 1.001 * kept


@pytest.mark.parametrize("weights_dtype", ["bf16", "fp8"])
def test_what_a_conversation_does_not_walk_takes_as_much_as_is_reckoned_with(weights_dtype: str) -> None:
    kept = []
    for steps in (16, 8):
        with torch.device("meta"):
            lm = LM(personaplex_7b()).bfloat16()
        lm.keep_steps(steps)
        kept.append(_bytes(shrink(lm, "meta") if weights_dtype == "fp8" else lm))
    assert kept[0] - kept[1] == unwalked_bytes(personaplex_7b(), 2, weights_dtype)


def _bytes(lm: LM) -> int:
    return sum(tensor.nbytes for tensor in (*lm.parameters(), *lm.buffers()))


def test_what_the_model_computes_moves_little() -> None:
    """Relative to the spread of the logits, with an outlying input channel in each matrix, on random weights."""
    exact, rough = random_lm(2), random_lm(2)
    for lm in (exact, rough):
        for layer in lm.transformer.layers:
            layer.gating.linear_in.weight[:, 5] *= 20.0  # type: ignore[union-attr, operator, index]
    shrink(rough, "cpu")
    codes = random_codes(1, 30)
    traces = [step_given(lm, lm.streaming(1), 0, codes, VOICE)[-1].trace for lm in (exact, rough)]
    text = (traces[1].text_logits - traces[0].text_logits).square().mean().sqrt() / traces[0].text_logits.std()
    audio = (traces[1].audio_logits - traces[0].audio_logits).square().mean().sqrt() / traces[0].audio_logits.std()
    assert 1e-4 < text < 0.15
    assert 1e-4 < audio < 0.15
