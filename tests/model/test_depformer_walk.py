"""The table of tiles: which batch gets which, and what a file of measured ones may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from model.config import personaplex_7b
from model.depformer_walk import TILES, Form, Tiles, constants, load_tiles

BF16 = Form(torch.bfloat16)


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    kept = dict(TILES)
    yield
    TILES.clear()
    TILES.update(kept)


@pytest.mark.parametrize(("count", "largest"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 256), (256, 256)])
def test_a_batch_gets_the_tiles_of_the_smallest_class_that_holds_it(count: int, largest: int) -> None:
    tiles, chosen = TILES[largest], constants(personaplex_7b(), BF16, count, 8)
    assert tiles is not None
    assert [chosen[name] for name in Tiles.__slots__] == list(astuple(tiles))


def test_wide_numbers_and_small_cards_get_less_at_once() -> None:
    config = personaplex_7b()
    depths = [constants(config, form, 128, 8)["depth"] for form in (BF16, replace(BF16, roomy=False))]
    assert [*depths, constants(config, Form(torch.float32), 128, 8)["depth"]] == [64, 32, 16]


def test_measured_tiles_take_the_place_of_the_foreseen(tmp_path: Path) -> None:
    found = {"64": None, "16": [16, 8, 4, 16, 32, 64, 3]}
    (tmp_path / "tiles.json").write_text(json.dumps(found))
    load_tiles(tmp_path / "tiles.json")
    assert list(TILES.items()) == [(16, Tiles(16, 8, 4, 16, 32, 64, 3)), (64, None)]


@pytest.mark.parametrize(
    "written", ["", "[]", '{"a": null}', '{"16": 3}', '{"16": [1]}', '{"16": [1, 2, 3, 4, 5, 6, "x"]}']
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, written: str) -> None:
    (tmp_path / "tiles.json").write_text(written)
    with pytest.raises(ValueError, match="holds no tiles"):
        load_tiles(tmp_path / "tiles.json")
    assert list(TILES) == [16, 32, 64, 256]
