"""The causal transformer that the language model and both sides of the codec share.

Owns norms, rotary positions, attention and MLP. Knows no tokens, sounds or slots' meaning: memory across passes
lies in a KVCache. B is the batch, T time, D width, H heads, hd a head's width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import TransformerConfig
from model.streaming import CachedAttention, KVCache, WholeAttention, Window, WindowKind

_RMS_EPS = 1e-8
_LAYER_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm, all in float32: `[..., D]` to the same shape and type. The gain is kept `[1, 1, D]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        root = torch.rsqrt(_RMS_EPS + wide.square().mean(dim=-1, keepdim=True))
        return (wide * (self.alpha.float().flatten() * root)).to(x.dtype)


class GatedMLP(nn.Module):
    """`[..., D]` to the same: the SiLU of one half of the inner width gates the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, inner = self.linear_in(x).chunk(2, dim=-1)
        result: Tensor = self.linear_out(functional.silu(gate) * inner)
        return result


class LayerScale(nn.Module):
    """A gain for each channel of a residual branch: `[..., D]` to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Rotary:
    """Rotation of neighbouring components (2i, 2i + 1) by position x frequency i, in float32.

    Made once for a pass, from positions `[B or 1, T]`, and used by all its layers.
    """

    def __init__(self, positions: Tensor, head_dim: int, max_period: float) -> None:
        index = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
        frequency = torch.exp(index * (-math.log(max_period) * 2 / head_dim))
        angle = (positions[..., None].float() * frequency)[:, None]
        self.cos, self.sin = torch.cos(angle), torch.sin(angle)

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, H, T, hd]` to the same shape and type."""
        real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self-attention without biases; queries and keys are rotated, keys are kept rotated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.dim, config.dim))
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.normal_(self.in_proj_weight, std=config.dim**-0.5)

    def forward(self, x: Tensor, layer: int, rotary: Rotary, attention: CachedAttention | WholeAttention) -> Tensor:
        """`[B, T, D]` to the same."""
        joined = functional.linear(x, self.in_proj_weight)
        joined = joined.view(*x.shape[:2], 3, self._heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        seen = attention.attend(layer, rotary(query), rotary(key), value)
        result: Tensor = self.out_proj(seen.transpose(1, 2).flatten(-2))
        return result


class TransformerLayer(nn.Module):
    """Pre-norm residual layer, `[B, T, D]` to the same."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.norm1, self.norm2 = _norm(config), _norm(config)
        if config.mlp == "gated_silu":
            self.gating = GatedMLP(config.dim, config.hidden)
        else:
            self.linear1 = nn.Linear(config.dim, config.hidden, bias=False)
            self.linear2 = nn.Linear(config.hidden, config.dim, bias=False)
        self._gated = config.mlp == "gated_silu"
        self.layer_scale_1: nn.Module = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.layer_scale_2: nn.Module = LayerScale(config.dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, layer: int, rotary: Rotary, attention: CachedAttention | WholeAttention) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), layer, rotary, attention))
        result: Tensor = x + self.layer_scale_2(self._mlp(self.norm2(x)))
        return result

    def _mlp(self, x: Tensor) -> Tensor:
        result: Tensor = self.gating(x) if self._gated else self.linear2(functional.gelu(self.linear1(x)))
        return result


class Transformer(nn.Module):
    """The stack of layers, without a norm at its end."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(
        self, x: Tensor, positions: Tensor | None = None, kv: KVCache | None = None, slots: Tensor | None = None
    ) -> Tensor:
        """`x [B, T, D]` to the same.

        Without `kv` a whole sequence, at positions 0 to T - 1 unless `positions [B or 1, T]` says otherwise. With it
        the batch continues `slots [B]` (None: every slot, in order) at consecutive `positions [B, T]`, by default
        the slots' next ones. The caller advances the cache when the pass is done.
        """
        length = x.shape[1]
        attention: CachedAttention | WholeAttention
        if kv is None:
            if positions is None:
                positions = torch.arange(length, device=x.device)[None]
            attention = WholeAttention(positions, self.config.context)
        else:
            if positions is None:
                positions = kv.positions(slots, length)
            attention = kv.begin(positions, slots)
        rotary = Rotary(positions, self.config.head_dim, self.config.max_period)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotary, attention)
        return x

    def cache(
        self,
        slots: int,
        window: WindowKind = "reference",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """Empty memory for `slots` streams, by default of the weights' type and on their device."""
        config = self.config
        weight = next(self.parameters())
        return KVCache(
            layers=config.layers,
            slots=slots,
            heads=config.heads,
            head_dim=config.head_dim,
            window=Window(config.context, window, config.step),
            dtype=weight.dtype if dtype is None else dtype,
            device=weight.device if device is None else device,
        )


def _norm(config: TransformerConfig) -> nn.Module:
    return RMSNorm(config.dim) if config.norm == "rms" else nn.LayerNorm(config.dim, eps=_LAYER_EPS)
