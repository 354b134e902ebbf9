"""Whether a folder's weights are whole: every tensor, the tokenizer, every voice.

Owns the order of the checks. What is checked belongs to the loaders, which say the same when a worker starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from model.config import LMConfig
from model.folder import FolderInvalid, ModelFolder
from model.load import WeightsError, load_lm, load_mimi
from model.tokenizer import Tokenizer, TokenizerError
from model.voice import VoiceError, load_replay
from model.voices import PUBLISHED


def weight_problems(path: Path) -> Iterator[str]:
    """A sentence for each thing that is wrong. Tensors are mapped, not read: seconds even for the full model."""
    folder = ModelFolder(path)
    try:
        folder.require()
        lm_config, mimi_config = folder.lm_config(), folder.mimi_config()
    except FolderInvalid as error:
        yield str(error)
        return
    checks: tuple[Callable[[], object], ...] = (
        lambda: load_lm(folder.lm, lm_config, dtype=torch.bfloat16),
        lambda: load_mimi(folder.mimi, mimi_config),
    )
    for check in checks:
        try:
            check()
        except WeightsError as error:
            yield str(error)
    try:
        size = Tokenizer(folder.tokenizer).size
        if size != lm_config.text_card:
            yield f"{folder.tokenizer} has {size} pieces and the model's vocabulary {lm_config.text_card}"
    except TokenizerError as error:
        yield str(error)
    yield from _voice_problems(folder, lm_config)


def _voice_problems(folder: ModelFolder, lm_config: LMConfig) -> Iterator[str]:
    voices = sorted(folder.voices.glob("*.pt"))
    for voice in voices:
        try:
            load_replay(voice, lm_config)
        except VoiceError as error:
            yield str(error)
    missing = [name for name in PUBLISHED if not (folder.voices / f"{name}.pt").is_file()]
    if not voices:
        yield f"{folder.voices} holds no voices; get them with: callplex weights download"
    elif missing and folder.published:
        yield f"{folder.voices} lacks the voices {', '.join(missing)}; get them with: callplex weights download"
