"""The assembly of a softmax over FP8 keys and values on tensor cores: what `model.kernels.fp8_attention` has inside.

Owns the text, in PTX (NVIDIA, "Parallel Thread Execution ISA": `mma`, "Matrix Fragments for mma.m16n8k16"), and which
thread holds what. Assembly, since here that is all: a thread's bytes come from memory as it multiplies them. Triton
decides by itself who holds what, and would carry each value through shared memory byte by byte. Knows no rings' rules
and no Triton; tests run the text instruction by instruction.

A warp takes 16 positions a turn and runs a softmax of its own. Thread 4 g + t (g < 8, t < 4) has of the keys the rows
4 (g % 4) + 2 (g / 4) and the next, of each the bytes from 16 t and from 64 + 16 t on; of the values the rows 4 t to
4 t + 3, of each the bytes from 16 g on. For the scores the keys are A, 16 positions by 16 components a product, and
the query is B, alike in all columns, so that a thread gets those of its two rows. For the sums the values are A,
turned, and the weights B, again alike in all columns: they come from the threads that have their scores. Which
component stands where in a product does not matter, as long as both sides have it there: so each thread can take bytes
as they lie together in memory.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

POSITIONS = 16
"""Of a warp in a turn."""
OUTPUTS = 18
"""Of the loop: peak, total and 16 sums."""
_SUMS = 32
"""That a thread carries; every second is the same as the one before, as columns are alike."""
_LOWEST = "0fF149F2CA"
"""-1e30, a level below all scores, which is no infinity, so that differences of levels are numbers."""
_ADDRESSES = ("keys", "values", "key_scales", "value_scales")
_NUMBERS = ("start", "limit", "count", "size", "own", "own4")
"""First position of the warp, the last that is read, how many there are, a ring's cells, and by how much the rows of
this thread are later: of keys, and of values."""
_LOAD = "ld.global.L1::no_allocate.v4.b32"
"""16 bytes that nobody else asks for."""
_MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


class Assembly(NamedTuple):
    """Two texts, each with its operands' constraints, and how many turns are on their way at once.

    begin: asks for the first turns. Outputs: `32 * ahead` words, `4 * ahead` scales; inputs: four addresses, six
    numbers. loop: the softmax. Outputs: `OUTPUTS`; inputs: the outputs of `begin` and its inputs, then the query's
    address, the lane to ask for weights, and the power of two that the query was divided by.
    """

    begin: str
    begin_operands: str
    loop: str
    loop_operands: str
    ahead: int


@cache
def assembly(warps: int, ahead: int) -> Assembly:
    """For programs of so many warps."""
    words, scales = 32 * ahead, 4 * ahead
    places = ["l"] * len(_ADDRESSES) + ["r"] * len(_NUMBERS)
    begin = ["=&r"] * words + ["=&f"] * scales + places
    loop = ["=&f"] * OUTPUTS + ["r"] * words + ["f"] * scales + places + ["l", "r", "f"]
    return Assembly(_begin(warps, ahead), ",".join(begin), _loop(warps, ahead), ",".join(loop), ahead)


def _four(name: str, first: int) -> str:
    return "{" + ", ".join(f"{name}{first + place}" for place in range(4)) + "}"


def _sets(ahead: int) -> list[str]:
    """Prefixes of the registers of each turn that is on its way."""
    return [chr(ord("A") + turn) for turn in range(ahead)]


def _loaded(ahead: int) -> list[str]:
    """What is on its way, in the order in which one part hands it to the other: words, then scales."""
    words = [f"{to}{kind}{place}" for to in _sets(ahead) for kind in "kv" for place in range(16)]
    return words + [f"{to}{kind}{place}" for to in _sets(ahead) for kind in "fh" for place in range(2)]


def _registers(ahead: int) -> list[str]:
    """k, v: words of keys and values; f, h: their scales; q: the query; c: sums; d: scores; a, b: factors."""
    lines = ["{", ".reg .pred p; .reg .b16 l, h; .reg .b64 a;", f".reg .b64 query, {', '.join(_ADDRESSES)};"]
    lines += [f".reg .b32 {', '.join(_NUMBERS)}, ask, ask2, at, offset, v, w, x, y, z;"]
    lines += [f".reg .b32 q<16>, a<4>, b<2>; .reg .f32 c<{_SUMS}>;"]
    lines += [".reg .f32 d<8>, s<2>, t<2>, m, n, fade, power, peak, total;"]
    for to in _sets(ahead):
        lines += [f".reg .b32 {to}k<16>, {to}v<16>;", f".reg .f32 {to}f<2>, {to}h<2>;"]
    return lines


def _taken(first: int) -> list[str]:
    """The places, which are inputs from `first` on."""
    lines = [f"mov.b64 {name}, ${first + place};" for place, name in enumerate(_ADDRESSES)]
    lines += [f"mov.b32 {name}, ${first + len(_ADDRESSES) + place};" for place, name in enumerate(_NUMBERS)]
    return [*lines, "mov.b32 at, start;"]


def _together() -> list[str]:
    """x: the cell of position v; p: whether the warp's positions from there on lie together, and none is too many."""
    return [
        "sub.s32 y, v, size;",
        "min.u32 x, v, y;",
        f"add.s32 y, x, {POSITIONS - 1};",
        f"add.s32 z, v, {POSITIONS - 1};",
        "setp.lt.s32 p, y, size;",
        "setp.le.and.s32 p, z, limit, p;",
    ]


