"""A folder with a whole model that fits a test: the golden cases' tiny networks under the published names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from model.folder import ModelFolder
from tests.model.golden_files import GOLDEN, Case, read_json
from tests.model.tiny_tokenizer import train

VOICE = "NATF2"
CONTEXT = 400


def make_folder(path: Path, context: int = CONTEXT) -> ModelFolder:
    """Fill `path`, made if need be. The window's length is no weight: it can be any."""
    path.mkdir(parents=True, exist_ok=True)
    folder = ModelFolder(path)
    sizes, codec = read_json("lm-tiny.json"), read_json("mimi-tiny.json")
    sizes["config"]["context"] = context
    (path / "lm.json").write_text(json.dumps(sizes))
    (path / "mimi.json").write_text(json.dumps(codec))
    shutil.copyfile(GOLDEN / sizes["weights"], folder.lm)
    shutil.copyfile(GOLDEN / codec["weights"], folder.mimi)
    train(folder.tokenizer, sizes["config"]["text_card"])
    folder.voices.mkdir(exist_ok=True)
    voice = Case("prompt-pt")
    torch.save({"embeddings": voice["in_embeddings"], "cache": voice["in_cache"]}, folder.voices / f"{VOICE}.pt")
    return folder
