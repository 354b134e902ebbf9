"""The delayed token grid: what was given, what was chosen, and which column the model reads next.

Owns the arithmetic of delays, start markers and offsets, for each slot with its own time. Knows no network.
R is the number of rows (text, agent codebooks, caller codebooks), C the columns kept, S the slots, b those of a
step, P the frames of a prefill.

Absolute column c lies in cell `c mod C`. A token given at step n for row k belongs to column n + delay(k). Step n
reads column n - 1 and decides column n; step 0 only lays the start markers and runs nothing. Since acoustic rows
lag by one column, step n emits frame n - 1, from step `max_delay + 1` on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from model import ops
from model.config import UNGENERATED, LMConfig

if TYPE_CHECKING:
    from model.kernels.token_grid import Grid


class TokenCache:
    """tokens: `[S, R, C]` ids; provided: `[S, R, C]`, which cells were given; offset: `[S]`, steps since the reset."""

    def __init__(self, config: LMConfig, slots: int, device: torch.device | str = "cpu") -> None:
        self.max_delay = config.max_delay
        shape = (slots, config.rows, config.columns)
        self.tokens = torch.full(shape, UNGENERATED, dtype=torch.long, device=device)
        self.provided = torch.zeros(shape, dtype=torch.bool, device=device)
        self.offset = torch.zeros(slots, dtype=torch.long, device=device)
        self.delays = torch.tensor(config.delays, device=device)
        self.start_ids = torch.tensor(config.start_ids, device=device)

    def reset(self, slots: Tensor) -> None:
        """Make `slots [b]` as good as new."""
        self.tokens.index_fill_(0, slots, UNGENERATED)
        self.provided.index_fill_(0, slots, False)
        self.offset.index_fill_(0, slots, 0)

    def copy(self, source: int, targets: Tensor) -> None:
        """Let `targets [b]` continue from where slot `source` stands."""
        for state in (self.tokens, self.provided, self.offset):
            state[targets] = state[source].clone()

    def place(self, slot: int, offset: int, decided: Tensor, ahead: Tensor, given: Tensor) -> None:
        """Put `slot` at `offset`, where it reads `decided [R]` next and has `ahead [R]` for the column after it.

        `given [R]` says which of `ahead` count; only delayed rows can. For delays of one frame at most.
        """
        cells = self.tokens.shape[2]
        self.tokens[slot, :, (offset - 1) % cells] = decided
        self.tokens[slot, :, offset % cells] = ahead
        self.provided[slot].fill_(False)
        self.provided[slot, :, offset % cells] = given & (self.delays > 0)
        self.offset[slot].fill_(offset)

    def move(self, source: int, source_offset: int, target: int, offset: int) -> None:
        """Let `target`, put at `offset`, hold what `source` holds at its `source_offset`: other times, same tokens."""
        for state in (self.tokens, self.provided):
            # All of it: a flag that the target had for a column of its own would be taken for one of these.
            state[target] = state[source].roll(offset - source_offset, dims=-1)
        self.offset[target].fill_(offset)

    def begin(
        self,
        slots: Tensor,
        codes: Tensor | None = None,
        forced: Tensor | None = None,
        forced_mask: Tensor | None = None,
    ) -> OpenStep:
        """Start a step of `slots [b]`, all different. Nothing is stored before `OpenStep.finish`.

        `codes [b, K]` are given for the last K rows; `forced [b, R]`, where `forced_mask [b, R]` is true, before them.
        """
        if ops.fused(self.offset):
            return _FusedStep(self, slots, codes, forced, forced_mask)
        return _PlainStep(self, slots, *self._given(slots.shape[0], codes, forced, forced_mask))

    def _given(
        self, count: int, codes: Tensor | None, forced: Tensor | None, forced_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All that is given to a step as ids and mask, both `[b, R]`."""
        given = torch.zeros((count, self.tokens.shape[1]), dtype=torch.long, device=self.tokens.device)
        mask = torch.zeros_like(given, dtype=torch.bool)
        if codes is not None:
            given[:, -codes.shape[1] :] = codes
            mask[:, -codes.shape[1] :].fill_(True)
        if forced is not None and forced_mask is not None:
            given = torch.where(forced_mask, forced, given)
            mask = mask | forced_mask
        return given, mask

    def grid(self) -> Grid:
        """The state as kernels take it."""
        from model.kernels.token_grid import Grid

        return Grid(self.tokens, self.provided, self.offset, self.delays, self.start_ids, self.max_delay)

    def extend(self, slot: int, frames: Tensor) -> Tensor:
        """Do what P steps with all of `frames [R, P]` given would do to `slot`, without the model's part.

        Returns the columns the model reads meanwhile, `[R, P]`, or `[R, P - 1]` from offset 0. Reads the offset
        back from the device: for prefill, not for live steps. Raises ValueError if the slot is in the middle of a
        conversation, with a frame that was begun but not yet decided.
        """
        offset, count = int(self.offset[slot]), frames.shape[1]
        if count == 0:
            return frames
        cells = self.tokens.shape[2]
        columns = torch.arange(offset - 1, offset + count + self.max_delay, device=frames.device)
        source = columns - self.delays[:, None]
        kept = self.tokens[slot][:, columns % cells]
        pending = (columns >= offset) & (source < offset) & (columns > self.delays[:, None])
        if not bool(self.provided[slot][:, columns % cells][pending].all()):
            raise ValueError(
                f"slot {slot} has a frame under way whose tokens are not all given; it cannot be prefilled"
            )
        grid = torch.where(source < offset, kept, frames.gather(1, (source - offset).clamp(0, count - 1)))
        start = (columns >= offset) & (columns < offset + count) & (columns <= self.delays[:, None])
        grid = torch.where(start, self.start_ids[:, None], grid)
        self._store(slot, offset, grid)
        return grid[:, max(1 - offset, 0) : count]

    def mark_given(self, slot: int, offset: int) -> None:
        """Put `slot` at `offset`, at least 1, with the flags that steps with everything given leave behind."""
        self.offset[slot].fill_(offset)
        self.provided[slot].fill_(False)
        for ahead in range(self.max_delay + 1):
            self.provided[slot, :, (offset - 1 + ahead) % self.provided.shape[2]] = self.delays >= ahead

    def _store(self, slot: int, offset: int, grid: Tensor) -> None:
        """Write columns offset - 1 and on, `grid [R, P + 1 + max_delay]`, oldest first, where rows reach them."""
        end = offset + grid.shape[1] - 1 - self.max_delay
        cells = self.tokens.shape[2]
        for column in range(max(offset, end - cells), end + self.max_delay):
            reached = column - end < self.delays
            cell = self.tokens[slot, :, column % cells]
            self.tokens[slot, :, column % cells] = torch.where(reached, grid[:, column - offset + 1], cell)
        self.mark_given(slot, end)


