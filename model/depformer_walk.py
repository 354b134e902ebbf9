"""The walk of a frame's codebooks in one launch: where all its weights lie, and the memory that it works in.

Owns the table of places, made once, and the choice of a way by the batch. The walk itself is `model.kernels.depformer`,
or `model.kernels.depformer_row` where one row walks alone; `LM.walk` is the same in plain PyTorch, and all agree up to
rounding. Weights must not move afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
    stages: pieces of a depth that are on their way at once, and one more. slices: parts of a depth for the warps to
    share, 8, one for each; or 1, when they share the tile, which has 64 rows or more.
    """

    rows: int
    columns: int
    stages: int
    slices: int
    wide_rows: int
    wide_columns: int
    gate_columns: int
    wide_stages: int
    wide_slices: int


@dataclass(frozen=True, slots=True)
class OneRow:
    """The walk of a row alone, which is cut in one way only."""


Way = Tiles | OneRow
_ONE_ROW = {"one_row": True}
"""As it stands in a file of tiles."""
TILES: dict[int, Way | None] = {
    1: OneRow(),
    16: Tiles(16, 8, 4, 8, 16, 32, 64, 3, 8),
    32: Tiles(16, 16, 4, 8, 32, 32, 64, 3, 8),
    64: Tiles(32, 16, 3, 8, 64, 32, 64, 4, 1),
    128: Tiles(32, 32, 3, 8, 64, 64, 128, 3, 1),
    256: Tiles(64, 32, 4, 1, 64, 128, 128, 3, 1),
}
"""By the largest batch that each is for, in rising order; None where the plain walk is faster.

Every program should have one tile of each product; larger tiles read the rows less often, and share more of them.
"""
_HELD = 128 << 10
"""Bytes of a weight that a program may hold in registers, of which a multiprocessor has twice as many."""
_BAND = 8
"""Columns of a product that a row's program has at once, as `model.kernels.depformer_bands` has it."""
_SMALL = Tiles(16, 16, 2, 8, 16, 32, 64, 2, 8)
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
    programs: int = 1
    """On the device at once, as many as it has multiprocessors."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with all that it is called with, and where its results will lie."""

    kernel: Any
    programs: int
    arguments: tuple[object, ...]
    constants: dict[str, int | float | bool]
    logits: Tensor
    chosen: Tensor

    @property
    def options(self) -> dict[str, object]:
        """The arguments by name; a grid that is cooperative is on the device at once, or refused."""
        return {**self.constants, "num_warps": WARPS, "launch_cooperative_grid": self.logits.is_cuda}


