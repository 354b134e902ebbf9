"""How the products of a codec's step are cut, by their size: a rule, and a table of what a sweep found faster.

Owns both, and the table's form in a file. Knows no kernel, and needs no Triton. The table is `codec_tiles.json` beside
this module, a file that `python -m model.bench.codec` wrote; what it does not hold the rule cuts.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

Precision = Literal["ieee", "tf32"]
"""What a product's factors may lose: nothing, or all but 10 bits."""
Way = Literal["thin", "fma", "tf32", "tf32x3"]
"""How it is made: for few rows by threads that each multiply on their own, by FMA units in tiles, or by tensor cores.

`tf32x3` splits each factor into two of 11 bits and takes the three largest of the four products. Over the published
encoder, with random weights, what reaches the codebooks is then off by 1.1e-6 of its deviation (tensor cores emulated,
against float64); by 2.6e-6 where FMA units sum one factor after the other, by 0.8e-6 in blocks, by 1.1e-3 in TF32.
"""
WAYS: dict[Precision, tuple[Way, ...]] = {"ieee": ("thin", "fma", "tf32x3"), "tf32": ("thin", "fma", "tf32")}
SEARCHES: tuple[Way, ...] = ("fma", "tf32x3")
"""What a search may be made by, which is as exact as float32."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program makes: `rows` x `columns`, by `shares` groups of warps that each sum a part of the factors.

    depth: factors that a share takes at once; stages: such parts that are on their way or in use. A thin tile has all
    rows, one share and two stages.
    """

    rows: int
    columns: int
    shares: int
    depth: int
    warps: int
    stages: int
    way: Way


@dataclass(frozen=True, slots=True)
class SearchTile:
    """Rows and entries of a codebook that one program scores, in `shares` as above, 32 components of each at once."""

    rows: int
    entries: int
    shares: int
    warps: int
    way: Way


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A product's columns and the length of its sums, and the precision that it needs."""

    precision: Precision
    outer: int
    inner: int


_Cut = TypeVar("_Cut")
Entries = Sequence[tuple[int, Tile]]
"""Tiles for one shape, each with the most rows for which it is meant; the last serves all above, too."""

THIN = 4
"""The most rows of a thin tile."""
_PROCESSORS = 132
"""Of the GPU that the tiles are cut for (H100, H200)."""
_SHAPES = (
    (128, 128, 8),
    (128, 64, 8),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (32, 32, 2),
    (128, 16, 4),
    (16, 16, 1),
)
"""Rows, columns and warps, from the one that reads least to the one that spreads most."""
_ACROSS_FMA = 64
"""Columns of the largest tile that registers hold beside its factors, without tensor cores."""
_SMALL = 1024
"""Products of a tile whose shares tensor cores can take."""
_LONG = 2048
"""Factors from which a sum is worth sixteen warps."""
_SPLIT = 32
"""Factors of a sum from which three products of halves are as exact as float32: the tensor cores cut each sum off."""
_DEPTH = 32
_SHARED = 227_000
"""Bytes of shared memory that a program has on a Hopper, and on no card more."""
_FILE = Path(__file__).with_suffix(".json")


def tile(count: int, outer: int, inner: int, precision: Precision = "ieee") -> Tile:
    """For `count` rows, `outer` columns and sums of `inner` factors."""
    found = _of(used().products.get(Shape(precision, outer, inner), ()), count)
    if found is not None and (found.way != "thin" or count <= found.rows) and _has_room(found):
        return found
    return thin(count, outer, inner) if count <= THIN else tiled(count, outer, inner, precision)


def search_tile(count: int) -> SearchTile:
    """For `count` rows: the more rows, the larger, and by tensor cores."""
    found = _of(used().search, count)
    if found is not None:
        return found
    if count > 64:
        return SearchTile(64, 32, 1, 4, "tf32x3")
    if count > THIN:
        return SearchTile(16, 32, 8, 8, "tf32x3")
    return SearchTile(power_of_two(count), 32, 8, 8, "fma")


def chains(slots: int) -> bool:
    """Whether the launches of a step, or a pass, of so many slots are chained, however many rows each of them has."""
    return slots <= used().chained_slots


def thin(count: int, outer: int, inner: int) -> Tile:
    """Threads side by side along the factors, 16 bytes each, so that the weights come in one or two turns."""
    warps = 1
    while warps < 16 and 128 * warps < inner and (warps < 8 or inner > _LONG):
        warps *= 2
    columns = 8 if outer >= 1024 and count <= 2 and warps <= 8 else 4  # as registers hold
    return Tile(power_of_two(count), columns, 1, 128 * warps, warps, 2, "thin")


