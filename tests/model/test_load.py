"""Checkpoints: the full-size models have the published keys and shapes, and loading is strict and mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import lm_from_json, mimi_from_json, mimi_full, personaplex_7b
from model.lm import LM
from model.load import MIMI_ALIASES, WeightsError, load, load_lm, on_meta
from model.mimi.codec import Mimi
from tests.model.tiny import CONFIG, random_lm

GOLDEN = Path(__file__).parent / "golden"
"""The published sizes, whatever other golden cases there are."""


def manifest(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((GOLDEN / f"{name}.manifest.json").read_text())
    return content


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def test_the_language_model_has_the_published_tensors() -> None:
    lm, published = on_meta(lambda: LM(personaplex_7b())), manifest("lm-7b")
    assert shapes(lm) == published["state_dict"]
    assert sum(weight.numel() for weight in lm.parameters()) == published["total_parameters"]
    assert lm_from_json(published) == personaplex_7b()


def test_a_module_without_memory_needs_no_compiler() -> None:
    """In a process of its own: whoever imports this for another reason would hide it."""
    program = (
        "import sys\n"
        "from model.config import mimi_full, personaplex_7b\n"
        "from model.lm import LM\n"
        "from model.load import on_meta\n"
        "from model.mimi.codec import Mimi\n"
        "on_meta(lambda: LM(personaplex_7b())), on_meta(lambda: Mimi(mimi_full()))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_the_codec_has_the_published_tensors() -> None:
    mimi, published = on_meta(lambda: Mimi(mimi_full())), manifest("mimi")
    assert shapes(mimi) == published["state_dict"]
    assert sum(tensor.numel() for tensor in mimi.state_dict().values()) == published["total_elements_including_buffers"]
    assert sum(weight.numel() for weight in mimi.parameters()) == published["trainable_parameters"]


def test_other_structures_are_refused() -> None:
    published = manifest("lm-7b")
    assert isinstance(published["config"], dict)
    with pytest.raises(ValueError, match="norm is 'layer_norm' in the configuration; only 'rms_norm_f32'"):
        lm_from_json({"config": published["config"] | {"norm": "layer_norm"}})
    tiny = json.loads((GOLDEN / "mimi-tiny.json").read_text())
    tiny["config"]["seanet"]["n_residual_layers"] = 2
    with pytest.raises(ValueError, match="n_residual_layers is 2"):
        mimi_from_json(tiny)


class Codebook(nn.Module):
    """Two buffers named as in the codec, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("cluster_usage", torch.zeros(3))
        self._codebook.register_buffer("embedding_sum", torch.zeros(3, 2))
        self._codebook.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.proj = nn.Linear(2, 3, bias=False)


def saved(path: Path, **changes: Tensor | None) -> Path:
    """A file for Codebook with some tensors changed, added, or left out (None); names have / for a dot."""
    tensors: dict[str, Tensor | None] = {
        "q._codebook.cluster_usage": torch.ones(3),
        "q._codebook.embedding_sum": torch.full((3, 2), 2.0),
        "q._codebook.count": torch.tensor([7]),
        "q.proj.weight": torch.full((3, 2), 3.0),
    }
    tensors |= {name.replace("/", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def codebook() -> nn.Module:
    return on_meta(lambda: nn.ModuleDict({"q": Codebook()}))


def test_every_tensor_is_loaded(tmp_path: Path) -> None:
    module = load(codebook(), saved(tmp_path / "a.safetensors"), dtype=torch.float64)
    state = module.state_dict()
    assert state["q._codebook.cluster_usage"].tolist() == [1.0, 1.0, 1.0]
    assert state["q.proj.weight"].dtype is torch.float64
    assert state["q._codebook.count"].dtype is torch.int64
    assert not module.training
    assert not any(weight.requires_grad for weight in module.parameters())


def test_older_codebook_names_are_understood(tmp_path: Path) -> None:
    older = {"q/_codebook/cluster_size": torch.ones(3), "q/_codebook/embed_sum": torch.full((3, 2), 2.0)}
    newer: dict[str, None] = {"q/_codebook/cluster_usage": None, "q/_codebook/embedding_sum": None}
    path = saved(tmp_path / "a.safetensors", **older, **newer)
    state = load(codebook(), path, dtype=torch.float32, aliases=MIMI_ALIASES).state_dict()
    assert state["q._codebook.embedding_sum"].tolist() == [[2.0, 2.0]] * 3
    both = saved(tmp_path / "b.safetensors", **older)
    with pytest.raises(WeightsError, match="are two names of one tensor"):
        load(codebook(), both, dtype=torch.float32, aliases=MIMI_ALIASES)


def test_faults_are_named(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.safetensors",
        **{"q/proj/weight": torch.zeros(2, 3), "q/_codebook/count": None, "q/extra": torch.zeros(1)},
    )
    with pytest.raises(WeightsError) as raised:
        load(codebook(), path, dtype=torch.float32)
    assert str(raised.value) == (
        f"{path} does not fit the model: 1 missing: q._codebook.count; 1 not part of the model: q.extra; "
        "1 of another shape: q.proj.weight [2, 3] instead of [3, 2]"
    )


def test_many_faults_are_counted(tmp_path: Path) -> None:
    save_file({"emb.0.weight": torch.zeros(CONFIG.card + 1, CONFIG.transformer.dim)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"\d+ missing: depformer\.layers\.0\.gating\.0.* and \d+ more$"):
        load_lm(tmp_path / "a.safetensors", CONFIG)


def test_a_file_cut_short_or_absent_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read as safetensors"):
        load(codebook(), path, dtype=torch.float32)
    with pytest.raises(WeightsError, match=r"b\.safetensors cannot be read"):
        load(codebook(), tmp_path / "b.safetensors", dtype=torch.float32)


def test_weights_stay_mapped_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lm.safetensors"
    save_file(random_lm().state_dict(), path)
    lm = load_lm(path, CONFIG, dtype=torch.float32)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in maps]
    for name, weight in lm.state_dict().items():
        assert any(start <= weight.data_ptr() < end for start, end in spans), name


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    lm, path = random_lm(), tmp_path / "lm.safetensors"
    save_file(lm.state_dict(), path)
    loaded = load_lm(path, CONFIG, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in lm.state_dict().items())
    assert load_lm(path, CONFIG).text_linear.weight.dtype is torch.bfloat16
