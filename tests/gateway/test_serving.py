"""The gateway as a process: what it says when it starts, refuses to, is asked, and is stopped."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.gateway_process import environment, running_gateway

PHONE = Path(__file__).parents[2] / "gateway" / "phone" / "callers" / "bank-hours.wav"


def refused(folder: Path, **settings: str) -> str:
    """Start a gateway that must not start; returns what it says."""
    result = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve"],
        env=environment(folder / "data", **settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_gateway_says_what_to_do_next_and_is_ready(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CALLPLEX_ENGINE="echo") as gateway:
        assert gateway.get("/healthz").json() == {"status": "ok"}
        assert gateway.get("/readyz").status_code == 200
        said = gateway.log.read_text()
        assert "/twilio/voice" in said
        assert f"callplex call --wav FILE.wav --url {gateway.url}" in said
        assert gateway.stop() == 0


def test_the_commands_it_prints_can_be_pasted(tmp_path: Path) -> None:
    callplex = tmp_path / "bin dir" / "callplex"
    callplex.parent.mkdir()
    callplex.write_text(f"#!{sys.executable}\nfrom gateway.cli import main\nmain()\n")
    callplex.chmod(0o755)
    environ = environment(tmp_path / "data", CALLPLEX_EMBEDDED_ECHO="1", PYTHONPATH=str(PHONE.parents[3]))
    for started, shown in (("bin dir/callplex", "'bin dir/callplex'"), ("callplex", "callplex")):
        command = subprocess.Popen(
            [started, "serve", "--json"],
            env={**environ, "PATH": f"{callplex.parent}:{environ['PATH']}" if started == shown else "/usr/bin:/bin"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with command:
            assert command.stdout is not None
            address = json.loads(command.stdout.readline())["listening"]
            command.send_signal(signal.SIGTERM)
            _, said = command.communicate(timeout=20)
        assert f":  {shown} call --wav FILE.wav --url http://{address}\n" in said


def test_metrics_are_on_the_admin_listener_only(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CALLPLEX_EMBEDDED_ECHO="1") as gateway:
        assert "callplex_calls_active 0.0" in gateway.get_admin("/metrics").text
        assert gateway.get("/metrics").status_code == 404
        assert gateway.get_admin("/healthz").status_code == 404
        forged = httpx.get(gateway.admin + "/metrics", headers={"Host": "evil.example"})
        assert forged.status_code == 400


def test_a_port_in_use_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(tmp_path, CALLPLEX_LISTEN=address)
    assert said == (
        f"callplex: cannot listen on {address}: Address already in use; stop what uses it, or set CALLPLEX_LISTEN\n"
    )


def test_the_admin_listener_stays_on_loopback(tmp_path: Path) -> None:
    assert "CALLPLEX_ADMIN_LISTEN is 0.0.0.0:8081" in refused(tmp_path, CALLPLEX_ADMIN_LISTEN="0.0.0.0:8081")


def test_an_admin_listener_by_name_is_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "CALLPLEX_ADMIN_LISTEN is myhost:8081" in refused(tmp_path, CALLPLEX_ADMIN_LISTEN="myhost:8081")
    assert "cannot listen on a..b:80" in refused(tmp_path, CALLPLEX_LISTEN="a..b:80")


@pytest.mark.parametrize("name", [".env", "callplex.toml"])
def test_a_settings_file_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe")
    assert refused(tmp_path) == f"callplex: {name} is not UTF-8; save it as UTF-8 text\n"


def test_a_misspelt_variable_is_warned_of(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CALLPLEX_EMBEDDED_ECHO="1", CALLPLEX_MAX_CALS="3") as gateway:
        assert "CALLPLEX_MAX_CALS is ignored: it is no setting; did you mean CALLPLEX_MAX_CALLS?" in (
            gateway.log.read_text()
        )


def test_an_address_that_cannot_be_called_is_said_in_one_sentence(tmp_path: Path) -> None:
    phone = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "call", "--wav", str(PHONE), "--url", "http://[::1"],
        env=environment(tmp_path / "data"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (phone.returncode, phone.stderr) == (
        1,
        "'http://[::1' is no address; write it like http://127.0.0.1:8080.\n",
    )


def test_an_invalid_persona_stops_the_start_with_file_line_and_field(tmp_path: Path) -> None:
    personas = tmp_path / "personas"
    personas.mkdir()
    (personas / "bank.yaml").write_text("name: Sanni\nvoise: NATF2\n")
    said = refused(tmp_path, CALLPLEX_PERSONAS=str(personas))
    assert re.search(r"bank\.yaml:2: voise: ", said)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CALLPLEX_LISTEN", "8080"),
        ("CALLPLEX_WORKER_CAPACITY", "0"),
        ("CALLPLEX_ENGINE", "magic"),
        ("CALLPLEX_PUBLIC_URL", "voice.example.com"),
        ("CALLPLEX_TRUSTED_PROXIES", "10.0.0.0/8, proxy"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, name: str, value: str) -> None:
    assert refused(tmp_path, **{name: value}).startswith(f"callplex: {name}: ")


def test_a_webhook_secret_that_cannot_sign_stops_the_start(tmp_path: Path) -> None:
    said = refused(tmp_path, CALLPLEX_WEBHOOK_URL="http://127.0.0.1:9/hook", CALLPLEX_WEBHOOK_SECRET="hunter2")
    assert "CALLPLEX_WEBHOOK_SECRET" in said
    assert "hunter2" not in said


def test_a_stopped_gateway_files_the_call_on_the_line(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CALLPLEX_EMBEDDED_ECHO="1") as gateway:
        phone = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "call", "--wav", str(PHONE), "--url", gateway.url, "--json"],
            env=environment(tmp_path / "data"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        give_up = time.monotonic() + 20
        while not gateway.has_answered():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert gateway.stop() == 0
        report, _ = phone.communicate(timeout=30)
    assert json.loads(report)["verbs"][0].startswith("Connect")
    (transcript,) = (tmp_path / "data" / "calls").glob("*/transcript.json")
    document = json.loads(transcript.read_text())
    assert document["end_reason"] == "shutdown"
    assert document["engine"] == "echo"


def test_sockets_that_say_nothing_take_nobodys_turn(tmp_path: Path) -> None:
    with running_gateway(tmp_path, descriptors="128", CALLPLEX_EMBEDDED_ECHO="1") as gateway, ExitStack() as stack:
        host, port = gateway.url.removeprefix("http://").split(":")
        for _ in range(300):
            half_open = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            half_open.sendall(b"GET /healthz HT")
        assert gateway.get("/healthz").json() == {"status": "ok"}
        assert gateway.stop() == 0


def test_the_descriptor_limit_is_raised_as_far_as_the_system_lets_us() -> None:
    code = "from gateway.descriptors import raise_descriptor_limit; print(raise_descriptor_limit())"
    limits = "ulimit -Sn 256 && ulimit -Hn 512"
    said = subprocess.run(
        ["sh", "-c", f'{limits} && exec {sys.executable} -c "{code}"'], capture_output=True, text=True
    )
    assert said.stdout == "512\n"


SLOW = """
import asyncio, sys
from gateway import desk, serving
from gateway.pool import WorkerPool
from gateway.settings import load_settings

