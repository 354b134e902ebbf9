"""The walk of a frame's codebooks in one launch: where all its weights lie, and the memory that it works in.

Owns the table of places, made once, and the choice of tiles by the batch. The walk itself is `model.kernels.depformer`;
`LM.walk` is the same in plain PyTorch, and the two agree up to rounding. Weights must not move afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from model.config import LMConfig
from model.ops import RMS_EPS
from model.streaming import Window, WindowKind

if TYPE_CHECKING:
    from model.depformer import DepformerLayer
    from model.lm import LM, Chance
    from model.transformer import GatedMLP

_Matrix = tuple[Tensor, Tensor | None]
"""A weight `[outputs, inputs]`, and the scale of each output where it is kept in FP8."""
WARPS = 8
"""Of a program; the kernel cuts the depth of its products in as many."""
_ROOMY = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Capabilities of data centres' cards, where a program may have 163 KB of shared memory or more; others give 99."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How products are cut: `rows` by `columns` outputs for a program where they are as wide as the model.

    Of wider ones a program makes `wide_rows` by `wide_columns`, or `gate_columns` where half of them gate the others.
    stages: pieces of a depth that are on their way at once, and one more.
    """

    rows: int
    columns: int
    stages: int
    wide_rows: int
    wide_columns: int
    gate_columns: int
    wide_stages: int


TILES: dict[int, Tiles | None] = {
    16: Tiles(16, 8, 4, 16, 32, 64, 3),
    32: Tiles(16, 16, 4, 32, 32, 64, 3),
    64: Tiles(32, 16, 3, 32, 64, 64, 3),
    256: Tiles(32, 32, 3, 32, 64, 64, 3),
}
"""By the largest batch that each is for, in rising order; None where the plain walk is faster.

Every program should have one tile of each product; larger tiles read the rows less often, and share more of them.
"""
_SMALL = Tiles(16, 16, 2, 16, 32, 64, 2)
"""For float32, and where there is little shared memory."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a walk is compiled for, beside the sizes of the model.

    scaled: the layers' weights are FP8; aligned: all begin at multiples of 16 bytes; roomy: programs have the shared
    memory of a data centre's card; interpreted: there is no GPU.
    """

    dtype: torch.dtype
    scaled: bool = False
    aligned: bool = True
    roomy: bool = True
    interpreted: bool = False


class DepformerWalk:
    """The walk of one model, in one window. Any number of batches, one after another."""

    def __init__(self, lm: LM, window: WindowKind) -> None:
        self._config = lm.config
        steps, first = lm.config.depformer.steps, lm.depformer_text_emb.weight
        lines = [list(_matrices(lm, step)) for step in range(steps)]
        places = [[weight.data_ptr() for weight, _ in line] for line in lines]
        scales = [[0 if scale is None else scale.data_ptr() for _, scale in line] for line in lines]
        self._table = torch.tensor(places, dtype=torch.long, device=first.device)
        self._scales = torch.tensor(scales, dtype=torch.long, device=first.device)
        self._kept = lines
        """The tensors behind the places: as long as these are used, they are there."""
        self._first = Window(steps, window).first(0)
        self._counter = torch.zeros(1, dtype=torch.int32, device=first.device)
        self._form = Form(
            first.dtype,
            scaled=lines[0][0][1] is not None,
            aligned=all(place % 16 == 0 for line in places for place in line),
            roomy=first.is_cuda and torch.cuda.get_device_capability(first.device) in _ROOMY,
            interpreted=not first.is_cuda,
        )
        self.programs = torch.cuda.get_device_properties(first.device).multi_processor_count if first.is_cuda else 1
        """On the device at once, as many as it has multiprocessors."""

    def takes(self, count: int) -> bool:
        """Whether a batch of `count` is walked sooner than by `LM.walk`."""
        return _tiles(count) is not None

    def __call__(
        self, hidden: Tensor, text: Tensor, given: Tensor, told: Tensor, chance: Chance, steps: int
    ) -> tuple[Tensor, Tensor]:
        """From `hidden [N, D]` and the `text [N]` chosen: logits `[N, steps, card]`, all ids chosen `[N, 1 + steps]`.

        Where `given [N, R]` is true the next step is told the id in `told [N, R]` instead.
        """
        from model.kernels import depformer

        logits, chosen, arguments, options = self.arguments(hidden, text, given, told, chance, steps)
        depformer.walk[(self.programs,)](*arguments, **options)
        return logits, chosen

    def arguments(
        self, hidden: Tensor, text: Tensor, given: Tensor, told: Tensor, chance: Chance, steps: int
    ) -> tuple[Tensor, Tensor, tuple[object, ...], dict[str, object]]:
        """Of the same call: where its results will lie, and the kernel's arguments, by place and by name."""
        count, sizes, new = hidden.shape[0], self._config.depformer, hidden.new_empty
        compiled_for = constants(self._config, self._form, count, steps)
        logits = new((count, steps, self._config.card))
        chosen = torch.empty((count, 1 + steps), dtype=torch.long, device=hidden.device)
        settings = (chance.temperature, chance.top_k, chance.seed, chance.frame, chance.slots)
        between = (
            new((steps, count, sizes.dim)),  # the inputs of all steps
            new((count, sizes.dim)),  # the residual stream
            new((count, sizes.dim)),  # it times a gain
            new((count, int(compiled_for["marks"])), dtype=torch.float32),  # sums of its squares
            new((sizes.layers, steps, count, 3 * sizes.dim)),  # queries, keys and values
            new((count, sizes.dim)),  # what the heads saw
            new((count, sizes.hidden)),  # inside the MLP
        )
        arguments = (
            self._table,
            self._scales,
            hidden.contiguous(),
            text,
            given.contiguous().view(torch.uint8),
            told.contiguous(),
            told.shape[1],
            *settings,
            *between,
            logits,
            chosen,
            self._counter,
            count,
            steps,
            self._first,
        )
        options: dict[str, object] = {**compiled_for, "num_warps": WARPS, "launch_cooperative_grid": hidden.is_cuda}
        return logits, chosen, arguments, options


