"""What a machine's GPUs, its torch and its weights can do for a number of calls: `python -m model.gpu_check --json`.

Owns the facts it gathers, from nvidia-smi and torch, and the judgement, which is a pure function of them. Run as a
process of its own, so that whoever asks never imports torch. Changes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from model.config import LMConfig, MimiConfig
from model.folder import FolderInvalid, ModelFolder

_V = TypeVar("_V")
_SMI = "name,compute_cap,memory.total,memory.free,driver_version"
_PIP = f"{sys.executable} -m pip install"
_MIB = 1 << 20
WORKSPACE = 2 << 30
"""Bytes for CUDA itself, activations and captured graphs."""
_CUDA_OF_CAPABILITY = (((12, 0), (12, 8)), ((10, 0), (12, 8)), ((9, 0), (11, 8)), ((0, 0), (11, 0)))
"""The oldest CUDA that compiles for a capability and those above it: Blackwell needs 12.8."""
_DRIVER_OF_CUDA = (((13, 0), 580), ((12, 0), 525), ((0, 0), 450))
"""The oldest driver branch on Linux for a CUDA version and those above it, minor versions being compatible."""
_WHEELS = "https://download.pytorch.org/whl/cu128"
"""Builds of torch, from 2.7 on, for every card from Ampere to Blackwell."""
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    free: int
    driver: str


@dataclass(frozen=True, slots=True)
class Torch:
    """The installed torch. cuda: its version, empty for a build without; archs: what it was compiled for."""

    version: str
    cuda: str
    archs: tuple[str, ...]
    available: bool
    """Whether it can use a card here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, in the doctor's terms."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False


def judge(cards: Sequence[Card], torch: Torch | None, needed: int, calls: int) -> Iterator[Finding]:
    """The findings about driver, torch and memory, for `calls` calls that take `needed` bytes."""
    if torch is None:
        yield Finding("torch", False, "torch is not installed", f"{_PIP} -e '.[model]'")
    if not cards:
        yield Finding("gpu", False, "nvidia-smi shows no GPU", "nvidia-smi    # without it: install the driver")
        return
    best = max(cards, key=lambda card: card.memory)
    shown = f"{best.name}, {best.memory / 1e9:.0f} GB, driver {best.driver}"
    if best.capability < _AMPERE:
        yield Finding("gpu", False, f"{shown}: too old for bfloat16, Ampere or later is needed", "nvidia-smi -L")
    else:
        yield Finding("gpu", True, shown)
    if torch is not None:
        yield _torch_finding(best, torch)
    yield _memory_finding(best, needed, calls)


def _torch_finding(card: Card, torch: Torch) -> Finding:
    capability = f"{card.capability[0]}.{card.capability[1]}"
    wanted = _least(_CUDA_OF_CAPABILITY, card.capability)
    install = f"{_PIP} --force-reinstall 'torch>=2.7' --index-url {_WHEELS}"
    version = f"torch {torch.version}"
    if not torch.cuda:
        return Finding("torch", False, f"{version} is built without CUDA", install)
    built = tuple(map(int, torch.cuda.split(".")[:2]))
    oldest = _least(_DRIVER_OF_CUDA, (built[0], built[1]))
    branch = card.driver.partition(".")[0]
    if branch.isdigit() and int(branch) < oldest:
        detail = f"{version} for CUDA {torch.cuda} needs driver {oldest} or later, here is {card.driver}"
        return Finding("torch", False, detail, f"apt-get install nvidia-driver-{oldest}-server")
    if torch.archs and not runs_on(torch.archs, card.capability):
        detail = (
            f"{version} (CUDA {torch.cuda}) is not built for compute capability {capability} of {card.name}, "
            f"which needs CUDA {wanted[0]}.{wanted[1]} or later; it is built for {', '.join(torch.archs)}"
        )
        return Finding("torch", False, detail, install)
    if not torch.available:
        detail = f"{version} for CUDA {torch.cuda} cannot use {card.name}"
        return Finding("torch", False, detail, f"{sys.executable} -c 'import torch; torch.zeros(1).cuda()'")
    return Finding("torch", True, f"{version}, CUDA {torch.cuda}, compute capability {capability}")


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code compiled for `archs` runs on a card: of its own major version as `sm_`, of any as `compute_`.

    The variants with a letter (`sm_90a`) run on exactly their own capability.
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        digits = number.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and built <= capability:
            return True
        exact = number.endswith("a")
        if kind == "sm" and (built == capability or (not exact and built[0] == capability[0] and built <= capability)):
            return True
    return False


def _least(table: Sequence[tuple[tuple[int, int], _V]], key: tuple[int, int]) -> _V:
    return next(value for least, value in table if key >= least)


