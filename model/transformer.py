"""The causal transformer that the language model and both sides of the codec share.

Owns norms, rotary positions, attention and MLP. Knows no tokens, sounds or slots' meaning: memory across passes
lies in a KVCache. B is the batch, T time, D width, H heads, hd a head's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model import decode, long_pass, ops
from model.config import TransformerConfig
from model.kv_cache import SlotKV, StepAttention
from model.ops import RMS_EPS
from model.rotary import Rotary
from model.streaming import CachedAttention, KVCache, WholeAttention, Window, WindowKind

_LAYER_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm, all in float32: `[..., D]` to the same shape and type. The gain is kept `[1, 1, D]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        root = torch.rsqrt(RMS_EPS + wide.square().mean(dim=-1, keepdim=True))
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


class Attention(nn.Module):
    """Self-attention without biases; queries and keys are rotated, keys are kept rotated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.dim, config.dim))
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.in_proj: nn.Module | None = None
        """In place of the weight above, where it is kept in another form."""
        nn.init.normal_(self.in_proj_weight, std=config.dim**-0.5)

    def forward(self, x: Tensor, layer: int, rotary: Rotary, attention: CachedAttention | WholeAttention) -> Tensor:
        """`[B, T, D]` to the same."""
        query, key, value = self.project(x).permute(2, 0, 3, 1, 4)
        seen = attention.attend(layer, rotary(query), rotary(key), value)
        result: Tensor = self.out_proj(seen.transpose(1, 2).flatten(-2))
        return result

    def project(self, x: Tensor) -> Tensor:
        """`[..., D]` to query, key and value, `[..., 3, H, hd]`."""
        return self.parted(functional.linear(x, self.in_proj_weight) if self.in_proj is None else self.in_proj(x))

    def parted(self, joined: Tensor) -> Tensor:
        """Query, key and value, `[..., 3, H, hd]`, of what lies side by side, `[..., 3 D]`."""
        return joined.view(*joined.shape[:-1], 3, self._heads, -1)


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

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """Of its two RMS norms."""
        first, second = self.norm1, self.norm2
        assert isinstance(first, RMSNorm) and isinstance(second, RMSNorm)  # noqa: PT018
        return first.alpha, second.alpha

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
        attention: CachedAttention | WholeAttention | StepAttention
        if kv is None:
            if positions is None:
                positions = torch.arange(length, device=x.device)[None]
            attention = WholeAttention(positions, self.config.context)
        else:
            if positions is None:
                positions = kv.positions(slots, length)
            if isinstance(kv, SlotKV) and length > 1 and ops.fused(x):
                turn = Rotary(positions, self.config.head_dim, self.config.max_period)
                return long_pass.read(self.layers, x, long_pass.LongAttention(kv, positions, slots, turn))
            if isinstance(kv, SlotKV) and length == 1:
                attention = kv.step(positions, slots)
            else:
                attention = kv.begin(positions, slots)
        rotary = Rotary(positions, self.config.head_dim, self.config.max_period)
        if isinstance(attention, StepAttention):
            last, branch = decode.step(self.layers, x[:, 0], rotary, attention)
            return (last if branch is None else last + branch)[:, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotary, attention)
        return x

    def cache(
        self,
        slots: int,
        window: WindowKind = "reference",
        kv_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """Empty memory for `slots` streams, on the weights' device unless told.

        `kv_dtype`: keys and values are stored in this type, and a step reads only what each slot holds; for the layers
        of the language model. None: in the weights' type, and every step reads whole rings.
        """
        config = self.config
        weight = next(self.parameters())
        make = KVCache if kv_dtype is None else SlotKV
        return make(
            layers=config.layers,
            slots=slots,
            heads=config.heads,
            head_dim=config.head_dim,
            window=Window(config.context, window, config.step),
            dtype=weight.dtype if kv_dtype is None else kv_dtype,
            device=weight.device if device is None else device,
        )


def _norm(config: TransformerConfig) -> nn.Module:
    return RMSNorm(config.dim) if config.norm == "rms" else nn.LayerNorm(config.dim, eps=_LAYER_EPS)
