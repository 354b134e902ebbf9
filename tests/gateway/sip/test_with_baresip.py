"""The gateway's SIP against baresip: what is said comes through both ways, plainly and encrypted; both can hang up."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.sip.baresip import Telephone, needs_baresip, telephone
from tests.gateway.sip.sipp import answered, needs_sipp, pause, play, recv, respond, run_sipp, send, tone

pytestmark = [pytest.mark.sip, needs_baresip]

ROOT = Path(__file__).parents[3]
PERSON = "+12065550123"
CALLER = ROOT / "gateway/phone/callers/bank-hours.wav"
TLS = ROOT / "tests/model/tls"
ECHO = {"CALLPLEX_EMBEDDED_ECHO": "1", "CALLPLEX_SIP_LISTEN": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), **ECHO) as running:
        yield running


def recognised(recording: Path) -> str:
    """The words in a recording at 8 kHz."""
    asr = pytest.importorskip("model.rehearsal.asr")
    weights = pytest.importorskip("model.rehearsal.weights")
    with wave.open(str(recording)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32_768
    doubled = np.interp(np.arange(2 * len(samples)) / 2, np.arange(len(samples)), samples).astype(np.float32)
    heard = asr.Recogniser(weights.find_weights().whisper).recognise(doubled[: 16_000 * 12])
    return str(heard.text).lower()


@contextmanager
def finishing_worker(reason: str) -> Iterator[str]:
    """The URL of a worker that is done after a second."""
    command = [sys.executable, "-m", "tests.finishing_worker", reason]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["listening"])
        finally:
            process.kill()


def personas(folder: Path) -> Path:
    """One persona that can transfer to a number."""
    folder.mkdir()
    person = f'transfers: {{person: "{PERSON}"}}'
    (folder / "echo.yaml").write_text(f"name: Echo\nvoice: NATF2\nrole: You return what you hear.\n{person}\n")
    (folder / "routing.yaml").write_text("default: {persona: echo}\n")
    return folder


def loudness(recording: Path) -> float:
    with wave.open(str(recording)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float64)
    return float(np.sqrt(np.mean(samples**2)))


def talk(phone: Telephone, address: str, seconds: float) -> None:
    """Call, listen for so long, hang up."""
    phone.command("dial", address)
    phone.wait_for("CALL_ESTABLISHED")
    phone.listen(seconds)
    phone.command("hangup")
    phone.wait_for("CALL_CLOSED")


def test_a_sentence_comes_back_as_it_was_said(gateway: GatewayProcess, tmp_path: Path) -> None:
    with telephone(tmp_path / "phone", "tester", CALLER) as phone:
        talk(phone, f"sip:+12065550198@{gateway.sip['udp']}", 6.0)
    assert "what time" in recognised(phone.heard())


def test_over_tls_sound_is_encrypted(tmp_path: Path) -> None:
    settings = {
        "CALLPLEX_EMBEDDED_ECHO": "1",
        "CALLPLEX_SIP_LISTEN": "tls:127.0.0.1:0",
        "CALLPLEX_SIP_TLS_CERT": str(TLS / "cert.pem"),
        "CALLPLEX_SIP_TLS_KEY": str(TLS / "key.pem"),
        "CALLPLEX_SIP_SRTP": "required",
    }
    options = "mediaenc=srtp-mand"
    with (
        running_gateway(tmp_path, **settings) as gateway,
        telephone(tmp_path / "phone", "tester", CALLER, options=options, ca=TLS / "cert.pem", tls=True) as phone,
    ):
        talk(phone, f"sip:+12065550198@{gateway.sip['tls']};transport=tls", 6.0)
        assert "what time" in recognised(phone.heard())


def test_the_agent_hangs_up(tmp_path: Path) -> None:
    with (
        finishing_worker("goodbye") as worker,
        running_gateway(tmp_path, CALLPLEX_SIP_LISTEN="127.0.0.1:0", CALLPLEX_WORKERS=worker) as gateway,
        telephone(tmp_path / "phone", "tester", CALLER) as phone,
    ):
        phone.command("dial", f"sip:+12065550198@{gateway.sip['udp']}")
        phone.wait_for("CALL_ESTABLISHED")
        phone.wait_for("CALL_CLOSED")


def test_a_caller_is_transferred_to_another_telephone(tmp_path: Path) -> None:
    """The caller's telephone takes the REFER and calls the person itself; our call ends."""
    with (
        finishing_worker("transfer") as worker,
        telephone(tmp_path / "person", PERSON, CALLER) as person,
        telephone(tmp_path / "caller", "tester", CALLER) as caller,
        running_gateway(
            tmp_path / "gateway",
            CALLPLEX_SIP_LISTEN="127.0.0.1:0",
            CALLPLEX_WORKERS=worker,
            CALLPLEX_PERSONAS=str(personas(tmp_path / "personas")),
            CALLPLEX_SIP_DIAL=f"sip:{{number}}@{person.address}",
        ) as gateway,
    ):
        caller.command("dial", f"sip:+12065550198@{gateway.sip['udp']}")
        person.wait_for("CALL_ESTABLISHED")
        assert caller.wait_for("CALL_CLOSED")["peeruri"].startswith("sip:+12065550198@")
        person.listen(5.0)
        caller.command("hangup")
        person.wait_for("CALL_CLOSED")
        assert "what time" in recognised(person.heard())


@needs_sipp
def test_a_caller_who_cannot_be_transferred_is_connected_by_us(tmp_path: Path) -> None:
    """The peer refuses the REFER: a second call, and both are put together until one hangs up."""
    with (
        finishing_worker("transfer") as worker,
        telephone(tmp_path / "person", PERSON, CALLER) as person,
        running_gateway(
            tmp_path / "gateway",
            CALLPLEX_SIP_LISTEN="127.0.0.1:0",
            CALLPLEX_WORKERS=worker,
            CALLPLEX_PERSONAS=str(personas(tmp_path / "personas")),
            CALLPLEX_SIP_DIAL=f"sip:{{number}}@{person.address}",
        ) as gateway,
    ):
        refused = ['<recv request="REFER"/>', respond("603 Decline")]
        steps = [*answered(), *play(tone(tmp_path), 0.1), *refused, pause(4000), send("BYE", 2), recv(200)]
        done = run_sipp(tmp_path / "sipp", gateway.sip["udp"], steps)
        assert done.ok, done
        person.wait_for("CALL_CLOSED")
        assert loudness(person.heard()) > 1_000
