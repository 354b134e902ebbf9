"""The kernels compile for the cards they are meant for, without one, and read memory as they should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from model.kernels.codec_tiles import Tile
from tests.model.kernels.compiling_codec import TABLE, is_small, table_tiles

ROOT = Path(__file__).parents[3]
WIDEST = "ld.global.v4.b32"
"""A load of 16 bytes by each thread."""
KERNELS = 61
"""Without those of the codec's table."""
LAST_HAS_ENDED = "griddepcontrol.wait"
AHEAD = "cp.async.cg.shared.global"
"""The same into shared memory, while what came before is used."""
ALONE = "ld.global.L1::no_allocate.v4.b32"
"""The same of what nobody else asks for."""
PRODUCT = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


def ptx_for(capability: int, cache: Path, *options: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.compiling", str(capability), *options],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_every_kernel_compiles_for_hopper_and_reads_wide(tmp_path: Path) -> None:
    found = ptx_for(90, tmp_path)
    tiles = {cut for _, cut in table_tiles() if is_small(cut)}
    assert len(found) == KERNELS + len(tiles)
    check_table(found, tiles)
    check_walk(found["walk"])
    assert "wgmma.mma_async" in found["walk many"]
    check_row(found["walk row"])
    for name in ("add_norm", "silu_gate", "read", "embed", "end", "list"):
        # silu_gate's 1,024 values are 8 for each of 128 threads.
        assert WIDEST in found[name], name
    narrow = "ld.global.b32"
    assert (found["read"].count(WIDEST), found["read"].count(narrow)) == (8, 32), "of what does not lie so, too"
    assert not re.search(r"\b(div|rem)\.[su]64", found["read"]), "all would wait for its call"
    assert WIDEST in found["recall bf16 128"]
    for name in ("few rows bf16, 1", "few rows bf16, 4, gated", "few rows bf16, 1, adding", "few rows fp8, 1, gated"):
        weights, rest = found[name].split(LAST_HAS_ENDED)
        assert weights.count(WIDEST) >= 2, "weights are asked for before anything is waited for"
        assert rest.count(WIDEST) > weights.count(WIDEST), name
    for name in ("attend fp8 128", "recall fp8 128", "few rows fp8, 1"):
        assert "cvt.rn.f16x2.e4m3x2" in found[name], name
    assert "mma.sync" in found["linear"]
    for name in ("attend bf16 128", "attend fp8 128", "linear"):
        assert AHEAD in found[name], name
    for ahead in (1, 2):
        check_attention(found[f"attend fp8 tensor 4 {ahead}"], ahead)
    check_codec(found)


def check_attention(ptx: str, ahead: int) -> None:
    """That on tensor cores: the first turns are on their way before the query is asked for, which all threads see.

    In the loop the keys of a later turn are asked for between the scores of this one and its sums, as soon as the
    registers are free; its values after the sums.
    """
    begun, _, loop = ptx.partition("LOOP:")
    keys, values = (f"{ALONE} {{A{kind}0" for kind in "kv")
    assert "cvt.rn.f16x2.e4m3x2" in loop
    before, query = begun.rfind(ALONE), begun.find("ld.global.b16")
    assert -1 < begun.find(LAST_HAS_ENDED) < begun.find(ALONE) < before < query
    assert query < begun.rfind("st.global.b16") < begun.rfind("bar.sync") < begun.find(WIDEST)
    turns = re.findall("|".join(map(re.escape, (PRODUCT + " {d", PRODUCT + " {c", keys, values))), loop)
    # Each load stands there twice, for positions that lie together and for those that do not.
    runs = [(what, len(list(same))) for what, same in groupby(turns)]
    assert runs[:4] == [(PRODUCT + " {d", 8), (keys, 2), (PRODUCT + " {c", 8), (values, 2)]
    assert loop.count(PRODUCT) == 16 * ahead


def check_codec(found: dict[str, str]) -> None:
    """Tensor cores where they are meant, by instructions of a whole group of warps for large tiles; wide loads."""
    for name in ("codec product", "codec product tf32", "codec product norm", "codec score"):
        assert "wgmma.mma_async" in found[name], name
    assert "mma.sync" in found["codec product shared"]
    for name in (
        "codec product fma",
        "codec thin",
        "codec thin norm",
        "codec attend",
        "codec chunk",
        "codec score few",
    ):
        assert "mma" not in found[name], name
    for name in (
        "codec product",
        "codec product tf32",
        "codec product shared",
        "codec product norm",
        "codec attend",
        "codec chunk",
    ):
        assert AHEAD in found[name], name
    assert "tf32" in found["codec chunk tf32"]
    for name in ("codec thin", "codec thin norm"):
        assert WIDEST in found[name], name
    for name in ("codec product", "codec thin", "codec attend"):
        assert LAST_HAS_ENDED in found[name], name


def check_table(found: dict[str, str], tiles: set[Tile]) -> None:
    """Of the codec's table each of `tiles`, on tensor cores or not, as it says."""
    for cut in tiles:
        ptx = found[f"{TABLE} {cut}"]
        assert (re.search(r"mma\.sync|wgmma", ptx) is not None) == cut.way.startswith("tf32"), cut


def check_walk(ptx: str) -> None:
    """Weights come 16 bytes at a time, and to the cache before; programs that wait see what the others stored."""
    for part in ("cp.async.cg.shared.global", "mma.sync", "prefetch.global.L2", ".release.", ".acquire."):
        assert part in ptx, part


def check_row(ptx: str) -> None:
    """A part asks for its weights before it looks whether what they are multiplied with is there.

    A thread loads 16 bytes 4 times for each band that is 1,024 deep: of these are 3, 1, 3 pairs, and 2 of the head;
    and 16 times, some of them masked, for the one that is 2,816 deep.
    """
    look, weights = "ld.volatile.global.v4.b32", WIDEST
    events = re.findall("|".join(map(re.escape, (look, weights, "relaxed.exch.b32"))), ptx)
    runs = [(kind, len(list(same))) for kind, same in groupby(events)]
    assert [before for before, (kind, _) in pairwise(runs) if kind == look] == [
        (weights, n) for n in (12, 4, 24, 16, 8)
    ]
    assert "mma.sync" not in ptx
    assert ptx.count("st.shared") < 100  # sums stay in a warp; where warps share a column, it is a thousand


@pytest.mark.long
@pytest.mark.parametrize("capability", [89, 90, 100, 120])
def test_every_kernel_compiles_for_other_cards_and_every_tile_of_the_codecs_table(
    capability: int, tmp_path: Path
) -> None:
    """Ada, and Blackwell in both forms. A program of 89 and 120 has less than half of a Hopper's shared memory."""
    found, tiles = ptx_for(capability, tmp_path, "all"), {cut for _, cut in table_tiles()}
    assert len(found) == KERNELS + len(tiles)
    if capability == 90:
        check_table(found, tiles)