class SlowPool(WorkerPool):
    def __init__(self, settings):
        super().__init__(settings, command=(sys.executable, "-c", sys.argv[1]))

desk.WorkerPool = SlowPool
asyncio.run(serving.serve(load_settings(), print))
"""
LOADS = "import time; print('loading'); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {LOADS}"


@contextmanager
def loading_gateway(folder: Path, worker: str) -> Iterator[subprocess.Popen[str]]:
    """A gateway that waits for its worker to load."""
    out = worker.replace("'loading'", "'loading', file=__import__('sys').stderr, flush=True")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, out],
        env=environment(folder / "data"),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as gateway:
        assert gateway.stderr is not None
        assert gateway.stderr.readline() == "loading\n"
        yield gateway
        gateway.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_gateway_that_still_loads_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    with loading_gateway(tmp_path, LOADS) as gateway:
        (worker,) = psutil.Process(gateway.pid).children()
        gateway.send_signal(number)
        assert gateway.wait(4) == 0
        assert psutil.wait_procs([worker], timeout=4)[1] == []
        assert gateway.stderr is not None
        assert "Traceback" not in gateway.stderr.read()


def test_who_asks_twice_is_not_kept_waiting(tmp_path: Path) -> None:
    with loading_gateway(tmp_path, DEAF) as gateway:
        (worker,) = psutil.Process(gateway.pid).children()
        gateway.send_signal(signal.SIGINT)
        gateway.send_signal(signal.SIGTERM)
        status = gateway.wait(4)
        worker.kill()
        assert status in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_the_worker_does_not_outlive_a_killed_gateway(tmp_path: Path) -> None:
    with running_gateway(tmp_path, CALLPLEX_ENGINE="echo") as gateway:
        (worker,) = psutil.Process(gateway.process.pid).children()
        gateway.process.kill()
        gateway.process.wait(20)
        assert psutil.wait_procs([worker], timeout=20)[1] == []
