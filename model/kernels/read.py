"""A kernel that only reads: how fast memory is, for comparison. Knows nothing of what it reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS = 8192
"""32-bit words that a program reads."""


def read(part: Tensor, sums: Tensor) -> None:
    """Read `part`, whose first dimensions may have gaps between them, in rows as long as lie together."""
    dense = part
    rows, gap = 1, 0
    if not part.is_contiguous():
        rows, gap, dense = part.shape[0], part.stride(0) * part.element_size() // 4, part[0]
    words = dense.numel() * dense.element_size() // 4
    _read[(triton.cdiv(words, _WORDS), rows)](dense.view(torch.int32), sums, words, gap, block=_WORDS, num_warps=8)


@triton.jit
def _read(source, sums, words, gap, block: tl.constexpr):
    place = tl.program_id(0) * block + tl.arange(0, block)
    start = source + tl.program_id(1).to(tl.int64) * gap
    # The largest: a sum might not fit.
    tl.store(sums + tl.program_id(0), tl.max(tl.load(start + place, mask=place < words, other=0), axis=0))
