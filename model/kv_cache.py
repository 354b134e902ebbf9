"""Keys and values of many calls on one GPU: fixed rings, bfloat16 or FP8, of which a step reads what each slot holds.

Owns the rings' storage, copies of prompts, and the attention of a step, in Triton on a GPU and in plain PyTorch
elsewhere. The rules of positions, windows and passes are those of `model.streaming`. Knows no weights or calls.

A slot is reset by its offset alone. What lies beyond it, an earlier call's keys or a NaN, is never read; `wipe` zeroes
it, in as many launches as layers have rings, and without any memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from model import fp8, ops
from model.rotary import Rotary, frequencies
from model.streaming import CachedAttention, KVCache

if TYPE_CHECKING:
    from model.kernels.attention import Chunks

KVType = Literal["float32", "bf16", "fp8"]
DTYPES: dict[KVType, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp8": fp8.E4M3}


class SlotKV(KVCache):
    """The rings of all layers, as in KVCache; in FP8 with a scale for each token and head, taken when it is written.

    key_scales, value_scales: `[layers, slots, heads, capacity]` in float32, None unless FP8.
    """

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
        super()._allocate(shape, dtype, device)
        scaled = dtype == fp8.E4M3
        self.key_scales = torch.zeros(shape[:-1], device=device) if scaled else None
        self.value_scales = torch.zeros(shape[:-1], device=device) if scaled else None

    @property
    def bytes_per_position(self) -> int:
        """What one position of one slot takes in all layers, scales included; a step reads as much."""
        layers, _, heads, _, head_dim = self.keys.shape
        return 2 * layers * heads * (head_dim * self.keys.element_size() + (4 if self.key_scales is not None else 0))

    def begin(self, positions: Tensor, slots: Tensor | None) -> CachedAttention:
        """As in KVCache. A step of one position attends by `step`, without a mask."""
        return _RingAttention(self, positions, slots)

    def step(self, positions: Tensor, slots: Tensor | None) -> StepAttention:
        """Attention for one position of each slot: `positions [B, 1]` of `slots [B]` (None: every slot, in order)."""
        return StepAttention(self, positions, slots)

    def cells(self, positions: Tensor) -> int:
        """As in KVCache; on the host, where to ask costs nothing, a step reads none that all of its slots lack yet."""
        if positions.shape[1] > 1 or positions.device.type != "cpu":
            return super().cells(positions)
        return self._holding(int(positions.max()) + 1)

    def take(self, slots: Tensor, running: Tensor, max_period: float) -> tuple[StepAttention, Rotary]:
        """Let each of `slots [B]` take its next position, and count it at once where `running [B]`.

        Nothing but what is returned may go to these positions.
        """
        head_dim = self.keys.shape[-1]
        if not ops.fused(self.offsets):
            positions = self.positions(slots, 1)
            self.advance(slots, running.long())
            return self.step(positions, slots), Rotary(positions, head_dim, max_period)
        from model.kernels import positions as kernels

        turn = frequencies(head_dim, max_period, self.offsets.device)
        taken = kernels.take(self.offsets, slots, running, turn, -self.window.first(0))
        attention = StepAttention(self, taken.position[:, None], slots, taken.first)
        return attention, Rotary.of(taken.cos, taken.sin)

    def reset(self, slots: Tensor) -> None:
        """Make `slots [B]` as good as new. Their memory stays as it is, and is not read."""
        self.offsets.index_fill_(0, slots, 0)

    def read(self, layer: int, slots: Tensor | None, cells: int | None = None) -> tuple[Tensor, Tensor]:
        keys, values = super().read(layer, slots, cells)
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        scales = self.key_scales[layer, :, :, :cells], self.value_scales[layer, :, :, :cells]
        key_scale, value_scale = scales if slots is None else (scales[0][slots], scales[1][slots])
        return fp8.restore(keys, key_scale, torch.float32), fp8.restore(values, value_scale, torch.float32)

    def write(self, layer: int, rows: Tensor, cells: Tensor, key: Tensor, value: Tensor) -> None:
        if self.key_scales is None or self.value_scales is None:
            super().write(layer, rows, cells, key, value)
            return
        for ring, scales, new in ((self.keys, self.key_scales, key), (self.values, self.value_scales, value)):
            small, scale = fp8.quantise(new.transpose(1, 2))
            ring[layer].view(torch.uint8)[rows, :, cells] = small.view(torch.uint8)
            scales[layer][rows, :, cells] = scale

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys, values and the scales of both of one layer: `[slots, heads, capacity, ...]`, None unless FP8."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys[layer], self.values[layer], None, None
        return self.keys[layer], self.values[layer], self.key_scales[layer], self.value_scales[layer]

    def rings(self) -> tuple[Tensor, ...]:
        rings = (self.keys, self.values, self.key_scales, self.value_scales)
        return tuple(ring for ring in rings if ring is not None)


class _RingAttention(CachedAttention):
    """A pass of any length; what no query sees is read as zero, so that a NaN left there stays there."""

    def __init__(self, cache: SlotKV, positions: Tensor, slots: Tensor | None) -> None:
        super().__init__(cache, positions, slots)
        self._dead = ~self.mask.any(dim=2)[..., None][:, :, : self._count]

    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = super()._read(layer)
        return keys.masked_fill(self._dead, 0.0), values.masked_fill(self._dead, 0.0)


class StepAttention:
    """One position of each slot of a batch, through the layers in turn."""

    def __init__(self, cache: SlotKV, positions: Tensor, slots: Tensor | None, first: Tensor | None = None) -> None:
        """`first [B]`: the oldest position in sight of each, where it is known already."""
        self._cache = cache
        self.slots = torch.arange(cache.offsets.shape[0], device=positions.device) if slots is None else slots
        self.last = positions[:, 0]
        self.first = cache.window.first(self.last).clamp(min=0) if first is None else first
        self._plain = None if ops.fused(positions) else _RingAttention(cache, positions, slots)
        self._chunks: Chunks | None = None

    def attend(self, layer: int, joined: Tensor, rotary: Rotary) -> Tensor:
        """Turn, store and attend: `joined [B, 3, heads, head_dim]`, query, key and value, to `[B, heads, head_dim]`."""
        if self._plain is not None:
            query, key, value = (part[:, :, None] for part in joined.unbind(1))
            return self._plain.attend(layer, rotary(query), rotary(key), value)[:, :, 0]
        from model.kernels import attention

        cache = self._cache
        ring = attention.Ring(*cache.layer(layer))
        if self._chunks is None:
            self._chunks = attention.chunks(ring, len(self.slots))
        turn = rotary.cos[:, 0, 0], rotary.sin[:, 0, 0]
        return attention.attend(ring, joined, *turn, self.slots, self.first, self.last, self._chunks)
