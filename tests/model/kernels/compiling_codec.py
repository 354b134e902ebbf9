"""The codec's kernels as `compiling` takes them: at the published sizes, and at some that are no powers of two."""

from __future__ import annotations

from collections.abc import Callable

from model.kernels import codec_attention, codec_chunk, codec_codes, codec_product, codec_rows, codec_tiles
from model.kernels.codec_tiles import Precision

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


def codec_kernels(capability: int, compiled: Callable[..., str]) -> dict[str, str]:
    """The PTX of each kernel, of the product in its different forms."""

    def product(
        count: int, outer: int, inner: int, precision: Precision = "ieee", norm: bool = False, edge: bool = False
    ) -> str:
        cut = codec_tiles.tile(count, outer, inner, precision)
        kernel, _, sizes = codec_product._launch(cut, count, outer, inner, norm)
        warps, _ = sizes.pop("num_warps"), sizes.pop("num_stages", None)
        options = {"has_norm": norm, "has_edge": edge, "chained": chained, "factor_stride": 1}
        types = _TYPES | dict.fromkeys(codec_product._AT_RUN_TIME, "i32")
        return compiled(kernel, capability, types, warps, **sizes, **options)

    codec_tiles.use(codec_tiles.Tables())  # what the rules say
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
    for name, count in (("codec score", 128), ("codec score few", 1)):
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
