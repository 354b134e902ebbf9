"""Compiles every kernel for a GPU that need not be there, and prints its PTX as JSON: `python -m ... CAPABILITY`.

With `all` after it, every tile of the codec's table too, not only the small ones. A process of its own: in the tests'
process the kernels are interpreted.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model import depformer_walk
from model.bench.walk import CANDIDATES
from model.config import personaplex_7b
from model.kernels import (
    attention,
    depformer,
    depformer_row,
    embedding,
    few_rows,
    fp8_attention,
    frame,
    layer,
    long_attention,
    matmul,
    positions,
    read,
    sampling,
    tiles,
    token_grid,
    wide_sampling,
    word_queue,
)
from model.kernels.fp8_window import assembly
from model.kernels.tiles import Stored
from tests.model.kernels.compiling_codec import codec_kernels, codec_table
from tests.model.tiny import ODD

_TYPES: dict[str, tuple[str, ...]] = {
    "*i32": ("arrivals",),
    "*i64": ("slots", "firsts", "lasts", "frames", "top_ks", "seeds", "chosen"),
}
_TYPES["*fp32"] = ("seen", "peaks", "sums", "cos", "sin", "temperatures", "key_scales", "value_scales")
_TYPES["i32"] = (
    "heads",
    "capacity",
    "dim",
    "width",
    "count",
    "outer",
    "inner",
    "words",
    "gap",
    "size",
    "row",
    "chunk",
)
_TYPES["fp32"] = ("eps", "scale")
_ODD = {
    "row",
    "count",
    "capacity",
    "rows",
    "heard",
    "picks",
    "max_delay",
    "length",
    "cells",
    "places",
    "start_frames",
    "pause_frames",
    "reach",
    "pitch",
    "steps",
    "first",
}
"""Numbers that need not be multiples of 16."""
_BF16 = "*bf16"


def compiled(kernel: Any, capability: int, types: dict[str, str], warps: int = 4, **constants: object) -> str:
    """The PTX of a kernel as `built`."""
    ptx: str = built(kernel, capability, types, {"num_warps": warps}, constants).asm["ptx"]
    return ptx


def built(
    kernel: Any, capability: int, types: dict[str, str], options: dict[str, int], constants: dict[str, object]
) -> Any:
    """A kernel at the published sizes, whose tensors begin at multiples of 16 bytes."""
    known = {name: kind for kind, names in _TYPES.items() for name in names} | types
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else known.get(name, _BF16) for name in names}
    aligned = [
        place
        for place, name in enumerate(names)
        if signature[name].startswith("*") or (signature[name] == "i32" and name not in _ODD)
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(capability: int, every: bool) -> dict[str, str]:
    """The PTX of each kernel, by what it stores where that differs."""
    plain = dict.fromkeys(("key_scales", "value_scales"), _BF16)
    small = dict.fromkeys(("keys", "values"), "*fp8e4nv")
    found = {}
    for name, quantised, stored in (("bf16", False, plain), ("fp8", True, small)):
        tile = tiles.attention_tile("fp8" if quantised else "bf16", 128)
        for head_dim, width in ((128, 128), (20, 32)):
            constants = {"head_dim": head_dim, "width": width, "lanes": tile.lanes(width if quantised else 2 * width)}
            constants |= {"steps": tile.steps, "stages": tile.stages, "places": 32, "quantised": quantised}
            constants["early"] = capability >= 90
            found[f"attend {name} {head_dim}"] = compiled(
                attention._attend, capability, stored, tile.warps, **constants
            )
    scales = dict.fromkeys(("key_scales", "value_scales"), "*fp32")
    for warps, ahead in ((4, 1), (4, 2)):
        constants = {"threads": 32 * warps, "places": 32, "early": capability >= 90}
        found[f"attend fp8 tensor {warps} {ahead}"] = compiled(
            fp8_attention._attend, capability, small | scales, warps, text=assembly(warps, ahead), **constants
        )
    found["add_norm"] = compiled(layer._add_norm, capability, {}, 8, width=4096, adds=True)
    found["silu_gate"] = compiled(layer._silu_gate, capability, {}, block=1024)
    weight = {"weight": "*fp8e4nv", "scale": "*fp32"}
    found["linear"] = compiled(matmul._linear, capability, weight, rows=16, columns=32, depth=128)
    found |= few(capability, "bf16", {}) | few(capability, "fp8", weight)
    found["read"] = compiled(read._read, capability, {"pieces": "*i64", "sums": "*i32"}, 8, block=8192)
    found["draw"] = compiled(sampling._draw, capability, {}, width=2048, digits=16)
    names, lists = {"shortlist": "*i32", "parts": "i32"}, {"part": 2048, "short": 128, "digits": 16}
    found["list"] = compiled(wide_sampling._list, capability, names, **lists)
    found["choose"] = compiled(wide_sampling._choose, capability, names, 16, usual=32, places=16, width=32_768, **lists)
    found |= walks(capability) | long_passes(capability) | ends(capability)
    return found | codec_kernels(capability, built) | codec_table(capability, built, every)


def walks(capability: int) -> dict[str, str]:
    """The PTX of the walk of the codebooks, for many rows and for one."""
    config, warps = personaplex_7b(), depformer_walk.WARPS
    form = depformer_walk.Form(torch.bfloat16, programs=132)
    odd = depformer_walk.Form(torch.float32, scaled=True, aligned=False, programs=132)
    tiny = _WALK | dict.fromkeys((name for name, kind in _WALK.items() if kind == _BF16), "*fp32")
    tiny["mail"] = "*i64"
    of_many, of_one = depformer_walk.constants, depformer_walk.row_constants
    shared = {**of_many(config, form, 128, 8), **asdict(CANDIDATES[128][1])}
    return {
        "walk": compiled(depformer.walk, capability, _WALK, warps, **of_many(config, form, 1, 8)),
        "walk many": compiled(depformer.walk, capability, _WALK, warps, **shared | {"wide_depth": 128}),
        "walk tiny": compiled(depformer.walk, capability, tiny, warps, **of_many(ODD, odd, 1, 8)),
        "walk row": compiled(depformer_row.walk_row, capability, _WALK, warps, **of_one(config, form, 8)),
        "walk row tiny": compiled(depformer_row.walk_row, capability, tiny, warps, **of_one(ODD, odd, 3)),
    }


def few(capability: int, name: Stored, weight: dict[str, str]) -> dict[str, str]:
    """The PTX of the products for a handful of rows, of one and of most."""
    found, types = {}, weight | {"scales": "*fp32"}
    for adds, gated in ((False, False), (False, True), (True, False)):
        tile = tiles.row_tile(name, adds=adds)
        form = {"normed": not adds, "gated": gated, "adds": adds, "scaled": name == "fp8", "width": 1 if adds else 4096}
        form["early"] = capability >= 90
        for rows in (1, few_rows.MOST)[: 1 + (gated and name == "bf16")]:
            sizes = {"rows": rows, "columns": max(1, tile.columns // (rows * (1 + gated))), "depth": tile.depth}
            key = f"few rows {name}, {rows}" + gated * ", gated" + adds * ", adding"
            found[key] = compiled(few_rows._product, capability, types, tile.warps, **sizes, **form)
    return found


def long_passes(capability: int) -> dict[str, str]:
    """The PTX of what lies around the attention of a long pass."""
    found = {}
    types = dict.fromkeys(("begins", "firsts"), "*i64") | dict.fromkeys(("cells", "places", "length"), "i32")
    for name, ring, scales in (("bf16", _BF16, _BF16), ("fp8", "*fp8e4nv", "*fp32")):
        stored = types | dict.fromkeys(("ring_keys", "ring_values"), ring)
        stored |= dict.fromkeys(("key_scales", "value_scales"), scales)
        for head_dim, width in ((128, 128), (20, 32)):
            constants = {"head_dim": head_dim, "width": width, "quantised": name == "fp8"}
            block = 4096 // width
            found[f"recall {name} {head_dim}"] = compiled(
                long_attention._recall, capability, stored, block=block, **constants
            )
            found[f"take long {name} {head_dim}"] = compiled(long_attention._take, capability, stored, 1, **constants)
    return found


def ends(capability: int) -> dict[str, str]:
    """The PTX of what a step does outside its layers."""
    long = dict.fromkeys(("slots", "offsets", "delays", "ids", "inputs", "target", "offset_of", "chosen"), "*i64")
    flags = dict.fromkeys(
        ("provided", "mask", "given", "running", "valid", "forced_mask", "begin_flags", "starts"), "*u8"
    )
    state = ("tokens", "start_ids", "codes", "forced", "decided", "frame", "directory", "columns", "column", "position")
    queue = ("pieces", "lengths", "said_of", "waited_of", "last_of", "sampled", "text", "first")
    counts = ("lm_slots", "counters", "where", "counter")
    types = long | flags | dict.fromkeys((*state, *queue, *counts), "*i64")
    types |= dict.fromkeys(("rows", "cells", "heard", "picks", "max_delay", "codes_step", "codes_gap"), "i32")
    types |= dict.fromkeys(
        ("chosen_step", "chosen_gap", "length", "start_frames", "pause_frames", "half", "reach"), "i32"
    )
    types |= {"frequencies": "*fp32", "cos": "*fp32", "sin": "*fp32", "sound": "*fp32", "said": "*fp32", "pcm": "*i16"}
    types |= dict.fromkeys(("samples", "first_size", "second_size", "third_size", "fourth_size"), "i32")
    wide = {"result": _BF16}
    numbers = {"first": "*fp32"} | dict.fromkeys(("second", "third", "fourth"), _BF16)
    return {
        "open": compiled(token_grid._open, capability, types, 1, places=32, forces=True),
        "close": compiled(token_grid._close, capability, types, 1, places=32),
        "embed": compiled(embedding._embed, capability, types | wide, rows=17, block=1024, alignment=16),
        "take": compiled(positions._take, capability, types, 1, width=64),
        "decide": compiled(word_queue._decide, capability, types, 1, lanes=32),
        "begin": compiled(frame._begin, capability, types, block=1024),
        "end": compiled(frame._end, capability, types | numbers, 16, places=32, block=4096),
    }


_WALK = dict.fromkeys(("hidden", "inputs", "stream", "normed", "joined", "seen", "gated", "logits"), _BF16)
_WALK |= dict.fromkeys(("table", "scales", "text", "told"), "*i64")
_WALK |= {"epoch": "*i32", "mail": "*i32"}
_WALK |= {"given": "*u8", "squares": "*fp32", "counter": "*i32", "pitch": "i32", "steps": "i32", "first": "i32"}


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), "all" in sys.argv)))
