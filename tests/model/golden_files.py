"""The golden cases: tiny models with the reference's inputs and outputs, from the folder CALLPLEX_GOLDEN_DIR."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import LMConfig, lm_from_json, mimi_from_json
from model.lm import LM
from model.load import load_lm, load_mimi
from model.mimi.codec import Mimi

GOLDEN = Path(os.environ.get("CALLPLEX_GOLDEN_DIR") or Path(__file__).parent / "golden")
NOTHING = -9
"""What the arrays hold where there is no token."""

TRANSFORMER_LIMIT = 1e-5
TEXT_LIMIT = 1e-4
AUDIO_LIMIT = 5e-3
EMBEDDING_LIMIT = 1e-6
PCM_LIMIT = 1e-4
STAGE_LIMIT = 2e-4
LOUDNESS_LIMIT = 1e-6
"""How far floats may lie from the reference's, whose own summation order moves them by less."""


def read_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def tiny_lm_config() -> LMConfig:
    return lm_from_json(read_json("lm-tiny.json"))


def tiny_lm() -> LM:
    """Stored in bfloat16 to save space, computed in float32."""
    return load_lm(GOLDEN / read_json("lm-tiny.json")["weights"], tiny_lm_config(), dtype=torch.float32)


def tiny_mimi() -> Mimi:
    sizes = read_json("mimi-tiny.json")
    return load_mimi(GOLDEN / sizes["weights"], mimi_from_json(sizes))


class Case:
    """One golden file: tensors by name, token ids as int64."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self._tensors = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        return tensor.long() if tensor.dtype in (torch.int32, torch.int64) else tensor

    def number(self, key: str) -> int:
        return int(self._tensors[key])

    def pcm(self, key: str) -> Tensor:
        """Sound, kept as 16-bit integers, in -1..1."""
        return self._tensors[key].float() / 32768.0


def assert_near(actual: Tensor, expected: Tensor, limit: float) -> None:
    """Equal shapes, NaN in the same places, and no element further away than `limit`."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0.0, atol=limit, equal_nan=True)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal shapes and elements, whatever the integer type."""
    assert actual.shape == expected.shape
    assert torch.equal(actual.to(expected.dtype), expected)
