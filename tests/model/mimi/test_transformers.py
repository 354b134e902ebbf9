"""An independent witness: the Mimi of Hugging Face's transformers, given our weights, hears and says the same."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from model.mimi.codec import Mimi
from tests.model.mimi.tiny import CONFIG, FRAME, WINDOW_FRAMES, random_codes, random_mimi, random_pcm

transformers = pytest.importorskip("transformers", reason="the comparison needs the transformers package")

NAMES = (
    (r"^(encoder|decoder)\.model\.(.+)\.conv(?:tr)?\.conv(?:tr)?\.(weight|bias)$", r"\1.\1_seanet.layers.\2.conv.\3"),
    (r"^downsample\..+\.weight$", "encoder.downsample.conv.weight"),
    (r"^upsample\..+\.weight$", "decoder.upsample.conv.weight"),
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1.\1_transformer."),
    (r"self_attn\.out_proj\.", "self_attn.o_proj."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.rvq_first\.", ".semantic_residual_vector_quantizer."),
    (r"\.rvq_rest\.", ".acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.(\d+)\._codebook\.", r".layers.\1.codebook."),
    (r"\.embedding_sum$", ".embed_sum"),
    (r"\._initialized$", ".initialized"),
)
"""Our names (the published checkpoint's) to theirs, applied in order."""


def their_model() -> Any:
    seanet, layers, quantizer = CONFIG.seanet, CONFIG.transformer, CONFIG.quantizer
    config = transformers.MimiConfig(
        hidden_size=seanet.dimension,
        num_filters=seanet.filters,
        upsampling_ratios=list(seanet.ratios),
        upsample_groups=seanet.dimension,
        codebook_size=quantizer.bins,
        codebook_dim=quantizer.dimension,
        vector_quantization_hidden_dimension=quantizer.dimension,
        num_quantizers=quantizer.codebooks,
        num_hidden_layers=layers.layers,
        intermediate_size=layers.hidden,
        num_attention_heads=layers.heads,
        num_key_value_heads=layers.heads,
        sliding_window=layers.context,
    )
    return transformers.MimiModel(config).eval()


def split_halves(weight: Tensor) -> Tensor:
    """Rows of queries or keys `[H hd, D]`, where halves are rotated instead of neighbours: even rows, then odd."""
    heads = CONFIG.transformer.heads
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def mapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state under their names."""
    result: dict[str, Tensor] = {}
    for ours, tensor in weights.items():
        name = ours
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("in_proj_weight"):
            query, key, value = tensor.chunk(3)
            parts = {"q": split_halves(query), "k": split_halves(key), "v": value}
            stem = name.removesuffix("in_proj_weight")
            result |= {f"{stem}{part}_proj.weight": rows for part, rows in parts.items()}
        else:
            result[name] = tensor
    return result


@pytest.fixture(scope="module")
def pair() -> tuple[Mimi, Any]:
    ours, theirs = random_mimi(seed=5), their_model()
    theirs.load_state_dict(mapped(ours.state_dict()), strict=True)
    return ours, theirs


@pytest.mark.parametrize("samples", [FRAME, 7 * FRAME, 5 * WINDOW_FRAMES * FRAME, 6 * FRAME + 777])
@torch.no_grad()
def test_both_give_the_same_codes(pair: tuple[Mimi, Any], samples: int) -> None:
    ours, theirs = pair
    pcm = random_pcm(samples, samples, batch=2)
    every = CONFIG.quantizer.codebooks
    assert torch.equal(ours.encode(pcm, n_q=every), theirs.encode(pcm, num_quantizers=every).audio_codes)


@pytest.mark.parametrize("columns", [1, 5, 5 * WINDOW_FRAMES])
@pytest.mark.parametrize("codebooks", [8, 32])
@torch.no_grad()
def test_both_give_the_same_sound(pair: tuple[Mimi, Any], columns: int, codebooks: int) -> None:
    ours, theirs = pair
    codes = random_codes(columns, columns, batch=2, codebooks=codebooks)
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes).audio_values, rtol=0.0, atol=1e-5)


def test_the_configurations_agree_on_all_that_was_not_set(pair: tuple[Mimi, Any]) -> None:
    """What the comparison takes for granted on both sides."""
    config = pair[1].config
    seanet = dataclasses.asdict(CONFIG.seanet)
    same = {"kernel": "kernel_size", "residual_kernel": "residual_kernel_size", "last_kernel": "last_kernel_size"}
    for ours, theirs in {**same, "compress": "compress", "channels": "audio_channels"}.items():
        assert seanet[ours] == getattr(config, theirs)
    assert config.frame_size == pair[0].frame_size
    assert CONFIG.quantizer.semantic == config.num_semantic_quantizers
