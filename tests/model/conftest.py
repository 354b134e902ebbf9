"""Tiny models for the engine's tests, loaded once, and torch on one thread: others share these cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.conversation import Models, load_models
from model.folder import ModelFolder
from model.prompt import voice_frames
from tests.model.device import DEVICE
from tests.model.rig import WINDOW, with_window
from tests.model.tiny_folder import VOICE, make_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A folder with a whole model, with a window of 400 frames."""
    path: Path = tmp_path_factory.mktemp("weights")
    return make_folder(path)


@pytest.fixture(scope="session")
def models(tiny: ModelFolder) -> Models:
    return load_models(tiny, DEVICE)


@pytest.fixture(scope="session")
def short(models: Models) -> Models:
    """The same weights with a window of 40 frames."""
    return with_window(models, WINDOW)


@pytest.fixture(scope="session")
def brief(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A voice of four frames, so that a prompt fits into such a window."""
    folder = ModelFolder(tmp_path_factory.mktemp("brief"))
    folder.voices.mkdir()
    codes = torch.randint(0, 2048, (4, 8), generator=torch.Generator().manual_seed(2))
    frames = torch.tensor(voice_frames(codes.tolist()), device=models.device).T
    embeddings, cache = (part.cpu() for part in models.lm.record_voice(frames))
    torch.save({"embeddings": embeddings[:, None, None], "cache": cache[None]}, folder.voices / f"{VOICE}.pt")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Steps of tiny matrices: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
