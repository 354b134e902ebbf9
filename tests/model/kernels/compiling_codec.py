"""The codec's kernels as `compiling` takes them: at the published sizes, and at some that are no powers of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.kernels import codec_attention, codec_chunk, codec_codes, codec_product, codec_rows
from model.kernels.codec_product import Precision

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
        cut = codec_product.tile(count, outer, inner, precision)
        sizes: dict[str, Any] = {"rows": cut.rows, "columns": cut.columns, "shares": cut.shares}
        sizes["factor_stride" if precision == "tf32" else "column_stride"] = 1
        options = {"has_norm": norm, "has_edge": edge, "depth": 32, "wide": 128, "precision": precision}
        types = _TYPES | dict.fromkeys(codec_product._ASKED, "i32")
        return compiled(codec_product._product, capability, types, cut.warps, **sizes, **options)

    found = {
        "codec product": product(128 * 480, 128, 512),
        "codec product tf32": product(128 * 480, 128, 512, "tf32"),
        "codec product thin": product(1, 512, 2048, edge=True),
        "codec product norm": product(256, 2048, 512, norm=True),
    }
    sizes = {"head_dim": 64, "width": 64, "rows": 64, "full": False}
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
    search = {"dim": 256, "blocks": 64, "places": 64, "rows": 16, "width": 32, "shares": 8, "depth": 32}
    found["codec score"] = compiled(
        codec_codes._score, capability, _TYPES | {"columns": "*fp32"}, 8, begins=False, **search
    )
    found["codec choose"] = compiled(codec_codes._choose, capability, _TYPES, 1, books=8, blocks=64, width=8, places=64)
    found["codec sum"] = compiled(codec_codes._sum, capability, _TYPES, dim=256, width=256, books=8)
    return found
