"""The judgement about cards, torch and memory, for machines that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.capacity import MOST_SLOTS, READS_FP8, fitting_slots, fixed_bytes, set_aside
from model.engine_options import EngineOptions, EngineRefused, KVDtype, WeightsDtype
from model.engine_start import check_card
from model.folder import ModelFolder
from model.gpu_check import (
    Card,
    Demand,
    Finding,
    Torch,
    demand_of,
    judge,
    memory_for,
    parse_cards,
    read_cards,
    runs_on,
    toolchain_finding,
    weight_findings,
)
from model.toolchain import Lack
from model.weights import RECORD
from tests.model.tiny_folder import make_folder

GB = 1_000_000_000
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 85 * GB, 84 * GB, "575.57.08")
BLACKWELL = Card("NVIDIA GeForce RTX 5090", (12, 0), 34 * GB, 33 * GB, "575.57.08")
CU126 = Torch("2.10.0+cu126", "12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"), available=True)
CU128 = Torch("2.10.0+cu128", "12.8", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), available=True)
CPU = Torch("2.13.0+cpu", "", (), available=False)


A4000 = Card("NVIDIA RTX A4000", (8, 6), 17 * GB, 16 * GB, "575.57.08")
A40 = Card("NVIDIA A40", (8, 6), 48 * GB, 47 * GB, "575.57.08")
ADA = Card("NVIDIA GeForce RTX 4080", (8, 9), 17 * GB, 16 * GB, "575.57.08")
NOWHERE = ModelFolder(Path("no such folder"))


def published(calls: int = 0, kv_dtype: str = "auto", weights_dtype: str = "auto") -> Demand:
    return demand_of(NOWHERE, calls, kv_dtype, weights_dtype)


def found(card: Card, torch: Torch | None, demand: Demand | None = None) -> dict[str, Finding]:
    return {one.name: one for one in judge([card], torch, demand or published(), published(0, "fp8", "fp8"))}


@pytest.mark.parametrize(("card", "torch"), [(H100, CU126), (H100, CU128), (BLACKWELL, CU128)])
def test_what_fits_is_fine(card: Card, torch: Torch) -> None:
    assert all(finding.ok for finding in found(card, torch).values())


def test_blackwell_needs_a_build_for_cuda_12_8() -> None:
    wrong = found(BLACKWELL, CU126)["torch"]
    assert not wrong.ok
    assert "not built for compute capability 12.0 of NVIDIA GeForce RTX 5090, which needs CUDA 12.8" in wrong.detail
    assert "-m pip install" in wrong.fix
    assert wrong.fix.endswith("--index-url https://download.pytorch.org/whl/cu128")


@pytest.mark.parametrize(
    ("torch", "says", "fix"),
    [
        (None, "torch is not installed", ".[model]"),
        (CPU, "torch 2.13.0+cpu is built without CUDA", "whl/cu128"),
        (Torch("2.13.0", "13.0", (), available=False), "needs driver 580 or later, here is 575.57.08", "driver-580"),
        (Torch("2.10.0+cu128", "12.8", CU128.archs, available=False), "cannot use NVIDIA H100", "cuda()"),
    ],
)
def test_a_torch_that_cannot_use_the_card(torch: Torch | None, says: str, fix: str) -> None:
    wrong = found(H100, torch)["torch"]
    assert not wrong.ok
    assert says in wrong.detail
    assert fix in wrong.fix


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (("sm_90",), (9, 0), True),
        (("sm_86",), (8, 9), True),
        (("sm_86",), (8, 0), False),
        (("sm_90",), (12, 0), False),
        (("compute_90",), (12, 0), True),
        (("compute_120",), (9, 0), False),
        (("sm_120",), (12, 1), True),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        ((), (9, 0), False),
    ],
)
def test_what_runs_on_what(archs: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(archs, capability) is runs


def test_memory_that_does_not_suffice() -> None:
    wrong = found(BLACKWELL, CU128, published(12))["gpu_memory"]
    assert (wrong.ok, wrong.warning) == (False, False)
    assert wrong.detail == "12 calls need 42.3 GB, NVIDIA GeForce RTX 5090 has 34.0 GB, 33.2 of them for an engine"
    assert wrong.fix == "export CALLPLEX_SLOTS=6"
    assert found(BLACKWELL, CU128, published(5))["gpu_memory"].ok
    busy = found(replace(BLACKWELL, free=20 * GB), CU128)["gpu_memory"]
    assert (busy.ok, busy.warning) == (False, True)


def shown(name: str, capability: str, mib: int) -> Card:
    """An idle card as nvidia-smi shows it."""
    (card,) = parse_cards(f"{name}, {capability}, {mib}, {mib - 400}, 575.57.08")
    return card


@pytest.mark.parametrize(
    ("card", "free", "demand"),
    [
        (shown("NVIDIA H200", "9.0", 143_771), 149 * GB, published(0, "fp8")),
        (shown("NVIDIA H200", "9.0", 143_771), 149 * GB, published(150, "fp8")),
        (shown("NVIDIA GeForce RTX 4080", "8.9", 16_376), 16_500_000_000, published(0, "fp8", "fp8")),
    ],
)
def test_what_the_driver_and_cuda_s_context_take_holds_no_call(card: Card, free: int, demand: Demand) -> None:
    """As many fit as for an engine, which counts what is `free` once it has its context."""
    fixed = fixed_bytes(demand.weights, "cuda", set_aside(demand.calls, free))
    fitting = fitting_slots(free, fixed, demand.call)
    finding = found(card, CU128, demand)["gpu_memory"]
    assert finding.ok
    assert finding.detail.endswith(f"; {fitting} calls fit")
    refused = found(card, CU128, replace(demand, calls=fitting + 9))["gpu_memory"]
    assert not refused.ok
    assert f"{card.memory / GB:.1f} GB, {free / GB:.1f} of them for an engine" in refused.detail


def test_a_card_of_the_size_that_is_said_to_be_needed_is_enough() -> None:
    smallest = published(0, "fp8", "fp8")
    needed = smallest.of(1, 8 * GB)
    assert needed <= replace(ADA, memory=memory_for(needed)).usable < needed + 10


def test_no_more_calls_are_said_to_fit_than_one_device_is_asked_for(tiny: ModelFolder) -> None:
    demand = demand_of(tiny, 0, "auto", "auto")
    assert found(H100, CU128, demand)["gpu_memory"].detail.endswith(f"; {MOST_SLOTS} calls fit")


def test_calls_that_are_asked_for_take_of_what_prompts_may_have_as_at_the_engine_s_start() -> None:
    h200 = shown("NVIDIA H200", "9.0", 143_771)
    unasked = found(h200, CU128, published(0, "fp8"))["gpu_memory"]
    assert unasked.detail.endswith("; 147 calls fit")
    asked = found(h200, CU128, published(150, "fp8"))["gpu_memory"]
    assert asked.ok
    assert asked.detail.startswith("150 calls need 146.3 GB, ")
    assert asked.detail.endswith("; 153 calls fit")


def test_a_card_on_which_not_one_call_fits_is_told_how_one_would() -> None:
    wrong = found(ADA, CU128)["gpu_memory"]
    assert not wrong.ok
    assert wrong.detail == (
        "one call with keys and values in bf16 and weights in bf16 needs 24.4 GB, NVIDIA GeForce RTX 4080 has 17.0 GB,"
        " 16.4 of them for an engine"
    )
    assert wrong.fix == "export CALLPLEX_KV_DTYPE=fp8 CALLPLEX_WEIGHTS_DTYPE=fp8    # of unproven quality"
    assert found(ADA, CU128, published(0, "fp8", "fp8"))["gpu_memory"].ok
    small = replace(ADA, memory=8 * GB, free=8 * GB)
    assert found(small, CU128)["gpu_memory"].fix == "nvidia-smi -L    # a card with 15 GB or more is needed"


@pytest.mark.parametrize(
    "dtypes", [("fp8", "fp8"), ("fp8", "auto"), ("auto", "fp8"), ("bf16", "auto"), ("auto", "auto")]
)
@pytest.mark.parametrize("card", [A4000, A40, ADA, H100])
def test_a_card_is_not_told_to_keep_in_8_bits_what_the_engine_would_refuse_there(
    card: Card, dtypes: tuple[KVDtype, WeightsDtype]
) -> None:
    finding = found(card, CU128, published(0, *dtypes))["gpu_memory"]
    refused = ""
    try:
        check_card(card.capability, EngineOptions("weights", kv_dtype=dtypes[0], weights_dtype=dtypes[1]))
    except EngineRefused as error:
        refused = str(error)
    assert not (finding.ok and refused)
    assert not ("export" in finding.fix and "fp8" in finding.fix and card.capability < READS_FP8)


def test_a_small_card_of_before_ada_is_told_what_would_hold_a_call() -> None:
    plain = found(A4000, CU128)["gpu_memory"]
    assert plain.detail.startswith("one call with keys and values in bf16 and weights in bf16 needs 24.4 GB")
    assert plain.fix == (
        "nvidia-smi -L    # a card with 25 GB or more is needed, or one of compute capability 8.9 or later with 16 GB"
    )
    asked = found(A4000, CU128, published(0, "fp8", "fp8"))["gpu_memory"]
    assert not asked.ok
    assert asked.detail == "NVIDIA RTX A4000 has compute capability 8.6, and fp8 needs 8.9 or later"
    assert (
        asked.fix
        == "unset CALLPLEX_KV_DTYPE CALLPLEX_WEIGHTS_DTYPE    # or take their lines out of .env, callplex.toml"
    )
    only = found(A40, CU128, published(0, "fp8"))["gpu_memory"]
    assert only.fix.startswith("unset CALLPLEX_KV_DTYPE    #")


def test_a_torch_that_is_too_old() -> None:
    wrong = found(H100, replace(CU126, version="2.5.1+cu126"))["torch"]
    assert wrong.detail == "torch 2.5.1+cu126 is older than 2.10, which the engine needs"
    assert "-m pip install --upgrade 'torch>=2.10'" in wrong.fix


def test_an_old_card_and_none_at_all() -> None:
    turing = Card("Tesla T4", (7, 5), 16 * GB, 16 * GB, "575.57.08")
    assert "too old for bfloat16" in found(turing, CU128)["gpu"].detail
    assert [(f.name, f.ok) for f in judge([], CU128, published(), published())] == [("gpu", False)]


def test_the_largest_card_counts() -> None:
    assert next(judge([BLACKWELL, H100], CU128, published(), published())).detail.startswith("NVIDIA H100")


def test_the_published_model_s_memory() -> None:
    """Weights of 16.7 GB and the codec's 0.4, less 1.4 that no conversation walks; and keys and values of 3,000
    positions, 32 layers and 4,096 channels for each call."""
    demand = published()
    assert 15.7 * GB < demand.weights < 15.8 * GB
    assert 3_000 * 32 * 4_096 * 2 * 2 <= demand.call < 1.7 * GB
    assert demand.of(10, 80 * GB) - demand.of(0, 80 * GB) == 10 * demand.call
    assert published(0, "fp8").call < 0.55 * demand.call
    assert published(0, "auto", "fp8").weights < 0.55 * demand.weights


def test_nvidia_smi_s_lines() -> None:
    lines = "NVIDIA H100 80GB HBM3, 9.0, 81559, 81004, 575.57.08\nTesla X, [N/A], [N/A], 0, 575\nnonsense\n"
    (card,) = parse_cards(lines)
    assert card == Card("NVIDIA H100 80GB HBM3", (9, 0), 81_559 << 20, 81_004 << 20, "575.57.08")


def test_nvidia_smi_that_is_missing_or_fails(tmp_path: Path) -> None:
    assert read_cards(str(tmp_path / "absent")) == []
    assert read_cards("/bin/false") == []


def test_the_command_prints_one_object_and_never_imports_torch_itself(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "weights").path
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 5090, 12.0, 32607, 32000, 575.57.08'\n")
    smi.chmod(0o755)
    command = [sys.executable, "-m", "model.gpu_check", "--json", "--weights", str(folder), "--calls", "3"]
    environment = {"PATH": f"{smi.parent}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    shown = json.loads(done.stdout)
    by_name = {finding["name"]: finding for finding in shown["findings"]}
    assert by_name["gpu"]["ok"]
    assert by_name["gpu_memory"]["detail"].startswith("3 calls need 4.")
    assert (by_name["weights"]["ok"], by_name["weights"]["fix"]) == (True, "")
    assert by_name["weights"]["detail"].startswith(f"whole, in {folder}; ")
    assert shown["ok"] is by_name["torch"]["ok"]
    assert done.returncode == (0 if shown["ok"] else 1)
    check = "import sys, model.gpu_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_weights_that_are_not_there_or_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (nowhere,) = weight_findings(None)
    assert "there is no ./weights" in nowhere.detail
    assert nowhere.fix.startswith("callplex weights download ")
    folder = make_folder(tmp_path / "weights")
    (whole,) = weight_findings(None)
    assert whole.ok
    published = {folder.lm.name: {"size": folder.lm.stat().st_size + 1, "etag": "0" * 64}}
    (folder.path / RECORD).write_text(json.dumps({"repository": "r", "revision": "1", "files": published}))
    (cut,) = weight_findings(folder.path)
    assert "is of another size than the one downloaded" in cut.detail
    assert cut.fix == f"rm {folder.lm} && callplex weights download"


def test_what_the_kernels_need_beside_the_card_is_told() -> None:
    assert toolchain_finding(None).ok
    told = toolchain_finding(Lack("there is no C compiler", "apt-get install gcc"))
    assert (told.name, told.ok, told.fix) == ("compiler", False, "apt-get install gcc")
