"""The device that something is measured on: which, and what its figures have to be read with.

Owns what is said of it: date, commit, versions. Nothing is measured here.
"""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_DRIVER = Path("/proc/driver/nvidia/version")
"""Where NVIDIA's kernel module says which it is, in containers, too."""
_DRIVER_NUMBER = re.compile(r"Kernel Module\b.*?\s(\d+(?:\.\d+)+)\s")
_LINE = 200
"""Letters of an error that are shown."""


class CannotMeasure(Exception):
    """Nothing can be measured here; the message says why."""


def about_device(device: torch.device) -> dict[str, Any]:
    """When, at which commit and on what something is measured."""
    about: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }
    if device.type != "cuda":
        return {**about, "device_name": platform.processor() or platform.machine()}
    written = _DRIVER.read_text() if _DRIVER.is_file() else ""
    return {
        **about,
        "triton": _triton(),
        "driver": driver_number(written),
        "device_name": torch.cuda.get_device_name(device),
    }


def one_line(error: Exception) -> str:
    """The first line of what it says, which may be a compiler's."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LINE] if lines else "no reason is known"


def device_error(device: torch.device) -> str:
    """What a GPU says that takes no more work, as after an illegal access; empty if it goes on."""
    if device.type != "cuda":
        return ""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return one_line(error)
    return ""


def driver_number(text: str) -> str | None:
    """The driver's version in what its kernel module says of itself; None if it is not there."""
    found = _DRIVER_NUMBER.search(text)
    return found[1] if found else None


def _triton() -> str | None:
    """Triton's version. Read from its package: only kernels import it."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is measured; None where there is no git, or no checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
