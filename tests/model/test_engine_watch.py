"""When an engine that says nothing is quiet, and when it hangs; and when it is we who were not there to listen."""

from __future__ import annotations

import pytest

from model.engine_watch import BEAT_SECONDS, LOOK_SECONDS, EngineWatch


def watched(watch: EngineWatch, begin: float, end: float) -> tuple[bool, bool]:
    """Look as often as is done, from `begin` to `end`, hearing nothing: whether it is quiet then, and hung."""
    now = begin
    while now < end:
        now += LOOK_SECONDS
        watch.look(now)
    return watch.quiet, watch.hung


def test_an_engine_that_says_nothing_is_quiet_after_three_seconds_and_hangs_after_ten() -> None:
    watch = EngineWatch(0.006)
    watch.look(100.0)
    assert watched(watch, 100.0, 102.5) == (False, False)
    assert watched(watch, 102.5, 103.0) == (True, False)
    assert watched(watch, 103.0, 109.5) == (True, False)
    assert watched(watch, 109.5, 110.0) == (True, True)


def test_an_engine_that_is_heard_again_is_as_good_as_before() -> None:
    watch = EngineWatch()
    watch.look(0.0)
    assert watched(watch, 0.0, 9.5) == (True, False)
    watch.heard()
    assert watched(watch, 9.5, 12.0) == (False, False)
    assert watched(watch, 12.0, 19.0) == (True, False)


@pytest.mark.parametrize("still", [1.0, 30.0, 86_400.0])
def test_a_standstill_of_both_processes_is_not_held_against_the_engine(still: float) -> None:
    """At the worst its report was due when they were stopped, and comes a report's time after they went on."""
    watch = EngineWatch()
    watch.look(0.0)
    watched(watch, 0.0, BEAT_SECONDS)
    watch.look(BEAT_SECONDS + still)
    assert watched(watch, BEAT_SECONDS + still, 1.5 * BEAT_SECONDS + still) == (False, False)


def test_a_process_that_seldom_comes_to_look_finds_a_hung_engine_all_the_same() -> None:
    watch = EngineWatch()
    for turn in range(12):
        watch.look(5.0 * turn)
    assert watch.hung


def test_an_engine_whose_steps_are_slow_is_given_as_long_as_its_longest_work() -> None:
    watch = EngineWatch(0.8)
    watch.look(0.0)
    assert watched(watch, 0.0, 12.5) == (False, False)
    assert watched(watch, 12.5, 204.0) == (True, False)
    assert watched(watch, 204.0, 205.0) == (True, True)
