"""Latencies from made-up sound whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.phone.metrics import Span, Turn, caller_turns, interruptions, measure, response, sound_spans


def track(seconds: float, *loud: tuple[float, float]) -> bytes:
    samples = np.zeros(round(seconds * 8_000), np.int16)
    for start, end in loud:
        samples[round(start * 8_000) : round(end * 8_000)] = 3_000
    return samples.tobytes()


def test_spans_join_within_speech_and_drop_clicks() -> None:
    spans = sound_spans(track(10, (1.0, 2.0), (2.2, 3.0), (5.0, 5.04), (8.0, 9.0)))
    assert spans == [Span(1.0, 3.0), Span(8.0, 9.0)]
    assert sound_spans(b"") == []


def test_known_turns_lose_the_silence_around_them() -> None:
    turns = caller_turns(
        track(10, (1.0, 2.0), (6.5, 7.5)), [Turn(0.6, 2.7, "a"), Turn(6.0, 8.0, "b"), Turn(9, 10, "c")]
    )
    assert turns == [Turn(1.0, 2.0, "a"), Turn(6.5, 7.5, "b")]


def test_response_counts_from_the_last_word_to_the_first_sound() -> None:
    metrics = measure(
        track(20, (3.0, 4.0), (10.0, 11.0), (18.0, 19.0)), track(20, (0.5, 2.0), (4.8, 8.0), (12.5, 14.0)), [], 0.25
    )
    assert metrics.response_ms == [pytest.approx(800), pytest.approx(1_500), None]
    assert metrics.response_median_ms == pytest.approx(1_150)
    assert metrics.response_worst_ms == pytest.approx(1_500)
    assert metrics.connect_ms == 250
    assert metrics.answer_ms == pytest.approx(750)
    assert metrics.interruption_ms == []


def test_interruption_counts_from_the_callers_first_sound_to_the_agents_last() -> None:
    metrics = measure(track(10, (3.0, 5.0)), track(10, (1.0, 3.34), (5.9, 8.0)), [], None)
    assert metrics.interruption_ms == [pytest.approx(340)]
    assert metrics.response_ms == [pytest.approx(900)]
    assert metrics.answer_ms is None


def test_speech_that_was_under_way_is_no_answer() -> None:
    turns = [Turn(2.0, 3.0)]
    assert response(turns, [Span(1.0, 4.0)]) == [None]
    assert response(turns, [Span(1.0, 4.0), Span(4.5, 5.0)]) == [pytest.approx(1_500)]
    assert interruptions(turns, [Span(1.0, 4.0)]) == [pytest.approx(2_000)]


def test_an_agent_that_takes_over_early_answers_in_no_time() -> None:
    assert response([Turn(2.0, 3.0)], [Span(2.5, 4.0)]) == [0.0]


def test_silence_measures_nothing() -> None:
    metrics = measure(track(5), track(5), [], 0.1)
    assert (metrics.answer_ms, metrics.response_ms, metrics.response_median_ms) == (None, [], None)
