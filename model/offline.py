"""A call without a phone: the caller's WAV in, the agent's WAV of the same length and its text with times out.

Owns the files of both sides. Knows no network: `model.conversation` holds the call.
"""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch

from model.conversation import Conversation, Heard, Models, check_prompt, load_models, load_voice, role_ids
from model.folder import FolderInvalid, ModelFolder
from model.load import WeightsError
from model.prompt import PromptTooLong
from model.tokenizer import Tokenizer, TokenizerError
from model.voice import VoiceError
from model.voices import VoiceRefused, voice_file
from model.wav import WavError, read_wav
from model.wire import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE, Sampling

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Told how many frames of how many are done."""


class OfflineError(Exception):
    """The run cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """What to do."""

    caller: Path
    out: Path
    text: Path | None
    """JSON: pieces, words and the whole text of the agent."""
    voice: str
    prompt: str
    weights: Path
    recordings: Path
    """Folder of voices.yaml."""
    sampling: Sampling | None
    """None: always the likeliest token."""
    device: str = "cpu"
    stereo: Path | None = None
    """A second WAV, the caller on the left and the agent on the right."""


def run_offline(run: OfflineRun, progress: Progress) -> dict[str, Any]:
    """Do it. Returns what the text file holds. Raises OfflineError."""
    caller = read_caller(run.caller)
    _check_places(run.caller, [place for place in (run.out, run.text, run.stereo) if place is not None])
    try:
        result, agent = _held(run, caller, progress)
    except torch.OutOfMemoryError as error:
        raise OfflineError("the GPU's memory does not suffice for the model; see: callplex doctor") from error
    try:
        write_wav(run.out, [agent])
        if run.text is not None:
            run.text.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if run.stereo is not None:
            write_wav(run.stereo, [caller, agent])
    except OSError as error:
        raise OfflineError(f"what was said cannot be written: {error.strerror}") from error
    return result


def _held(run: OfflineRun, caller: Floats, progress: Progress) -> tuple[dict[str, Any], Floats]:
    """The conversation: what the text file holds, and the agent's sound, as long as the caller's."""
    try:
        voice_path = voice_file(run.voice, ModelFolder(run.weights).voices, run.recordings)
        models = load_models(ModelFolder(run.weights), usable_device(run.device))
        conversation = open_conversation(models, voice_path, run.prompt, run.sampling)
    except (FolderInvalid, WeightsError, TokenizerError, VoiceError, VoiceRefused, PromptTooLong) as error:
        raise OfflineError(str(error)) from error
    heard = list(converse(conversation, caller, progress))
    agent = np.concatenate([frame.pcm.numpy() for frame in heard])[: len(caller)]
    said = transcript(models.tokenizer, [frame.tokens[0] for frame in heard])
    about: dict[str, Any] = {"voice": run.voice, "prompt": run.prompt, "seconds": round(len(caller) / SAMPLE_RATE, 3)}
    about["sampling"] = "greedy" if run.sampling is None else asdict(run.sampling)
    return {**about, **said}, agent


def open_conversation(models: Models, voice: Path, prompt: str, sampling: Sampling | None) -> Conversation:
    """A conversation with a voice that may be used. Raises VoiceError, PromptTooLong."""
    loaded, text_ids = load_voice(models, voice), role_ids(models, prompt)
    check_prompt(models, loaded, text_ids)
    return Conversation(models, loaded, text_ids, sampling)


def converse(conversation: Conversation, caller: Floats, progress: Progress) -> Iterator[Heard]:
    """Hold the conversation with the caller's sound `[samples]`: a frame of the agent for each 80 ms or part of it."""
    frames = -(-len(caller) // FRAME_SAMPLES)
    padded = torch.from_numpy(np.pad(caller, (0, frames * FRAME_SAMPLES - len(caller))))
    for number, pcm in enumerate(padded.view(frames, FRAME_SAMPLES), start=1):
        yield conversation.frame(pcm)
        progress(number, frames)


def transcript(tokenizer: Tokenizer, text_ids: Sequence[int]) -> dict[str, Any]:
    """Pieces and words with the seconds at which they begin, and the whole text, from one id a frame."""
    pieces: list[tuple[float, str]] = []
    words: list[tuple[float, str]] = []
    for frame, token in enumerate(text_ids):
        piece, start = tokenizer.piece(token), round(frame * FRAME_SECONDS, 3)
        if not piece:
            continue
        pieces.append((start, piece))
        if piece.startswith(" ") or not words:
            words.append((start, ""))
        words[-1] = (words[-1][0], words[-1][1] + piece.strip())
    return {
        "text": "".join(piece for _, piece in pieces).strip(),
        "words": [{"start": start, "text": word} for start, word in words if word],
        "pieces": [{"start": start, "text": piece} for start, piece in pieces],
    }


def read_caller(path: Path) -> Floats:
    """The caller's sound at 24 kHz, `[samples]`, the first channel of the file. Raises OfflineError."""
    try:
        wav = read_wav(path)
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error.strerror}") from error
    except WavError as error:
        raise OfflineError(str(error)) from error
    pcm = wav.pcm[0]
    if not pcm.size:
        raise OfflineError(f"{path} holds no sound")
    if not np.isfinite(pcm).all():
        raise OfflineError(f"{path}: not all samples are finite numbers")
    if wav.rate != SAMPLE_RATE:
        pcm = soxr.resample(pcm, wav.rate, SAMPLE_RATE)
    return np.ascontiguousarray(pcm, np.float32)


def write_wav(path: Path, channels: Sequence[Floats]) -> None:
    """Channels of one length, 24 kHz, as 16-bit PCM; what is too loud is clipped."""
    joined = np.stack(channels, axis=1)
    samples = np.clip(np.rint(joined * 32_768.0), -32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises OfflineError if this machine or this torch has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OfflineError(f"{name!r} is no device; say cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise OfflineError(f"{name!r} is no device for this; say cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OfflineError("torch finds no CUDA device here; say --device cpu, or look at: callplex doctor")
    return device


def _check_places(caller: Path, paths: Sequence[Path]) -> None:
    """That each can be written and none takes another's place: found out before the minutes of work, not after."""
    taken = {caller.resolve()}
    for path in paths:
        if path.resolve() in taken:
            raise OfflineError(f"{path} is named twice; every file needs a place of its own")
        taken.add(path.resolve())
        folder = path.absolute().parent
        if not os.access(folder, os.W_OK) or path.is_dir():
            raise OfflineError(f"{path} cannot be written")
