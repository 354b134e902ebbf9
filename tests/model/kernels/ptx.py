"""PTX on the CPU: what runs a kernel's inline assembly where Triton's interpreter, which has none, runs the kernel.

Owns the instructions that the kernels' texts use, and no other: one that is not here raises. All threads of a program
take one instruction together, each its own way where they part, in float32 as numpy rounds it. What the assembler
checks, as names and types, is left to `tests.model.kernels.compiling`. Source: NVIDIA, "Parallel Thread Execution ISA";
of products "Matrix Fragments for mma.m16n8k16", where thread 4 g + t of a warp has

    A [16, 16], float16:  a0 (g, 2 t), a1 (g + 8, 2 t), a2 (g, 2 t + 8), a3 (g + 8, 2 t + 8), each with the next column
    B [16, 8], float16:   b0 (2 t, g), b1 (2 t + 8, g), each with the next row
    C [16, 8], float32:   c0 (g, 2 t), c1 (g, 2 t + 1), c2 (g + 8, 2 t), c3 (g + 8, 2 t + 1)
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""Of a register, one a thread."""
Operand = tuple[str, ...]
"""A name or number; several for `{a, b}`; for `[a+64]` the name and the number, which may be missing."""
WARP = 32
_LANE = np.arange(WARP)
_GROUP, _PLACE = _LANE // 4, _LANE % 4
_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float16).numpy()
_STATEMENT = re.compile(r"\s*(?:(?P<label>[A-Z]\w*):|(?P<text>[^;]+);)")
_GUARDED = re.compile(r"(?:@(?P<unless>!?)(?P<guard>\w+)\s+)?(?P<name>\S+)\s+(?P<operands>.*)")


class Statement(NamedTuple):
    """An instruction, or a label, which has no operands; done by threads whose `guard` is not `unless`."""

    name: str
    operands: tuple[Operand, ...] = ()
    guard: str = ""
    unless: bool = False


class Threads:
    """A program's threads: their registers, and which of them are `active`. loads: the addresses that were read."""

    def __init__(self, count: int, loads: list[NDArray[np.int64]]) -> None:
        self.active = np.ones(count, np.bool_)
        self.loads = loads
        self._registers: dict[str, NDArray[Any]] = {}

    def words(self, operand: Operand) -> Words:
        """A register of 32 bits, or a number."""
        (name,) = operand
        if name in self._registers:
            return self._registers[name]
        number = int(name[2:], 16) if name.startswith("0f") else int(name, 0)
        return np.full(len(self.active), number & 0xFFFFFFFF, np.uint32)

    def floats(self, operand: Operand) -> NDArray[np.float32]:
        return self.words(operand).view(np.float32)

    def numbers(self, operand: Operand) -> NDArray[np.int32]:
        return self.words(operand).view(np.int32)

    def halves(self, operand: Operand) -> NDArray[np.float16]:
        """`[threads, 2]`, the lower first."""
        return np.ascontiguousarray(self.words(operand)).view(np.float16).reshape(-1, 2)

    def wide(self, name: str) -> NDArray[Any]:
        """A register as it is: an address, or a predicate."""
        return self._registers[name]

    def put(self, name: str, value: NDArray[Any]) -> None:
        """Of active threads: numbers of 32 bits as words, others as they are."""
        if value.dtype.itemsize == 4:
            value = value.view(np.uint32)
        old = self._registers.get(name)
        if old is not None and not self.active.all():
            value = np.where(self.active, value, old)
        self._registers[name] = value

    def whole_warps(self) -> None:
        """Raise unless of each warp all threads are active, or none."""
        warps = self.active.reshape(-1, WARP)
        if (warps.any(1) != warps.all(1)).any():
            raise RuntimeError("threads of one warp are apart where they must be together")


