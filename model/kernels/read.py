"""A kernel that only reads, all of a list of tensors in one launch: how fast memory is, for comparison.

Owns the list, by address: tensors stay where they are. Knows nothing of what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS = 8192
"""32-bit words that a program reads."""
_WIDE = tl.constexpr(16)
"""Bytes that a thread reads at once of a tensor whose rows begin and end at a multiple of so many; of others 4."""
_SUMS = 1 << 20


class Reads:
    """Tensors on one device, whose first dimensions may have gaps between them: called, it reads each once."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)  # as long as they are to be read they are there
        device, lines, counts = self._parts[0].device, list[tuple[int, ...]](), list[int]()
        for part in self._parts:
            rows, gap, words = _rows(part)
            wide = all(number % _WIDE.value == 0 for number in (part.data_ptr(), gap, 4 * words))
            each = triton.cdiv(words, _WORDS)
            lines.append((part.data_ptr(), gap, words, each, sum(counts), wide))
            counts.append(rows * each)
        self.directory = torch.tensor(lines, dtype=torch.long, device=device)
        """`[parts, 6]`: address, bytes from row to row, words and programs of each, first program, whether wide."""
        numbers = torch.arange(len(lines), dtype=torch.int32, device=device)
        self.owners = numbers.repeat_interleave(torch.tensor(counts, device=device))
        """`[programs]`: which tensor each reads of."""
        self._sums = torch.empty(min(_SUMS, len(self.owners)), dtype=torch.int32, device=device)

    def __call__(self) -> None:
        """In one launch."""
        arguments = (self.owners, self.directory, self._sums, len(self._sums))
        _read[(len(self.owners),)](*arguments, block=_WORDS, num_warps=8)


def _rows(part: Tensor) -> tuple[int, int, int]:
    """How many rows lie together in themselves, the bytes from one to the next, and the words of each."""
    if part.is_contiguous():
        return 1, 0, part.nbytes // 4
    if not part[0].is_contiguous():
        raise ValueError("a tensor has gaps within its first dimension's rows; give each part by itself")
    return part.shape[0], part.stride(0) * part.element_size(), part[0].nbytes // 4


@triton.jit
def _read(owners, directory, sums, size, block: tl.constexpr):
    program, place = tl.program_id(0), tl.arange(0, block)
    part = directory + tl.load(owners + program).to(tl.int64) * 6
    gap, words = tl.load(part + 1), tl.load(part + 2)
    pieces, number = tl.load(part + 3), program - tl.load(part + 4)
    begin = number % pieces * block
    source = (tl.load(part) + number // pieces * gap + 4 * begin).to(tl.pointer_type(tl.int32))
    left = (words - begin).to(tl.int32)
    # What is said of a number holds wherever it is used: the other way has one of its own.
    if tl.load(part + 5) != 0:
        read = tl.load(tl.multiple_of(source + place, _WIDE), mask=place < left // 4 * 4, other=0)
    else:
        read = tl.load(source + place, mask=place < left, other=0)
    # The largest: a sum might not fit.
    tl.store(sums + program % size, tl.max(read, axis=0))