class DepformerWalk:
    """The walk of one model, in one window. Any number of batches, one after another."""

    def __init__(self, lm: LM, window: WindowKind) -> None:
        self._config = lm.config
        steps, first = lm.config.depformer.steps, lm.depformer_text_emb.weight
        lines = [list(_matrices(lm, step)) for step in range(len(lm.depformer_in))]
        places = [[weight.data_ptr() for weight, _ in line] for line in lines]
        scales = [[0 if scale is None else scale.data_ptr() for _, scale in line] for line in lines]
        self._table = torch.tensor(places, dtype=torch.long, device=first.device)
        self._scales = torch.tensor(scales, dtype=torch.long, device=first.device)
        self._kept = lines
        """The tensors behind the places: as long as these are used, they are there."""
        self._first = Window(steps, window).first(0)
        self._counter = torch.zeros(1, dtype=torch.int32, device=first.device)
        self._epoch = torch.zeros(1, dtype=torch.int32, device=first.device)
        sizes = lm.config.depformer
        word = torch.int32 if first.dtype == torch.bfloat16 else torch.long
        self._mail = torch.zeros(5 * sizes.dim + sizes.hidden, dtype=word, device=first.device)
        """Of a row alone: each number of a layer with its tag."""
        self._form = Form(
            first.dtype,
            scaled=lines[0][0][1] is not None,
            aligned=all(place % 16 == 0 for line in places for place in line),
            roomy=first.is_cuda and torch.cuda.get_device_capability(first.device) in _ROOMY,
            interpreted=not first.is_cuda,
            programs=torch.cuda.get_device_properties(first.device).multi_processor_count if first.is_cuda else 1,
        )

    def takes(self, count: int) -> bool:
        """Whether a batch of `count` is walked sooner than by `LM.walk`."""
        return way_of(self._config, self._form, count) is not None

    def __call__(
        self, hidden: Tensor, text: Tensor, given: Tensor, told: Tensor, chance: Chance, steps: int
    ) -> tuple[Tensor, Tensor]:
        """From `hidden [N, D]` and the `text [N]` chosen: logits `[N, steps, card]`, all ids chosen `[N, 1 + steps]`.

        Where `given [N, R]` is true the next step is told the id in `told [N, R]` instead.
        """
        launch = self.launch(hidden, text, given, told, chance, steps)
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)
        return launch.logits, launch.chosen

    def launch(self, hidden: Tensor, text: Tensor, given: Tensor, told: Tensor, chance: Chance, steps: int) -> Launch:
        """The launch that the same call makes."""
        count, device = hidden.shape[0], hidden.device
        logits = hidden.new_empty((count, steps, self._config.card))
        chosen = torch.empty((count, 1 + steps), dtype=torch.long, device=device)
        told_instead = (given.contiguous().view(torch.uint8), told.contiguous(), told.shape[1])
        settings = (chance.temperature, chance.top_k, chance.seed, chance.frame, chance.slots)
        starts = (self._table, self._scales, hidden.contiguous(), text, *told_instead, *settings)
        if isinstance(way_of(self._config, self._form, count), OneRow):
            return self._alone(hidden, starts, logits, chosen)
        return self._together(hidden, starts, logits, chosen)

    def _together(self, hidden: Tensor, starts: tuple[object, ...], logits: Tensor, chosen: Tensor) -> Launch:
        from model.kernels import depformer

        (count, steps, _), sizes, new = logits.shape, self._config.depformer, hidden.new_empty
        compiled_for = constants(self._config, self._form, count, steps)
        between = (
            new((steps, count, sizes.dim)),  # the inputs of all steps
            new((count, sizes.dim)),  # the residual stream
            new((count, sizes.dim)),  # it times a gain
            new((count, int(compiled_for["marks"])), dtype=torch.float32),  # sums of its squares
            new((sizes.layers, steps, count, 3 * sizes.dim)),  # queries, keys and values
            new((count, sizes.dim)),  # what the heads saw
            new((count, sizes.hidden)),  # inside the MLP
        )
        arguments = (*starts, *between, logits, chosen, self._counter, count, steps, self._first)
        return Launch(depformer.walk, self._form.programs, arguments, compiled_for, logits, chosen)

    def _alone(self, hidden: Tensor, starts: tuple[object, ...], logits: Tensor, chosen: Tensor) -> Launch:
        from model.kernels import depformer_row

        steps, sizes, new = logits.shape[1], self._config.depformer, hidden.new_empty
        compiled_for = row_constants(self._config, self._form, steps)
        between = (
            new((steps, sizes.dim)),  # the inputs of all steps
            new((sizes.layers, steps, 3 * sizes.dim)),  # queries, keys and values
        )
        arguments = (*starts, *between, logits, chosen, self._counter, self._epoch, self._mail, steps, self._first)
        programs = _row_programs(self._config, self._form)
        return Launch(depformer_row.walk_row, programs, arguments, compiled_for, logits, chosen)


