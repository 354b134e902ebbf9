"""The gateway's own worker: it serves, is started again when it dies or hangs, and ends with the gateway."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway import local_worker, pooled_worker
from gateway.engine import EngineFull, EngineLost
from gateway.local_worker import Backoff, LocalWorker
from gateway.pool import WorkerPool
from gateway.settings import load_settings
from tests import virtual_time
from tests.gateway.worker_pools import REQUEST, ROOT, echoes, ending, make_impatient, started, until

pytestmark = pytest.mark.anyio

ECHO = (sys.executable, "-m", "tests.echo_worker", "--exit-with-parent")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)


def child(pool: WorkerPool) -> int:
    assert pool.local is not None
    assert pool.local.pid is not None
    return pool.local.pid


def restarts(pool: WorkerPool) -> int:
    assert pool.local is not None
    return pool.local.starts - 1


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_local_worker_serves_and_ends_with_the_pool() -> None:
    async with started(load_settings(), command=ECHO) as pool:
        pid = child(pool)
        assert pool.ready
        session = await pool.open(REQUEST)
        assert await echoes(session)
        await session.close()
    assert gone(pid)
    assert pool.workers == []
    with pytest.raises(EngineLost):
        await pool.open(REQUEST)


async def test_a_killed_local_worker_loses_its_calls_and_is_started_again() -> None:
    async with started(load_settings(), command=ECHO) as pool:
        session = await pool.open(REQUEST)
        assert await echoes(session)
        os.kill(child(pool), signal.SIGKILL)
        with pytest.raises(EngineLost):
            await ending(session)
        await session.close()
        await until(lambda: restarts(pool) == 1 and pool.ready)
        session = await pool.open(REQUEST)
        assert await echoes(session)
        await session.close()


async def test_a_frozen_local_worker_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_TIMEOUT", 0.1)
    monkeypatch.setattr(pooled_worker, "HUNG_SECONDS", 0.2)
    async with started(load_settings(), command=ECHO) as pool:
        frozen = child(pool)
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: not pool.ready)
        with pytest.raises(EngineLost, match="does not answer"):
            await pool.open(REQUEST)
        await until(lambda: restarts(pool) == 1 and pool.ready)
        assert gone(frozen)


async def test_a_full_local_worker_is_full() -> None:
    async with started(load_settings(), command=(*ECHO, "--capacity", "1")) as pool:
        session = await pool.open(REQUEST)
        assert not pool.ready
        with pytest.raises(EngineFull):
            await pool.open(REQUEST)
        await session.close()
        await until(lambda: pool.ready)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(3)", "ended with status 3 before it listened"),
        ("print('hello', flush=True); input()", "printed 'hello' instead of where it listens"),
        ("print('h' * 99999, flush=True); input()", "printed an endless line instead of where it listens"),
        ("print('[' * 60000, flush=True); input()", r"printed '\[\[\["),
        ("""print('{"listening": "http://[::1"}', flush=True); input()""", "is not a worker's URL"),
        ("""print('{"listening": null}', flush=True); input()""", "is not a worker's URL"),
        ("input()", "did not listen within"),
    ],
)
async def test_a_local_worker_that_does_not_start_is_said_at_once(code: str, words: str) -> None:
    pool = WorkerPool(load_settings(), command=(sys.executable, "-c", code), start_timeout=0.5)
    with pytest.raises(EngineLost, match=words):
        await pool.start()
    assert pool.local is not None
    assert pool.local.pid is None
    await pool.stop()


async def test_a_command_that_does_not_exist() -> None:
    pool = WorkerPool(load_settings(), command=("/nonexistent/worker",))
    with pytest.raises(EngineLost, match="cannot be started"):
        await pool.start()
    await pool.stop()


STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"listening": "ws://127.0.0.1:9"}', flush=True)
while True:
    signal.pause()
"""


async def test_a_worker_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "STOP_TIMEOUT", 0.2)

    async def up(url: str) -> None:
        assert url == "ws://127.0.0.1:9"

    worker = LocalWorker((sys.executable, "-c", STUBBORN), os.environ, up, lambda: None)
    await worker.start()
    assert worker.pid is not None
    pid = worker.pid
    await worker.stop()
    assert gone(pid)


HALF = """
import pathlib, sys
again = pathlib.Path("again")
if again.exists():
    print("not an address", flush=True)
else:
    again.touch()
    print('{"listening": "ws://127.0.0.1:9"}', flush=True)
    sys.exit()
sys.stdin.read()
"""
"""Listens and ends; after that it starts, but does not say where it listens."""


async def test_a_local_worker_can_be_stopped_in_the_moment_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = asyncio.create_subprocess_exec
    stops: list[asyncio.Task[None]] = []

    async def watched(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*arguments, **options)
        if local.starts == 2:
            ended = asyncio.ensure_future(process.wait())
            ended.add_done_callback(lambda _: stops.append(asyncio.create_task(local.stop())))
        return process

    async def up(url: str) -> None:
        assert local.starts == 1

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    local = LocalWorker((sys.executable, "-c", HALF), os.environ, up, lambda: None)
    await local.start()
    await until(lambda: stops)
    async with asyncio.timeout(10):
        await stops[0]
    assert local.starts == 2


