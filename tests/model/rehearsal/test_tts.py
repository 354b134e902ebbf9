"""The agent's voice: sound, word onsets, and the model's hidden output."""

from __future__ import annotations

import numpy as np
import pytest

from model.rehearsal.session import Models
from model.rehearsal.tts import align, with_output
from tests.model.rehearsal.calls import resampled

SENTENCE = "Thank you for calling First Neuron Bank, how can I help you today?"


def test_words_are_where_they_are_heard(models: Models) -> None:
    """The pause at the comma lies before the onset of the word after it, and each half says its words."""
    speech = models.synthesizer.synthesize(SENTENCE)
    assert speech.words == tuple(SENTENCE.split())
    assert list(speech.onsets) == sorted(speech.onsets)
    assert 3.0 < len(speech.pcm) / 24_000 < 4.5
    cut = speech.onsets[speech.words.index("how")]
    for half, words in ((speech.pcm[:cut], "thank you for calling"), (speech.pcm[cut:], "how can i help you today")):
        padded = np.concatenate([np.zeros(6_000, np.int16), half, np.zeros(6_000, np.int16)]).astype(np.float32)
        heard = models.recogniser.recognise(resampled(padded / 32_768, 24_000, 16_000)).text.lower()
        assert words in heard.replace(",", "")


def test_the_same_text_sounds_the_same(models: Models) -> None:
    first, second = models.synthesizer.synthesize("Goodbye."), models.synthesizer.synthesize("Goodbye.")
    assert np.array_equal(first.pcm, second.pcm)


@pytest.mark.parametrize("text", ["", "   "])
def test_no_text_is_no_sound(models: Models, text: str) -> None:
    assert len(models.synthesizer.synthesize(text).pcm) == 0


def test_figures_and_several_sentences_keep_one_onset_a_written_word(models: Models) -> None:
    speech = models.synthesizer.synthesize("It was $1,200 at 5:30 pm. Okay?")
    assert len(speech.onsets) == len(speech.words) == 7
    gaps = np.diff([*speech.onsets, len(speech.pcm)]) / 24_000
    assert gaps[2] > 1.0, "twelve hundred dollars takes long to say"


def test_speech_starts_at_once_and_does_not_clip(models: Models) -> None:
    pcm = models.synthesizer.synthesize(SENTENCE).pcm.astype(np.int64)
    assert np.flatnonzero(np.abs(pcm) > 200)[0] < 0.06 * 24_000
    assert np.abs(pcm).max() < 32_767


def test_words_are_aligned_to_the_groups_they_are_read_as() -> None:
    assert align([0, 10, 20, 30], [1, 2, 1]) == [0, 10, 30]
    assert align([0, 10, 20, 30], [1, 1]) == [0, 20], "counts disagree: spread over the groups"
    assert align([], [1, 1]) == [0, 0]


def test_a_tensor_name_too_long_for_one_length_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        with_output(b"", "x" * 128)
