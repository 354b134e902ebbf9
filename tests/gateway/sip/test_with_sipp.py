"""The gateway's SIP against sipp: calls, copies, losses, races, holds, refusals, over UDP and TCP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.sip.sipp import (
    answered,
    hang_up,
    invite,
    needs_sipp,
    pause,
    play,
    press_five,
    recv,
    respond,
    run_sipp,
    sdp,
    send,
    tone,
)

pytestmark = [pytest.mark.sip, needs_sipp]

ECHO = {"CALLPLEX_EMBEDDED_ECHO": "1", "CALLPLEX_SIP_LISTEN": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One that echoes, for all tests that need no settings of their own."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), **ECHO) as running:
        yield running


def call_records(gateway: GatewayProcess, count: int) -> list[dict[str, Any]]:
    """The newest calls' transcripts, once `count` calls are filed in all."""
    until = time.monotonic() + 10
    while True:
        files = sorted(gateway.data.glob("calls/*/transcript.json"), key=lambda path: path.stat().st_mtime)
        if len(files) >= count or time.monotonic() > until:
            return [json.loads(path.read_text()) for path in files]
        time.sleep(0.02)


def calls_so_far(gateway: GatewayProcess) -> int:
    return len(list(gateway.data.glob("calls/*")))


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_call_with_sound_and_a_key(gateway: GatewayProcess, tmp_path: Path, transport: str) -> None:
    before = calls_so_far(gateway)
    steps = [*answered(), *play(tone(tmp_path), 2.0), *press_five(), pause(300), *hang_up()]
    options = ["-t", "t1"] if transport == "tcp" else []
    done = run_sipp(tmp_path, gateway.sip[transport], steps, *options)
    assert done.ok, done
    record = call_records(gateway, before + 1)[-1]
    assert (record["from"], record["to"], record["persona"]) == ("+12065550142", "+12065550198", "teacher")
    assert record["end_reason"] == "caller_hangup"
    assert record["metrics"]["frames_in"] >= 20
    assert record["metrics"]["frames_lost"] <= 12
    assert [said["text"] for said in record["utterances"]] == ["[keypad 5]"]


def test_a_number_decides_who_answers(gateway: GatewayProcess, tmp_path: Path) -> None:
    before = calls_so_far(gateway)
    done = run_sipp(tmp_path, gateway.sip["udp"], [*answered(), *hang_up()], number="+15035550111")
    assert done.ok, done
    assert call_records(gateway, before + 1)[-1]["persona"] == "greenfield-pharmacy"


def test_a_duplicate_invite_is_one_call(gateway: GatewayProcess, tmp_path: Path) -> None:
    before = calls_so_far(gateway)
    ring = [recv(100, optional=True), recv(180, optional=True)]
    steps = [invite(), *ring, recv(200), invite(), recv(200), send("ACK", 1), pause(300), *hang_up()]
    done = run_sipp(tmp_path, gateway.sip["udp"], steps, "-nr")
    assert done.ok, done
    assert len(call_records(gateway, before + 1)) == before + 1
    tags = {
        line.partition(";tag=")[2] for line in done.messages.splitlines() if line.startswith("To:") and "tag=" in line
    }
    assert len(tags) == 1