def multiply(a: Sequence[Words], b: Sequence[Words], c: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """D = A B + C of each warp, in fragments of mma.m16n8k16: registers of all threads."""
    warps = len(a[0]) // WARP
    left, right = np.zeros((warps, 16, 16), np.float32), np.zeros((warps, 16, 8), np.float32)
    sums = np.zeros((warps, 16, 8), np.float32)
    for which, word in enumerate(a):
        pair = np.ascontiguousarray(word).view(np.float16).reshape(warps, WARP, 2)
        for next_one in range(2):
            left[:, _GROUP + 8 * (which % 2), 2 * _PLACE + 8 * (which // 2) + next_one] = pair[..., next_one]
    for which, word in enumerate(b):
        pair = np.ascontiguousarray(word).view(np.float16).reshape(warps, WARP, 2)
        for next_one in range(2):
            right[:, 2 * _PLACE + 8 * which + next_one, _GROUP] = pair[..., next_one]
    places = [(slice(None), _GROUP + 8 * (which // 2), 2 * _PLACE + which % 2) for which in range(4)]
    for place, number in zip(places, c, strict=True):
        sums[place] = number.reshape(warps, WARP)
    product = left @ right + sums
    return [np.ascontiguousarray(product[place]).reshape(-1) for place in places]


def _product(threads: Threads, operands: Sequence[Operand]) -> None:
    threads.whole_warps()
    target, a, b, c = operands
    found = multiply(
        [threads.words((name,)) for name in a],
        [threads.words((name,)) for name in b],
        [threads.floats((name,)) for name in c],
    )
    for name, value in zip(target, found, strict=True):
        threads.put(name, value)


def _load(threads: Threads, operands: Sequence[Operand]) -> None:
    """One word, or as many as there are targets, which begin at a multiple of their size."""
    targets, (base, *offset) = operands
    where = threads.wide(base).astype(np.int64) + int(*offset or ("0",))
    read = where[threads.active]
    threads.loads.append(read)
    if (read % (4 * len(targets))).any():
        raise ValueError("a load begins at no multiple of its size")
    lowest = int(read.min())
    extent = (int(read.max()) - lowest) // 4 + len(targets)
    memory = np.ctypeslib.as_array((ctypes.c_uint32 * extent).from_address(lowest))
    for place, name in enumerate(targets):
        value = np.zeros(len(where), np.uint32)
        value[threads.active] = memory[(read - lowest) // 4 + place]
        threads.put(name, value)


def _of_floats(of: Callable[..., Any], threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), *given = operands
    threads.put(target, of(*map(threads.floats, given)).astype(np.float32))


def _of_numbers(of: Callable[..., Any], threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), *given = operands
    threads.put(target, of(*map(threads.numbers, given)))


def _lesser_word(threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), left, right = operands
    threads.put(target, np.minimum(threads.words(left), threads.words(right)))


def _fused(left: NDArray[np.float32], right: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float64]:
    """To be rounded once."""
    return left.astype(np.float64) * right + more


def _flushed(of: Callable[..., Any], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers below the normal ones are 0, before and after."""
    least = np.finfo(np.float32).tiny
    result = np.asarray(of(np.where(np.abs(x) < least, np.float32(0), x)), np.float32)
    return np.where(np.abs(result) < least, np.float32(0), result)


def _address(threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), number, factor, (base,) = operands
    step = threads.numbers(number).astype(np.int64) * threads.numbers(factor)
    threads.put(target, step + threads.wide(base).astype(np.int64))


def _compare_floats(of: Callable[..., Any], threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), left, right = operands
    threads.put(target, of(threads.floats(left), threads.floats(right)))


def _compare(of: Callable[..., Any], threads: Threads, operands: Sequence[Operand]) -> None:
    """With a predicate after them: only where that holds too."""
    (target,), left, right, *also = operands
    found = of(threads.numbers(left), threads.numbers(right))
    for (name,) in also:
        found = found & threads.wide(name)
    threads.put(target, found)


def _select(threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), there, otherwise, (predicate,) = operands
    threads.put(target, np.where(threads.wide(predicate), threads.words(there), threads.words(otherwise)))


def _move(threads: Threads, operands: Sequence[Operand]) -> None:
    """A word, or its halves to two registers of 16 bits."""
    target, source = operands
    word = threads.words(source)
    if len(target) == 1:
        threads.put(target[0], word)
        return
    for place, name in enumerate(target):
        threads.put(name, (word >> (16 * place)) & 0xFFFF)


def _move_wide(threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), (source,) = operands
    threads.put(target, threads.wide(source))


def _packed(low: NDArray[np.float16], high: NDArray[np.float16]) -> Words:
    return np.stack((low, high), axis=1).view(np.uint32).reshape(-1)


def _from_e4m3(threads: Threads, operands: Sequence[Operand]) -> None:
    (target,), source = operands
    word = threads.words(source)
    threads.put(target, _packed(_E4M3[word & 0xFF], _E4M3[(word >> 8) & 0xFF]))


def _to_halves(threads: Threads, operands: Sequence[Operand]) -> None:
    """The first goes to the upper half."""
    (target,), high, low = operands
    threads.put(target, _packed(threads.floats(low).astype(np.float16), threads.floats(high).astype(np.float16)))


def _permute(threads: Threads, operands: Sequence[Operand]) -> None:
    """Four of eight bytes, which the digits of the last operand count from the first register's lowest."""
    (target,), first, second, (digits,) = operands
    both = threads.words(first).astype(np.uint64) | threads.words(second).astype(np.uint64) << np.uint64(32)
    result = np.zeros(len(both), np.uint64)
    for place in range(4):
        digit = int(digits, 0) >> (4 * place) & 0xF
        if digit > 7:
            raise NotImplementedError(f"prmt {digits}: copies of a sign are not emulated; add them here")
        result |= (both >> np.uint64(8 * digit) & np.uint64(0xFF)) << np.uint64(8 * place)
    threads.put(target, result.astype(np.uint32))


def _exchange(across: bool, threads: Threads, operands: Sequence[Operand]) -> None:
    """From the lane that the own one becomes by exclusive or, or from the one that is named."""
    threads.whole_warps()
    (target,), source, lane, (_clamp,), (_members,) = operands
    own, asked = np.arange(len(threads.active)), threads.numbers(lane)
    other = own ^ asked if across else own // WARP * WARP + asked
    if (other // WARP != own // WARP).any():
        raise ValueError("a lane is asked for that the warp has not")
    threads.put(target, threads.words(source)[other])


_INSTRUCTIONS: dict[str, Callable[[Threads, Sequence[Operand]], None]] = {
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": _product,
    "ld.global.L1::no_allocate.v4.b32": _load,
    "ld.global.v4.b32": _load,
    "ld.global.b32": _load,
    "add.f32": partial(_of_floats, np.add),
    "sub.f32": partial(_of_floats, np.subtract),
    "mul.f32": partial(_of_floats, np.multiply),
    "max.f32": partial(_of_floats, np.fmax),
    "fma.rn.f32": partial(_of_floats, _fused),
    "ex2.approx.ftz.f32": partial(_of_floats, partial(_flushed, np.exp2)),
    "lg2.approx.ftz.f32": partial(_of_floats, partial(_flushed, np.log2)),
    "add.s32": partial(_of_numbers, np.add),
    "sub.s32": partial(_of_numbers, np.subtract),
    "min.s32": partial(_of_numbers, np.minimum),
    "min.u32": _lesser_word,
    "mad.wide.s32": _address,
    "setp.eq.f32": partial(_compare_floats, np.equal),
    "setp.lt.s32": partial(_compare, np.less),
    "setp.le.s32": partial(_compare, np.less_equal),
    "setp.le.and.s32": partial(_compare, np.less_equal),
    "setp.ge.s32": partial(_compare, np.greater_equal),
    "selp.f32": _select,
    "mov.b32": _move,
    "mov.b64": _move_wide,
    "cvt.rn.f16x2.e4m3x2": _from_e4m3,
    "cvt.rn.f16x2.f32": _to_halves,
    "prmt.b32": _permute,
    "shfl.sync.bfly.b32": partial(_exchange, True),
    "shfl.sync.idx.b32": partial(_exchange, False),
}


@cache
def statements(text: str) -> tuple[Statement, ...]:
    """Without declarations."""
    inside, found = text.strip().removeprefix("{").removesuffix("}"), []
    for statement in _STATEMENT.finditer(inside):
        if statement["label"]:
            found.append(Statement(statement["label"]))
            continue
        plain = " ".join(statement["text"].split())
        if plain.startswith(".reg"):
            continue
        parts = _GUARDED.fullmatch(plain)
        if parts is None or parts["name"] not in _INSTRUCTIONS.keys() | {"bra"}:
            raise NotImplementedError(f"{plain}: this instruction is not emulated; add it to {__name__}")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", parts["operands"])
        named = tuple(tuple(re.findall(r"[$\w-]+", operand)) for operand in operands)
        found.append(Statement(parts["name"], named, parts["guard"] or "", parts["unless"] == "!"))
    return tuple(found)


def run(
    text: str, inputs: Sequence[NDArray[Any]], outputs: int, loads: list[NDArray[np.int64]] | None = None
) -> list[Words]:
    """The `outputs` of a text, `$0` and so on, by its `inputs`, one a thread, which are the operands after them."""
    program = statements(text)
    labels = {statement.name: place for place, statement in enumerate(program) if not statement.operands}
    threads = Threads(len(inputs[0]), [] if loads is None else loads)
    for place, value in enumerate(inputs):
        threads.put(f"${outputs + place}", value)
    waiting = {label: np.zeros_like(threads.active) for label in labels}
    place = 0
    while place < len(program):
        statement, every = program[place], threads.active
        place += 1
        if statement.name in labels:
            threads.active = every | waiting[statement.name]
            waiting[statement.name] = np.zeros_like(every)
            continue
        if statement.guard:
            threads.active = every & (threads.wide(statement.guard) != statement.unless)
        taken, threads.active = threads.active, every
        if not taken.any():
            continue
        if statement.name != "bra":
            threads.active = taken
            _INSTRUCTIONS[statement.name](threads, statement.operands)
            threads.active = every
        elif labels[label := statement.operands[0][0]] >= place:
            waiting[label] = waiting[label] | taken
            threads.active = every & ~taken
        elif not taken.all():
            raise NotImplementedError(f"bra {label}: some threads go back and others do not")
        else:
            place = labels[label]
    return [threads.words((f"${place}",)) for place in range(outputs)]


class _Call:
    """As Triton's builder gives one back."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def get_result(self, place: int) -> Any:
        return self._handles[place]


def interpret(patch: pytest.MonkeyPatch) -> list[NDArray[np.int64]]:
    """Let Triton's interpreter run inline assembly. Returns a list, to which each load adds its addresses."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    loads: list[NDArray[np.int64]] = []

    def inline(
        _builder: Any, text: str, constraints: str, values: Sequence[Any], _types: Any, _pure: bool, pack: int
    ) -> _Call:
        kinds = constraints.split(",")
        outputs = sum(kind.startswith("=") for kind in kinds)
        assert pack == 1
        assert len(values) + outputs == len(kinds), "each operand has a constraint"
        inputs = [np.ascontiguousarray(value.data).reshape(-1) for value in values]
        for kind, value in zip(kinds[outputs:], inputs, strict=True):
            assert {"l": "i8", "r": "i4", "f": "f4"}[kind] == value.dtype.str[1:], f"{value.dtype} as {kind}"
        with np.errstate(all="ignore"):
            found = run(text, inputs, outputs, loads)
        handles = []
        for kind, word in zip(kinds, found, strict=False):
            number, name = (np.float32, tl.float32) if kind.endswith("f") else (np.int32, tl.int32)
            handles.append(TensorHandle(word.view(number).reshape(values[0].data.shape), name))
        return _Call(handles)

    patch.setattr(InterpreterBuilder, "create_inline_asm", inline)
    return loads
