"""The folder with a model's files, as they are published, and the sizes of the networks in them.

Owns names and places. Loads no weights and imports no torch.

    model.safetensors                             the language model
    tokenizer-e351c8d8-checkpoint125.safetensors  the codec
    tokenizer_spm_32k_3.model                     the tokenizer of text
    voices/NATF0.pt ...                           the voices, unpacked from voices.tgz
    lm.json, mimi.json                            sizes, only where they are not the published ones
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.config import LMConfig, MimiConfig, lm_from_json, mimi_from_json, mimi_full, personaplex_7b

_T = TypeVar("_T")


class FolderInvalid(Exception):
    """The folder does not hold a model; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where everything is, whether or not it is there."""

    path: Path

    @property
    def lm(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def mimi(self) -> Path:
        return self.path / "tokenizer-e351c8d8-checkpoint125.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer_spm_32k_3.model"

    @property
    def voices(self) -> Path:
        return self.path / "voices"

    @property
    def files(self) -> tuple[Path, ...]:
        """What every model needs besides a voice."""
        return (self.lm, self.mimi, self.tokenizer)

    def lm_config(self) -> LMConfig:
        """The language model's sizes. Raises FolderInvalid."""
        return _sizes(self.path / "lm.json", lm_from_json, personaplex_7b)

    def mimi_config(self) -> MimiConfig:
        """The codec's sizes. Raises FolderInvalid."""
        return _sizes(self.path / "mimi.json", mimi_from_json, mimi_full)

    @property
    def published(self) -> bool:
        """Whether the sizes are those of the published model."""
        return not (self.path / "lm.json").exists()

    def require(self) -> None:
        """Raise FolderInvalid if a file is missing."""
        if not self.path.is_dir():
            raise FolderInvalid(f"{self.path} is not a folder; get the weights with: callplex weights download")
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise FolderInvalid(
                f"{self.path} lacks {', '.join(missing)}; get the weights with: callplex weights download"
            )


def _sizes(path: Path, read: Callable[[Mapping[str, Any]], _T], published: Callable[[], _T]) -> _T:
    if not path.exists():
        return published()
    try:
        return read(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderInvalid(f"{path} does not give a model's sizes: {error}") from error
