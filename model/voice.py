"""Voice prompts: what the model hears as its own voice before a call.

Owns the two forms. A recording becomes codes, through a codec of its own that starts afresh. A published voice is a
`.pt` file of embeddings made by the reference, replayed in place of codes, with the token cache as it stood after
them. Knows no persona and no consent.
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from model.codec_lengths import cut
from model.config import UNGENERATED, LMConfig
from model.mimi.codec import Mimi

_ARCHIVE = b"PK\x03\x04"
_DAMAGED = (
    *(pickle.UnpicklingError, struct.error, EOFError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError),
)
"""What the reader of `.pt` files raises on bytes that are none, and on files that would run code."""


class VoiceError(ValueError):
    """A voice prompt is unfit; the message names the file and says why."""


@dataclass(frozen=True, slots=True)
class VoiceReplay:
    """A voice of N frames, of which the first never reached the model.

    embeddings: `[N - 1, D]`, the summed input embedding of each model run; cache: `[rows, columns]` token ids,
    int64, to be set when they have been replayed.
    """

    embeddings: Tensor
    cache: Tensor

    @property
    def frames(self) -> int:
        return self.embeddings.shape[0] + 1


def voice_codes(mimi: Mimi, pcm: Tensor) -> Tensor:
    """Sound `[samples]`, float32 at 24 kHz, to codes `[8, ceil(samples / 1920)]`, the last frame padded with zeros.

    Goes through the codec in the lengths of calls taken over: that bounds the memory of a long recording, and beside
    live calls on a GPU nothing is compiled for it. On the CPU, complete: a thread that reads a voice hands it to
    another, whose streams on a GPU do not wait for its.
    """
    if pcm.ndim != 1 or pcm.shape[0] == 0:
        raise VoiceError(f"sound of shape {list(pcm.shape)}; a voice prompt is mono")
    device = next(mimi.parameters()).device
    size = mimi.frame_size
    padded = functional.pad(pcm.to(device), (0, -pcm.shape[0] % size))[None, None]
    state, slot = mimi.streaming(1), torch.zeros(1, dtype=torch.long, device=device)
    chunks = torch.split(padded, [length * size for length in cut(padded.shape[-1] // size)], dim=-1)
    return torch.cat([mimi.encode_step(state, slot, chunk) for chunk in chunks], dim=-1)[0].cpu()


def voice_codes_from_wav(mimi: Mimi, path: Path) -> Tensor:
    """A mono WAV of any rate, normalised to -24 LUFS, to codes `[8, frames]`. Raises VoiceError."""
    # Only here: measuring loudness needs packages that a machine which answers calls can do without.
    from model.loudness import LoudnessError, read_voice
    from model.wav import WavError

    try:
        pcm = read_voice(path)
    except OSError as error:
        raise VoiceError(f"{path} cannot be read: {error.strerror}") from error
    except (LoudnessError, WavError) as error:
        raise VoiceError(str(error)) from error
    return voice_codes(mimi, torch.from_numpy(pcm))


def load_replay(path: Path, config: LMConfig) -> VoiceReplay:
    """A published voice (`.pt`) for a model of these sizes, on the CPU. Raises VoiceError.

    Only tensors are read from the file; anything else in it is an error, and no code in it ever runs.
    """
    stored = _stored_tensors(path)
    embeddings, cache = stored["embeddings"], stored["cache"]
    width, grid = config.transformer.dim, (config.rows, config.columns)
    if embeddings.ndim != 4 or embeddings.shape[0] == 0 or tuple(embeddings.shape[1:]) != (1, 1, width):
        raise VoiceError(f"{path}: embeddings {list(embeddings.shape)}; this model takes [frames, 1, 1, {width}]")
    if not embeddings.is_floating_point() or not torch.isfinite(embeddings).all():
        raise VoiceError(f"{path}: the embeddings are not finite numbers")
    if tuple(cache.shape) != (1, *grid) or cache.dtype != torch.int64:
        raise VoiceError(f"{path}: cache {cache.dtype} {list(cache.shape)}; this model takes int64 {[1, *grid]}")
    highest = torch.tensor(config.start_ids)[:, None]
    if (cache < UNGENERATED).any() or (cache[0] > highest).any():
        raise VoiceError(f"{path}: the cache holds ids that are no tokens")
    return VoiceReplay(embeddings[:, 0, 0], cache[0])


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VoiceError(f"{path} cannot be read: {error.strerror}") from error
    if not data.startswith(_ARCHIVE):
        raise VoiceError(f"{path} is not a voice prompt: it is no archive as torch.save makes them")
    try:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise VoiceError(f"{path} is not a voice prompt: it is damaged, or holds more than tensors") from error
    wanted = {"embeddings", "cache"}
    if not isinstance(stored, dict) or stored.keys() != wanted:
        found = sorted(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise VoiceError(f"{path} is not a voice prompt: it holds {found}, not {sorted(wanted)}")
    if not all(isinstance(value, Tensor) for value in stored.values()):
        raise VoiceError(f"{path} is not a voice prompt: not all it holds are tensors")
    return stored
