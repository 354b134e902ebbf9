"""Tiny models for the engine's tests, loaded once, and torch on one thread: others share these cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.conversation import Models, load_models
from model.folder import ModelFolder
from tests.model.device import DEVICE
from tests.model.tiny_folder import make_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A folder with a whole model, with a window of 400 frames."""
    path: Path = tmp_path_factory.mktemp("weights")
    return make_folder(path)


@pytest.fixture(scope="session")
def models(tiny: ModelFolder) -> Models:
    return load_models(tiny, DEVICE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Steps of tiny matrices: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