def _memory_finding(card: Card, needed: int, calls: int) -> Finding:
    needs = f"{calls} calls need {needed / 1e9:.1f} GB"
    if needed > card.memory:
        fix = "export CALLPLEX_WORKER_CAPACITY=...    # fewer calls; or a card with more memory"
        return Finding("gpu_memory", False, f"{needs}, {card.name} has {card.memory / 1e9:.1f} GB", fix)
    if needed > card.free:
        detail = f"{needs}, {card.free / 1e9:.1f} GB of {card.name} are free now"
        return Finding("gpu_memory", False, detail, "nvidia-smi    # shows what uses it", warning=True)
    return Finding("gpu_memory", True, f"{needs}, {card.free / 1e9:.1f} GB are free")


def bytes_needed(lm: LMConfig, mimi: MimiConfig, calls: int, weights: int) -> int:
    """GPU memory for `calls` calls: `weights` bytes of files, attention memory for each call, and room to work."""
    main, codec = lm.transformer, mimi.transformer
    call = main.layers * 2 * main.dim * main.context * 2
    # Both sides of the codec, in float32; twice for what is in flight during a step.
    call += 2 * codec.layers * 2 * codec.dim * (codec.context + codec.step) * 4 * 2
    return weights + calls * call + WORKSPACE


def read_cards(smi: str = "nvidia-smi") -> list[Card]:
    """The cards that nvidia-smi shows; none where there is no such program, or it fails."""
    try:
        command = [smi, f"--query-gpu={_SMI}", "--format=csv,noheader,nounits"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_cards(shown)


def parse_cards(shown: str) -> list[Card]:
    """nvidia-smi's lines to cards; a line that is none (a card that has fallen off its bus) is left out."""
    cards = []
    for line in shown.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            name, capability, memory, free, driver = parts
            major, minor = map(int, capability.split("."))
            cards.append(Card(name, (major, minor), int(memory) * _MIB, int(free) * _MIB, driver))
        except ValueError:
            continue
    return cards


def read_torch() -> Torch | None:
    """The installed torch, None if there is none that can be imported."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):
        return None
    archs = tuple(torch.cuda.get_arch_list()) if torch.version.cuda else ()
    return Torch(str(torch.__version__), torch.version.cuda or "", archs, bool(torch.cuda.is_available()))


def weight_findings(path: Path | None) -> Iterator[Finding]:
    """Whether the weights are there and whole."""
    fix = "callplex weights download"
    if path is None:
        detail = "CALLPLEX_WEIGHTS_DIR does not name a folder with the model's weights"
        yield Finding("weights", False, detail, "export CALLPLEX_WEIGHTS_DIR=/path/to/weights")
        return
    try:
        from model.weights_check import weight_problems
    except ImportError as error:
        yield Finding("weights", False, f"they cannot be checked without {error.name}", f"{_PIP} -e '.[model]'")
        return
    problems = list(weight_problems(path))
    for problem in problems:
        yield Finding("weights", False, problem.partition("; get ")[0], fix)
    if not problems:
        yield Finding("weights", True, f"whole, in {path}")


def _sizes(path: Path | None) -> tuple[LMConfig, MimiConfig, int]:
    """Configurations, and the bytes of the weights: of the files, else of what is published."""
    folder = ModelFolder(path or Path())
    published = 16_742_817_792 + 385_000_000
    try:
        lm, mimi = folder.lm_config(), folder.mimi_config()
    except FolderInvalid:
        folder = ModelFolder(Path())
        lm, mimi = folder.lm_config(), folder.mimi_config()
    there = [file.stat().st_size for file in (folder.lm, folder.mimi) if file.is_file()]
    return lm, mimi, sum(there) if len(there) == 2 else published


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, as lines or as one JSON object; status 1 if anything but a warning is wrong."""
    parser = argparse.ArgumentParser(prog="python -m model.gpu_check")
    parser.add_argument("--weights", type=Path, help="folder of the weights")
    parser.add_argument("--calls", type=int, default=4, help="calls at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    cards, torch = read_cards(), read_torch()
    lm, mimi, weights = _sizes(options.weights)
    needed = bytes_needed(lm, mimi, options.calls, weights)
    findings = [*judge(cards, torch, needed, options.calls), *weight_findings(options.weights)]
    healthy = all(finding.ok or finding.warning for finding in findings)
    if options.json:
        shown = {"ok": healthy, "cards": [asdict(card) for card in cards], "torch": asdict(torch) if torch else None}
        sys.stdout.write(json.dumps({**shown, "findings": [asdict(finding) for finding in findings]}) + "\n")
    else:
        for finding in findings:
            mark = "ok" if finding.ok else "note" if finding.warning else "WRONG"
            fix = f"{'':18}fix: {finding.fix}\n" if finding.fix else ""
            sys.stdout.write(f"{mark:6}{finding.name:12}{finding.detail}\n{fix}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
