"""The gateway under measurement: started as `callplex serve` would be, alone on one core, and watched.

Owns the child process, its settings and what the operating system says about it. Knows nothing of
calls.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import psutil

from gateway.bench.ports import free_ports
from gateway.recording.process import WRITER

_START_SECONDS = 60
_PERSONA = """\
name: Echo
voice: NATF2
role: You return what you hear.
limits: {max_seconds: 14400}
"""
_ROUTING = "default: {persona: echo}\n"


Recorded = Literal["none", "wav", "opus"]


class GatewayFailed(Exception):
    """The gateway did not come up, or went away; the message says what it said last."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the gateway used until now."""

    cpu_seconds: float
    rss_bytes: int
    child_cpu_seconds: float
    """Its children: a local worker, and what writes recordings."""
    child_rss_bytes: int


class Gateway:
    """A running gateway. Made by `running_gateway`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, data: Path, log: Path) -> None:
        self.url = url
        self.data = data
        self._process = process
        self._watched = psutil.Process(process.pid)
        self._log = log

    def usage(self) -> Usage:
        """Raises GatewayFailed if it is gone."""
        try:
            own, memory = self._watched.cpu_times(), self._watched.memory_info()
            cpu, rss = 0.0, 0
            for child in self._watched.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = child.cpu_times()
                    cpu += times.user + times.system
                    rss += child.memory_info().rss
            return Usage(own.user + own.system, memory.rss, cpu, rss)
        except psutil.NoSuchProcess:
            raise GatewayFailed(f"The gateway ended during the measurement. {self.last_words()}") from None

    def children(self) -> list[psutil.Process]:
        """Its workers, not what writes recordings."""
        return [child for child in self._watched.children(recursive=True) if not _writes(child)]

    def free_writer(self, cores: set[int]) -> None:
        """Let what writes recordings run on all `cores`, after the calls.

        Where the bench was given real time above the lowest, to keep other work out, it goes before other work too.
        """
        real_time = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
        below = os.sched_getparam(0).sched_priority - 1
        for child in filter(_writes, self._watched.children()):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, PermissionError):
                child.cpu_affinity(sorted(cores))
                if real_time and below > 0:
                    os.sched_setscheduler(child.pid, os.SCHED_RR, os.sched_param(below))

    def lost_recordings(self) -> list[str]:
        """What it said of recordings that stopped."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if " stopped: " in line]

    def wait_ready(self) -> None:
        """Until it can take a call. Raises GatewayFailed."""
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise GatewayFailed(f"The gateway ended with status {self._process.returncode}. {self.last_words()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return
            time.sleep(0.1)
        raise GatewayFailed(f"The gateway was not ready after {_START_SECONDS} s. {self.last_words()}")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "It said: " + " | ".join(lines[-5:]) if lines else "It said nothing."


@contextlib.contextmanager
def running_gateway(environment: Mapping[str, str], core: int | None, recorded: Recorded = "wav") -> Iterator[Gateway]:
    """`callplex serve` with these settings on free ports, bound to `core`, in a folder that goes afterwards.

    It has one persona, whose calls are `recorded` as that. `.env`, `callplex.toml` and CALLPLEX_ variables of this
    process do not reach it; `environment` does, last.
    """
    public, admin, worker = free_ports(3)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CALLPLEX_")}
    with tempfile.TemporaryDirectory(prefix="callplex-bench-") as folder:
        log, data = Path(folder, "gateway.log"), Path(folder, "data")
        personas = Path(folder, "personas")
        personas.mkdir()
        (personas / "echo.yaml").write_text(_PERSONA + _recording(recorded))
        (personas / "routing.yaml").write_text(_ROUTING)
        settings = {
            "CALLPLEX_LISTEN": f"127.0.0.1:{public}",
            "CALLPLEX_ADMIN_LISTEN": f"127.0.0.1:{admin}",
            "CALLPLEX_WORKER_LISTEN": f"127.0.0.1:{worker}",
            "CALLPLEX_DATA_DIR": str(data),
            "CALLPLEX_LOG_LEVEL": "warning",
            "CALLPLEX_PERSONAS": str(personas),
            **environment,
        }
        with log.open("wb") as output, _on_core(core):
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve"],
                cwd=folder,
                env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            gateway = Gateway(process, f"http://127.0.0.1:{public}", data, log)
            gateway.wait_ready()
            yield gateway
        finally:
            _end(process)


def _writes(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return WRITER in process.cmdline()
    return False


def _recording(recorded: Recorded) -> str:
    return "" if recorded == "none" else f"record: true\nrecording: {{format: {recorded}}}\n"


@contextlib.contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """Children started within are bound to `core`: they inherit it from us."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