def tiled(count: int, outer: int, inner: int, precision: Precision) -> Tile:
    """The first tile that occupies three quarters of the GPU, else the one that comes nearest.

    Sums are shared out while its schedulers would have few warps to choose from. On tensor cores a share is one warp's,
    since a second one would only do the same again, and only small tiles have shares.
    """
    way: Way = "tf32" if precision == "tf32" else "tf32x3" if inner >= _SPLIT else "fma"
    widest = min(2 * max(outer, 16) - 1, _ACROSS_FMA if way == "fma" else 128)
    fitting = [entry for entry in _SHAPES if entry[1] <= widest]
    enough = (entry for entry in fitting if 4 * _programs(count, outer, entry) >= 3 * _PROCESSORS)
    entry = next(enough, fitting[-1])
    rows, columns = min(entry[0], max(16, power_of_two(count))), entry[1]
    warps, depth = max(1, entry[2] * rows // entry[0]), 16 if inner < _DEPTH else _DEPTH
    if way != "fma" and rows * columns > _SMALL:
        return Tile(rows, columns, 1, depth, warps, 4 if columns < 128 else 3, way)
    busy, most = warps * _programs(count, outer, entry), 16 if inner >= _LONG else 8
    cut = Tile(rows, columns, 1, depth, warps, 3, way)
    while cut.shares * warps < most and cut.shares * busy < 12 * _PROCESSORS and 2 * cut.shares * _DEPTH < inner:
        shares = 2 * cut.shares
        larger = replace(cut, shares=shares, warps=shares if way != "fma" else shares * warps)
        if not (fits(larger) and _has_room(larger)):
            break
        cut = larger
    return cut


def shared_bytes(cut: Tile, parts: int) -> int:
    """Of shared memory for so many parts of a program's factors; a thin one has them in registers."""
    return 0 if cut.way == "thin" else 4 * parts * cut.shares * cut.depth * (cut.rows + cut.columns)


def fits(cut: Tile) -> bool:
    """Whether a program finds room on the cards that have most."""
    return shared_bytes(cut, cut.stages) < _SHARED and cut.warps <= 16


def fit_into(shared: int) -> None:
    """From now on cut for a card whose programs have so many bytes of shared memory, until told: a Hopper's.

    What a table says, but has no room there, is cut by the rules.
    """
    _room[0] = shared


def _has_room(cut: Tile) -> bool:
    """Whether a program does on this card, where the part in use has gone to registers.

    (On a Hopper, whose tensor cores read large tiles where they lie, all parts stay.)
    """
    return shared_bytes(cut, cut.stages - 1) <= _room[0]


def power_of_two(number: int) -> int:
    """The next one that is no less."""
    return 1 << (number - 1).bit_length()


def _programs(count: int, outer: int, entry: tuple[int, int, int]) -> int:
    return -(-count // entry[0]) * -(-outer // entry[1])


@dataclass(frozen=True, slots=True)
class Tables:
    """What a sweep found.

    products, search: tiles; chained_slots: the most slots for which launches are chained, 0 if they never are.
    """

    products: Mapping[Shape, Entries] = field(default_factory=dict)
    search: Sequence[tuple[int, SearchTile]] = ()
    chained_slots: int = 0


def save(path: Path, tables: Tables) -> None:
    """As `load` takes them, a line for each product."""
    products = [
        {**asdict(shape), "tiles": [[most, *astuple(cut)] for most, cut in entries]}
        for shape, entries in sorted(tables.products.items())
    ]
    search = [[most, *astuple(cut)] for most, cut in tables.search]
    lines = ",\n".join(json.dumps(one) for one in products)
    about = f'"chained_slots": {tables.chained_slots}, "search": {json.dumps(search)}'
    path.write_text(f'{{"codec": {{{about}, "products": [\n{lines}\n]}}}}\n', encoding="utf-8")


def load(path: Path) -> Tables:
    """The tables of a file. Raises ValueError, which names it, if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return read(found["codec"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no tables of a codec's tiles: {error}") from error


def read(found: Any) -> Tables:
    """Tables from their form in a file. Raises ValueError if these are none."""
    try:
        products: dict[Shape, Entries] = {
            Shape(one["precision"], one["outer"], one["inner"]): [(most, Tile(*cut)) for most, *cut in one["tiles"]]
            for one in found["products"]
        }
        search = [(most, SearchTile(*cut)) for most, *cut in found["search"]]
        tables = Tables(products, search, found["chained_slots"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no tables of tiles: {error!r}") from error
    for shape, entries in products.items():
        numbers = [shape.outer, shape.inner, *(most for most, _ in entries)]
        if not (entries and all(map(_counts, numbers)) and all(_can_make(shape, cut) for _, cut in entries)):
            raise ValueError(f"no tiles that can make {shape}")
    if not all(_counts(most) and _can_search(cut) for most, cut in search):
        raise ValueError("no tiles that can search")
    if not (type(tables.chained_slots) is int and tables.chained_slots >= 0):
        raise ValueError(f"no tables of tiles: launches chained for {tables.chained_slots!r} slots")
    return tables


def _can_make(shape: Shape, cut: Tile) -> bool:
    """Whether a kernel can be compiled for a tile, and is as exact as asked."""
    sizes = (cut.rows, cut.columns, cut.shares, cut.depth, cut.warps)
    if not (all(map(_doubles, sizes)) and _counts(cut.stages) and cut.way in WAYS.get(shape.precision, ())):
        return False
    return fits(cut) and (cut.way != "thin" or (cut.rows <= THIN and cut.shares == 1))


def _can_search(cut: SearchTile) -> bool:
    sizes = (cut.rows, cut.entries, cut.shares, cut.warps)
    return all(map(_doubles, sizes)) and cut.warps <= 16 and cut.way in SEARCHES


def _counts(number: object) -> bool:
    return type(number) is int and number > 0


def _doubles(number: object) -> bool:
    """Whether it is a power of two, as the kernels' blocks are."""
    return type(number) is int and number > 0 and number & (number - 1) == 0


def use(tables: Tables) -> None:
    """From now on take these; what is in no table is cut by the rules."""
    _used[0] = tables


def used() -> Tables:
    """Those that are taken."""
    return _used[0]


def _of(entries: Sequence[tuple[int, _Cut]], count: int) -> _Cut | None:
    """The entry for `count` rows; None where there are no entries."""
    if not entries:
        return None
    return entries[bisect_left([most for most, _ in entries[:-1]], count)][1]


_room = [_SHARED]
_used = [load(_FILE)]
