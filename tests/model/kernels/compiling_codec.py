"""The codec's kernels as `compiling` takes them: at the published sizes, and at some that are no powers of two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model.bench.codec_cases import cases
from model.config import mimi_full
from model.kernels import codec_attention, codec_chunk, codec_codes, codec_product, codec_rows, codec_tiles
from model.kernels.codec_tiles import Precision, Shape, Tile

TABLE = "codec tile"
"""How the names of the table's products begin."""
_FLOATS = """
source weight bias gain norm_gain norm_shift residual begun out active joined frequency keys values result rows
workspace sound x cos sin projected rests entries half_squares scores
"""
_NUMBERS = """
source_stride residual_stride out_stride active_stride column_stride factor_stride rows_stride workspace_stride
sound_stride row_stride book_stride length hop head
channels bins carried samples sound_at context book step half layer_stride
"""
_TYPES = dict.fromkeys(_FLOATS.split(), "*fp32") | dict.fromkeys(_NUMBERS.split(), "i32")
_TYPES |= {"offsets": "*i64", "codes": "*i64", "places": "*i32", "indices": "*i32"}


_ROOM = {89: 101_376, 120: 101_376}
"""Bytes of shared memory that a program has, where they are fewer than a Hopper's."""
_MOST = 232_448


Built = Callable[[Any, int, dict[str, str], dict[str, int], dict[str, object]], Any]
"""A kernel for a capability, with its types, options and constants."""


def _compiled(
    built: Built,
    kernel: Any,
    capability: int,
    types: dict[str, str],
    warps: int = 4,
    num_stages: int = 3,
    **constants: object,
) -> str:
    """The PTX of a kernel whose programs find room."""
    options = {"num_warps": warps, "num_stages": num_stages}
    done = built(kernel, capability, types, options, constants)
    assert done.metadata.shared <= _ROOM.get(capability, _MOST), (constants, options, done.metadata.shared)
    ptx: str = done.asm["ptx"]
    return ptx


def codec_table(capability: int, built: Built, every: bool) -> dict[str, str]:
    """The PTX of the shipped table's products, one for each tile: of the small ones, or of `every` one.

    With a norm where one of its products has it, which takes more shared memory.
    """
    normed = {case.shape for case in cases(mimi_full()) if case.norm}
    forms = {cut: shape for shape, cut in table_tiles() if every or is_small(cut)}
    forms |= {cut: shape for shape, cut in table_tiles() if cut in forms and shape in normed}
    codec_tiles.fit_into(_ROOM.get(capability, _MOST))
    return {
        f"{TABLE} {cut}": _product(capability, built, cut, cut.rows, shape, norm=shape in normed)
        for cut, shape in forms.items()
    }


def table_tiles() -> list[tuple[Shape, Tile]]:
    """Of the shipped table, each with a product that takes it."""
    products = codec_tiles.load(Path(codec_tiles.__file__).with_suffix(".json")).products
    return [(shape, cut) for shape, entries in products.items() for _, cut in entries]


def is_small(cut: Tile) -> bool:
    """Whether it takes but some tenths of a second to compile: of tiles for tensor cores those with several shares."""
    return cut.shares > 1 or cut.way in ("thin", "fma")


def _product(
    capability: int,
    built: Built,
    cut: Tile,
    count: int,
    shape: Shape,
    norm: bool = False,
    edge: bool = False,
) -> str:
    kernel, _, sizes = codec_product._launch(cut, count, shape.outer, shape.inner, norm)
    options = {"has_norm": norm, "has_edge": edge, "chained": capability >= 90, "factor_stride": 1}
    types = _TYPES | dict.fromkeys(codec_product._AT_RUN_TIME, "i32")
    return _compiled(built, kernel, capability, types, sizes.pop("num_warps"), **sizes, **options)


def codec_kernels(capability: int, built: Built) -> dict[str, str]:
    """The PTX of each kernel, of the product in its different forms as the rules cut them."""

    def product(
        count: int, outer: int, inner: int, precision: Precision = "ieee", norm: bool = False, edge: bool = False
    ) -> str:
        cut = codec_tiles.tile(count, outer, inner, precision)
        return _product(capability, built, cut, count, Shape(precision, outer, inner), norm, edge)

    compiled: Callable[..., str] = partial(_compiled, built)
    codec_tiles.use(codec_tiles.Tables())
    codec_tiles.fit_into(_ROOM.get(capability, _MOST))
    chained = capability >= 90
    found = {
        "codec product": product(128 * 480, 128, 512),
        "codec product tf32": product(128 * 480, 128, 512, "tf32"),
        "codec product shared": product(16, 512, 3072),
        "codec product fma": product(128 * 1920, 64, 7),
        "codec product norm": product(256, 2048, 512, norm=True),
        "codec thin": product(1, 512, 2048, edge=True),
        "codec thin norm": product(2, 2048, 512, norm=True),
    }
    sizes = {"head_dim": 64, "width": 64, "rows": 64, "full": False, "chained": chained}
    found["codec attend"] = compiled(codec_attention._attend, capability, _TYPES, **sizes)
    sizes |= {"head_dim": 6, "width": 8, "full": True}
    found["codec attend odd"] = compiled(codec_attention._attend, capability, _TYPES, **sizes)
    sizes = {"head_dim": 64, "width": 64, "full": False, "queries": codec_chunk._QUERIES, "places": codec_chunk._KEYS}
    for name, precision in (("chunk", "ieee"), ("chunk tf32", "tf32")):
        found[f"codec {name}"] = compiled(codec_chunk._attend, capability, _TYPES, **sizes, precision=precision)
    found["codec turns"] = compiled(codec_chunk._turns, capability, _TYPES, 1, block=16, width=32)
    found["codec store"] = compiled(codec_chunk._store, capability, _TYPES, head_dim=64, width=64, block=16)
    found["codec begin"] = compiled(codec_rows._begin, capability, _TYPES, block=1024)
    found["codec finish"] = compiled(codec_rows._finish, capability, _TYPES, block=1024)
    found["codec double"] = compiled(codec_rows._double, capability, _TYPES, block=1024)
    for name, count in (("codec score", 128), ("codec score some", 16), ("codec score few", 1)):
        cut = codec_tiles.search_tile(count)
        search: dict[str, object] = {
            "dim": 256,
            "blocks": 64,
            "places": 64,
            "rows": cut.rows,
            "width": 32,
            "shares": cut.shares,
        }
        search |= {"depth": 32, "precision": "ieee" if cut.way == "fma" else cut.way, "chained": chained}
        found[name] = compiled(
            codec_codes._score, capability, _TYPES | {"columns": "*fp32"}, cut.warps, begins=False, **search
        )
    found["codec choose"] = compiled(codec_codes._choose, capability, _TYPES, 1, books=8, blocks=64, width=8, places=64)
    found["codec sum"] = compiled(codec_codes._sum, capability, _TYPES, dim=256, width=256, books=8)
    return found
