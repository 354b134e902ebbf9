"""Several positions of each slot through the main transformer's layers, in few launches: ten a layer, on a GPU.

Owns the order of such a pass over `SlotKV`. A pass of hundreds of columns is launched by the thread that also launches
the steps of all calls. `model.transformer` has the same for any device and memory; the two agree up to rounding. B is
the slots, T the positions of each, N those before them that are read, D width, H heads, hd a head's width.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import ops
from model.kv_cache import SlotKV
from model.rotary import Rotary
from model.streaming import CachedAttention

if TYPE_CHECKING:
    from model.transformer import TransformerLayer


class LongAttention:
    """Of consecutive `positions [B, T]` of `slots [B]` (None: every slot, in order), through the layers in turn."""

    def __init__(self, cache: SlotKV, positions: Tensor, slots: Tensor | None, rotary: Rotary) -> None:
        self._cache, self._rotary = cache, rotary
        self._slots = torch.arange(cache.offsets.shape[0], device=positions.device) if slots is None else slots
        self._begin = positions[:, 0].contiguous()
        self._first = cache.window.first(self._begin).clamp(min=0)
        self._seen = CachedAttention(cache, positions, slots).mask
        self._mask: Tensor | None = None
        """The same in numbers to be added, `[B, 1, T, N + T]`: made once, where torch would for each layer."""
        self._cells = cache.readable
        self._both: tuple[Tensor, Tensor] | None = None
        """Keys and values before and of the pass, `[B, H, N + T, hd]`: each layer's in turn."""

    def attend(self, layer: int, joined: Tensor) -> Tensor:
        """Turn, store and attend: `joined [B, T, 3, H, hd]`, query, key and value, to `[B, T, H * hd]`."""
        from model.kernels import attention, long_attention

        cache, rotary = self._cache, self._rotary
        batch, length, _, heads, head_dim = joined.shape
        if self._both is None:
            shape = (batch, heads, self._cells + length, head_dim)
            self._both = joined.new_empty(shape), joined.new_empty(shape)
            self._mask = joined.new_zeros(self._seen.shape).masked_fill_(~self._seen, float("-inf"))
        keys, values = self._both
        ring = attention.Ring(*cache.layer(layer))
        query = joined.new_empty((batch, length, heads, head_dim))
        long_attention.recall(ring, self._slots, self._first, self._begin, keys, values, self._cells)
        turn = rotary.cos[:, 0], rotary.sin[:, 0]
        long_attention.take(ring, joined, *turn, self._slots, self._begin, query, keys, values)
        seen = functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=self._mask)
        return seen.transpose(1, 2).flatten(2)


def read(layers: Iterable[nn.Module], x: Tensor, attention: LongAttention) -> Tensor:
    """`x [B, T, D]` to the same, with no norm at the end. For layers with RMS norms and a gated MLP."""
    batch, length, dim = x.shape
    x, branch = x.reshape(-1, dim), None
    with _one_way(x):
        for index, module in enumerate(layers):
            layer = cast("TransformerLayer", module)
            first, second = layer.gains
            x, normed = ops.add_norm(x, branch, first)
            joined = layer.self_attn.project(normed.view(batch, length, dim))
            seen = attention.attend(index, joined).view(-1, dim)
            x, normed = ops.add_norm(x, layer.self_attn.out_proj(seen), second)
            branch = layer.gating.linear_out(ops.silu_gate(layer.gating.linear_in(normed)))
    return (x if branch is None else x + branch).view(batch, length, dim)


def _one_way(x: Tensor) -> AbstractContextManager[None]:
    """On a GPU always the same attention: cuDNN's would be built anew for each number of keys, while calls wait."""
    if not x.is_cuda:
        return nullcontext()
    ways: AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return ways
