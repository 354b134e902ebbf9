"""The codec's benchmark: the products that it knows are those of a step, wrong ones are left out, and the choice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.bench import codec, codec_cases, codec_steps
from model.bench.codec_cases import Case, Data, candidates, cases
from model.bench.kernels import Clock
from model.bench.models import sizes_of
from model.kernels import codec_tiles
from model.kernels.codec_tiles import Precision, Shape, Tables, Tile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = sizes_of("tiny").mimi
SMALL = replace(
    TINY,
    seanet=replace(TINY.seanet, ratios=(2, 2, 3, 2)),
    transformer=replace(TINY.transformer, layers=1),
    quantizer=replace(TINY.quantizer, codebooks=2, bins=32),
    active=2,
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = codec_tiles.used()
    codec_tiles.use(Tables())
    yield
    codec_tiles.use(before)


def test_its_products_are_those_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Shape, int]] = set()
    take = codec_tiles.tile

    def watched(count: int, outer: int, inner: int, precision: Precision = "ieee") -> Tile:
        seen.add((Shape(precision, outer, inner), count))
        return take(count, outer, inner, precision)

    monkeypatch.setattr(codec_tiles, "tile", watched)
    steps = codec_steps.Steps(SMALL, 1, Clock(DEVICE))
    with torch.no_grad():
        steps.times(1)
    known = {(case.shape, case.length) for case in cases(SMALL)}
    assert known <= seen
    assert {shape for shape, _ in seen} == {shape for shape, _ in known}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="launches are chained on a GPU only")
def test_chained_launches_say_the_very_same() -> None:
    with torch.no_grad():
        steps = codec_steps.Steps(SMALL, 3, Clock(DEVICE))
        assert steps.alike(Tables(), Tables(chained_slots=2))


def test_every_kind_of_product_is_right_and_a_wrong_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = {case.name: case for case in cases(TINY)}
    for name in ("encoder 0", "encoder 2", "encoder joining", "encoder widening", "downsample"):
        case = replace(every[name], length=min(every[name].length, 4))
        data = Data(case, 2, DEVICE)
        for cut in candidates(case.shape, 2 * case.length)[:2]:
            data.result.fill_(math.nan)
            data.make(cut)
            assert data.off() < 1e-4, (name, cut)
    data.result[1, -1] += 0.5
    assert data.off() > 0.4
    data.result[0, 0] = math.nan
    assert data.off() == math.inf
    monkeypatch.setattr(Data, "off", lambda self: 1.0)
    assert codec._times((every["encoder joining"], 1), Clock(DEVICE)) == {}
    assert "wrong: encoder joining" in capsys.readouterr().out


def test_of_tiles_that_take_as_long_the_one_that_most_products_take_is_chosen() -> None:
    one, two, three = (Tile(16, columns, 8, 32, 8, 3, "tf32") for columns in (16, 32, 64))
    made = [Case(name, Shape("tf32", 64, size), 1, size) for name, size in (("a", 32), ("b", 64), ("c", 96))]
    times = {(made[0], 1): {one: 1.0, two: 1.01}, (made[1], 1): {two: 1.0, three: 1.5}, (made[2], 1): {three: 1.0}}
    assert list(codec._chosen(times).values()) == [two, two, three]


def test_a_tile_serves_half_way_to_the_next_and_a_thin_one_its_rows() -> None:
    thin, tiled = Tile(2, 4, 1, 128, 1, 2, "thin"), Tile(16, 16, 8, 32, 8, 3, "tf32")
    case = Case("a", Shape("tf32", 64, 96), 2, 96)
    entries = codec._entries({(case, 1): thin, (case, 32): tiled, (case, 128): tiled})
    assert entries == {case.shape: [(2, thin), (4, replace(thin, rows=4, columns=2)), (128, tiled), (256, tiled)]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for a GPU")
def test_a_sweep_writes_what_the_engines_benchmark_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec_cases, "SLOTS", {1: 2})
    monkeypatch.setattr(codec_cases, "MOST", 1)
    monkeypatch.setattr(codec, "sizes_of", lambda size: replace(sizes_of(size), mimi=SMALL))
    monkeypatch.setattr(codec, "SEARCH", ())
    monkeypatch.setattr(codec, "_SEARCHED", (1,))
    monkeypatch.setattr(codec, "_STEPPED", (1,))
    monkeypatch.setattr(codec, "search_work", lambda *asked: lambda: torch.zeros(1))
    monkeypatch.setattr(codec_steps.Steps, "times", lambda self, slots: (1.0, 2.0))
    file = tmp_path / "codec.json"
    assert codec.main([str(file), "--size", "tiny", "--device", "cpu"]) == 0
    found = codec_tiles.load(file)
    assert Shape("ieee", 96, 32) in found.products
    assert len(found.search) == 1
    assert "steps, found: 1: 1.000 + 2.000 ms" in capsys.readouterr().out
