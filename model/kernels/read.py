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
        self.pieces = torch.cat([_pieces(part) for part in self._parts]).to(self._parts[0].device)
        """`[programs, 2]`: where each begins to read, an address, and how many words, doubled, plus 1 if they lie wide.

        All worked out before: what a program looks up first and divides it waits for, and it is compared with kernels
        that do not.
        """
        self._sums = torch.empty(min(_SUMS, len(self.pieces)), dtype=torch.int32, device=self.pieces.device)

    def __call__(self) -> None:
        """In one launch."""
        _read[(len(self.pieces),)](self.pieces, self._sums, len(self._sums), block=_WORDS, num_warps=8)


def _pieces(part: Tensor) -> Tensor:
    """Of one tensor, `[programs, 2]` on the host."""
    rows, gap, words = _rows(part)
    wide = all(number % _WIDE.value == 0 for number in (part.data_ptr(), gap, 4 * words))
    begins = torch.arange(0, words, _WORDS)
    addresses = part.data_ptr() + gap * torch.arange(rows)[:, None] + 4 * begins
    counts = (words - begins).clamp(max=_WORDS).expand(rows, -1)
    return torch.stack((addresses, 2 * counts + wide), dim=2).view(-1, 2)


def _rows(part: Tensor) -> tuple[int, int, int]:
    """How many rows lie together in themselves, the bytes from one to the next, and the words of each."""
    if part.is_contiguous():
        return 1, 0, part.nbytes // 4
    if not part[0].is_contiguous():
        raise ValueError("a tensor has gaps within its first dimension's rows; give each part by itself")
    return part.shape[0], part.stride(0) * part.element_size(), part[0].nbytes // 4


@triton.jit
def _read(pieces, sums, size, block: tl.constexpr):
    program, place = tl.program_id(0), tl.arange(0, block)
    piece = pieces + 2 * program
    source = tl.load(piece).to(tl.pointer_type(tl.int32))
    said = tl.load(piece + 1).to(tl.int32)
    left = said >> 1
    # What is said of a number holds wherever it is used: the other way has one of its own.
    if said & 1 != 0:
        read = tl.load(tl.multiple_of(source + place, _WIDE), mask=place < left // 4 * 4, other=0)
    else:
        read = tl.load(source + place, mask=place < left, other=0)
    # The largest: a sum might not fit.
    tl.store(sums + program % size, tl.max(read, axis=0))
