"""A codec small enough for property tests, with random weights, and sounds for it."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import MimiConfig, QuantizerConfig, SeanetConfig, TransformerConfig
from model.mimi.codec import Mimi, MimiState
from model.mimi.quantizer import Codebook

FRAME = 1920
WINDOW_FRAMES = 4
CONFIG = MimiConfig(
    seanet=SeanetConfig(dimension=16, filters=4, ratios=(8, 6, 5, 4)),
    transformer=TransformerConfig(
        dim=16,
        heads=2,
        layers=2,
        context=2 * WINDOW_FRAMES,
        hidden=24,
        norm="layer",
        mlp="gelu",
        layer_scale=True,
        step=2,
    ),
    quantizer=QuantizerConfig(dimension=6, codebooks=32, bins=64, input_dimension=16),
)


def random_mimi(seed: int = 0) -> Mimi:
    return random_weights(CONFIG, seed)


def random_weights(config: MimiConfig, seed: int = 0) -> Mimi:
    """Weights of such sizes that each stage matters to the codes and to the sound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mimi = Mimi(config)
        for name, parameter in mimi.named_parameters():
            if name.endswith("scale"):
                torch.nn.init.uniform_(parameter, 0.2, 0.6)
            elif parameter.ndim == 3:
                torch.nn.init.kaiming_normal_(parameter)
        mimi.decoder.model[-1].conv["conv"].weight.data *= 0.03  # type: ignore[index, union-attr]
        for book in (part for part in mimi.quantizer.modules() if isinstance(part, Codebook)):
            book.cluster_usage.uniform_(0.5, 3.0)
            book.embedding_sum.normal_(std=3.0).mul_(book.cluster_usage[:, None])
    return mimi.eval().requires_grad_(False)


def random_pcm(seed: int, samples: int, batch: int = 1) -> Tensor:
    """Noise under a slow envelope, `[batch, 1, samples]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, samples, generator=generator)
    return 0.3 * noise * torch.sin(torch.arange(samples) / 3000.0)


def random_codes(seed: int, columns: int, batch: int = 1, codebooks: int = 8) -> Tensor:
    """`[batch, codebooks, columns]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.quantizer.bins, (batch, codebooks, columns), generator=generator)


def slot_memory(state: MimiState, slot: int) -> list[Tensor]:
    """Copies of all that belongs to one slot."""
    parts = [state.encoder_rows[slot], state.decoder_rows[slot]]
    for kv in (state.encoder_kv, state.decoder_kv):
        parts += [kv.offsets[slot], kv.keys[:, slot], kv.values[:, slot]]
    return [part.clone() for part in parts]


def same_memory(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