def constants(config: LMConfig, form: Form, count: int, steps: int) -> dict[str, int | float | bool]:
    """The kernel's constants for a batch of `count`."""
    sizes = config.depformer
    wide = form.dtype.itemsize > 2
    tiles = None if wide or not form.roomy else _tiles(count)
    tiles = tiles or _SMALL
    return {
        **asdict(tiles),
        "depth": 64 if tiles is not _SMALL else 16 if wide else 32,
        "eps": RMS_EPS,
        "layers": sizes.layers,
        "main": config.transformer.dim,
        "dim": sizes.dim,
        "width": sizes.hidden,
        "card": config.card,
        "heads": sizes.heads,
        "scaled": form.scaled,
        "aligned": form.aligned,
        "interpreted": form.interpreted,
        "hints": not form.interpreted,
        "marks": _power(-(-sizes.dim // tiles.columns)),
        "together": min(_power(sizes.heads), 4 if count <= 32 else 16),
        "places": _power(steps),
        "head_width": _power(sizes.head_dim),
        "dim_width": _power(sizes.dim),
        "card_width": _power(config.card),
    }


def load_tiles(path: Path) -> None:
    """Take the tiles from a file that `model.bench.walk` wrote. Raises ValueError where it holds none, OSError."""
    try:
        read = json.loads(path.read_text())
        tiles = {int(largest): None if sides is None else Tiles(*map(int, sides)) for largest, sides in read.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no tiles: {error}") from error
    TILES.clear()
    TILES.update(sorted(tiles.items()))


def _tiles(count: int) -> Tiles | None:
    return next((tiles for largest, tiles in TILES.items() if count <= largest), None)


def _matrices(lm: LM, step: int) -> Iterator[_Matrix]:
    """The weights of one step, in the order of the kernel's table."""
    for module in lm.depformer.layers:
        layer = cast("DepformerLayer", module)
        attention, mlp = layer.self_attn, cast("GatedMLP", layer.gating[step])
        if attention.parts is None:
            yield from ((weight.detach(), None) for weight in attention.whole(step))
        else:
            yield from (_matrix(part[step]) for part in attention.parts)
        yield _matrix(mlp.linear_in)
        yield _matrix(mlp.linear_out)
        yield layer.norm1.alpha.detach(), None
        yield layer.norm2.alpha.detach(), None
    yield _matrix(lm.depformer_in[step])
    yield _matrix(lm.depformer_emb[step - 1] if step else lm.depformer_text_emb)
    yield _matrix(lm.linears[step])


def _matrix(module: nn.Module) -> _Matrix:
    """Of a linear layer, whole or in FP8, or of an embedding."""
    return cast(Tensor, module.weight).detach().contiguous(), cast("Tensor | None", getattr(module, "scale", None))


def _power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()
