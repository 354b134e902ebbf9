"""Text to speech behind one small interface, and Hibari, which fills it.

Owns synthesis of one sentence and where each of its words starts. Knows no playout, no turns and no
dialogue; the text comes in ready to be spoken.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from hibari import dsp
from hibari.tts import Hibari
from numpy.typing import NDArray

from model.rehearsal.onnx_session import open_session

SAMPLE_RATE = 24_000
_DURATIONS = "/Clip_output_0"
"""The tensor inside Hibari 0.2.1 that holds how many 25 ms frames each phoneme lasts."""
_QUIET = 0.004
"""Below this (-48 dB) the ends of a sentence count as silence."""
_LEAD = int(0.02 * SAMPLE_RATE)
_TAIL = int(0.12 * SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class Speech:
    """A spoken sentence."""

    pcm: NDArray[np.int16]
    """Mono, 24 kHz."""
    words: tuple[str, ...]
    """The words of the text as written, punctuation included."""
    onsets: tuple[int, ...]
    """The sample at which each word starts; as many as words, rising."""


class Synthesizer(Protocol):
    """Safe to use from several threads at once."""

    def synthesize(self, text: str) -> Speech:
        """One sentence -> sound. Blocks while it computes. Text without words gives no sound."""


class HibariSynthesizer:
    """Hibari 0.2.1: 0.01 of real time on one core."""

    def __init__(self, model: Path) -> None:
        # Serialised: two sentences side by side double the memory and win nothing on the few cores here.
        self._lock = threading.Lock()
        self._hibari = Hibari(model=str(model))
        self._hibari.sess = None
        self._session = open_session(with_output(model.read_bytes(), _DURATIONS))
        self.synthesize("Ready.")

    def synthesize(self, text: str) -> Speech:
        words = tuple(text.split())
        with self._lock:
            parts = [self._speak(phonemes) for phonemes in self._hibari.phonemize(text)]
            groups = [self._spoken_words(word) for word in words]
        if not parts:
            return Speech(np.zeros(0, np.int16), (), ())
        sound = np.concatenate([part for part, _ in parts])
        lengths = np.cumsum([0, *(len(part) for part, _ in parts)])
        starts = [int(base) + onset for (_, onsets), base in zip(parts, lengths, strict=False) for onset in onsets]
        sound, cut = _trim(sound)
        onsets = [max(0, start - cut) for start in align(starts, groups)]
        # A word whose sound was trimmed away or never existed still needs its place in the sound.
        last = max(0, len(sound) - 1)
        return Speech(_int16(sound), words, tuple(min(onset, last) for onset in onsets))

    def _speak(self, phonemes: str) -> tuple[NDArray[np.float32], list[int]]:
        """Phonemes -> sound, and the sample at which each space-separated group of them starts."""
        ids, starts = _ids(phonemes, self._hibari.vocab)
        if len(ids) < 3:
            return np.zeros(0, np.float32), []
        feeds = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([1.0], np.float32)}
        names = ["lh", "theta", "ln", "lr", "phi", "f0", _DURATIONS]
        *spectra, durations = self._session.run(names, feeds)
        # A fixed seed: the same sentence always sounds the same, so tests and recordings compare.
        sound = dsp.synth(*(part[0] for part in spectra), np.random.default_rng(0))
        edges = np.concatenate([[0.0], np.cumsum(np.asarray(durations).ravel())])
        edges *= len(sound) / max(1.0, edges[-1])
        return sound, [int(edges[start]) for start in starts]

    def _spoken_words(self, word: str) -> int:
        """How many groups of phonemes one written word becomes: `$5` is two."""
        return len(" ".join(self._hibari.phonemize(word)).split())


def _ids(phonemes: str, vocab: dict[str, int]) -> tuple[list[int], list[int]]:
    """Model input for a phoneme string, with the position in it at which each group starts."""
    ids, starts = [0], []
    fresh = True
    for symbol in phonemes:
        if symbol == " ":
            fresh = True
        elif fresh and symbol in vocab:
            starts.append(len(ids))
            fresh = False
        if symbol in vocab:
            ids.append(vocab[symbol])
    return [*ids, 0], starts


def align(starts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """The start of each written word, from the starts of spoken groups and how many each word takes.

    Where the counts disagree (context changed how a word is read) the words are spread over the
    groups in proportion.
    """
    if not starts:
        return [0] * len(groups)
    scale = 1.0 if sum(groups) == len(starts) else len(starts) / max(1, sum(groups))
    before = [sum(groups[:place]) for place in range(len(groups))]
    return [starts[min(int(count * scale), len(starts) - 1)] for count in before]


def _trim(sound: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Cut the silence at both ends to what speech needs; returns how many samples went at the front."""
    loud = np.flatnonzero(np.abs(sound) > _QUIET)
    if not len(loud):
        return sound[:0], 0
    start = max(0, int(loud[0]) - _LEAD)
    return sound[start : int(loud[-1]) + _TAIL], start


def _int16(sound: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.asarray(np.clip(sound, -1.0, 1.0) * 32_767.0, np.int16)


def with_output(model: bytes, tensor: str) -> bytes:
    """An ONNX model that also answers the inner tensor named `tensor`.

    Protocol buffers merge when concatenated: appending a ModelProto with a graph (field 7) that has
    only an output (field 12) with a name (field 1) adds that output to the model's own graph. The
    model is in the field's own format, so no ONNX package is needed.
    """
    name = _field(1, tensor.encode())
    return model + _field(7, _field(12, name))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protocol buffer field; lengths here stay below 128."""
    if len(payload) > 127:
        raise ValueError(f"a tensor name of {len(payload)} bytes is too long")
    return bytes([number << 3 | 2, len(payload)]) + payload