ODD = """
import pathlib, sys
starts = pathlib.Path("starts")
starts.write_text(starts.read_text() + "." if starts.exists() else ".")
line = ['{"listening": "ws://127.0.0.1:9"}', "h" * 99999, '{"listening": "http://[::1"}', '{"listening": "ws://127.0.0.1:9"}']
print(line[len(starts.read_text()) - 1], flush=True)
if len(starts.read_text()) > 1:
    sys.stdin.read()
"""
"""Listens and ends, is odd twice, and then listens for good."""


async def test_an_odd_start_is_a_failed_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    async with started(load_settings(), command=(sys.executable, "-c", ODD)) as pool:
        await until(lambda: restarts(pool) == 3 and pool.workers)
    assert "printed an endless line" in caplog.text
    assert "is not a worker's URL" in caplog.text


TELLS = """
import json, os, sys
from gateway.settings import load_settings, masked
seen = {name: value for name, value in os.environ.items() if name.startswith("CALLPLEX_")}
sys.stderr.write(json.dumps({"environment": seen, "settings": masked(load_settings())}) + "\\n")
"""


def test_the_local_worker_is_told_what_it_reads_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLPLEX_WEBHOOK_SECRET", "hunter2")
    monkeypatch.setenv("CALLPLEX_ENGINE", "echo")
    (tmp_path / ".env").write_text(
        "CALLPLEX_TWILIO_AUTH_TOKEN=hunter3\nCALLPLEX_WORKER_TLS_CERT=cert.pem\nCALLPLEX_WORKER_TLS_KEY=key.pem\n"
        "CALLPLEX_CHAT_URL=http://127.0.0.1:1/v1\nCALLPLEX_WORKER_TOKEN=hunter4\n"
    )
    (tmp_path / "callplex.toml").write_text('weights_dir = "elsewhere"\n')
    pool = WorkerPool(load_settings(chat_url="", weights_dir=None))
    assert pool.local is not None
    environment = {**pool.local._environment, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", TELLS], env=environment, capture_output=True, text=True)
    told = json.loads(child.stderr)
    assert "hunter" not in child.stderr
    assert told["environment"]["CALLPLEX_WORKER_TOKEN"] == pool.local.token
    given = {name: told["settings"][f"CALLPLEX_{name}"] for name in ("ENGINE", "CHAT_URL", "WEIGHTS_DIR")}
    assert given == {"ENGINE": "echo", "CHAT_URL": "", "WEIGHTS_DIR": ""}
    for secret in ("WORKER_TLS_CERT", "WORKER_TLS_KEY", "TWILIO_AUTH_TOKEN", "WEBHOOK_SECRET"):
        assert told["settings"][f"CALLPLEX_{secret}"] == ""


GATEWAY = """
import asyncio, sys
from gateway.pool import WorkerPool
from gateway.settings import load_settings

async def main():
    pool = WorkerPool(load_settings(), command=sys.argv[1:])
    await pool.start()
    print(pool.local.pid, flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


def test_a_killed_gateway_takes_its_worker_with_it() -> None:
    gateway = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, *ECHO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    with gateway:
        assert gateway.stdout is not None
        assert gateway.stderr is not None
        pid = int(gateway.stdout.readline())
        assert not gone(pid)
        gateway.kill()
        # The worker's standard error is the gateway's: this ends when neither of them holds it any more.
        assert select.select([gateway.stderr], [], [], 10)[0]
        assert gateway.stderr.read() == b""
        assert gateway.wait() == -signal.SIGKILL


def test_the_backoff_doubles_and_begins_anew_after_a_stable_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "BACKOFF_FIRST", 0.5)
    backoff = Backoff()
    assert [backoff.after(ran=1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(ran=60) == 0.5
    assert backoff.after(ran=59) == 1


class FailsLate(LocalWorker):
    """Its first child listens and ends, each that follows loads for longer than a stable run and fails."""

    async def _spawn(self) -> str:
        began.append(asyncio.get_running_loop().time())
        if len(began) > 1:
            await asyncio.sleep(LOADS)
            raise EngineLost("the local worker ended with status 1 before it listened")
        return "ws://127.0.0.1:9"

    async def _run_out(self) -> str:
        return "the local worker ended with status 1"


LOADS = 70.0
began: list[float] = []


def test_a_child_that_loads_for_long_and_fails_is_not_taken_for_a_stable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "BACKOFF_FIRST", 0.5)
    began.clear()

    async def up(url: str) -> None:
        return

    async def scenario() -> None:
        local = FailsLate((), {}, up, lambda: None)
        await local.start()
        await asyncio.sleep(10 * LOADS)
        await local.stop()

    virtual_time.run(scenario())
    pauses = [later - earlier - LOADS for earlier, later in itertools.pairwise(began[1:])]
    assert pauses[:4] == pytest.approx([1, 2, 4, 8])
