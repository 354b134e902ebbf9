"""Reads the little of a Dockerfile that can be carried out without Docker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(slots=True)
class Dockerfile:
    """Its instructions, each in the order of the file."""

    base: str = ""
    user: str = ""
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[list[str], str]] = field(default_factory=list)
    """What of the repository goes where in the image's working folder."""
    runs: list[str] = field(default_factory=list)


def read_dockerfile(path: Path) -> Dockerfile:
    """Raises ValueError on an instruction that it does not know."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    file = Dockerfile()
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        match instruction:
            case "FROM":
                file.base = rest
            case "USER":
                file.user = rest
            case "CMD":
                file.command = json.loads(rest)
            case "HEALTHCHECK":
                file.health = json.loads(rest[rest.index("CMD") + 3 :])
            case "ENV":
                file.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
            case "COPY":
                *sources, target = rest.split()
                file.copies.append((sources, target))
            case "RUN":
                file.runs.append(rest)
            case "" | "WORKDIR" | "EXPOSE" | "VOLUME":
                pass
            case _:
                raise ValueError(f"{path.name}: {instruction} is not understood here")
    return file


def copy_into(file: Dockerfile, folder: Path) -> None:
    """Carry out the COPY lines, so that what an image would lack is lacking here too."""
    for sources, target in file.copies:
        for source in sources:
            found, into = REPOSITORY / source, folder / target
            if found.is_dir():
                shutil.copytree(found, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (into if target.endswith("/") else into.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(found, into)
