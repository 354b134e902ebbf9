"""The doctor names what is wrong, each with a command, and keeps quiet about what is not."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import doctor
from gateway.doctor import Finding, examine, python_version, report
from gateway.settings import Settings, load_settings

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
TLS = Path(__file__).parents[1] / "model" / "tls"
PERSONAS = Path(__file__).parents[2] / "personas"


@pytest.fixture(autouse=True)
def _away_from_the_machines_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**values: object) -> Settings:
    """Settings with which nothing is wrong, but for `values`."""
    good: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "engine": "echo",
        "personas": PERSONAS,
        "data_key": base64.b64encode(bytes(32)).decode(),
    }
    return load_settings(**{**good, **values})


def of(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def wrong(**values: object) -> list[Finding]:
    return [finding for finding in examine(lambda: settings(**values)) if not finding.ok]


def test_nothing_wrong_is_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    findings = examine(settings)
    assert [finding for finding in findings if not finding.ok] == []
    assert report(findings) == 0
    assert capsys.readouterr().out.endswith("Nothing is wrong.\n")


def test_something_wrong_is_status_1_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("listen", False, "in use", "ss -ltnp")]) == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown
    assert "fix: ss -ltnp" in shown
    assert "1 thing is wrong." in shown


def test_a_warning_is_shown_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("disk", False, "nearly full", "du", warning=True)]) == 0
    assert "note" in capsys.readouterr().out


def test_too_few_descriptors_for_the_calls_are_worth_a_note() -> None:
    code = "from gateway.doctor import *; [found] = descriptors(Settings(max_calls=100)); print(found.ok, found.fix)"
    command = ["sh", "-c", f"ulimit -n 399 && exec {sys.executable} -c '{code}'"]
    said = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(PERSONAS.parent)})
    assert said.stdout == "False export CALLPLEX_MAX_CALLS=99    # or LimitNOFILE=800 where the service is started\n"
    assert of(examine(lambda: settings(max_calls=100)), "descriptors").ok


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([Finding("listen", False, "in use", "ss -ltnp")], as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert shown["findings"] == [
        {"name": "listen", "ok": False, "detail": "in use", "fix": "ss -ltnp", "warning": False}
    ]


def test_a_setting_that_is_invalid_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPLEX_LISTEN", "nowhere")
    found = of(examine(load_settings), "settings")
    assert not found.ok
    assert "CALLPLEX_LISTEN" in found.detail
    assert found.fix.startswith("unset CALLPLEX_LISTEN ")


def test_an_old_python() -> None:
    assert python_version((3, 11)).ok
    assert not python_version((3, 10)).ok


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["httpx>=99.1", "no-such-package>=1", "pytest; extra == 'dev'", "odd>=1; python_version >= '99.0'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found = of(examine(settings), "packages")
    assert "is older than 99.1; no-such-package is not installed" in found.detail
    assert found.detail.count(";") == 1
    assert "pip install" in found.fix


def test_a_port_another_program_uses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        doctor_found = wrong(listen=f"127.0.0.1:{port}")
    (found,) = doctor_found
    assert found.name == "listen"
    assert "in use by another program" in found.detail
    assert f"sport = :{port}" in found.fix


@pytest.mark.parametrize(
    ("name", "body"), [("listen", b'{"status":"ready","calls":0}'), ("admin_listen", b"callplex_calls_active 0.0\n")]
)
async def test_a_port_callplex_itself_uses(name: str, body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        findings = await asyncio.to_thread(examine, lambda: settings(**{name: address}))
    assert of(findings, name).ok
    assert "already running" in of(findings, name).detail


def test_an_address_that_is_not_ours() -> None:
    (found,) = wrong(listen="192.0.2.1:8080")
    assert "cannot listen on 192.0.2.1:8080" in found.detail


def test_an_admin_listener_open_to_the_world() -> None:
    (found,) = wrong(admin_listen="0.0.0.0:8081")
    assert (found.name, found.fails) == ("admin_listen", True)


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (found,) = wrong(data_dir=tmp_path / "taken" / "data")
    assert found.name == "data_dir"
    assert str(tmp_path / "taken") in found.fix


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_WANTED", 1 << 60)
    (low,) = wrong()
    assert (low.name, low.warning) == ("data_dir", True)
    monkeypatch.setattr(doctor, "DISK_NEEDED", 1 << 60)
    (full,) = wrong()
    assert (full.name, full.fails) == ("data_dir", True)


def test_the_doctor_creates_nothing(tmp_path: Path) -> None:
    examine(lambda: settings(data_dir=tmp_path / "new" / "data"))
    assert list(tmp_path.iterdir()) == []


def test_personas_that_are_missing_or_invalid(tmp_path: Path) -> None:
    (absent,) = wrong(personas=tmp_path / "absent")
    assert "CALLPLEX_PERSONAS" in absent.fix
    (tmp_path / "agent.yaml").write_text("nonsense: true\n")
    problems = wrong(personas=tmp_path)
    assert any("agent.yaml:1" in problem.detail for problem in problems)
    assert all(problem.fix.startswith("callplex personas check") for problem in problems)


TOKEN = {"twilio_auth_token": "token", "twilio_account_sid": "AC" + "0" * 32}


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("http://calls.example.com", "https://calls.example.com"),
        ("https://calls.example.com/twilio/voice", "https://calls.example.com"),
        ("https://calls.example.com:port", "https://calls.example.com"),
    ],
)
def test_a_public_url_that_carriers_cannot_use(url: str, fix: str) -> None:
    (found,) = wrong(public_url=url, **TOKEN)
    assert found.name == "public_url"
    assert found.fix == f"export CALLPLEX_PUBLIC_URL={fix}"


@pytest.mark.parametrize("url", ["https://calls.example.com:8443/?a=b", "calls.example.com", "https://[::1"])
def test_a_public_url_that_is_none_is_refused_with_the_settings(url: str) -> None:
    (found,) = wrong(public_url=url, **TOKEN)
    assert found.name == "settings"
    assert found.fix.startswith("unset CALLPLEX_PUBLIC_URL ")


@pytest.mark.parametrize("url", ["https://calls.example.com", "https://calls.example.com:8443/"])
def test_a_public_url_that_is_fine(url: str) -> None:
    assert wrong(public_url=url, **TOKEN) == []


@pytest.mark.parametrize(
    ("values", "says", "fails"),
    [
        ({"public_url": "https://calls.example.com"}, "no auth token", True),
        ({"twilio_auth_token": "token"}, "no account SID", False),
        ({"twilio_auth_token": "token", "twilio_account_sid": "hello"}, "32 hex digits", True),
        ({"allow_unsigned": True}, "whoever reaches the port", False),
    ],
)
def test_how_carriers_are_trusted(values: dict[str, object], says: str, fails: bool) -> None:
    (found,) = wrong(**values)
    assert (found.name, found.fails) == ("twilio", fails)
    assert says in found.detail


def test_a_webhook_that_cannot_be_signed_or_sent() -> None:
    (unsigned,) = wrong(webhook_url="https://example.com/hook", webhook_secret="hunter2")
    assert "whsec_" in unsigned.detail
    assert "hunter2" not in unsigned.detail + unsigned.fix
    (nowhere,) = wrong(webhook_url="example.com", webhook_secret=SECRET)
    assert "CALLPLEX_WEBHOOK_URL" in nowhere.detail
    assert wrong(webhook_url="https://example.com/hook", webhook_secret=SECRET) == []


def test_the_fix_for_the_webhook_secret_is_a_command_that_makes_a_valid_one() -> None:
    (unsigned,) = wrong(webhook_url="https://example.com/hook")
    shell = f"{unsigned.fix}; echo $CALLPLEX_WEBHOOK_SECRET"
    made = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    assert wrong(webhook_url="https://example.com/hook", webhook_secret=made) == []


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_workers_elsewhere(open_port: int) -> None:
    assert wrong(workers=f"ws://127.0.0.1:{open_port}") == []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (down,) = wrong(workers=f"ws://127.0.0.1:{open_port},ws://127.0.0.1:{unused.getsockname()[1]}")
    assert "cannot be reached" in down.detail
    assert "callplex worker" in down.fix


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ("http://127.0.0.1:1", "is not a ws:// or wss:// URL"),
        ("ws://gpu.example.com:8090", "clear text"),
        ("wss://gpu.example.com:8090", "shared token"),
        ("ws://[::1", "is not a ws:// or wss:// URL"),
    ],
)
def test_workers_that_would_be_unsafe(workers: str, says: str) -> None:
    (found,) = wrong(workers=workers)
    assert says in found.detail


def test_the_rehearsal_engine_finds_its_weights_or_says_what_to_install(tmp_path: Path) -> None:
    findings = examine(lambda: settings(engine="rehearsal"))
    assert of(findings, "rehearsal").ok
    assert not of(findings, "weights").fails
    absent = of(examine(lambda: settings(engine="rehearsal", weights_dir=tmp_path / "absent")), "weights")
    assert str(tmp_path / "absent") in absent.detail
    assert "CALLPLEX_WEIGHTS_DIR" in absent.fix


def test_the_personaplex_engine_needs_packages_a_gpu_and_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = wrong(engine="personaplex", weights_dir=tmp_path / "absent")
    by_name = {finding.name: finding for finding in found}
    assert by_name.keys() >= {"gpu", "weights"}
    assert by_name["weights"].fix == "callplex weights download"
    assert "nvidia-smi" in by_name["gpu"].detail


def test_the_personaplex_engine_on_a_cpu_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = wrong(engine="personaplex", device="cpu", weights_dir=tmp_path / "absent")
    assert [finding.name for finding in found] == ["weights"]


def test_a_gpu_check_that_cannot_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = of(examine(lambda: settings(engine="personaplex")), "gpu")
    assert not found.ok
    assert found.fix.startswith("/bin/false -m model.gpu_check --json")


def test_tls_files_of_the_worker(tmp_path: Path) -> None:
    assert wrong(worker_tls_cert=TLS / "cert.pem", worker_tls_key=TLS / "key.pem") == []
    (half,) = wrong(worker_tls_cert=TLS / "cert.pem")
    assert "CALLPLEX_WORKER_TLS_KEY is missing" in half.detail
    (absent,) = wrong(worker_tls_cert=tmp_path / "absent.pem", worker_tls_key=TLS / "key.pem")
    assert "No such file" in absent.detail
    broken = tmp_path / "cert.pem"
    broken.write_text("no certificate")
    (unreadable,) = wrong(worker_tls_cert=broken, worker_tls_key=TLS / "key.pem")
    assert unreadable.fix.startswith("openssl x509")


def test_the_chat_endpoint() -> None:
    assert "not an http(s) URL" in wrong(chat_url="localhost:8000")[0].detail
    assert "without a model" in wrong(chat_url="http://127.0.0.1:8000/v1")[0].detail
    assert wrong(chat_url="http://127.0.0.1:8000/v1", chat_model="small") == []


def test_the_command_exits_with_1_and_shows_no_secret(tmp_path: Path) -> None:
    environment = {
        "CALLPLEX_WEBHOOK_URL": "https://example.com/hook",
        "CALLPLEX_WEBHOOK_SECRET": "hunter2-is-no-secret",
        "CALLPLEX_ENGINE": "echo",
        "CALLPLEX_PERSONAS": str(PERSONAS),
        "CALLPLEX_LISTEN": "127.0.0.1:0",
        "CALLPLEX_ADMIN_LISTEN": "127.0.0.1:0",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert [one["name"] for one in json.loads(done.stdout)["findings"] if not one["ok"] and not one["warning"]] == [
        "webhook"
    ]
    assert "hunter2" not in done.stdout + done.stderr
