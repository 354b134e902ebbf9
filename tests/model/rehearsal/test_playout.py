"""What of the agent's speech is released when, to the sample."""

from __future__ import annotations

import numpy as np

from model.rehearsal.playout import SILENCE, Playout
from model.wire import FRAME_SAMPLES

RAMP = np.arange(1, 5 * FRAME_SAMPLES + 1).astype(np.int16)
"""Five frames in which every sample tells its place."""


def playout(pcm: np.ndarray = RAMP, words: str = "one two three", onsets: tuple[int, ...] = (0, 2000, 6000)) -> Playout:
    result = Playout()
    result.begin()
    result.add(pcm, tuple(words.split()), onsets)
    return result


def heard(frame: bytes) -> np.ndarray:
    return np.frombuffer(frame, "<i2")


def test_nothing_to_say_is_silence() -> None:
    released = Playout().take()
    assert (released.pcm, released.words, released.sound) == (SILENCE, [], False)


def test_every_sample_is_released_once_and_words_with_the_frame_they_start_in() -> None:
    voice = playout()
    frames = [voice.take() for _ in range(5)]
    assert np.array_equal(np.concatenate([heard(f.pcm) for f in frames]), RAMP)
    assert [f.words for f in frames] == [["one"], ["two"], [], ["three"], []]
    assert voice.empty
    assert voice.said == "one two three"
    assert voice.take().pcm == SILENCE


def test_between_sentences_there_is_a_short_gap() -> None:
    voice = playout(RAMP[:1000], "one", (0,))
    voice.add(RAMP[:1000], ("two",), (0,))
    sound = np.concatenate([heard(voice.take().pcm) for _ in range(5)])
    gap = int(0.16 * 24_000)
    assert np.array_equal(sound[:1000], RAMP[:1000])
    assert not sound[1000 : 1000 + gap].any()
    assert np.array_equal(sound[1000 + gap : 2000 + gap], RAMP[:1000])


def test_resume_goes_back_to_the_start_of_the_word_that_was_cut() -> None:
    voice = playout()
    voice.take(), voice.take()
    voice.pause()
    assert [voice.take().pcm for _ in range(3)] == [SILENCE] * 3
    assert voice.said == "one two"
    voice.resume()
    again = voice.take()
    assert again.words == ["two"]
    assert heard(again.pcm)[0] == 0, "it fades in"
    assert np.array_equal(heard(again.pcm)[200:], RAMP[2200 : 2000 + FRAME_SAMPLES])
    assert voice.said == "one two"


def test_resume_before_anything_was_said_starts_at_the_beginning() -> None:
    voice = playout()
    voice.pause()
    voice.take()
    voice.resume()
    assert heard(voice.take().pcm)[0] == RAMP[0]


def test_drop_tells_what_was_said_and_leaves_silence() -> None:
    voice = playout()
    voice.take(), voice.take()
    voice.pause()
    assert voice.drop() == "one two"
    assert (voice.empty, voice.paused, voice.take().pcm) == (True, False, SILENCE)


def test_what_is_left_of_a_question_is_known() -> None:
    voice = playout(words="are you there?")
    assert (voice.asking, voice.remaining) == (True, len(RAMP))
    voice.take()
    assert voice.remaining == len(RAMP) - FRAME_SAMPLES
    voice.add(RAMP, ("Yes.",), (0,))
    assert not voice.asking
