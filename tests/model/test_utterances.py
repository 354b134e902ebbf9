"""Utterances of callers, from windows of 32 ms."""

from __future__ import annotations

from model.utterances import BREATH, END, LEAD, LEAST, LONGEST, ONSET, PIECE, Utterances


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
    spans = heard("#" * (PIECE + 10) + "." * BREATH + "#" * 50 + "." * END)
    assert len(spans) == 2
    assert spans[0][1] <= PIECE + 10 + BREATH
    endless = heard("#" * (2 * LONGEST + 100))
    assert len(endless) == 3
    assert all(end - start <= LONGEST for start, end in endless)


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
