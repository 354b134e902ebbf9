"""Python itself, and the packages that Callplex and its extras require."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from gateway.doctor.finding import Finding

OLDEST_PYTHON = (3, 11)
PIP = f"{sys.executable} -m pip install"
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:>=(?P<least>[0-9.]+))?[^;]*(?:;\s*(?P<marker>.*))?$")


def python_version(version: tuple[int, int]) -> Finding:
    found = f"{version[0]}.{version[1]}"
    if version >= OLDEST_PYTHON:
        return Finding("python", True, f"{found} at {sys.executable}")
    return Finding("python", False, f"{found} is too old, 3.11 or later is needed", "apt-get install python3.11-venv")


def packages(extra: str) -> Iterator[Finding]:
    """Whether what Callplex requires (for one of its extras, or "" for itself) is installed and new enough."""
    name = extra or "packages"
    fix = f"{PIP} -e '.[{extra}]'" if extra else f"{PIP} -e ."
    try:
        required = metadata.requires("callplex") or []
    except metadata.PackageNotFoundError:
        yield Finding(name, False, "callplex itself is not installed here", f"{PIP} -e .")
        return
    wanted = [match for line in required if (match := _REQUIREMENT.match(line)) and _applies(match["marker"], extra)]
    problems = [problem for match in wanted if (problem := _package_problem(match["name"], match["least"] or "0"))]
    if problems:
        yield Finding(name, False, "; ".join(problems), fix)
    else:
        yield Finding(name, True, f"all {len(wanted)} installed")


def _applies(marker: str | None, extra: str) -> bool:
    """Enough of PEP 508 for our own requirements: an extra, or a least Python."""
    in_extra = re.search(r"extra == ['\"](\w+)['\"]", marker or "")
    if (in_extra[1] if in_extra else "") != extra:
        return False
    least = re.search(r"python_version >= ['\"]([0-9.]+)['\"]", marker or "")
    return least is None or sys.version_info[:2] >= _numbers(least[1])


def _package_problem(name: str, least: str) -> str:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return "" if _numbers(found) >= _numbers(least) else f"{name} {found} is older than {least}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
