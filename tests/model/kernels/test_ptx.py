"""The emulated instructions against plain arithmetic, laid out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.model.kernels import ptx

_LANES = np.arange(64, dtype=np.uint32)
"""Of two warps."""


def one(text: str, *inputs: NDArray[np.generic]) -> ptx.Words:
    """What a text leaves in its first operand."""
    return ptx.run("{" + text + "}", inputs, 1)[0]


def test_a_product_is_that_of_matrices_whose_parts_lie_where_the_isa_says() -> None:
    """Each number to its place, where the emulator goes from places to numbers: two warps, each its own."""
    draw = np.random.default_rng(1)
    left, right = draw.standard_normal((2, 16, 16), np.float32), draw.standard_normal((2, 16, 8), np.float32)
    left, right = left.astype(np.float16), right.astype(np.float16)
    sums = draw.standard_normal((2, 16, 8), np.float32)
    a, b = np.zeros((4, 64, 2), np.float16), np.zeros((2, 64, 2), np.float16)
    c, place = np.zeros((4, 64), np.float32), {}
    for warp in range(2):
        for row in range(16):
            for inner in range(16):
                a[row // 8 + 2 * (inner // 8), 32 * warp + row % 8 * 4 + inner % 8 // 2, inner % 2] = left[
                    warp, row, inner
                ]
            for column in range(8):
                b[row // 8, 32 * warp + column * 4 + row % 8 // 2, row % 2] = right[warp, row, column]
                place[warp, row, column] = row // 8 * 2 + column % 2, 32 * warp + row % 8 * 4 + column // 2
                c[place[warp, row, column]] = sums[warp, row, column]
    text = (
        "{mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};}"
    )
    words = [part.view(np.uint32)[:, 0] for part in (*a, *b)]
    found = np.stack(ptx.run(text, [*words, *c], 4)).view(np.float32)
    expected = left.astype(np.float64) @ right.astype(np.float64) + sums
    for (warp, row, column), where in place.items():
        assert found[where] == pytest.approx(expected[warp, row, column], abs=1e-5)


def test_bytes_become_halves_and_halves_of_numbers_lie_in_their_order() -> None:
    """All of e4m3 but what is no number, the lower byte in the lower half."""
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    words = np.arange(256, dtype=np.uint32) | np.uint32(0x38 << 8)
    found = one("cvt.rn.f16x2.e4m3x2 $0, $1;", words).view(np.float16).reshape(-1, 2)
    np.testing.assert_array_equal(found[:, 0], expected)
    assert (found[:, 1] == 1).all()
    high, low = np.full(32, 2.5, np.float32), np.full(32, -1 / 3, np.float32)
    pair = one("cvt.rn.f16x2.f32 $0, $1, $2;", high, low).view(np.float16).reshape(-1, 2)
    assert (pair == np.array([-1 / 3, 2.5], np.float16)).all()


def test_bytes_are_picked_from_both_words() -> None:
    first, second = np.full(32, 0x03020100, np.uint32), np.full(32, 0x07060504, np.uint32)
    for digits, word in ((0x5140, 0x05010400), (0x7362, 0x07030602), (0x0123, 0x00010203)):
        assert (one(f"prmt.b32 $0, $1, $2, {digits:#06x};", first, second) == word).all()
    with pytest.raises(NotImplementedError, match="copies of a sign"):
        one("prmt.b32 $0, $1, $2, 0x8888;", first, second)


def test_lanes_exchange_within_their_warp() -> None:
    assert (one("shfl.sync.bfly.b32 $0, $1, 8, 31, -1;", _LANES) == (_LANES ^ 8)).all()
    asked = (_LANES + 5) % 32
    assert (one("shfl.sync.idx.b32 $0, $1, $2, 31, -1;", _LANES, asked) == _LANES // 32 * 32 + asked).all()
    with pytest.raises(ValueError, match="that the warp has not"):
        one("shfl.sync.idx.b32 $0, $1, 32, 31, -1;", _LANES)


def test_threads_part_and_meet_again_and_go_back_together() -> None:
    text = """
        .reg .pred p; .reg .b32 n;
        mov.b32 $0, 0; mov.b32 n, 0;
        LOOP:
        setp.lt.s32 p, $1, 32;
        @!p bra LATER;
        add.s32 $0, $0, 1;
        bra THERE;
        LATER:
        add.s32 $0, $0, 100;
        THERE:
        add.s32 n, n, 1;
        setp.lt.s32 p, n, 3;
        @p bra LOOP;
    """
    assert (one(text, _LANES) == np.where(_LANES < 32, 3, 300)).all()


def test_numbers_are_compared_as_their_kind_says() -> None:
    """-1 is the largest word; what is no number equals nothing, and of it and a number the greater is the number."""
    less, many = np.full(32, -1, np.int32), np.full(32, 7, np.int32)
    assert (one("min.s32 $0, $1, $2;", less, many).view(np.int32) == -1).all()
    assert (one("min.u32 $0, $1, $2;", less, many) == 7).all()
    none, two = np.full(32, np.nan, np.float32), np.full(32, 2, np.float32)
    assert (one("max.f32 $0, $1, $2;", none, two).view(np.float32) == 2).all()
    assert (one("setp.eq.f32 p, $1, $1; selp.f32 $0, 0f3F800000, 0, p;", none) == 0).all()
    assert (one("ex2.approx.ftz.f32 $0, $1;", two * -64) == 0).all()


def test_words_are_loaded_from_where_they_lie_and_nowhere_between() -> None:
    memory = np.arange(64, dtype=np.uint32)
    memory = memory[-(memory.ctypes.data // 4) % 4 :]
    where = memory.ctypes.data + 16 * np.arange(8, dtype=np.int64)
    loads: list[NDArray[np.int64]] = []
    text = "{ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4+16];}"
    found = np.stack(ptx.run(text, [where], 4, loads), axis=1)
    assert (found == memory[4:36].reshape(8, 4)).all()
    assert (loads[0] == where + 16).all()
    with pytest.raises(ValueError, match="no multiple of its size"):
        ptx.run(text, [where + 4], 4)


def test_what_is_not_emulated_raises() -> None:
    for text in ("ex2.approx.f32 $0, $1;", "add.rz.f32 $0, $1, $1;", "bar.sync 0;", "nonsense"):
        with pytest.raises(NotImplementedError, match="not emulated"):
            one(text + ";", np.ones(32, np.float32))


def test_a_warp_that_is_apart_may_not_multiply_nor_exchange() -> None:
    text = "setp.lt.s32 p, $1, 40; mov.b32 $0, 0; @p shfl.sync.bfly.b32 $0, $1, 1, 31, -1;"
    with pytest.raises(RuntimeError, match="apart"):
        one(text, _LANES)
