"""What the images hold and how they start, tried without Docker: in virtual environments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.bench.ports import free_ports

from .dockerfile import REPOSITORY, Dockerfile, copy_into, read_dockerfile

IMAGES = ("gateway", "worker")
START_SECONDS = 90


def image(name: str) -> Dockerfile:
    return read_dockerfile(REPOSITORY / "deploy" / f"Dockerfile.{name}")


def plain_environment(binaries: Path) -> dict[str, str]:
    """Nothing of ours but where programs are, and what pip needs here."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name == "HOME"}
    return {**kept, "PATH": f"{binaries}{os.pathsep}{os.defpath}"}


@pytest.fixture
def ports() -> dict[str, str]:
    """A free port for each one the images name."""
    return {was: f":{now}" for was, now in zip((":8080", ":8081", ":8090"), free_ports(3), strict=True)}


def moved(value: str, ports: Mapping[str, str], app: Path) -> str:
    """A value of the image as it is on this machine: other ports, other folders, loopback only."""
    for was, now in ports.items():
        value = value.replace(was, now)
    value = value.replace("0.0.0.0", "127.0.0.1")
    return str(app / value[5:]) if value.startswith("/app/") else value


@contextlib.contextmanager
def started(name: str, binaries: Path, app: Path, ports: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The image's CMD in its working folder with its ENV."""
    file = image(name)
    environment = {key: moved(value, ports, app) for key, value in file.environment.items()}
    if "CALLPLEX_DATA_DIR" in environment:
        environment["CALLPLEX_DATA_DIR"] = str(app / "data")
    with subprocess.Popen(
        [str(binaries / file.command[0]), *file.command[1:]],
        cwd=app,
        env={**plain_environment(binaries), **environment},
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_healthy(name: str, binaries: Path, ports: Mapping[str, str], process: subprocess.Popen[bytes]) -> None:
    """Run the image's HEALTHCHECK until it passes, as Docker does."""
    _, *arguments = image(name).health
    command = [str(binaries / "python"), *(moved(argument, ports, Path()) for argument in arguments)]
    until = time.monotonic() + START_SECONDS
    while subprocess.run(command, capture_output=True, check=False).returncode:
        assert process.poll() is None, f"{name} ended with status {process.returncode}"
        assert time.monotonic() < until, f"{name} was not healthy after {START_SECONDS} s"
        time.sleep(0.2)


def start_both(binaries: Mapping[str, Path], apps: Mapping[str, Path], ports: Mapping[str, str]) -> None:
    """Both images side by side, as docker-compose.yml has them, until the gateway would take a call."""
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(started(name, binaries[name], apps[name], ports)) for name in IMAGES}
        for name, process in running.items():
            wait_healthy(name, binaries[name], ports, process)
        ready = f"import urllib.request as r; r.urlopen('http://127.0.0.1{ports[':8080']}/readyz', timeout=3)"
        until = time.monotonic() + START_SECONDS
        while subprocess.run([sys.executable, "-c", ready], capture_output=True, check=False).returncode:
            assert time.monotonic() < until, "the gateway never found its worker"
            time.sleep(0.2)
        for process in running.values():
            process.terminate()
        # 143: ended by our SIGTERM before Python could say otherwise.
        assert all(process.wait(20) in (0, -15, 143) for process in running.values())


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_pinned_unprivileged_and_watched(name: str) -> None:
    file = image(name)
    assert file.base == "python:3.12-slim"
    assert file.user not in ("", "root", "0")
    assert file.health
    installs = [line for line in file.runs if "pip install" in line]
    assert installs
    assert all("-c deploy/constraints.txt" in line for line in installs)
    assert not any("torch" in line for line in file.runs)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_s_context_is_not_ignored(name: str) -> None:
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources, _ in image(name).copies:
        for source in sources:
            assert source.split("/")[0] in kept
            assert (REPOSITORY / source).exists()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_installs_what_is_not_python_too(name: str, tmp_path: Path) -> None:
    """Of both packages: tables, schemas, sounds, the mark that they are typed."""
    copied, built = tmp_path / "copied", tmp_path / "built"
    copy_into(image(name), copied)
    command = [
        sys.executable,
        "-c",
        "import setuptools; setuptools.setup()",
        "-q",
        "build_py",
        "--build-lib",
        str(built),
    ]
    subprocess.run(command, cwd=copied, capture_output=True, check=True)
    files = {path for package in ("gateway", "model") for path in (copied / package).rglob("*") if path.is_file()}
    data = {path.relative_to(copied) for path in files if path.suffix not in (".py", ".pyc")}
    assert Path("model/kernels/codec_tiles.json") in data
    assert [path for path in data if not (built / path).is_file()] == []


def test_the_start_commands_work_here(tmp_path: Path, ports: dict[str, str]) -> None:
    apps = {name: tmp_path / name for name in IMAGES}
    for name, app in apps.items():
        copy_into(image(name), app)
    binaries = dict.fromkeys(IMAGES, Path(sys.prefix) / "bin")
    start_both(binaries, apps, ports)


@pytest.mark.long
def test_the_images_installs_suffice(tmp_path: Path, ports: dict[str, str]) -> None:
    """Each image's COPY and pip lines in a virtual environment of its own, then its CMD."""
    apps = {name: tmp_path / name for name in IMAGES}
    binaries = {name: tmp_path / f"venv-{name}" / "bin" for name in IMAGES}
    for name, app in apps.items():
        file = image(name)
        copy_into(file, app)
        subprocess.run([sys.executable, "-m", "venv", str(binaries[name].parent)], check=True)
        for line in file.runs:
            if "pip install" in line:
                subprocess.run(["/bin/sh", "-ec", line], cwd=app, env=plain_environment(binaries[name]), check=True)
        assert not list(binaries[name].parent.glob("lib/*/site-packages/torch"))
    start_both(binaries, apps, ports)
