"""Checkpoints of the codec: what is stored beside the weights, and the names that older files have for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.load import WeightsError, load_mimi
from tests.model.mimi.tiny import CONFIG, FRAME, random_codes, random_mimi, random_pcm

MANIFEST = Path(__file__).parents[1] / "golden" / "mimi.manifest.json"
OLDER = ("inited", "cluster_size")


def aliases() -> dict[str, str]:
    """Endings of older names to present ones, as the published files' manifest lists them."""
    listed: dict[str, str] = json.loads(MANIFEST.read_text())["aliases_accepted_on_load"]
    return listed


@pytest.mark.parametrize("sums", ["embed_avg", "embed_sum"])
def test_a_file_with_older_names_gives_the_same_codec(tmp_path: Path, sums: str) -> None:
    mimi = random_mimi()
    older = {aliases()[f"_codebook.{name}"]: f"_codebook.{name}" for name in (*OLDER, sums)}
    renamed = {}
    for name, tensor in mimi.state_dict().items():
        now = next((end for end in older if name.endswith(end)), "")
        renamed[name.removesuffix(now) + older.get(now, "")] = tensor.contiguous()
    assert len(renamed.keys() - mimi.state_dict().keys()) == 3 * CONFIG.quantizer.codebooks
    save_file(renamed, tmp_path / "older.safetensors")
    loaded = load_mimi(tmp_path / "older.safetensors", CONFIG)
    pcm, codes = random_pcm(0, 3 * FRAME), random_codes(0, 3)
    assert torch.equal(loaded.encode(pcm, n_q=32), mimi.encode(pcm, n_q=32))
    assert torch.equal(loaded.decode(codes), mimi.decode(codes))


def test_every_alias_is_tried() -> None:
    assert aliases().keys() == {f"_codebook.{name}" for name in (*OLDER, "embed_avg", "embed_sum")}


def test_codebooks_are_buffers_and_all_else_is_weights() -> None:
    mimi = random_mimi()
    kinds = {name.rpartition(".")[2] for name, _ in mimi.named_buffers()}
    assert kinds == {"_initialized", "cluster_usage", "embedding_sum"}
    assert mimi.state_dict().keys() == {name for name, _ in [*mimi.named_buffers(), *mimi.named_parameters()]}


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in random_mimi().state_dict().items()}
    del state["downsample.conv.conv.conv.weight"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: downsample\.conv\.conv\.conv\.weight"):
        load_mimi(tmp_path / "a.safetensors", CONFIG)
