"""What a machine's GPUs, its torch and its weights can do for a number of calls: `python -m model.gpu_check --json`.

Owns the facts it gathers, from nvidia-smi and torch, and the judgement, which is a pure function of them. Run as a
process of its own, so that whoever asks never imports torch. Changes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, get_args

from model import toolchain
from model.capacity import (
    MOST_SLOTS,
    READS_FP8,
    engine_bytes,
    fitting_slots,
    fixed_bytes,
    kv_item,
    set_aside,
    slot_bytes,
    unwalked_bytes,
    weights_bytes,
)
from model.engine_options import KVDtype, WeightsDtype
from model.folder import FolderInvalid, ModelFolder

_V = TypeVar("_V")
_SMI = "name,compute_cap,memory.total,memory.free,driver_version"
_PIP = f"{sys.executable} -m pip install"
_MIB = 1 << 20
_CUDA_OF_CAPABILITY = (((12, 0), (12, 8)), ((10, 0), (12, 8)), ((9, 0), (11, 8)), ((0, 0), (11, 0)))
"""The oldest CUDA that compiles for a capability and those above it: Blackwell needs 12.8."""
_DRIVER_OF_CUDA = (((13, 0), 580), ((12, 0), 525), ((0, 0), 450))
"""The oldest driver branch on Linux for a CUDA version and those above it, minor versions being compatible."""
_WHEELS = "https://download.pytorch.org/whl/cu128"
"""Builds of torch, for every card from Ampere to Blackwell."""
_AMPERE = (8, 0)
_CONTEXT = 500_000_000
_DRIVERS_PART = 1 / 120
"""Bytes that CUDA's context takes of a card, and the driver's part of all that nvidia-smi shows. Of an H200's 150.8 GB
an engine found 149 free (deploy/benchmarks.md); that it would find 16.5 of a 16 GiB card's 17.2 is assumed."""
_NOWHERE = Path(os.devnull)
"""No folder says other sizes here than the published ones."""
_PUBLISHED_BYTES = [16_742_817_792, 385_000_000]
"""Of the language model's file and the codec's."""
OLDEST_TORCH = (2, 10)
"""It comes with Triton 3.6, the oldest that the kernels were compiled with."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    free: int
    driver: str

    @property
    def usable(self) -> int:
        """Bytes that an engine finds free where nobody else uses the card."""
        return int(self.memory * (1 - _DRIVERS_PART)) - _CONTEXT


def memory_for(usable: int) -> int:
    """Bytes of a card of which an engine finds so many free."""
    return math.ceil((usable + _CONTEXT) / (1 - _DRIVERS_PART))


@dataclass(frozen=True, slots=True)
class Torch:
    """The installed torch. cuda: its version, empty for a build without; archs: what it was compiled for."""

    version: str
    cuda: str
    archs: tuple[str, ...]
    available: bool
    """Whether it can use a card here."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What an engine takes of a card, in bytes. calls: those asked for; 0 where as many as fit are taken."""

    weights: int
    call: int
    calls: int
    kv_dtype: str
    weights_dtype: str

    def of(self, calls: int, memory: int) -> int:
        """For so many calls where `memory` bytes are usable, of which prompts get a part."""
        return engine_bytes(calls, self._fixed(memory), self.call)

    def fitting(self, memory: int) -> int:
        """Calls that fit where `memory` bytes are usable, as the engine's start counts them; below 1: none."""
        return min(MOST_SLOTS, fitting_slots(memory, self._fixed(memory), self.call))

    @property
    def in_eight_bits(self) -> list[str]:
        """The settings that ask for it."""
        kept = {"CALLPLEX_KV_DTYPE": self.kv_dtype, "CALLPLEX_WEIGHTS_DTYPE": self.weights_dtype}
        return [name for name, dtype in kept.items() if dtype == "fp8"]

    def _fixed(self, memory: int) -> int:
        return fixed_bytes(self.weights, "cuda", set_aside(self.calls, memory))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, in the doctor's terms."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False