def _cell(row: int) -> list[str]:
    """x: the cell of position w + `row`, or of the last."""
    return [f"add.s32 x, w, {row};", "min.s32 x, x, limit;", "sub.s32 y, x, size;", "min.u32 x, x, y;"]


def _load_keys(to: str, later: int) -> list[str]:
    """Keys and all scales of the turn `later` positions after the present one."""
    lines = [f"add.s32 v, at, {later};", *_together(), f"@!p bra APARTK{to};", "add.s32 x, x, own;"]
    lines += ["mad.wide.s32 a, x, 128, keys;"]
    lines += [f"{_LOAD} {_four(f'{to}k', 4 * part)}, [a+{64 * part}];" for part in range(4)]
    for kind, scales in (("f", "key_scales"), ("h", "value_scales")):
        lines += [f"mad.wide.s32 a, x, 4, {scales};"]
        lines += [f"ld.global.b32 {to}{kind}0, [a];", f"ld.global.b32 {to}{kind}1, [a+4];"]
    lines += [f"bra THEREK{to};", f"APARTK{to}:", "add.s32 w, v, own;"]
    for row in range(2):
        lines += [*_cell(row), "mad.wide.s32 a, x, 128, keys;"]
        lines += [f"{_LOAD} {_four(f'{to}k', 8 * row + 4 * part)}, [a+{64 * part}];" for part in range(2)]
        for kind, scales in (("f", "key_scales"), ("h", "value_scales")):
            lines += [f"mad.wide.s32 a, x, 4, {scales};", f"ld.global.b32 {to}{kind}{row}, [a];"]
    return [*lines, f"THEREK{to}:"]


def _load_values(to: str, later: int) -> list[str]:
    lines = [f"add.s32 v, at, {later};", *_together(), f"@!p bra APARTV{to};", "add.s32 x, x, own4;"]
    lines += ["mad.wide.s32 a, x, 128, values;"]
    lines += [f"{_LOAD} {_four(f'{to}v', 4 * row)}, [a+{128 * row}];" for row in range(4)]
    lines += [f"bra THEREV{to};", f"APARTV{to}:", "add.s32 w, v, own4;"]
    for row in range(4):
        lines += [*_cell(row), "mad.wide.s32 a, x, 128, values;", f"{_LOAD} {_four(f'{to}v', 4 * row)}, [a];"]
    return [*lines, f"THEREV{to}:"]


def _score(of: str) -> list[str]:
    """s0, s1: the query times this thread's keys."""
    lines = [f"mov.b32 d{place}, 0;" for place in range(8)]
    for part in range(8):
        sums = _four("d", 4 * (part % 2))
        for row in range(2):
            lines += [f"mov.b32 {{l, h}}, {of}k{8 * row + part};"]
            lines += [f"cvt.rn.f16x2.e4m3x2 a{row}, l;", f"cvt.rn.f16x2.e4m3x2 a{2 + row}, h;"]
        lines.append(f"{_MMA} {sums}, {{a0, a1, a2, a3}}, {{q{2 * part}, q{2 * part + 1}}}, {sums};")
    return [*lines, "add.f32 s0, d0, d4;", "add.f32 s1, d2, d6;"]


