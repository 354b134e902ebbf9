"""A real gateway in a process of its own, for tests: `callplex serve` on ports that are free."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 60


@dataclass
class GatewayProcess:
    process: subprocess.Popen[str]
    url: str
    admin: str
    data: Path
    log: Path
    sip: dict[str, str]
    """Where it speaks SIP, host:port by transport."""

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10)

    def get_admin(self, path: str) -> httpx.Response:
        return httpx.get(self.admin + path, timeout=10)

    def has_answered(self) -> bool:
        """Whether the records know of a call that an agent has answered."""
        with closing(sqlite3.connect(f"file:{self.data}/callplex.sqlite3?mode=ro", uri=True)) as connection:
            return bool(connection.execute("select count(*) from events where kind = 'answer'").fetchone()[0])

    def stop(self) -> int:
        """SIGTERM, as an operator would; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def environment(data: Path, **settings: str) -> dict[str, str]:
    """This machine's environment without settings of its own, plus those given."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CALLPLEX_")}
    return {
        **plain,
        "CALLPLEX_DATA_DIR": str(data),
        "CALLPLEX_PERSONAS": str(REPOSITORY / "personas"),
        "CALLPLEX_LISTEN": "127.0.0.1:0",
        "CALLPLEX_ADMIN_LISTEN": "127.0.0.1:0",
        "CALLPLEX_SIP_LISTEN": "",
        **settings,
    }


@contextmanager
def running_gateway(folder: Path, **settings: str) -> Iterator[GatewayProcess]:
    """Start a gateway whose data and log lie in `folder`; killed on leaving if it still runs.

    A setting `descriptors` says how many files it may have open; without it, as many as we.
    """
    descriptors = settings.pop("descriptors", "")
    limited = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"] if descriptors else []
    folder.mkdir(exist_ok=True)
    data, log = folder / "data", folder / "gateway.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*limited, sys.executable, "-m", "gateway.cli", "serve", "--json"],
            env=environment(data, **settings),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"the gateway did not start: {log.read_text()}"
        addresses = json.loads(line)
        url, admin = f"http://{addresses['listening']}", f"http://{addresses['admin']}"
        yield GatewayProcess(process, url, admin, data, log, addresses["sip"])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        process.stdout.close()
