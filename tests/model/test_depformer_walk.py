"""The table of tiles: which batch gets which, and what a file of measured ones may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from model.config import personaplex_7b
from model.depformer_walk import TILES, DepformerWalk, Form, OneRow, Tiles, constants, load_tiles, save_tiles, way_of
from tests.model.tiny import random_lm

BF16 = Form(torch.bfloat16)


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    kept = dict(TILES)
    yield
    TILES.clear()
    TILES.update(kept)


@pytest.mark.parametrize(("count", "largest"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (129, 256)])
def test_a_batch_gets_the_tiles_of_the_smallest_class_that_holds_it(count: int, largest: int) -> None:
    tiles, chosen = TILES[largest], constants(personaplex_7b(), BF16, count, 8)
    assert isinstance(tiles, Tiles)
    assert {name: chosen[name] for name in Tiles.__slots__} == asdict(tiles)


@pytest.mark.parametrize(("count", "programs", "alone"), [(1, 132, True), (2, 132, False), (1, 46, False)])
def test_a_row_walks_alone_where_programs_can_hold_its_weights(count: int, programs: int, alone: bool) -> None:
    assert isinstance(way_of(personaplex_7b(), replace(BF16, programs=programs), count), OneRow) == alone


def test_without_a_way_the_plain_walk_is_taken() -> None:
    walk = DepformerWalk(random_lm(), "reference")
    assert walk.takes(1)
    TILES[1] = None
    assert not walk.takes(1)
    assert walk.takes(2)


def test_wide_numbers_and_small_cards_get_less_at_once() -> None:
    config = personaplex_7b()
    depths = [constants(config, form, 128, 8)["depth"] for form in (BF16, replace(BF16, roomy=False))]
    assert [*depths, constants(config, Form(torch.float32), 128, 8)["depth"]] == [64, 32, 16]


def test_measured_ways_take_the_place_of_the_foreseen(tmp_path: Path) -> None:
    tiles = Tiles(16, 8, 4, 8, 16, 32, 64, 3, 8)
    file = tmp_path / "tiles.json"
    save_tiles(file, {64: None, 16: tiles, 1: OneRow()})
    load_tiles(file)
    assert list(TILES.items()) == [(1, OneRow()), (16, tiles), (64, None)]
    assert json.loads(file.read_text()) == {"64": None, "16": asdict(tiles), "1": {"one_row": True}}


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        '{"a": null}',
        '{"16": 3}',
        '{"16": [1]}',
        '{"16": {"rows": 16}}',
        '{"1": {"one_row": false}}',
        '{"1": {"one_row": true, "rows": 16}}',
        '{"1": {}}',
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, written: str) -> None:
    (tmp_path / "tiles.json").write_text(written)
    with pytest.raises(ValueError, match="holds no tiles"):
        load_tiles(tmp_path / "tiles.json")
    assert list(TILES) == [1, 16, 32, 64, 128, 256]
