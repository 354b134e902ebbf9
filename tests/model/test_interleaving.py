"""Steps and other work take turns: neither waits for long."""

from __future__ import annotations

import pytest

from model.interleaving import STARVED, Interleaving
from model.pace import FRAME


@pytest.mark.parametrize(("waiting", "steps"), [(0, STARVED), (1, STARVED), (2, STARVED // 2), (100, 1)])
def test_after_some_steps_other_work_has_a_turn_the_sooner_the_more_wait(waiting: int, steps: int) -> None:
    turns = Interleaving()
    for _ in range(2):
        for _ in range(steps):
            assert not turns.starved(waiting)
            turns.stepped()
        assert turns.starved(waiting)
        turns.parted(None)


def test_a_part_like_the_last_ones_may_delay_the_next_step_by_a_tenth_of_a_frame() -> None:
    turns = Interleaving()
    assert turns.has_time(5.0, 5.001), "nothing is known"
    turns.parted(0.012)
    turns.parted(None)
    turns.parted(0.001)
    assert turns.has_time(5.0, None)
    assert turns.has_time(5.0, 5.0041)
    assert not turns.has_time(5.0, 5.0039)
    for _ in range(4):
        turns.parted(0.001)
    assert turns.has_time(5.0, 5.0)


def test_for_what_fits_between_no_two_steps_there_is_no_better_moment() -> None:
    turns = Interleaving()
    turns.parted(FRAME / 4 + 0.001)
    assert turns.has_time(5.0, 5.0)
