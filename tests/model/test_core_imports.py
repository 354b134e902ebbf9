"""The model itself runs on a bare GPU machine: torch, numpy, safetensors and sentencepiece are all it imports."""

from __future__ import annotations

import sys

import pytest

from tests.test_imports import imported, modules

CORE = (
    *(f"model/{name}.py" for name in ("config", "load", "streaming", "token_cache", "transformer", "depformer")),
    *(f"model/{name}.py" for name in ("lm", "sampling", "tokenizer", "prompt", "voice")),
    *(f"model/{name}.py" for name in ("word_queue", "forced_speech", "clip", "folder", "conversation")),
    *(f"model/{name}.py" for name in ("kv_cache", "fp8", "fp8_weights", "rotary", "ops", "decode", "cuda_graphs")),
    *(file for file in modules("model") if file.startswith(("model/mimi/", "model/kernels/", "model/bench/"))),
)
ALLOWED = {"model", "torch", "numpy", "safetensors", "sentencepiece", "triton"}
MORE = {"model/bench/restart_worker.py": {"websockets"}, "model/bench/transcriber.py": {"soxr"}}
"""One stands for a gateway before a worker, which needs the package for it, too; the other needs a recogniser."""


@pytest.mark.parametrize("file", CORE)
def test_the_core_imports_little(file: str) -> None:
    tops = {name.partition(".")[0] for name in imported(file)}
    assert tops - ALLOWED - MORE.get(file, set()) <= sys.stdlib_module_names


@pytest.mark.parametrize("file", modules("model"))
def test_triton_is_loaded_only_by_the_kernels(file: str) -> None:
    """So that a machine without a GPU needs none: whoever uses a kernel imports it where it is called."""
    assert file.startswith("model/kernels/") or not any(name.startswith("triton") for name in imported(file))
