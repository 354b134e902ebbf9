"""The worker's process: where it says that it listens, and when it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def worker_process(*arguments: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def test_a_worker_process_says_where_it_listens_and_ends_on_sigterm() -> None:
    with worker_process("-m", "tests.echo_worker") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["listening"].startswith("ws://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_worker_process_ends_with_its_parents_pipe() -> None:
    with worker_process("-m", "tests.echo_worker", "--exit-with-parent", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0


LOGS = """
import asyncio, logging, os, signal, sys
from model import echo, serving

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
stop = lambda url: os.kill(os.getpid(), signal.SIGTERM)
asyncio.run(serving.serve(echo.EchoEngine(), "127.0.0.1:0", capacity=int(sys.argv[1]), announce=stop))
"""


@pytest.mark.parametrize(("capacity", "said"), [("1", "1 slot, ws://"), ("4", "4 slots, ws://")])
def test_a_worker_process_logs_what_it_serves(capacity: str, said: str) -> None:
    with worker_process("-c", LOGS, capacity) as process:
        assert process.stdout is not None
        assert f": echo engine, {said}127.0.0.1:" in process.stdout.read().decode()
        assert process.wait(10) == 0


LOADS = """
import asyncio, sys
from model import echo, serving

class Loading(echo.EchoEngine):
    async def start(self):
        print("loading", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(serving.serve(Loading(), sys.argv[1]))
"""
"""Its event loop is free while it loads: nothing but the order of things keeps it from taking calls."""


async def test_nobody_is_let_in_before_the_engine_is_ready() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    readiness = f"http://127.0.0.1:{port}/readyz"
    with worker_process("-c", LOADS, f"127.0.0.1:{port}", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        async with httpx.AsyncClient(timeout=10) as http:
            for _ in range(3):
                with pytest.raises(httpx.ConnectError):
                    await http.get(readiness)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            process.stdin.write(b"captured\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["listening"] == f"ws://127.0.0.1:{port}/api/session"
            assert (await http.get(readiness)).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


HANGS = """
import asyncio, time
from model import echo, serving

class Hanging(echo.EchoEngine):
    async def start(self):
        print("hanging", flush=True)
        time.sleep(60)

serving.EXIT_GRACE = 0.1
asyncio.run(serving.serve(Hanging(), "127.0.0.1:0", exit_with_parent=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_process_that_still_loads_ends_at_once(number: signal.Signals) -> None:
    with worker_process("-c", HANGS, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        process.send_signal(number)
        assert process.wait(5) == -number


def test_a_worker_process_that_hangs_ends_with_its_parents_pipe_too() -> None:
    with worker_process("-c", HANGS, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        process.stdin.close()
        assert process.wait(10) == 1