def constants(config: LMConfig, form: Form, count: int, steps: int) -> dict[str, int | float | bool]:
    """The kernel's constants for a batch of `count`."""
    sizes = config.depformer
    wide = form.dtype.itemsize > 2
    tiles = None if wide or not form.roomy else next((way for way in _ways(count) if isinstance(way, Tiles)), None)
    tiles = tiles or _SMALL

    def depth(slices: int) -> int:
        """Of a slice: 128 bytes of bfloat16, or twice as many where there is but one."""
        return (16 if wide else 32) if tiles is _SMALL else 64 if slices > 1 else 128

    return {
        **asdict(tiles),
        "depth": depth(tiles.slices),
        "wide_depth": depth(tiles.wide_slices),
        **_shared(config, form, steps),
        "interpreted": form.interpreted,
        "hints": not form.interpreted,
        "marks": _power(-(-sizes.dim // tiles.columns)),
        "together": min(_power(sizes.heads), 4 if count <= 32 else 16),
    }


def row_constants(config: LMConfig, form: Form, steps: int) -> dict[str, int | float | bool]:
    """The constants of the kernel for a row alone."""
    sizes = config.depformer

    def turns(channels: int) -> int:
        return -(-channels // (_BAND * _row_programs(config, form)))

    return {
        **_shared(config, form, steps),
        "heads_width": _power(sizes.heads),
        "main_width": _power(config.transformer.dim),
        "inner_width": _power(sizes.hidden),
        "in_turns": turns(3 * sizes.dim),
        "out_turns": turns(sizes.dim),
        "gate_turns": turns(sizes.hidden),
        "head_turns": turns(config.card),
    }


def _shared(config: LMConfig, form: Form, steps: int) -> dict[str, int | float | bool]:
    """Constants of both kernels."""
    sizes = config.depformer
    return {
        "eps": RMS_EPS,
        "layers": sizes.layers,
        "main": config.transformer.dim,
        "dim": sizes.dim,
        "width": sizes.hidden,
        "card": config.card,
        "heads": sizes.heads,
        "scaled": form.scaled,
        "aligned": form.aligned,
        "places": _power(steps),
        "head_width": _power(sizes.head_dim),
        "dim_width": _power(sizes.dim),
        "card_width": _power(config.card),
    }


def load_tiles(path: Path) -> None:
    """Take the tiles from a file of `save_tiles`. Raises ValueError where it holds none, OSError."""
    try:
        read = json.loads(path.read_text())
        ways = {int(largest): None if way is None else _read(way) for largest, way in read.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no tiles: {error}") from error
    TILES.clear()
    TILES.update(sorted(ways.items()))


def save_tiles(path: Path, ways: Mapping[int, Way | None]) -> None:
    """Write a table, each way as its numbers, for `load_tiles`. Raises OSError."""
    written = {largest: _ONE_ROW if isinstance(way, OneRow) else way and asdict(way) for largest, way in ways.items()}
    path.write_text(json.dumps(written) + "\n")


def _read(way: dict[str, int]) -> Way:
    return OneRow() if way == _ONE_ROW else Tiles(**{name: int(number) for name, number in way.items()})


def way_of(config: LMConfig, form: Form, count: int) -> Way | None:
    """The first that is for `count` and can be gone; None where `LM.walk` is sooner."""
    return next((way for way in _ways(count) if not isinstance(way, OneRow) or _walks_alone(config, form, count)), None)


def _ways(count: int) -> list[Way | None]:
    return [way for largest, way in TILES.items() if count <= largest]


def _row_programs(config: LMConfig, form: Form) -> int:
    """Each must have columns of the first product."""
    return min(form.programs, -(-3 * config.depformer.dim // _BAND))


def _walks_alone(config: LMConfig, form: Form, count: int) -> bool:
    """Whether a program can hold its share of each weight in registers."""
    sizes, byte = config.depformer, 1 if form.scaled else form.dtype.itemsize
    turns = -(-sizes.hidden // (_BAND * _row_programs(config, form)))
    held = max(2 * turns * _power(sizes.dim), _power(sizes.hidden)) * _BAND * byte
    return count == 1 and (form.interpreted or held <= _HELD)


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