def test_a_lost_ack_brings_the_answer_again(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Section 13.3.1.4."""
    steps = [invite(), recv(100, optional=True), recv(180, optional=True), recv(200), recv(200), recv(200)]
    done = run_sipp(tmp_path, gateway.sip["udp"], [*steps, send("ACK", 1), pause(100), *hang_up()], "-nr")
    assert done.ok, done


def test_a_repeated_bye_is_answered_again(gateway: GatewayProcess, tmp_path: Path) -> None:
    steps = [*answered(), pause(100), send("BYE", 2), recv(200), send("BYE", 2), recv(200)]
    done = run_sipp(tmp_path, gateway.sip["udp"], steps, "-nr")
    assert done.ok, done


def test_a_cancel_that_comes_too_late_changes_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Section 9.2: the call is answered; the CANCEL is answered too, and the call goes on to its BYE."""
    target = "sip:[service]@[remote_ip]:[remote_port]"
    cancel = send("CANCEL", 1, branch="invite", uri=target)
    steps = [invite(), recv(100, optional=True), recv(180, optional=True), recv(200), cancel, recv(200), send("ACK", 1)]
    done = run_sipp(tmp_path, gateway.sip["udp"], [*steps, pause(100), *hang_up()])
    assert done.ok, done


def test_hold_and_resume(gateway: GatewayProcess, tmp_path: Path) -> None:
    before = calls_so_far(gateway)
    hold = [send("INVITE", 2, body=sdp("sendonly", 2)), recv(100, optional=True), recv(200, check="a=recvonly")]
    resume = [send("INVITE", 3, body=sdp("sendrecv", 3)), recv(100, optional=True), recv(200, check="a=sendrecv")]
    steps = [*answered(), *play(tone(tmp_path), 0.5), *hold, send("ACK", 2), pause(500)]
    steps += [*resume, send("ACK", 3), pause(500), *hang_up(4)]
    done = run_sipp(tmp_path, gateway.sip["udp"], steps)
    assert done.ok, done
    assert call_records(gateway, before + 1)[-1]["end_reason"] == "caller_hangup"


def test_keys_told_by_info(gateway: GatewayProcess, tmp_path: Path) -> None:
    before = calls_so_far(gateway)
    steps = answered()
    for cseq, key in enumerate("42#", 2):
        body = f"Signal={key}\nDuration=160"
        steps += [send("INFO", cseq, body=body, kind="application/dtmf-relay"), recv(200)]
    done = run_sipp(tmp_path, gateway.sip["udp"], [*steps, pause(300), *hang_up(5)])
    assert done.ok, done
    assert [said["text"] for said in call_records(gateway, before + 1)[-1]["utterances"]] == ["[keypad 42#]"]


def test_a_late_offer(gateway: GatewayProcess, tmp_path: Path) -> None:
    """An INVITE without SDP: ours comes with the 200, the answer to it with the ACK (section 13.2.1)."""
    before = calls_so_far(gateway)
    steps = [invite(""), recv(100, optional=True), recv(180, optional=True), recv(200, check="m=audio")]
    steps += [send("ACK", 1, body=sdp()), *play(tone(tmp_path), 1.0), *hang_up()]
    done = run_sipp(tmp_path, gateway.sip["udp"], steps)
    assert done.ok, done
    assert call_records(gateway, before + 1)[-1]["metrics"]["frames_in"] >= 8


@pytest.mark.parametrize(
    ("body", "code"), [(sdp(formats="9 101"), 488), (sdp().replace("RTP/AVP", "RTP/SAVP"), 488), ("nonsense", 488)]
)
def test_sound_that_cannot_be_agreed_on(gateway: GatewayProcess, tmp_path: Path, body: str, code: int) -> None:
    done = run_sipp(
        tmp_path,
        gateway.sip["udp"],
        [invite(body), recv(100, optional=True), recv(code), send("ACK", 1, branch="invite")],
    )
    assert done.ok, done


def test_options_tell_what_is_served(gateway: GatewayProcess, tmp_path: Path) -> None:
    done = run_sipp(
        tmp_path, gateway.sip["udp"], [send("OPTIONS", 1, branch="invite"), recv(200, check="Allow: INVITE")]
    )
    assert done.ok, done


def test_a_caller_who_gives_up_while_it_rings(tmp_path: Path) -> None:
    cancel = send("CANCEL", 1, branch="invite")
    steps = [
        invite(),
        recv(100, optional=True),
        recv(180),
        cancel,
        recv(200),
        recv(487),
        send("ACK", 1, branch="invite"),
    ]
    with running_gateway(tmp_path, **ECHO, CALLPLEX_SIP_RING_SECONDS="30") as gateway:
        done = run_sipp(tmp_path / "sipp", gateway.sip["udp"], steps)
        assert done.ok, done
        assert calls_so_far(gateway) == 0
        assert gateway.stop() == 0


def test_with_every_line_taken_callers_are_told_when_to_try_again(tmp_path: Path) -> None:
    with running_gateway(tmp_path, **ECHO, CALLPLEX_MAX_CALLS="1") as gateway:
        inner = [*answered(), pause(200)]
        busy = [invite(), recv(100, optional=True), recv(486, check="Retry-After: 10"), send("ACK", 1, branch="invite")]
        # The first call is left standing: its caller vanishes without a word.
        assert run_sipp(tmp_path / "first", gateway.sip["udp"], inner).ok
        done = run_sipp(tmp_path / "second", gateway.sip["udp"], busy)
        assert done.ok, done


def test_without_a_worker_callers_are_told_that_nobody_is_there(tmp_path: Path) -> None:
    settings = {"CALLPLEX_SIP_LISTEN": "127.0.0.1:0", "CALLPLEX_WORKERS": "ws://127.0.0.1:9"}
    refused = [invite(), recv(100, optional=True), recv(503, check="Retry-After: 10"), send("ACK", 1, branch="invite")]
    with running_gateway(tmp_path, **settings) as gateway:
        done = run_sipp(tmp_path / "sipp", gateway.sip["udp"], refused, number="+12065550198")
        assert done.ok, done


def test_a_gateway_that_stops_hangs_up(tmp_path: Path) -> None:
    steps = [*answered(), '<recv request="BYE"/>', respond("200 OK")]
    with running_gateway(tmp_path, **ECHO) as gateway:
        stopper = threading.Thread(target=lambda: stop_in_call(gateway))
        stopper.start()
        done = run_sipp(tmp_path / "sipp", gateway.sip["udp"], steps)
        stopper.join()
        assert done.ok, done
        assert call_records(gateway, 1)[-1]["end_reason"] == "shutdown"


def stop_in_call(gateway: GatewayProcess) -> None:
    until = time.monotonic() + 20
    while not gateway.has_answered() and time.monotonic() < until:
        time.sleep(0.02)
    gateway.stop()


@pytest.mark.long
def test_two_hundred_calls_at_forty_a_second(tmp_path: Path) -> None:
    """With the limits as they are by default: none fails, and each leaves its record."""
    steps = [*answered(), *play(tone(tmp_path), 5.0), *hang_up()]
    load = ["-m", "200", "-l", "200", "-r", "40", "-rtp_threadtasks", "50"]
    with running_gateway(tmp_path / "gateway", **ECHO, CALLPLEX_MAX_CALLS="300") as gateway:
        done = run_sipp(tmp_path / "sipp", gateway.sip["udp"], steps, *load, timeout=60)
        assert done.ok, done.said[-3000:]
        records = call_records(gateway, 200)
    assert len(records) == 200
    assert {record["end_reason"] for record in records} == {"caller_hangup"}
