"""The codec's codebooks in a step, in Triton: the nearest entries, codebook after codebook, and sums of entries.

Owns the search. One launch scores every entry of one acoustic codebook (the first also those of the semantic one), cut
into blocks of entries so that the whole GPU searches for few rows as for many; each reads from the blocks of the launch
before what that one chose, and takes it off. Everything is as exact as float32. `model.mimi.quantizer` has the same in
plain PyTorch.

b is the slots of a step or pass, n its columns of each, Q codebooks, E entries of each, d an entry's width. Codebook 0
is the semantic one; the others quantise what the ones between left over, side by side with it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels import codec_tiles
from model.kernels.codec_parts import as_left, as_right, steps, zeros
from model.kernels.codec_tiles import SearchTile
from model.kernels.overlap import begin_next, possible, wait_for_last

_DEPTH = 32
"""Components that a group of warps takes at once."""


def search(
    projected: Tensor, entries: Tensor, columns: Tensor, half_squares: Tensor, *, cut: SearchTile | None = None
) -> Tensor:
    """`projected [b, n, 2, d]`, for the semantic side and the acoustic one, to the nearest `[b, n, Q]`.

    Of equals the first. `entries [Q, E, d]`; `columns [Q, d, E]`, the same, as a product reads them fastest;
    `half_squares [Q, E]`, half their squared lengths. `cut`: another tile than the one meant for so many rows.
    """
    books, (slots, length) = entries.shape[0], projected.shape[:2]
    count = slots * length
    cut = cut or codec_tiles.search_tile(count)
    scores, indices = _scored(projected, entries, columns, half_squares, cut)
    blocks = scores.shape[2]
    codes = torch.empty((slots, length, books), dtype=torch.int64, device=projected.device)
    _choose[(count,)](
        scores,
        indices,
        codes,
        count,
        books=books,
        blocks=blocks,
        width=triton.next_power_of_2(books),
        places=triton.next_power_of_2(blocks),
        num_warps=1,
    )
    return codes


def _scored(
    projected: Tensor, entries: Tensor, columns: Tensor, half_squares: Tensor, cut: SearchTile
) -> tuple[Tensor, Tensor]:
    """The best score of each block of entries, and whose it is: `[Q, b n, blocks]` each."""
    books, bins, dim = entries.shape
    slots, length = projected.shape[:2]
    count = slots * length
    blocks = triton.cdiv(bins, cut.entries)
    rests = torch.empty((books, count, dim), dtype=torch.float32, device=projected.device)
    scores = torch.empty((books, count, blocks), dtype=torch.float32, device=projected.device)
    indices = torch.empty((books, count, blocks), dtype=torch.int32, device=projected.device)
    shares = min(cut.shares, triton.next_power_of_2(triton.cdiv(dim, _DEPTH)))
    chained = codec_tiles.chains(slots) and possible(projected.device)
    for book in range(1, max(books, 2)):
        _score[(triton.cdiv(count, cut.rows), blocks, (book == 1) + (book < books))](
            projected,
            rests,
            entries,
            columns,
            half_squares,
            scores,
            indices,
            count,
            bins,
            book,
            dim=dim,
            blocks=blocks,
            places=triton.next_power_of_2(blocks),
            begins=book == 1,
            rows=cut.rows,
            width=cut.entries,
            shares=shares,
            depth=_DEPTH,
            precision="ieee" if cut.way == "fma" else "tf32x3",
            chained=chained,
            num_warps=cut.warps,
            launch_pdl=chained,
        )
    return scores, indices


def sums(codes: Tensor, entries: Tensor) -> Tensor:
    """`codes [rows, K]`, of the first K codebooks, to the sums of their entries, semantic and acoustic: `[rows, 2, d]`.

    `entries [Q, E, d]`. An id that is no entry (a marker) reads the closest one that is.
    """
    _, bins, dim = entries.shape
    count, books = codes.shape
    result = torch.empty((count, 2, dim), dtype=torch.float32, device=entries.device)
    _sum[(count,)](
        codes,
        entries,
        result,
        codes.stride(0),
        codes.stride(1),
        bins,
        dim=dim,
        width=triton.next_power_of_2(dim),
        books=books,
        num_warps=4,
    )
    return result


@triton.jit
def _chosen(scores, indices, first, there, blocks: tl.constexpr, places: tl.constexpr):
    """The best over a row's blocks, the first of equals; `first [rows]` is where each row's blocks begin."""
    block = tl.arange(0, places)[None, :]
    live = there[:, None] & (block < blocks)
    score = tl.load(scores + first[:, None] + block, mask=live, other=float("-inf"))
    best = tl.minimum(tl.argmax(score, axis=1), blocks - 1)
    return tl.load(indices + first + best, mask=there, other=0)


@triton.jit(do_not_specialize=["count", "book"])
def _score(
    projected,
    rests,
    entries,
    columns,
    half_squares,
    scores,
    indices,
    count,
    bins,
    book,
    dim: tl.constexpr,
    blocks: tl.constexpr,
    places: tl.constexpr,
    begins: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    shares: tl.constexpr,
    depth: tl.constexpr,
    precision: tl.constexpr,
    chained: tl.constexpr,
):
    """One block of entries against some rows; of the first launch, side 1 is the acoustic one."""
    if chained:
        begin_next()
        wait_for_last()
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    block = tl.program_id(1)
    column = block * width + tl.arange(0, width)
    there, known = row < count, column < bins
    side = tl.program_id(2)
    if begins:
        book = side
        source = projected + row.to(tl.int64) * 2 * dim + side * dim
    else:
        before = book - 1
        source = rests + (before.to(tl.int64) * count + row) * dim
        code = _chosen(scores, indices, (before * count + row) * blocks, there, blocks, places)
        taken = entries + (before.to(tl.int64) * bins + code) * dim
    place = book.to(tl.int64) * count + row
    along, below = steps(shares, depth)
    right, used = columns + book.to(tl.int64) * dim * bins + as_right(column, shares), as_right(known, shares)
    source, here, place = as_left(source, shares), as_left(there, shares), as_left(place, shares)
    if not begins:
        taken = as_left(taken, shares)
    total = zeros(rows, width, shares)
    for start in range(0, dim, depth * shares):
        component = start + along
        live = here & (component < dim)
        rest = tl.load(source + component, mask=live, other=0.0)
        if not begins:
            rest -= tl.load(taken + component, mask=live, other=0.0)
        if block == 0:
            tl.store(rests + place * dim + component, rest, mask=live)
        component = start + below
        entry = tl.load(right + component * bins, mask=used & (component < dim), other=0.0)
        total = tl.dot(rest, entry, total, input_precision=precision)
    if shares > 1:
        total = tl.sum(total, axis=0)
    score = total - tl.load(half_squares + book * bins + column, mask=known, other=0.0)[None, :]
    score = tl.where(known[None, :], score, float("-inf"))
    best = tl.argmax(score, axis=1)
    place = book.to(tl.int64) * count + row
    tl.store(scores + place * blocks + block, tl.max(score, axis=1), mask=there)
    tl.store(indices + place * blocks + block, tl.minimum(block * width + best, bins - 1), mask=there)


@triton.jit(do_not_specialize=["count"])
def _choose(
    scores,
    indices,
    codes,
    count,
    books: tl.constexpr,
    blocks: tl.constexpr,
    width: tl.constexpr,
    places: tl.constexpr,
):
    row = tl.program_id(0)
    book = tl.arange(0, width)
    there = book < books
    code = _chosen(scores, indices, (book * count + row) * blocks, there, blocks, places)
    tl.store(codes + row * books + book, code.to(tl.int64), mask=there)


@triton.jit(do_not_specialize=["row_stride", "book_stride"])
def _sum(
    codes,
    entries,
    result,
    row_stride,
    book_stride,
    bins,
    dim: tl.constexpr,
    width: tl.constexpr,
    books: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    component = tl.arange(0, width)
    there = component < dim
    total = tl.zeros([width], tl.float32)
    for book in tl.static_range(books):
        code = tl.load(codes + row * row_stride + book * book_stride).to(tl.int64)
        code = tl.minimum(tl.maximum(code, 0), bins - 1)
        entry = tl.load(entries + (book * bins + code) * dim + component, mask=there, other=0.0)
        if book == 0:
            tl.store(result + row * 2 * dim + component, entry, mask=there)
        else:
            total += entry
    tl.store(result + row * 2 * dim + dim + component, total, mask=there)
