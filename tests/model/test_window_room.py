"""The order in which calls get their past back, by numbers alone: a window of 1,000 frames, a prompt of 100."""

from __future__ import annotations

from typing import Any

import pytest

from model.call_jobs import Call, Job
from model.history import Columns
from model.window_room import WindowRoom
from model.wire import TOKENS_BYTES

WINDOW, PROMPT = 1_000, 100
MARGIN = 50
WHOLE = WINDOW - 1 - PROMPT - MARGIN
"""Frames that can be known beside the prompt."""


def call(slot: int, frames: int, *, known: int, to_know: int) -> Call:
    """One of so many frames, of which its memory knows the newest, and is to know more."""
    nothing: Any = None
    columns = Columns(0, bytes(TOKENS_BYTES * frames))
    prompt: Any = type("Prompt", (), {"frames": PROMPT})
    one = Call(slot, slot, nothing, nothing, nothing, prompt, columns, base=PROMPT - (frames - known))
    one.renewing, one.renewed_from = True, frames - to_know
    return one


@pytest.fixture
def room() -> WindowRoom:
    return WindowRoom(WINDOW)


def order(room: WindowRoom, *calls: Call, spare_is_free: bool = True) -> list[int]:
    nothing: Any = iter(())
    jobs = [Job(one, nothing, pressing=False) for one in calls]
    return [job.call.slot for _, job in room.least_first(jobs, spare_is_free)]


def test_calls_taken_over_get_their_past_back_in_the_order_in_which_it_ceases_to_fit(room: WindowRoom) -> None:
    short, long = call(0, 300, known=10, to_know=300), call(1, WHOLE - 20, known=10, to_know=WHOLE - 20)
    assert order(room, short, long) == [1, 0]
    soon_unprompted = call(2, WHOLE + 10, known=WHOLE, to_know=350)
    assert room.left(soon_unprompted) == MARGIN
    assert order(room, short, long, soon_unprompted) == [2, 1, 0]


def test_one_whose_past_does_not_fit_any_more_has_time_again_and_gets_the_newest_half(room: WindowRoom) -> None:
    late, fits = call(0, WHOLE + 5, known=15, to_know=WHOLE + 5), call(1, WHOLE - 20, known=20, to_know=WHOLE - 20)
    assert order(room, late, fits) == [1, 0]
    assert room.beginning(late.renewed_from, late.columns.end, PROMPT) == late.columns.end - WHOLE // 2
    assert room.beginning(fits.renewed_from, fits.columns.end, PROMPT) == fits.renewed_from


def test_a_memory_that_is_filled_must_be_in_place_before_it_is_full(room: WindowRoom) -> None:
    one = call(0, WHOLE + MARGIN - 5, known=100, to_know=WHOLE + MARGIN - 5)
    nothing: Any = iter(())
    jobs = [Job(one, nothing, pressing=False)]
    assert not room.urgent(jobs)
    one.has_spare = True
    assert room.urgent(jobs)
    assert room.least_first(jobs, spare_is_free=False) == [(5, jobs[0])]
