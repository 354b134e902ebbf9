"""How the kernels are cut, for each number of rows: what `python -m model.bench.kernels --sweep` finds the fastest.

Owns the tables, and their form as a file. Knows no kernel, and needs no Triton.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

Stored = Literal["fp8", "bf16"]


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """A program's part of a window: `chunk` positions, of which each of its lanes reads `steps` a turn.

    A lane is as many threads as read a key with 16 bytes each. stages: turns that are read ahead, through shared memory
    (1: none, into registers).
    """

    chunk: int
    warps: int
    steps: int
    stages: int

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


BATCHES = (4, 16, 48)
"""The most slots for which each entry of the attention's tables but the last is meant."""
ROWS = (16, 64)
"""The most rows of activations for which each entry of the products' table but the last is meant."""
# As `--sweep` found them on an H200 (deploy/benchmarks.md). In bfloat16 four steps a turn cost three times two.
_attention: dict[Stored, list[AttentionTile]] = {
    "fp8": [
        AttentionTile(128, 2, 4, 3),
        AttentionTile(512, 4, 2, 3),
        AttentionTile(1024, 4, 2, 3),
        AttentionTile(1024, 4, 2, 3),
    ],
    "bf16": [
        AttentionTile(160, 4, 2, 3),
        AttentionTile(256, 4, 2, 4),
        AttentionTile(1024, 4, 2, 3),
        AttentionTile(1024, 4, 2, 4),
    ],
}
_matrix = [MatrixTile(16, 32, 128, 4, 6), MatrixTile(64, 32, 128, 4, 3), MatrixTile(128, 64, 128, 8, 3)]


def attention_tile(stored: Stored, slots: int) -> AttentionTile:
    """For a step of `slots`; wider types than bfloat16 take its tiles."""
    return _attention[stored][bisect_left(BATCHES, slots)]


def matrix_tile(rows: int) -> MatrixTile:
    """For `rows` of activations."""
    return _matrix[bisect_left(ROWS, rows)]


def save(path: Path, attention: Mapping[Stored, Sequence[AttentionTile]], matrix: Sequence[MatrixTile]) -> None:
    """Tables as `load` takes them."""
    tables = {
        "attention": {stored: [astuple(tile) for tile in tiles] for stored, tiles in attention.items()},
        "matrix": [astuple(tile) for tile in matrix],
    }
    path.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> None:
    """From now on take the tiles of a file. Raises ValueError if they are not as many as here, or no tiles."""
    tables = json.loads(path.read_text(encoding="utf-8"))
    try:
        attention = {stored: [AttentionTile(*tile) for tile in tables["attention"][stored]] for stored in _attention}
        matrix = [MatrixTile(*tile) for tile in tables["matrix"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no tables of tiles: {error!r}") from error
    if any(len(tiles) != len(BATCHES) + 1 for tiles in attention.values()) or len(matrix) != len(ROWS) + 1:
        raise ValueError(f"{path} has not a tile for each number of rows")
    _attention.update(attention)
    _matrix[:] = matrix
