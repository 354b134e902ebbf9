"""A step of the delayed token grid in two launches, in Triton: before the model reads, and after it chose.

Owns the arithmetic of `model.token_cache`, which has the same in plain PyTorch and says what it means. One program for
each slot, a lane for each row. b is the slots of a step, S all slots, R rows, C cells, K the caller's codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

UNGENERATED = tl.constexpr(-2)


@dataclass(frozen=True, slots=True)
class Grid:
    """The state of all slots, and each row's delay and start marker.

    tokens: `[S, R, C]`; provided: `[S, R, C]` bool; offset: `[S]`; delays, start_ids: `[R]`; max_delay: frames.
    """

    tokens: Tensor
    provided: Tensor
    offset: Tensor
    delays: Tensor
    start_ids: Tensor
    max_delay: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What `open_step` makes: all of it new. ids, inputs, target: `[b, R]`; mask, given: `[b, R]` bool;
    offset: `[b]`; running: `[b]` bool."""

    ids: Tensor
    mask: Tensor
    inputs: Tensor
    target: Tensor
    given: Tensor
    offset: Tensor
    running: Tensor


def open_step(
    grid: Grid, slots: Tensor, codes: Tensor | None, forced: Tensor | None, forced_mask: Tensor | None
) -> Opened:
    """Begin a step of `slots [b]`, given `codes [b, K]` and, before those, `forced [b, R]` under `forced_mask [b, R]`.

    Nothing of the grid is written.
    """
    count, (_, rows, cells) = slots.shape[0], grid.tokens.shape
    ids, inputs, target = (slots.new_empty((count, rows)) for _ in range(3))
    mask, given = (slots.new_empty((count, rows), dtype=torch.bool) for _ in range(2))
    offset, running = torch.empty_like(slots), torch.empty_like(slots, dtype=torch.bool)
    heard = grid.tokens if codes is None else codes
    forces = forced is not None and forced_mask is not None
    _open[(count,)](
        grid.tokens,
        _bytes(grid.provided),
        grid.offset,
        grid.delays,
        grid.start_ids,
        slots,
        heard,
        forced if forced is not None else grid.tokens,
        _bytes(forced_mask) if forced_mask is not None else _bytes(grid.provided),
        ids,
        _bytes(mask),
        inputs,
        target,
        _bytes(given),
        offset,
        _bytes(running),
        rows,
        cells,
        0 if codes is None else codes.shape[1],
        heard.stride(0),
        heard.stride(1),
        places=triton.next_power_of_2(rows),
        forces=forces,
        num_warps=1,
    )
    return Opened(ids, mask, inputs, target, given, offset, running)


def close_step(grid: Grid, slots: Tensor, opened: Opened, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """End it: store what was given and, elsewhere, `chosen [b, n]` for the first n rows, and let time go on.

    Returns the column decided and the frame emitted, `[b, R]`, and whether there is one, `[b]`.
    """
    count, (_, rows, cells) = slots.shape[0], grid.tokens.shape
    decided, frame = (slots.new_empty((count, rows)) for _ in range(2))
    valid = torch.empty_like(opened.running)
    _close[(count,)](
        grid.tokens,
        _bytes(grid.provided),
        grid.offset,
        grid.delays,
        slots,
        opened.ids,
        _bytes(opened.mask),
        opened.target,
        _bytes(opened.given),
        opened.offset,
        chosen,
        decided,
        frame,
        _bytes(valid),
        rows,
        cells,
        chosen.shape[1],
        chosen.stride(0),
        chosen.stride(1),
        grid.max_delay,
        places=triton.next_power_of_2(rows),
        num_warps=1,
    )
    return decided, frame, valid


def _bytes(flags: Tensor) -> Tensor:
    return flags.view(torch.uint8)


@triton.jit
def _open(
    tokens,
    provided,
    offsets,
    delays,
    start_ids,
    slots,
    codes,
    forced,
    forced_mask,
    ids,
    mask,
    inputs,
    target,
    given,
    offset_of,
    running,
    rows,
    cells,
    heard,
    codes_step,
    codes_gap,
    places: tl.constexpr,
    forces: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + entry)
    offset = tl.load(offsets + slot)
    row = tl.arange(0, places)
    there = row < rows
    delay = tl.load(delays + row, mask=there, other=0)
    mine = entry * rows + row

    # The caller's codebooks are the last rows.
    book = row - (rows - heard)
    hears = there & (book >= 0)
    told = tl.load(codes + entry * codes_step + book * codes_gap, mask=hears, other=0)
    if forces:
        forcing = tl.load(forced_mask + mine, mask=there, other=0) != 0
        told = tl.where(forcing, tl.load(forced + mine, mask=there, other=0), told)
        hears = hears | forcing
    tl.store(ids + mine, told, mask=there)
    tl.store(mask + mine, hears.to(tl.uint8), mask=there)

    cell = (slot * rows + row) * cells
    here, before = offset % cells, (offset + cells - 1) % cells
    lands_here = hears & ((offset + delay) % cells == here)
    start = delay >= offset
    held = tl.load(tokens + cell + here, mask=there, other=0)
    known = tl.load(provided + cell + here, mask=there, other=0) != 0
    aim = tl.where(start, tl.load(start_ids + row, mask=there, other=0), tl.where(lands_here, told, held))
    tl.store(target + mine, aim, mask=there)
    tl.store(given + mine, (start | lands_here | known).to(tl.uint8), mask=there)
    tl.store(inputs + mine, tl.load(tokens + cell + before, mask=there, other=0), mask=there)
    tl.store(offset_of + entry, offset)
    tl.store(running + entry, (offset > 0).to(tl.uint8))


@triton.jit
def _close(
    tokens,
    provided,
    offsets,
    delays,
    slots,
    ids,
    mask,
    target,
    given,
    offset_of,
    chosen,
    decided,
    frame,
    valid,
    rows,
    cells,
    picks,
    chosen_step,
    chosen_gap,
    max_delay,
    places: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    slot, offset = tl.load(slots + entry), tl.load(offset_of + entry)
    row = tl.arange(0, places)
    there = row < rows
    delay = tl.load(delays + row, mask=there, other=0)
    mine = entry * rows + row
    cell = (slot * rows + row) * cells
    here, before = offset % cells, (offset + cells - 1) % cells
    landing, leaving = (offset + delay) % cells, (offset + cells + delay - max_delay) % cells

    aim = tl.load(target + mine, mask=there, other=0)
    fixed = tl.load(given + mine, mask=there, other=0)
    told, tells = tl.load(ids + mine, mask=there, other=0), tl.load(mask + mine, mask=there, other=0) != 0
    picked = tl.load(chosen + entry * chosen_step + row * chosen_gap, mask=there & (row < picks), other=0)
    settled = tl.where((fixed != 0) | (row >= picks), aim, picked)
    old = tl.load(tokens + cell + leaving, mask=there, other=0)
    emits = offset > max_delay
    tl.store(decided + mine, settled, mask=there)
    tl.store(frame + mine, tl.where(emits, tl.where(leaving == here, settled, old), UNGENERATED), mask=there)
    tl.store(valid + entry, emits.to(tl.uint8))

    ahead = there & tells & (landing != here)
    tl.store(tokens + cell + landing, told, mask=ahead)
    tl.store(provided + cell + landing, tells.to(tl.uint8), mask=ahead)
    tl.store(tokens + cell + here, settled, mask=there)
    tl.store(provided + cell + here, fixed, mask=there)
    # The column that was read is done with; at step 0 none was.
    tl.store(provided + cell + before, fixed * 0, mask=there & (offset > 0))
    tl.store(offsets + slot, offset + 1)
