"""The tables of tiles: which is taken for how many rows, and their way through a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.kernels import tiles
from model.kernels.tiles import AttentionTile, MatrixTile, RowTile, Stored


@pytest.fixture(autouse=True)
def _unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_attention", dict(tiles._attention))
    monkeypatch.setattr(tiles, "_matrix", list(tiles._matrix))
    monkeypatch.setattr(tiles, "_rows", dict(tiles._rows))


def test_what_is_saved_is_taken_once_loaded(tmp_path: Path) -> None:
    attention: dict[Stored, list[AttentionTile]] = {
        "fp8": [AttentionTile(chunk, 2, 8, 1) for chunk in (32, 64, 96, 160)],
        "bf16": [AttentionTile(chunk, 4, 2, 3) for chunk in (48, 80, 112, 128)],
    }
    matrix = [MatrixTile(rows, 32, 64, 4, 3) for rows in (16, 32, 64)]
    tiles.save(tmp_path / "found.json", attention, matrix)
    tiles.load(tmp_path / "found.json")
    assert [tiles.attention_tile("fp8", slots).chunk for slots in (1, 4, 5, 16, 17, 48, 49, 256)] == [
        *(32, 32, 64, 64, 96, 96, 160, 160)
    ]
    assert tiles.attention_tile("bf16", 5) == AttentionTile(80, 4, 2, 3)
    assert [tiles.matrix_tile(rows).rows for rows in (1, 16, 17, 64, 65, 3000)] == [16, 16, 32, 32, 64, 64]


def test_a_file_of_one_table_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    before = tiles.attention_tile("fp8", 1), tiles.matrix_tile(1)
    rows: dict[Stored, list[RowTile]] = {
        "fp8": [RowTile(2, 64, 1), RowTile(4, 64, 1)],
        "bf16": [RowTile(8, 64, 1), RowTile(16, 64, 1)],
    }
    tiles.save(tmp_path / "found.json", rows=rows)
    tiles.load(tmp_path / "found.json")
    assert (tiles.attention_tile("fp8", 1), tiles.matrix_tile(1)) == before
    assert tiles.row_tile("fp8", adds=True) == RowTile(4, 64, 1)
    assert tiles.row_tile("bf16", adds=False) == RowTile(8, 64, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "null", "[]", '"codec"', "{}"),
        *('{"codec": null}', '{"codec": 5}', '{"codec": []}', '{"codec": {}}'),
        '{"attention": {"fp8": [], "bf16": []}, "matrix": []}',
        '{"attention": [], "matrix": 1}',
    ],
)
def test_what_holds_no_tables_is_refused_and_changes_nothing(text: str, tmp_path: Path) -> None:
    before = tiles.attention_tile("fp8", 1)
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json"):
        tiles.load(tmp_path / "wrong.json")
    assert tiles.attention_tile("fp8", 1) == before


@pytest.mark.parametrize(("warps", "row_bytes", "lanes"), [(4, 128, 16), (4, 256, 8), (1, 512, 1), (2, 8, 64)])
def test_as_many_lanes_as_read_a_row_with_16_bytes_a_thread(warps: int, row_bytes: int, lanes: int) -> None:
    assert AttentionTile(128, warps, 4, 1).lanes(row_bytes) == lanes
