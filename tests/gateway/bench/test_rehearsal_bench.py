"""Who calls in the rehearsal bench, and what its figures are made of; the calls themselves are in tests/long."""

from __future__ import annotations

import pytest

from gateway.bench.rehearsal import CAST, as_text, caller, figures
from gateway.phone.call import CallReport
from gateway.phone.metrics import Metrics

SILENCE = bytes(320)
LOUD = b"\0\x20" * 160


@pytest.mark.parametrize("name", [name for name, _ in CAST])
def test_a_recorded_caller_says_nothing_before_the_agent_has_spoken(name: str) -> None:
    voice = caller(name)
    said = [voice.step(LOUD if tick < 100 else SILENCE) for tick in range(200)]
    first = next(tick for tick, sound in enumerate(said) if sound != SILENCE)
    assert 100 + 1.2 / 0.02 <= first < 200
    assert voice.turns[0].text


def test_the_second_turn_of_the_impatient_caller_comes_over_the_agent() -> None:
    voice = caller("bank-barge-in")
    for tick in range(1000):
        voice.step(LOUD if tick < 50 or tick > 300 else SILENCE)
    first, second = voice.turns
    assert first.end < 300 * 0.02 + 1.8 <= second.start
    assert second.text.startswith("Wait")


def test_each_call_interrupts_at_another_place_in_the_engines_frames_and_windows() -> None:
    begun = set()
    for call in range(16):
        voice = caller("bank-barge-in", call)
        for tick in range(1000):
            voice.step(LOUD if tick < 50 or tick > 300 else SILENCE)
        begun.add(round(voice.turns[1].start / 0.02) % 8)
    assert begun == set(range(8))


def report(detail: str = "", **metrics: object) -> CallReport:
    return CallReport("CA1", "http://gateway", "gateway", detail, metrics=Metrics(**metrics))  # type: ignore[arg-type]


def test_figures_are_of_all_calls_together() -> None:
    one = report(response_ms=[700.0, None, 900.0], interruption_ms=[300.0], frames_received=10, frames_lost=1)
    two = report(response_ms=[1000.0], frames_received=20, underruns=2)
    found = figures(2, [one, two], [], 3, (440.0, 20.0, 4.0))
    assert (found.placed, found.failed, found.turns, found.unanswered) == (2, 0, 4, 1)
    assert (found.response_median_ms, found.response_worst_ms) == (900.0, 1000.0)
    assert (found.interruptions, found.interruption_median_ms, found.interruption_worst_ms) == (1, 300.0, 300.0)
    assert (found.frames, found.frames_lost, found.underruns, found.deadline_misses) == (30, 1, 2, 3)
    assert "900 ms median, 1000 worst, 1 unanswered" in as_text(found)


def test_a_call_that_broke_off_has_failed_and_one_that_never_began_too() -> None:
    found = figures(2, [report("The line went dead.")], ["No gateway answers."], 0, (0.0, 0.0, 0.0))
    assert (found.placed, found.failed, found.turns) == (2, 2, 0)
    assert found.first_failure in ("The line went dead.", "No gateway answers.")
