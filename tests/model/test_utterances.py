"""Utterances of callers, from windows of 32 ms."""

from __future__ import annotations

from model.utterances import BREATH, END, LEAD, LEAST, LONGEST, ONSET, PIECE, Utterances
from model.wire import FRAME_SECONDS, MAX_HISTORY_CALLER_FRAMES


def heard(windows: str) -> list[tuple[int, int]]:
    """`#` is speech. The utterances of it, that which is under way at the end included."""
    utterances = Utterances()
    spans = [utterances.hear(window == "#") for window in windows]
    return [span for span in (*spans, utterances.end()) if span is not None]


def test_speech_between_silences_is_an_utterance_with_a_little_of_the_silence_around_it() -> None:
    before, speech = 20, 30
    (span,) = heard("." * before + "#" * speech + "." * END)
    assert span == (before - LEAD, before + speech + LEAD)


def test_a_pause_shorter_than_the_end_divides_nothing() -> None:
    assert len(heard("#" * 20 + "." * (END - 1) + "#" * 20 + "." * END)) == 1
    assert len(heard("#" * 20 + "." * END + "#" * 20 + "." * END)) == 2


def test_a_click_is_no_utterance() -> None:
    assert heard("." * 10 + "#" * (ONSET - 1) + "." * 40) == []
    assert heard("." * 10 + "#" * (LEAST - 1) + "." * 40) == []
    assert len(heard("." * 10 + "#" * LEAST + "." * 40)) == 1


def test_a_long_one_is_taken_in_pieces_at_a_breath_and_at_the_longest_without() -> None:
    spans = heard("#" * (PIECE - BREATH) + "." * BREATH + "#" * 50 + "." * END)
    assert spans == [(0, PIECE), (PIECE, PIECE + 50 + LEAD)]
    endless = heard("#" * (2 * LONGEST + 100))
    assert endless == [(0, LONGEST), (LONGEST, 2 * LONGEST), (2 * LONGEST, 2 * LONGEST + 100)]


def test_the_longer_it_has_become_the_shorter_a_breath_ends_it() -> None:
    breaths = []
    for length in range(PIECE, LONGEST):
        breath = next(n for n in range(1, END) if heard("#" * (length - n) + "." * n + "#" * 50)[0][1] == length)
        breaths.append(breath)
    assert breaths[0] == BREATH
    assert breaths[-1] == 1
    assert breaths == sorted(breaths, reverse=True)


def test_one_that_was_not_written_down_is_in_the_sound_that_another_worker_gets() -> None:
    heard_late = 1.5  # seconds: it is recognised, the worker's loss is noticed, another is asked
    assert LONGEST * 0.032 + heard_late <= MAX_HISTORY_CALLER_FRAMES * FRAME_SECONDS


def test_the_end_of_the_call_ends_an_utterance() -> None:
    utterances = Utterances()
    assert all(utterances.hear(True) is None for _ in range(20))
    assert utterances.end() == (0, 20)
    assert utterances.end() is None


def test_what_is_under_way_is_known() -> None:
    utterances, lengths = Utterances(), []
    for window in "." * 20 + "#" * 10 + "." * END + ".":
        utterances.hear(window == "#")
        lengths.append(utterances.under_way)
    assert lengths == [0] * 22 + list(range(LEAD + ONSET, LEAD + 10 + END)) + [0, 0]