def judge(cards: Sequence[Card], torch: Torch | None, demand: Demand, smallest: Demand) -> Iterator[Finding]:
    """The findings about driver, torch and memory. `smallest` is the demand where all that can be is kept in 8 bits."""
    if torch is None:
        yield Finding("torch", False, "torch is not installed", f"{_PIP} -e '.[model]'")
    elif _numbers(torch.version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        detail = f"torch {torch.version} is older than {oldest}, which the engine needs"
        yield Finding("torch", False, detail, f"{_PIP} --upgrade 'torch>={oldest}' --index-url {_WHEELS}")
        torch = None
    if not cards:
        detail = "nvidia-smi shows no GPU, and a CPU is too slow for the published model"
        yield Finding(
            "gpu", False, detail, "nvidia-smi    # without it: install the driver; or: export CALLPLEX_ENGINE=rehearsal"
        )
        return
    best = max(cards, key=lambda card: card.memory)
    shown = f"{best.name}, {best.memory / 1e9:.0f} GB, driver {best.driver}"
    if best.capability < _AMPERE:
        yield Finding("gpu", False, f"{shown}: too old for bfloat16, Ampere or later is needed", "nvidia-smi -L")
    else:
        yield Finding("gpu", True, shown)
    if torch is not None:
        yield _torch_finding(best, torch)
    yield _memory_finding(best, demand, smallest)


def _torch_finding(card: Card, torch: Torch) -> Finding:
    capability = _dotted(card.capability)
    wanted = _least(_CUDA_OF_CAPABILITY, card.capability)
    install = f"{_PIP} --force-reinstall 'torch>=2.10' --index-url {_WHEELS}"
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


def _memory_finding(card: Card, demand: Demand, smallest: Demand) -> Finding:
    if card.capability < READS_FP8 and (eight := demand.in_eight_bits):
        has, needs = _dotted(card.capability), _dotted(READS_FP8)
        detail = f"{card.name} has compute capability {has}, and fp8 needs {needs} or later"
        fix = f"unset {' '.join(eight)}    # or take their lines out of .env, callplex.toml"
        return Finding("gpu_memory", False, detail, fix)
    asked, fitting = demand.calls or 1, demand.fitting(card.usable)
    needed = demand.of(asked, card.usable)
    has = f"{card.name} has {card.memory / 1e9:.1f} GB, {card.usable / 1e9:.1f} of them for an engine"
    if fitting < 1:
        kept = f"keys and values in {demand.kv_dtype} and weights in {demand.weights_dtype}"
        detail = f"one call with {kept} needs {demand.of(1, card.usable) / 1e9:.1f} GB, {has}"
        return Finding("gpu_memory", False, detail, _fix_for_one(card, demand, smallest))
    needs = f"{asked} call{'s need' if asked > 1 else ' needs'} {needed / 1e9:.1f} GB"
    fits = "s fit" if fitting > 1 else " fits"
    if asked > fitting:
        return Finding("gpu_memory", False, f"{needs}, {has}", f"export CALLPLEX_SLOTS={fitting}")
    if needed > card.free:
        detail = f"{needs}, {card.free / 1e9:.1f} GB of {card.name} are free now"
        return Finding("gpu_memory", False, detail, "nvidia-smi    # shows what uses it", warning=True)
    return Finding("gpu_memory", True, f"{needs}, {card.free / 1e9:.1f} GB are free; {fitting} call{fits}")


def _fix_for_one(card: Card, demand: Demand, smallest: Demand) -> str:
    """What holds a call where this card does not."""
    show = "nvidia-smi -L    # a card with"
    plain, least = (f"{memory_for(one.of(1, card.usable)) / 1e9:.0f} GB" for one in (demand, smallest))
    if card.capability < READS_FP8:
        return (
            f"{show} {plain} or more is needed, or one of compute capability {_dotted(READS_FP8)} or later with {least}"
        )
    if smallest.fitting(card.usable) >= 1:
        return "export CALLPLEX_KV_DTYPE=fp8 CALLPLEX_WEIGHTS_DTYPE=fp8    # of unproven quality"
    return f"{show} {least} or more is needed"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def demand_of(folder: ModelFolder, calls: int, kv_dtype: str, weights_dtype: str) -> Demand:
    """What the model in a folder takes; where its files are missing, what the published one does.

    `auto` is how the engine keeps them then: bf16 for the published model, float32 for any other.
    """
    sizes = [file.stat().st_size for file in (folder.lm, folder.mimi) if file.is_file()]
    lm_bytes, mimi_bytes = sizes if len(sizes) == 2 else _PUBLISHED_BYTES
    lm, mimi = folder.lm_config(), folder.mimi_config()
    stored = "bf16" if folder.published else "float32"
    kept = stored if kv_dtype == "auto" else kv_dtype
    call = slot_bytes(lm, mimi, kv_item(kept, lm.transformer.head_dim))
    weights = weights_bytes(lm_bytes, mimi_bytes, weights_dtype)
    weights -= unwalked_bytes(lm, 2 if folder.published else 4, weights_dtype)
    return Demand(weights, call, calls, kept, stored if weights_dtype == "auto" else weights_dtype)


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


def toolchain_finding(lack: toolchain.Lack | None) -> Finding:
    """Whether the engine's kernels can be compiled and launched."""
    if lack is not None:
        return Finding("compiler", False, lack.what, lack.fix)
    return Finding("compiler", True, "Triton, a C compiler and Python's headers are there")


def weight_findings(path: Path | None) -> Iterator[Finding]:
    """Whether the weights are there and whole. `path` None: nobody said where, and the engine takes ./weights."""
    fix = "callplex weights download"
    folder = path or Path("weights")
    if path is None and not folder.is_dir():
        detail = "CALLPLEX_WEIGHTS_DIR names no folder with the model's weights, and there is no ./weights"
        yield Finding("weights", False, detail, f"{fix}    # or: export CALLPLEX_WEIGHTS_DIR=/path/to/weights")
        return
    try:
        from model.weights import list_weights
        from model.weights_check import weight_problems
    except ImportError as error:
        yield Finding("weights", False, f"they cannot be checked without {error.name}", f"{_PIP} -e '.[model]'")
        return
    cut = [listed for listed in list_weights(folder) if listed.state in ("of another size", "unfinished")]
    for listed in cut:
        detail = f"{folder / listed.name} is {listed.state}{_than_downloaded(listed.state)}: {listed.size} bytes"
        again = fix if listed.state == "unfinished" else f"rm {shlex.quote(str(folder / listed.name))} && {fix}"
        yield Finding("weights", False, detail, again)
    problems = [] if cut else list(weight_problems(folder))
    for problem in problems:
        yield Finding("weights", False, problem.partition("; get ")[0], fix)
    if not (problems or cut):
        yield Finding("weights", True, f"whole, in {folder}; every byte is compared by: callplex weights verify")


def _than_downloaded(state: str) -> str:
    return " than the one downloaded" if state == "of another size" else ""


def _demands(path: Path | None, calls: int, kv_dtype: str, weights_dtype: str) -> tuple[Demand, Demand]:
    """As asked for, and in 8 bits. Of a folder that does not tell its model's sizes: the published model's."""
    folder = ModelFolder(path or Path("weights"))
    try:
        return demand_of(folder, calls, kv_dtype, weights_dtype), demand_of(folder, calls, "fp8", "fp8")
    except FolderInvalid:
        return _demands(_NOWHERE, calls, kv_dtype, weights_dtype)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, as lines or as one JSON object; status 1 if anything but a warning is wrong."""
    parser = argparse.ArgumentParser(prog="python -m model.gpu_check")
    parser.add_argument("--weights", type=Path, help="folder of the weights")
    parser.add_argument("--calls", type=int, default=0, help="calls at once; 0: as many as fit")
    parser.add_argument("--kv-dtype", default="auto", choices=get_args(KVDtype))
    parser.add_argument("--weights-dtype", default="auto", choices=get_args(WeightsDtype))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    cards, torch = read_cards(), read_torch()
    demand, smallest = _demands(options.weights, options.calls, options.kv_dtype, options.weights_dtype)
    findings = [*judge(cards, torch, demand, smallest), *weight_findings(options.weights)]
    if cards:
        findings.append(toolchain_finding(toolchain.lacks()))
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