def _weigh(of: str) -> list[str]:
    """b0, b1: the weights of this thread's values; peak, total and fade. A level has the value's scale in it.

    So a weight times that scale is 1 at most, and float16 holds it.
    """
    lines = ["add.s32 x, at, own;", "sub.s32 x, limit, x;"]
    for row in range(2):
        lines += [f"setp.ge.s32 p, x, {row};", f"mul.f32 m, {of}f{row}, power;", f"mul.f32 s{row}, s{row}, m;"]
        lines += [f"selp.f32 s{row}, s{row}, 0fFF800000, p;", f"lg2.approx.ftz.f32 t{row}, {of}h{row};"]
        lines += [f"add.f32 t{row}, t{row}, s{row};"]
    lines.append("max.f32 m, t0, t1;")
    for step in (4, 8, 16):
        lines += [f"shfl.sync.bfly.b32 n, m, {step}, 31, -1;", "max.f32 m, m, n;"]
    lines += ["max.f32 m, m, peak;", "sub.f32 n, peak, m;", "ex2.approx.ftz.f32 fade, n;", "mov.b32 peak, m;"]
    for row in range(2):
        lines += [f"sub.f32 t{row}, s{row}, m;", f"ex2.approx.ftz.f32 t{row}, t{row};"]
    lines += ["add.f32 n, t0, t1;", "fma.rn.f32 total, total, fade, n;"]
    lines += [f"mul.f32 t{row}, t{row}, {of}h{row};" for row in range(2)]
    lines += ["cvt.rn.f16x2.f32 x, t1, t0;", "shfl.sync.idx.b32 b0, x, ask, 31, -1;"]
    return [*lines, "shfl.sync.idx.b32 b1, x, ask2, 31, -1;"]


def _fade(label: str) -> list[str]:
    """The sums so far, less by `fade`: rarely, as a peak seldom rises."""
    lines = ["setp.eq.f32 p, fade, 0f3F800000;", f"@p bra SAME{label};"]
    return [*lines, *(f"mul.f32 c{place}, c{place}, fade;" for place in range(_SUMS)), f"SAME{label}:"]


def _sum(of: str) -> list[str]:
    """c: plus this turn's values, weighed. `prmt` pairs the bytes of two rows."""
    lines = []
    for word in range(4):
        rows = [f"{of}v{4 * row + word}" for row in range(4)]
        for half, pairs in enumerate(("0x5140", "0x7362")):
            sums = _four("c", 4 * (2 * word + half))
            for two in range(2):
                lines += [f"prmt.b32 x, {rows[2 * two]}, {rows[2 * two + 1]}, {pairs};", "mov.b32 {l, h}, x;"]
                lines += [f"cvt.rn.f16x2.e4m3x2 a{2 * two}, l;", f"cvt.rn.f16x2.e4m3x2 a{2 * two + 1}, h;"]
            lines.append(f"{_MMA} {sums}, {{a0, a1, a2, a3}}, {{b0, b1}}, {sums};")
    return lines


def _begin(warps: int, ahead: int) -> str:
    loaded, lines = _loaded(ahead), _registers(ahead)
    lines += _taken(len(loaded))
    for turn, to in enumerate(_sets(ahead)):
        later = POSITIONS * warps * turn
        lines += _load_keys(to, later) + _load_values(to, later)
    return "\n".join([*lines, *(f"mov.b32 ${place}, {name};" for place, name in enumerate(loaded)), "}"])


def _loop(warps: int, ahead: int) -> str:
    loaded, lines, turn = _loaded(ahead), _registers(ahead), POSITIONS * warps
    places = OUTPUTS + len(loaded)
    more = places + len(_ADDRESSES) + len(_NUMBERS)
    lines += [*_taken(places), f"mov.b64 query, ${more};", f"mov.b32 ask, ${more + 1};", f"mov.b32 power, ${more + 2};"]
    lines += [f"mov.b32 {name}, ${OUTPUTS + place};" for place, name in enumerate(loaded)]
    lines += ["mov.b32 offset, 0;", "add.s32 ask2, ask, 16;", f"mov.b32 peak, {_LOWEST};", "mov.b32 total, 0;"]
    lines += [*(f"mov.b32 c{place}, 0;" for place in range(_SUMS)), "setp.le.s32 p, count, 0;", "@p bra END;"]
    query = enumerate((0, 16, 128, 144))
    lines += [f"ld.global.v4.b32 {_four('q', 4 * place)}, [query+{where}];" for place, where in query]
    lines.append("LOOP:")
    for index, to in enumerate(_sets(ahead)):
        if index:
            lines += ["setp.ge.s32 p, offset, count;", "@p bra END;"]
        # What comes `ahead` turns later is asked for as soon as its registers are free.
        lines += [*_score(to), *_weigh(to), *_load_keys(to, turn * ahead)]
        lines += [*_fade(to), *_sum(to), *_load_values(to, turn * ahead)]
        lines += [f"add.s32 at, at, {turn};", f"add.s32 offset, offset, {turn};"]
    lines += ["setp.lt.s32 p, offset, count;", "@p bra LOOP;", "END:", "mov.b32 $0, peak;", "mov.b32 $1, total;"]
    return "\n".join([*lines, *(f"mov.b32 ${2 + place}, c{2 * place};" for place in range(16)), "}"])
