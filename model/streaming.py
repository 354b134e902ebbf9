"""Keys and values of many slots, each with its own time, and which of them a query may see.

Owns the rings, the slots' offsets and the attention windows. Knows no weights, tokens or calls. A pass over
some slots never touches another slot's memory, and reads nothing back from the device.

A position is a slot's own count since its reset, growing without end; its key lies in ring cell
`position mod capacity`. What a query may see is a function of positions alone, never of how the stream was
cut into passes. Therefore steps, chunks and a whole prefill agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

WindowKind = Literal["reference", "full"]
_P = TypeVar("_P", int, Tensor)
_CELLS = 256
"""Cells of a ring that is not full are read in multiples of this: temporary memory has few sizes."""


@dataclass(frozen=True, slots=True)
class Window:
    """How far back a query sees in a stream.

    `full`: `context` keys with its own, as in a pass without cache. `reference`: the reference's streaming
    window, which loses the oldest key as soon as its ring is exactly full. There a step of `step` positions
    ending at E sees E - context + 2 and later, from each of its queries.
    """

    context: int
    kind: WindowKind = "reference"
    step: int = 1

    def first(self, positions: _P) -> _P:
        """The oldest position that each query sees (below 0: all of them). One position, or any shape."""
        if self.kind == "full":
            return positions - (self.context - 1)
        return positions - positions % self.step + (self.step + 1 - self.context)

    @property
    def capacity(self) -> int:
        """Ring cells that let a step be written before it attends without losing a key in sight."""
        return self.context + self.step - 1


@dataclass(frozen=True, slots=True)
class SavedKV:
    """The first `length` positions of a stream, kept outside the rings: `[layers, heads, length, ...]` of each ring."""

    length: int
    rings: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(ring.nbytes for ring in self.rings)


class KVCache:
    """The rings of all layers of one transformer for `slots` slots.

    keys, values: `[layers, slots, heads, capacity, head_dim]`; offsets: `[slots]`, positions written so far.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        heads: int,
        head_dim: int,
        window: Window,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = window
        self.readable = window.capacity
        """Cells that long passes read of each ring."""
        shape = (layers, slots, heads, window.capacity, head_dim)
        self.offsets = torch.zeros(slots, dtype=torch.long, device=device)
        self._allocate(shape, dtype, device)

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def positions(self, slots: Tensor | None, length: int) -> Tensor:
        """The next `length` positions of each of `slots [B]` (None: every slot, in order): `[B, length]`."""
        offsets = self.offsets if slots is None else self.offsets[slots]
        return offsets[:, None] + torch.arange(length, device=offsets.device)

    def begin(self, positions: Tensor, slots: Tensor | None) -> CachedAttention:
        """Attention for one pass over consecutive `positions [B, T]` of `slots [B]` (None: every slot, in order)."""
        return CachedAttention(self, positions, slots)

    @contextmanager
    def holding(self, positions: int) -> Iterator[None]:
        """Within, long passes read no more cells than `positions` take: no slot of theirs has written more before.

        The host knows, where a slot is filled from its beginning; whole rings are gigabytes in all layers together.
        """
        self.readable = self._holding(positions)
        try:
            yield
        finally:
            self.readable = self.window.capacity

    def _holding(self, positions: int) -> int:
        """The cells to read where no slot has written more than `positions`."""
        return min(self.window.capacity, -(-positions // _CELLS) * _CELLS)

    def cells(self, positions: Tensor) -> int:
        """How many cells of each ring, from the first on, a pass over `positions [B, T]` reads."""
        return self.readable if positions.shape[1] > self.window.step else self.window.capacity

    def advance(self, slots: Tensor | None, length: int | Tensor) -> None:
        """Count `length` more positions, one number for all or `[B]`, once a pass over them is done."""
        if slots is None:
            self.offsets += length
        else:
            self.offsets[slots] = self.offsets[slots] + length

    def reset(self, slots: Tensor) -> None:
        """Make `slots [B]` as good as new. Their memory is wiped: it may be a caller's, or hold a NaN."""
        self.offsets.index_fill_(0, slots, 0)
        self.keys.index_fill_(1, slots, 0.0)
        self.values.index_fill_(1, slots, 0.0)

    def wipe(self, slot: int) -> None:
        """Zero all that the rings of `slot` hold; where it stands is left alone."""
        for ring in self.rings():
            for layer in ring:
                layer[slot].zero_()

    def read(self, layer: int, slots: Tensor | None, cells: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as they lie, `[B, heads, cells, head_dim]`, for `slots [B]` (None: all).

        `cells`: so many of the first; None: all.
        """
        keys, values = self.keys[layer, :, :, :cells], self.values[layer, :, :, :cells]
        return (keys, values) if slots is None else (keys[slots], values[slots])

    def write(self, layer: int, rows: Tensor, cells: Tensor, key: Tensor, value: Tensor) -> None:
        """Put `key` and `value [B, heads, N, head_dim]` into `cells [B, N]` of slots `rows [B, 1]`."""
        for ring, new in ((self.keys[layer], key), (self.values[layer], value)):
            ring[rows, :, cells] = new.transpose(1, 2).to(ring.dtype)

    def save(self, slot: int, length: int) -> SavedKV:
        """A copy of the first `length` positions of `slot`, which must not have pushed one of them out."""
        return SavedKV(length, tuple(ring[:, slot, :, :length].clone() for ring in self.rings()))

    def load(self, slot: int, saved: SavedKV, length: int) -> None:
        """Let a fresh `slot` stand after the first `length` of the `saved` positions."""
        for ring, kept in zip(self.rings(), saved.rings, strict=True):
            ring[:, slot, :, :length] = kept[:, :, :length]
        self.offsets[slot].fill_(length)

    def rings(self) -> tuple[Tensor, ...]:
        """All that is kept for each position: tensors `[layers, slots, heads, capacity, ...]`."""
        return self.keys, self.values

    def copy(self, source: int, targets: Tensor) -> None:
        """Let `targets [B]` continue from where slot `source` stands."""
        self.offsets[targets] = self.offsets[source].clone()
        for ring in self.rings():
            for layer in ring:
                layer[targets] = layer[source].clone()


class CachedAttention:
    """One pass of the slots in a batch through the layers: the mask is made once, each layer attends in turn.

    A pass of at most `window.step` positions is written first and attends the ring as it lies. A longer one
    (prefill) would overwrite keys still in sight, so it attends the old ring and its own keys side by side.
    """

    def __init__(self, cache: KVCache, positions: Tensor, slots: Tensor | None) -> None:
        window = cache.window
        self._cache = cache
        self._slots = slots
        self._long = positions.shape[1] > window.step
        batch = torch.arange(cache.offsets.shape[0], device=positions.device) if slots is None else slots
        self._rows = batch[:, None]
        self._cells = positions[:, -window.capacity :] % window.capacity
        newest = positions[:, :1] - 1 if self._long else positions[:, -1:]
        self._count = cache.cells(positions)
        cells = torch.arange(self._count, device=positions.device)
        held = newest - (newest - cells) % window.capacity
        if self._long:
            held = torch.cat((held, positions), dim=1)
        seen = torch.clamp(window.first(positions), min=0)[:, :, None]
        held = held[:, None, :]
        self.mask = ((held >= seen) & (held <= positions[:, :, None]))[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store this layer's keys and values and attend: all `[B, heads, T, head_dim]`, as is the result.

        It has the type of `query`, whatever the rings store.
        """
        if not self._long:
            self._write(layer, key, value)
        keys, values = (ring.to(query.dtype) for ring in self._read(layer))
        if self._long:
            keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
            self._write(layer, key, value)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)

    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._cache.read(layer, self._slots, self._count)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        length = self._cells.shape[1]
        self._cache.write(layer, self._rows, self._cells, key[:, :, -length:], value[:, :, -length:])


class WholeAttention:
    """Attention of a pass without cache: each query sees `context` keys with its own. Positions are `[B or 1, T]`."""

    def __init__(self, positions: Tensor, context: int) -> None:
        self.mask: Tensor | None = None
        if positions.shape[1] > context:
            back = positions[:, :, None] - positions[:, None, :]
            self.mask = ((back >= 0) & (back < context))[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All `[B, heads, T, head_dim]`, as is the result. `layer` is for caches only."""
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, is_causal=self.mask is None
        )
