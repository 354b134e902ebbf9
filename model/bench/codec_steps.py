"""Whole steps of a codec, timed and compared, and its search for codes.

Owns a codec with random weights and full windows. Knows no candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.bench.kernels import Clock
from model.bench.models import fill_rings, randomise
from model.config import MimiConfig
from model.cuda_graphs import Graph
from model.kernels import codec_tiles
from model.kernels.codec_tiles import SearchTile, Tables
from model.load import on_meta
from model.mimi.codec import Mimi

_ROUNDS = 4
"""Steps in a graph that is timed, on a GPU."""
_FRAMES = 20
"""After which two ways of launching must still agree."""


class Steps:
    """A codec for `slots` streams, each of which holds as much as it ever will."""

    def __init__(self, config: MimiConfig, slots: int, clock: Clock) -> None:
        device = clock.device
        self._clock, self._config = clock, config
        self._mimi = on_meta(lambda: Mimi(config, decoder_tf32=True)).to_empty(device=device)
        randomise(self._mimi)
        self._mimi.eval().requires_grad_(False)
        self._mimi.fused = True
        self._state = self._mimi.streaming(slots)
        for kv in (self._state.encoder_kv, self._state.decoder_kv):
            fill_rings(kv.rings())
            kv.offsets.fill_(2 * config.transformer.context)
        self._slots = torch.arange(slots, device=device)
        self._sound = torch.randn(slots, 1, self._mimi.frame_size, device=device) / 10
        self._codes = torch.randint(0, config.quantizer.bins, (slots, config.active, 1), device=device)

    def times(self, slots: int) -> tuple[float, float]:
        """Milliseconds to encode a frame of each of `slots`, and to decode one."""
        rounds = _ROUNDS if self._clock.device.type == "cuda" else 1
        return (
            self._clock.microseconds([lambda: self._encode(slots)] * rounds) / 1000,
            self._clock.microseconds([lambda: self._decode(slots)] * rounds) / 1000,
        )

    def alike(self, one: Tables, other: Tables) -> bool:
        """Whether streams from their beginning give the very same codes and sound with either, for one and for all."""
        return all(
            all(map(torch.equal, self._run(one, slots), self._run(other, slots))) for slots in (1, len(self._slots))
        )

    def _encode(self, slots: int) -> Tensor:
        return self._mimi.encode_step(self._state, self._slots[:slots], self._sound[:slots])

    def _decode(self, slots: int) -> Tensor:
        return self._mimi.decode_step(self._state, self._slots[:slots], self._codes[:slots])

    def _run(self, tables: Tables, slots: int) -> list[Tensor]:
        """Codes and sound of some frames, replayed, so that nothing lies between the launches."""
        codec_tiles.use(tables)
        made: list[Tensor] = []

        def both() -> None:
            made[:] = [self._encode(slots), self._decode(slots)]

        graph = Graph(both, self._clock.device)
        self._state.reset(self._slots)
        generator = torch.Generator(self._clock.device).manual_seed(1)
        found: list[Tensor] = []
        for _ in range(_FRAMES):
            self._sound.normal_(generator=generator)
            self._codes.random_(0, self._config.quantizer.bins, generator=generator)
            graph.replay()
            found += [part.clone() for part in made]
        return found


def search_work(config: MimiConfig, slots: int, device: torch.device, cut: SearchTile) -> Callable[[], Tensor]:
    """A search of all codebooks in use, random but always the same."""
    from model.kernels import codec_codes

    quantizer = config.quantizer
    generator = torch.Generator(device).manual_seed(slots)
    sizes = (config.active, quantizer.bins, quantizer.dimension)
    entries = torch.randn(sizes, device=device, generator=generator)
    projected = torch.randn((slots, 1, 2, quantizer.dimension), device=device, generator=generator)
    columns, half_squares = entries.transpose(1, 2).contiguous(), entries.square().sum(dim=2) / 2
    return lambda: codec_codes.search(projected, entries, columns, half_squares, cut=cut)
