"""What Triton needs of a machine with a GPU before it can launch a kernel: itself, a C compiler and Python's headers.

It compiles the code that launches them when it is first used (triton/runtime/build.py), and would end in a traceback.
Standard library only.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Lack(NamedTuple):
    """What is missing, as a sentence without its full stop, and the command that gets it."""

    what: str
    fix: str


def lacks(environment: Mapping[str, str] = os.environ, headers: Path | None = None) -> Lack | None:
    """The first thing that is missing; None if nothing is. `headers`: the folder of Python.h, this Python's if None."""
    if find_spec("triton") is None:
        return Lack("Triton is not installed, without which the engine's kernels cannot run", "pip install triton")
    path = environment.get("PATH", "")
    named = environment.get("CC")
    if not any(shutil.which(name, path=path) for name in ([named] if named else ["gcc", "clang"])):
        what = f"there is no C compiler {named}, which CC names" if named else "there is no C compiler, gcc or clang"
        return Lack(f"{what}: Triton needs one to launch kernels", "apt-get install gcc")
    folder = headers or Path(sysconfig.get_paths(scheme=_scheme())["include"])
    if not (folder / "Python.h").is_file():
        return Lack(
            f"there is no Python.h in {folder}: Triton needs it to launch kernels", "apt-get install python3-dev"
        )
    return None


def _scheme() -> str:
    """As Triton takes it: Debian's Python says another of its own."""
    default = sysconfig.get_default_scheme()
    return "posix_prefix" if default == "posix_local" else default