@dataclass(frozen=True, slots=True)
class Decided:
    """What a step came to."""

    column: Tensor
    """`[b, R]`, the column decided."""
    frame: Tensor
    """`[b, R]`, the frame emitted, or UNGENERATED where there is none."""
    valid: Tensor
    """`[b]`: whether there is one."""


class OpenStep(Protocol):
    """One step of some slots, between what was given and what is chosen."""

    inputs: Tensor
    """`[b, R]`, the column the model reads."""
    target: Tensor
    """`[b, R]`, the column it decides, valid where `given`."""
    given: Tensor
    """`[b, R]`."""
    offset: Tensor
    """`[b]`, steps of each slot since its reset."""
    running: Tensor
    """`[b]`, false for a slot's step 0, whose results mean nothing."""

    def finish(self, chosen: Tensor) -> Decided:
        """Store `chosen [b, n]`, for the first n rows, where nothing was given, and let the slots' time go on."""
        ...


class _FusedStep:
    """A step by kernels."""

    def __init__(
        self,
        cache: TokenCache,
        slots: Tensor,
        codes: Tensor | None,
        forced: Tensor | None,
        forced_mask: Tensor | None,
    ) -> None:
        from model.kernels import token_grid

        self._grid, self._slots = cache.grid(), slots
        self._opened = opened = token_grid.open_step(self._grid, slots, codes, forced, forced_mask)
        self.inputs, self.target, self.given = opened.inputs, opened.target, opened.given
        self.offset, self.running = opened.offset, opened.running

    def finish(self, chosen: Tensor) -> Decided:
        from model.kernels import token_grid

        return Decided(*token_grid.close_step(self._grid, self._slots, self._opened, chosen))


class _PlainStep:
    """A step in plain PyTorch: `given [b, R]` are ids, taken where `mask [b, R]` is true."""

    def __init__(self, cache: TokenCache, slots: Tensor, given: Tensor, mask: Tensor) -> None:
        self._cache, self._slots = cache, slots
        tokens, provided = cache.tokens[slots], cache.provided[slots]
        self.offset = offset = cache.offset[slots]
        cells = self._cells(cache.delays)
        tokens = tokens.scatter(2, cells, torch.where(mask[..., None], given[..., None], tokens.gather(2, cells)))
        provided = provided.scatter(2, cells, mask[..., None] | provided.gather(2, cells))
        self._here, self._before = self._cells(0), self._cells(-1)
        start = (cache.delays >= offset[:, None])[..., None]
        target = torch.where(start, cache.start_ids[:, None], tokens.gather(2, self._here))
        flags = start | provided.gather(2, self._here)
        self._tokens, self._provided = tokens, provided.scatter(2, self._here, flags)
        self.inputs = tokens.gather(2, self._before)[..., 0]
        self.target, self.given = target[..., 0], flags[..., 0]
        self.running = offset > 0

    def _cells(self, ahead: Tensor | int) -> Tensor:
        """Where column offset + ahead of each row lies, `[b, R, 1]`."""
        shape = (self.offset.shape[0], self._cache.delays.shape[0])
        return ((self.offset[:, None] + ahead) % self._cache.tokens.shape[2]).expand(shape)[..., None]

    def finish(self, chosen: Tensor) -> Decided:
        cache, count = self._cache, chosen.shape[1]
        column = self.target.clone()
        column[:, :count] = torch.where(self.given[:, :count], self.target[:, :count], chosen)
        tokens = self._tokens.scatter(2, self._here, column[..., None])
        read = self._provided.gather(2, self._before) & ~self.running[:, None, None]
        provided = self._provided.scatter(2, self._before, read)
        valid = self.offset > cache.max_delay
        frame = tokens.gather(2, self._cells(cache.delays - cache.max_delay))[..., 0]
        frame = torch.where(valid[:, None], frame, UNGENERATED)
        cache.tokens[self._slots] = tokens
        cache.provided[self._slots] = provided
        cache.offset[self._slots] = self.offset + 1
        return Decided(column, frame, valid)
