"""Whether a worker keeps up: its frames and ours, tick by tick."""

from __future__ import annotations

from gateway.watch import Watch


def watched(*ticks: tuple[float, int]) -> list[bool]:
    """Ticks at these times, each followed by so many answers; whether the worker was found to fail at each."""
    watch, found = Watch(), []
    for now, answers in ticks:
        found.append(watch.sent(now))
        for _ in range(answers):
            watch.answered()
    return found


def every_80_ms(*answers: int, begin: float = 0.0) -> list[tuple[float, int]]:
    return [(begin + 0.08 * number, count) for number, count in enumerate(answers)]


def test_three_ticks_without_an_answer_are_a_hang() -> None:
    assert watched(*every_80_ms(1, 0, 0, 0, 0)) == [False] * 4 + [True]


def test_a_slow_worker_is_not_a_hang() -> None:
    assert not any(watched(*every_80_ms(0, 0, 1, 0, 1, 0, 0)))


def test_one_that_falls_ever_further_behind_fails_until_it_has_caught_up() -> None:
    falling = [0, 1, 1] * 16
    found = watched(*every_80_ms(*falling))
    assert found.index(True) == 43, "when the sixteenth answer is owed"
    caught_up = every_80_ms(*falling[:45], 3, 3, 3, 3, 1, 1)
    assert watched(*caught_up)[45:] == [True, True, True, True, False, False]


def test_our_own_standstill_is_not_held_against_the_worker() -> None:
    late = [(1.0 + 0.001 * tick, 0) for tick in range(12)]
    assert not any(watched((0.0, 0), *late, (1.09, 12), (1.17, 1)))


def test_a_worker_may_catch_up_with_a_burst_but_not_fall_further_behind() -> None:
    burst = [(0.001 * tick, 0) for tick in range(20)]
    assert not any(watched(*burst, *every_80_ms(*[2] * 19, begin=0.1)))
    assert not any(watched(*burst, *every_80_ms(*[1] * 50, begin=0.1)))
    assert watched(*burst, *every_80_ms(*[1, 0] * 10, begin=0.1)).index(True) == 26


def test_one_that_is_kept_though_it_is_slow_is_behind_again_once_it_owes_so_much() -> None:
    watch = Watch()
    for tick in range(16):
        watch.sent(0.08 * tick)
    assert watch.behind
    watch.trust(1.6)
    behind = []
    for tick in range(16, 20):
        watch.sent(0.08 * tick)
        behind.append(watch.behind)
    assert behind == [False, False, False, True]
    assert watch.owed == 1.6
