"""Counting what came: loss, doubles and jitter as RFC 3550 reckons them."""

from __future__ import annotations

import random

from gateway.rtp.reception import Reception


def test_all_that_came_in_order() -> None:
    reception = Reception(65_500)
    assert all(reception.receive((65_500 + index) & 0xFFFF) for index in range(1_000))
    report = reception.report()
    assert (reception.received, report.lost, report.fraction_lost) == (1_000, 0, 0)
    # The number wrapped once: a cycle is counted.
    assert report.highest == 65_500 + 999


def test_loss_and_its_fraction_since_the_last_report() -> None:
    reception = Reception(0)
    for sequence in range(100):
        if sequence % 4 != 1:
            reception.receive(sequence)
    report = reception.report()
    assert (report.lost, report.fraction_lost) == (25, 64)
    for sequence in range(100, 200):
        reception.receive(sequence)
    report = reception.report()
    assert (report.lost, report.fraction_lost) == (25, 0)


def test_reordering_is_no_loss_and_doubles_are_not_used() -> None:
    chance = random.Random(1)
    order = list(range(10, 1_000))
    for start in range(0, len(order) - 20, 20):
        part = order[start : start + 20]
        chance.shuffle(part)
        order[start : start + 20] = part
    order.insert(0, 9)
    reception = Reception(9)
    used = sum(reception.receive(sequence) for sequence in order)
    again = sum(reception.receive(sequence) for sequence in order[-50:])
    assert (used, again, reception.duplicates) == (991, 0, 50)
    assert reception.lost == 0


def test_a_number_out_of_nowhere_is_left_until_the_next_confirms_it() -> None:
    reception = Reception(100)
    assert reception.receive(100)
    assert not reception.receive(40_000)
    assert reception.receive(101)
    assert not reception.receive(40_000)
    assert reception.receive(40_001)
    assert reception.lost == 0
    assert reception.receive(40_002)


def test_jitter_of_a_steady_and_of_an_unsteady_stream() -> None:
    steady, unsteady = Reception(0), Reception(0)
    for index in range(500):
        now = index * 0.02
        steady.time((4_294_960_000 + 160 * index) % 2**32, now)
        unsteady.time(160 * index, now + 0.01 * (index % 2))
    assert steady.jitter < 0.01
    # Every packet differs from the one before by 10 ms, 80 samples.
    assert 79 < unsteady.jitter < 81
    assert unsteady.report().jitter == 79
