"""The tiles of a codec's products: what the rules say, what a table says instead, and its way through a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.kernels import codec_tiles, tiles
from model.kernels.codec_tiles import WAYS, Precision, SearchTile, Shape, Tables, Tile, search_tile, tile

SMALL, LARGE = Tile(16, 16, 8, 32, 8, 3, "tf32x3"), Tile(128, 64, 1, 32, 8, 3, "tf32x3")
BORDERLINE = Tile(16, 16, 8, 32, 8, 4, "tf32x3")
THIN = Tile(2, 4, 1, 512, 4, 2, "thin")


ADA = 101_376
"""Bytes of shared memory of a program on capability 8.6, 8.9 and 12.0."""


@pytest.fixture(autouse=True)
def _the_rules_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(codec_tiles, "_room", list(codec_tiles._room))
    before = codec_tiles.used()
    codec_tiles.use(Tables())
    yield
    codec_tiles.use(before)


def test_few_rows_are_thin_and_many_are_tiles() -> None:
    assert tile(2, 512, 2048) == Tile(rows=2, columns=4, shares=1, depth=1024, warps=8, stages=2, way="thin")
    assert tile(3, 512, 2048, "tf32").rows == 4
    assert tile(16, 512, 3072) == Tile(16, 16, 16, 32, 16, 3, "tf32x3")
    assert tile(128 * 480, 128, 512) == Tile(128, 128, 1, 32, 8, 3, "tf32x3")
    assert tile(128 * 480, 64, 512, "tf32") == Tile(128, 64, 1, 32, 8, 4, "tf32")
    assert tile(128 * 1920, 64, 7).way == "fma"


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_every_tile_fits_and_is_as_exact_as_asked(precision: Precision) -> None:
    """A warp for each share on tensor cores, where more would do the same again."""
    for count in (1, 2, 3, 5, 16, 64, 256, 1920, 245_760):
        for outer in (1, 3, 32, 64, 512, 4096):
            for inner in (7, 32, 192, 8192):
                cut = tile(count, outer, inner, precision)
                assert codec_tiles.fits(cut), cut
                assert cut.way in WAYS[precision]
                assert cut.shares == 1 or cut.way == "fma" or cut.warps == cut.shares


def test_on_a_card_with_less_shared_memory_shares_are_fewer() -> None:
    codec_tiles.fit_into(ADA)
    assert tile(16, 512, 3072) == Tile(16, 16, 8, 32, 8, 3, "tf32x3")
    for precision in WAYS:
        for count in (5, 16, 64, 1920, 245_760):
            for outer in (1, 32, 512, 4096):
                for inner in (7, 192, 2048, 8192):
                    cut = tile(count, outer, inner, precision)
                    assert codec_tiles.shared_bytes(cut, cut.stages - 1) <= ADA, cut


def test_on_a_card_with_less_shared_memory_what_is_too_large_is_not_taken_from_a_table() -> None:
    large = Tile(16, 16, 16, 32, 16, 3, "tf32x3")
    shape = Shape("ieee", 512, 2048)
    codec_tiles.use(Tables({shape: [(2, THIN), (9, large), (20, BORDERLINE)]}))
    assert [tile(count, 512, 2048) for count in (2, 9, 20)] == [THIN, large, BORDERLINE]
    codec_tiles.fit_into(ADA)
    assert [tile(count, 512, 2048) for count in (2, 9, 20)] == [THIN, SMALL, BORDERLINE]


def test_a_thin_tile_takes_no_shared_memory() -> None:
    codec_tiles.fit_into(0)
    assert tile(4, 512, 8192).way == "thin"


def test_a_table_is_asked_before_the_rules() -> None:
    shape = Shape("ieee", 512, 2048)
    search = [(16, SearchTile(16, 64, 4, 4, "tf32x3")), (1, SearchTile(64, 64, 1, 4, "tf32x3"))]
    rules = [tile(count, 512, 2048) for count in (3, 4)]
    codec_tiles.use(Tables({shape: [(4, THIN), (64, SMALL), (1, LARGE)]}, search))
    assert [tile(count, 512, 2048) for count in (1, 2, 5, 64, 65, 10_000)] == [THIN, THIN, SMALL, SMALL, LARGE, LARGE]
    assert [tile(count, 512, 2048) for count in (3, 4)] == rules  # a thin tile has all rows
    assert tile(5, 512, 2048, "tf32").way == "tf32"
    assert [search_tile(count).rows for count in (1, 16, 17, 400)] == [16, 16, 64, 64]


def test_what_is_written_is_taken_from_a_file(tmp_path: Path) -> None:
    tables = Tables({Shape("ieee", 512, 2048): [(2, THIN), (9, SMALL)]}, [(8, SearchTile(16, 32, 8, 8, "fma"))], 3)
    file = tmp_path / "codec.json"
    codec_tiles.save(file, tables)
    tiles.load(file)
    assert codec_tiles.used() == tables


def written(*tile: object, search: object = (), chained_slots: object = 0, **shape: object) -> dict[str, object]:
    """As in a file, with a tile for one product."""
    product = {"precision": "ieee", "outer": 1, "inner": 2, **shape, "tiles": [list(tile)] if tile else []}
    return {"chained_slots": chained_slots, "search": search, "products": [product]}


GOOD = (1, 16, 16, 1, 32, 1, 3, "tf32x3")


def test_a_table_in_the_form_of_a_file_is_read() -> None:
    tables = codec_tiles.read(written(*GOOD, search=[[5, 1, 32, 8, 8, "fma"]], chained_slots=2))
    shape, cut = Shape("ieee", 1, 2), Tile(16, 16, 1, 32, 1, 3, "tf32x3")
    assert tables == Tables({shape: [(1, cut)]}, [(5, SearchTile(1, 32, 8, 8, "fma"))], 2)


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 5, [], {}),
        written(),
        written(*GOOD, precision="fp8"),
        written(*GOOD, outer=0),
        written(1, 16, 16, 1, 32, 1, 3, "tf32"),  # not exact enough
        written(1, 128, 128, 2, 64, 8, 3, "tf32x3"),  # too large
        written(1, 24, 16, 1, 32, 1, 3, "tf32x3"),
        written(1, "16", 16, 1, 32, 1, 3, "tf32x3"),
        written(1, 16, 16, True, 32, 1, 3, "tf32x3"),
        written(1, 16, 16, 1, 32.0, 1, 3, "tf32x3"),
        written(1, 16, 16, 1, 32, 0, 3, "tf32x3"),
        written(1, 16, 16, 1, 32, 1, 0, "tf32x3"),
        written("1", 16, 16, 1, 32, 1, 3, "tf32x3"),
        written(1, 8, 4, 1, 128, 1, 2, "thin"),  # more rows than are thin
        written(1, 2, 4, 2, 128, 1, 2, "thin"),
        written(*GOOD, search=[[1, 2]]),
        written(*GOOD, search=[[8, 16, 32, 8, 8, "tf32"]]),
        written(*GOOD, search=[[8, 24, 32, 8, 8, "fma"]]),
        written(*GOOD, search=[[0, 16, 32, 8, 8, "fma"]]),
        written(*GOOD, search=5),
        written(*GOOD, chained_slots=-1),
        written(*GOOD, chained_slots=True),
        written(*GOOD, chained_slots="1"),
    ],
)
def test_tables_that_are_none_or_cannot_be_or_are_not_exact_enough_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="tiles"):
        codec_tiles.read(wrong)


def test_a_file_that_is_missing_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        codec_tiles.load(tmp_path / "codec_tiles.json")
