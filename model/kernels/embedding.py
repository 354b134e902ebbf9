"""The sum over the tables of a column's rows in one launch, in Triton.

Owns the addresses of the tables, which stay where they are, and rounding as the plain sum has it: to the tables' type
after each addition, in the same order. `model.lm` has the same in plain PyTorch. N is the columns, R rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ZERO = tl.constexpr(-1)
_BLOCK = 1024


class Tables:
    """Tables `[entries, D]` of one type on one device, in the order of the sum; each is read at a row of its own."""

    def __init__(self, tables: Sequence[Tensor], rows: Sequence[int]) -> None:
        """`rows`: which row of a column is read in which table."""
        self._places = [table.data_ptr() for table in tables]
        self.width, self.dtype = tables[0].shape[1], tables[0].dtype
        device = tables[0].device
        columns = zip(self._places, (table.shape[0] for table in tables), rows, strict=True)
        self.directory = torch.tensor(list(columns), dtype=torch.long, device=device)
        """`[R, 3]`: address, entries and row."""
        row_bytes = self.width * tables[0].element_size()
        self.aligned = all(place % 16 == 0 for place in (*self._places, row_bytes))

    def are(self, tables: Sequence[Tensor]) -> bool:
        """Whether `tables` still lie where these do."""
        return self._places == [table.data_ptr() for table in tables]


def embed(tables: Tables, columns: Tensor) -> Tensor:
    """`columns [N, R]` of ids to `[N, D]`; ZERO adds nothing, other ids outside a table read its nearest entry."""
    columns = columns.contiguous()
    count, rows = columns.shape
    result = torch.empty((count, tables.width), dtype=tables.dtype, device=columns.device)
    _embed[(count, triton.cdiv(tables.width, _BLOCK))](
        columns,
        tables.directory,
        result,
        tables.width,
        rows=rows,
        block=_BLOCK,
        alignment=16 if tables.aligned else result.element_size(),
        num_warps=4,
    )
    return result


@triton.jit
def _embed(columns, directory, result, width, rows: tl.constexpr, block: tl.constexpr, alignment: tl.constexpr):
    column = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    there = place < width
    narrow = result.dtype.element_ty
    total = tl.zeros([block], tl.float32)
    for index in tl.static_range(rows):
        table = tl.load(directory + 3 * index).to(tl.pointer_type(narrow))
        entries, row = tl.load(directory + 3 * index + 1), tl.load(directory + 3 * index + 2)
        token = tl.load(columns + column * rows + row)
        entry = tl.minimum(tl.maximum(token, 0), entries - 1)
        source = tl.multiple_of(table + entry * width + place, alignment)
        vector = tl.load(source, mask=there & (token != ZERO), other=0.0).to(tl.float32)
        total = (total + vector).to(narrow).to(tl.float32)
    tl.store(result + column * width + place, total.to(narrow), mask=there)
