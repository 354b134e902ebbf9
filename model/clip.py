"""Clips: speech made beforehand, as codes and text, so that it can be said again sound for sound.

Owns the file: safetensors with the frames, and what is known of them as its metadata. Knows no voices and no calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_ABOUT = ("text", "voice", "persona", "version", "heard", "seed")
_ROWS = 9
"""One row of text, eight of the agent's codes."""


class ClipError(Exception):
    """A clip's file cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Speech of n frames. tokens: `[9, n]` ids, int64, text and the agent's eight codes."""

    text: str
    tokens: Tensor
    voice: str = ""
    persona: str = ""
    version: str = ""
    """The persona's version that it was made for."""
    heard: str = ""
    """What speech recognition made of it."""
    seed: str = ""


def save_clip(path: Path, clip: Clip) -> None:
    """Write a clip, or none at all: a file half written never takes its name."""
    about = {name: getattr(clip, name) for name in _ABOUT}
    unfinished = path.with_name(path.name + ".part")
    save_file({"tokens": clip.tokens.to(torch.int32).contiguous()}, unfinished, metadata=about)
    unfinished.replace(path)


def load_clip(path: Path) -> Clip:
    """Read a clip. Raises ClipError."""
    try:
        with safe_open(path, framework="pt") as file:
            about, tokens = file.metadata() or {}, file.get_tensor("tokens").long()
    except (SafetensorError, OSError) as error:
        raise ClipError(f"{path} cannot be read as a clip: {error}") from error
    if tokens.ndim != 2 or tokens.shape[0] != _ROWS or tokens.shape[1] == 0 or "text" not in about:
        raise ClipError(f"{path} is not a clip")
    if bool((tokens < 0).any()):
        raise ClipError(f"{path} holds ids that are no tokens")
    return Clip(tokens=tokens, **{name: about.get(name, "") for name in _ABOUT})
