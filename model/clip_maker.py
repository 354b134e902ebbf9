"""Makes clips: a persona's voice says a text, and speech recognition says whether it came out word for word.

Owns trying again with other seeds until it did, and the comparison of words. Knows no recogniser: it is given one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.clip import Clip
from model.conversation import Conversation, Heard, Models, Voice, check_prompt, load_voice, role_ids
from model.wire import FRAME_SAMPLES, SAMPLE_RATE, Sampling

Floats = npt.NDArray[np.float32]
Recogniser = Callable[[Floats], str]
"""24 kHz float32 `[samples]` to the words in it."""

MOST_FRAMES = 340
"""A clip has 27 s at most: what speech recognition takes at once."""
_LEAD_FRAMES = 1
"""Kept before the first word, so that its onset is not cut."""


class ClipUnsaid(Exception):
    """No attempt came out word for word; the message says what was heard instead."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What is to be said, by whom."""

    text: str
    voice: str
    voice_path: Path
    prompt: str
    persona: str = ""
    version: str = ""
    seed: int = 0
    attempts: int = 8


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. pcm: `[samples]`, 24 kHz."""

    clip: Clip
    pcm: Floats
    exact: bool


def make_clip(models: Models, request: ClipRequest, recognise: Recogniser) -> Attempt:
    """The first attempt that is recognised word for word.

    Raises ClipUnsaid if none is, VoiceError and PromptTooLong as the voice and the prompt do, ValueError for a text
    without words.
    """
    heard = []
    for attempt in attempts(models, request, recognise):
        if attempt.exact:
            return attempt
        heard.append(attempt.clip.heard)
    tried = "; ".join(repr(text) for text in heard[:3])
    raise ClipUnsaid(f"in {len(heard)} attempts {request.text!r} was not said word for word; heard: {tried}")


def attempts(models: Models, request: ClipRequest, recognise: Recogniser) -> Iterator[Attempt]:
    """As many attempts as asked for, each with a seed of its own. Raises as `make_clip` does."""
    voice, text_ids = load_voice(models, request.voice_path), role_ids(models, request.prompt)
    check_prompt(models, voice, text_ids)
    for seed in range(request.seed, request.seed + request.attempts):
        tokens, pcm = _say(models, voice, text_ids, request.text, seed)
        clip = Clip(request.text, tokens, request.voice, request.persona, request.version, seed=str(seed))
        heard = recognise(pcm)
        yield Attempt(replace(clip, heard=heard), pcm, same_words(request.text, heard))


def _say(models: Models, voice: Voice, text_ids: list[int], text: str, seed: int) -> tuple[Tensor, Floats]:
    """The frames in which a fresh conversation says `text` to a silent caller: `[9, n]` ids, and their sound."""
    conversation = Conversation(models, voice, text_ids, Sampling(seed=seed))
    silence, ended = torch.zeros(FRAME_SAMPLES), False
    frames: list[Heard] = []
    conversation.speech.say(0, text)
    while not ended and len(frames) < MOST_FRAMES:
        frames.append(conversation.frame(silence))
        ended = frames[-1].spoken is not None
    first = next((n for n, frame in enumerate(frames) if models.tokenizer.piece(frame.tokens[0])), 0)
    # Its end may have been told by the first word of the model's own that follows: not part of the clip.
    follows = ended and bool(models.tokenizer.piece(frames[-1].tokens[0]))
    kept = frames[max(0, first - _LEAD_FRAMES) : len(frames) - follows]
    rows = 1 + models.config.codebooks
    tokens = torch.tensor([frame.tokens[:rows] for frame in kept]).T
    return tokens, np.concatenate([frame.pcm.numpy() for frame in kept])


def same_words(text: str, heard: str) -> bool:
    """Whether two texts are the same when read aloud, but for case, punctuation and how numbers are written."""
    return _letters(text) == _letters(heard) != ""


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _letters(text: str) -> str:
    """A text without what cannot be heard: spaces (compounds), marks, and whether a small number is in digits."""
    plain = re.sub(r"['\u2019]", "", text.lower())
    words = re.findall(r"\w+", plain)
    return "".join(_DIGITS[int(word)] if word.isdigit() and int(word) < len(_DIGITS) else word for word in words)


def rehearsal_recogniser() -> Recogniser:
    """The rehearsal engine's speech recognition. Raises ImportError or WeightsMissing where it is not installed."""
    import soxr

    from model.rehearsal.asr import SAMPLE_RATE as EAR_RATE
    from model.rehearsal.asr import Recogniser as Ear
    from model.rehearsal.weights import find_weights

    ear = Ear(find_weights().whisper, workers=1)

    def recognise(pcm: Floats) -> str:
        return ear.recognise(soxr.resample(pcm, SAMPLE_RATE, EAR_RATE)).text

    return recognise
