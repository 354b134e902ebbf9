"""Tensors read by threads are those of the file, however they lie in it and whatever is read at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import staging
from model.staging import StagingError, layout, read_tensors
from tests.model.device import DEVICE


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "matrix": torch.randn((37, 19), generator=generator).bfloat16(),
        "wide": torch.randn((3, 700), generator=generator),
        "ids": torch.randint(-9, 9, (11,), generator=generator),
        "one": torch.tensor(2.5),
        "none": torch.zeros((0, 4)),
        "flags": torch.tensor([True, False, True]),
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"made": "here"})
    return path, tensors


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_every_tensor_comes_as_it_was_saved(
    made: tuple[Path, dict[str, Tensor]], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BLOCK", block)
    path, tensors = made
    found = read_tensors(path, torch.device(DEVICE))
    assert found.keys() == tensors.keys() == load_file(path).keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].device.type == DEVICE
        assert torch.equal(found[name].cpu(), tensor)


def test_a_file_that_ends_too_soon_is_told_and_no_thread_hangs(made: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = made
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StagingError, match="ends before its last tensor"):
        read_tensors(path, torch.device(DEVICE))


def test_a_type_that_no_model_here_has_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.float64)}, tmp_path / "b.safetensors")
    with pytest.raises(StagingError, match="a is of type F64"):
        layout(tmp_path / "b.safetensors")
