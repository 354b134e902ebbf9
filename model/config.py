"""Sizes of the networks as data: the published PersonaPlex and its codec, and any other read from JSON.

Owns every width, depth, kernel and vocabulary. Knows no tensors and no files' places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TEXT_PAD = 3
"""Text id of a frame in which no word goes on."""
TEXT_END_OF_PAD = 0
"""Text id of the frame before a word starts."""
ZERO = -1
"""An id that contributes nothing: its embedding is exactly zero."""
UNGENERATED = -2
"""What a cell of the token cache holds before anything was written to it."""


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """A causal transformer with rotary positions: the language model's, or one of the codec's two."""

    dim: int
    heads: int
    layers: int
    context: int
    """Positions that attention can reach back to, the current one included."""
    hidden: int
    """Width inside the MLP (of each half, where it is gated)."""
    max_period: float = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["gated_silu", "gelu"] = "gated_silu"
    layer_scale: bool = False
    step: int = 1
    """Positions of one streaming step: 1 for the language model, 2 (25 Hz against 12.5) for the codec."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class DepformerConfig:
    """The small transformer over the codebooks of one frame; every step has weights of its own."""

    dim: int
    heads: int
    layers: int
    hidden: int
    steps: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class LMConfig:
    """PersonaPlex's language model: text, agent audio and caller audio as rows of one token grid."""

    transformer: TransformerConfig
    depformer: DepformerConfig
    text_card: int
    """Text ids that can be predicted; the id equal to it is the start marker."""
    card: int
    """Audio ids that can be predicted; the id equal to it is the start marker."""
    delays: tuple[int, ...]
    """Frames by which each row lags: text, agent codebooks, caller codebooks."""

    @property
    def rows(self) -> int:
        return len(self.delays)

    @property
    def codebooks(self) -> int:
        """Codebooks of one voice."""
        return (self.rows - 1) // 2

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def columns(self) -> int:
        """Columns of the token cache."""
        return self.max_delay + 3

    @property
    def start_ids(self) -> tuple[int, ...]:
        return (self.text_card, *(self.card for _ in range(self.rows - 1)))


@dataclass(frozen=True, slots=True)
class SeanetConfig:
    """The codec's convolutional encoder and its mirror image, the decoder."""

    dimension: int
    filters: int
    ratios: tuple[int, ...]
    """Upsampling strides of the decoder; the encoder takes them in reverse."""
    kernel: int = 7
    residual_kernel: int = 3
    last_kernel: int = 3
    compress: int = 2
    channels: int = 1


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """The split residual quantiser: one semantic codebook, the rest acoustic."""

    dimension: int
    """Width of a codebook entry."""
    codebooks: int
    """Codebooks stored."""
    bins: int
    input_dimension: int
    semantic: int = 1


@dataclass(frozen=True, slots=True)
class MimiConfig:
    """The codec: 24 kHz mono sound to and from 12.5 columns of codes a second."""

    seanet: SeanetConfig
    transformer: TransformerConfig
    quantizer: QuantizerConfig
    active: int = 8
    """Codebooks in use by the language model, for each voice."""
    resample_stride: int = 2
    sample_rate: int = 24_000
    frame_rate: float = 12.5


def gated_hidden(dim: int, feedforward: int) -> int:
    """Inner width of a gated MLP whose ungated form would have `feedforward`."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


def personaplex_7b() -> LMConfig:
    """The published PersonaPlex: 8.37 billion parameters with all 16 depformer steps."""
    return LMConfig(
        transformer=TransformerConfig(dim=4096, heads=32, layers=32, context=3000, hidden=gated_hidden(4096, 16_896)),
        depformer=DepformerConfig(dim=1024, heads=16, layers=6, hidden=gated_hidden(1024, 4224), steps=16),
        text_card=32_000,
        card=2048,
        delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
    )


def mimi_full() -> MimiConfig:
    """The published Mimi: 32 codebooks stored, 8 in use."""
    transformer = TransformerConfig(
        dim=512, heads=8, layers=8, context=250, hidden=2048, norm="layer", mlp="gelu", layer_scale=True, step=2
    )
    return MimiConfig(
        seanet=SeanetConfig(dimension=512, filters=64, ratios=(8, 6, 5, 4)),
        transformer=transformer,
        quantizer=QuantizerConfig(dimension=256, codebooks=32, bins=2048, input_dimension=512),
    )


def lm_from_json(data: Mapping[str, Any]) -> LMConfig:
    """The sizes under `config` of a checkpoint's JSON, in its own parameter names.

    Raises ValueError where the file asks for a structure that this model does not have.
    """
    config = data["config"]
    fixed = {"causal": True, "layer_scale": None, "gating": "silu", "norm": "rms_norm_f32", "depformer_gating": "silu"}
    fixed |= {"positional_embedding": "rope", "depformer_pos_emb": "none", "depformer_weights_per_step": True}
    _require(config, fixed | {"depformer_layer_scale": None, "depformer_multi_linear": True})
    dim = config["dim"]
    return LMConfig(
        transformer=TransformerConfig(
            dim=dim,
            heads=config["num_heads"],
            layers=config["num_layers"],
            context=config["context"],
            hidden=gated_hidden(dim, int(config["hidden_scale"] * dim)),
            max_period=float(config["max_period"]),
        ),
        depformer=DepformerConfig(
            dim=config["depformer_dim"],
            heads=config["depformer_num_heads"],
            layers=config["depformer_num_layers"],
            hidden=gated_hidden(config["depformer_dim"], config["depformer_dim_feedforward"]),
            steps=config["dep_q"],
        ),
        text_card=config["text_card"],
        card=config["card"],
        delays=tuple(config["delays"]),
    )


def mimi_from_json(data: Mapping[str, Any]) -> MimiConfig:
    """The sizes under `config` of a codec's JSON. Raises ValueError for a structure that this codec does not have."""
    seanet, transformer, quantizer = (data["config"][part] for part in ("seanet", "transformer", "quantizer"))
    _require(seanet, {"causal": True, "n_residual_layers": 1, "activation": "ELU", "norm": "none", "true_skip": True})
    fixed = {"causal": True, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope"}
    _require(transformer, fixed)
    return MimiConfig(
        seanet=SeanetConfig(
            dimension=seanet["dimension"],
            filters=seanet["n_filters"],
            ratios=tuple(seanet["ratios"]),
            kernel=seanet["kernel_size"],
            residual_kernel=seanet["residual_kernel_size"],
            last_kernel=seanet["last_kernel_size"],
            compress=seanet["compress"],
            channels=seanet["channels"],
        ),
        transformer=TransformerConfig(
            dim=transformer["d_model"],
            heads=transformer["num_heads"],
            layers=transformer["num_layers"],
            context=transformer["context"],
            hidden=transformer["dim_feedforward"],
            max_period=float(transformer["max_period"]),
            norm="layer",
            mlp="gelu",
            layer_scale=True,
            step=2,
        ),
        quantizer=QuantizerConfig(
            dimension=quantizer["dimension"],
            codebooks=quantizer["n_q"],
            bins=quantizer["bins"],
            input_dimension=quantizer["input_dimension"],
        ),
        active=data.get("active_codebooks", 8),
    )


def _require(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} is {config[name]!r} in the configuration; only {value!r} is implemented")
