"""How the kernels are cut, for each number of rows: what `python -m model.bench.kernels --sweep` finds the fastest.

Owns the tables, and their form as a file. Knows no kernel, and needs no Triton.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from model.kernels import codec_tiles

Stored = Literal["fp8", "bf16"]
_Tile = TypeVar("_Tile")


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """A program's part of a window: `chunk` positions, of which each of its lanes reads `steps` a turn.

    A lane is as many threads as read a key with 16 bytes each. stages: turns that are read ahead, through shared memory
    (1: none, into registers). tensor_cores: by `model.kernels.fp8_attention` where that can be, whose warps read 16
    positions a turn, and in registers one turn fewer ahead than there are stages.
    """

    chunk: int
    warps: int
    steps: int
    stages: int
    tensor_cores: bool = False

    @property
    def ahead(self) -> int:
        """Turns on their way at once, on tensor cores."""
        return max(1, self.stages - 1)

    def lanes(self, row_bytes: int) -> int:
        """Of keys of `row_bytes`."""
        return max(1, self.warps * 32 * 16 // max(16, row_bytes))


@dataclass(frozen=True, slots=True)
class MatrixTile:
    """A program's part of a product: at most `rows` of activations by `columns` of weights, `depth` inputs a turn."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class RowTile:
    """A program's part of a product with a handful of rows: `columns` of weights, of each `depth` factors a turn."""

    columns: int
    depth: int
    warps: int


BATCHES = (4, 16, 48)
"""The most slots for which each entry of the attention's tables but the last is meant."""
ROWS = (16, 64)
"""The most rows of activations for which each entry of the products' table but the last is meant."""
# As `--sweep` found them on an H200 (deploy/benchmarks.md). In bfloat16 four steps a turn cost three times two.
_attention: dict[Stored, list[AttentionTile]] = {
    "fp8": [
        AttentionTile(160, 4, 2, 3),
        AttentionTile(512, 4, 2, 3),
        AttentionTile(3072, 4, 2, 3),
        AttentionTile(1536, 4, 2, 3),
    ],
    "bf16": [
        AttentionTile(160, 4, 2, 3),
        AttentionTile(256, 4, 2, 4),
        AttentionTile(1024, 4, 2, 3),
        AttentionTile(1024, 4, 2, 4),
    ],
}
# As `model.bench.row_products` found them there.
_rows: dict[Stored, list[RowTile]] = {
    "fp8": [RowTile(4, 1024, 2), RowTile(4, 1024, 2)],
    "bf16": [RowTile(4, 1024, 4), RowTile(4, 1024, 4)],
}
_matrix = [MatrixTile(16, 32, 128, 4, 6), MatrixTile(64, 32, 128, 4, 3), MatrixTile(128, 64, 128, 8, 3)]


def attention_tile(stored: Stored, slots: int) -> AttentionTile:
    """For a step of `slots`; wider types than bfloat16 take its tiles."""
    return _attention[stored][bisect_left(BATCHES, slots)]


def matrix_tile(rows: int) -> MatrixTile:
    """For `rows` of activations."""
    return _matrix[bisect_left(ROWS, rows)]


def row_tile(stored: Stored, *, adds: bool) -> RowTile:
    """For a product that follows a norm, or one that adds to the residual stream; wider types take bfloat16's."""
    return _rows[stored][int(adds)]


def save(
    path: Path,
    attention: Mapping[Stored, Sequence[AttentionTile]] | None = None,
    matrix: Sequence[MatrixTile] | None = None,
    rows: Mapping[Stored, Sequence[RowTile]] | None = None,
) -> None:
    """Tables as `load` takes them: those that are given."""
    tables: dict[str, object] = {}
    for name, table in (("attention", attention), ("rows", rows)):
        if table is not None:
            tables[name] = {stored: [astuple(tile) for tile in tiles] for stored, tiles in table.items()}
    if matrix is not None:
        tables["matrix"] = [astuple(tile) for tile in matrix]
    path.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> None:
    """From now on take the tiles of a file, which holds some of the tables, or those of a codec.

    Raises ValueError, which names it, if it holds none, or one that has not as many tiles as here.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no tables of tiles: {error}") from error
    if not isinstance(tables, dict):
        raise ValueError(f"{path} holds no tables of tiles")
    if "codec" in tables:
        codec_tiles.use(codec_tiles.load(path))
        return
    try:
        attention = _read(tables, "attention", _attention, AttentionTile)
        rows = _read(tables, "rows", _rows, RowTile)
        matrix = [MatrixTile(*tile) for tile in tables.get("matrix", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no tables of tiles: {error!r}") from error
    if not (attention or rows or matrix):
        raise ValueError(f"{path} holds no tables of tiles")
    alike = all(len(tiles) == len(_attention[stored]) for stored, tiles in attention.items())
    alike = alike and all(len(tiles) == len(_rows[stored]) for stored, tiles in rows.items())
    if not alike or len(matrix) not in (0, len(_matrix)):
        raise ValueError(f"{path} has not a tile for each number of rows")
    _attention.update(attention)
    _rows.update(rows)
    _matrix[:] = matrix or _matrix


def _read(
    tables: Mapping[str, Mapping[str, Sequence[Sequence[int]]]],
    name: str,
    known: Mapping[Stored, Sequence[_Tile]],
    make: Callable[..., _Tile],
) -> dict[Stored, list[_Tile]]:
    """One table by stored type; empty where there is none."""
    return {stored: [make(*tile) for tile in tables[name][stored]] for stored in known} if name in tables else {}
