"""The gateway registers with kamailio, stays registered, and is called through it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gateway.sip.doctor import examine_sip
from gateway.sip.settings import SipSettings
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.sip.kamailio import PASSWORD, USER, WAIT, Trunk, needs_kamailio, trunk
from tests.gateway.sip.sipp import answered, hang_up, needs_sipp, play, run_sipp, tone

pytestmark = [pytest.mark.sip, needs_kamailio]


def settings(registrar: Trunk, transport: str = "udp", password: str = PASSWORD) -> dict[str, str]:
    trunks = [
        {
            "name": "test",
            "registrar": f"sip:{registrar.address};transport={transport}",
            "user": USER,
            "password": password,
        }
    ]
    return {
        "CALLPLEX_EMBEDDED_ECHO": "1",
        "CALLPLEX_SIP_LISTEN": "127.0.0.1:0",
        "CALLPLEX_SIP_NUMBER_FROM": "to",
        "CALLPLEX_SIP_TRUNKS": json.dumps(trunks),
    }


def wait_until_said(gateway: GatewayProcess, line: str) -> None:
    until = time.monotonic() + WAIT
    while line not in gateway.log.read_text():
        assert time.monotonic() < until, gateway.log.read_text()
        time.sleep(0.02)


@needs_sipp
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_call_through_a_trunk_that_asked_for_a_password(tmp_path: Path, transport: str) -> None:
    with (
        trunk(tmp_path / "trunk") as registrar,
        running_gateway(tmp_path / "gateway", **settings(registrar, transport)) as gateway,
    ):
        registrar.wait_for(f"saved {USER}")
        steps = [*answered(), *play(tone(tmp_path), 1.0), *hang_up()]
        done = run_sipp(tmp_path / "sipp", registrar.address, steps, number="+15035550111")
        assert done.ok, done
        assert "Record-Route" in done.messages
        assert gateway.stop() == 0
        registrar.wait_for("saved callplex 0")
        (record,) = [json.loads(path.read_text()) for path in gateway.data.glob("calls/*/transcript.json")]
        assert (record["to"], record["persona"]) == ("+15035550111", "greenfield-pharmacy")
        assert record["metrics"]["frames_in"] >= 8


def test_a_registration_is_refreshed_before_it_expires(tmp_path: Path) -> None:
    with (
        trunk(tmp_path / "trunk", expires=4) as registrar,
        running_gateway(tmp_path / "gateway", **settings(registrar)) as gateway,
    ):
        registrar.wait_for(f"saved {USER}", 3)
        wait_until_said(gateway, "trunk test: registered")


def test_a_wrong_password_is_said_and_calls_are_taken_all_the_same(tmp_path: Path) -> None:
    with (
        trunk(tmp_path / "trunk") as registrar,
        running_gateway(tmp_path / "gateway", **settings(registrar, password="wrong")) as gateway,
    ):
        wait_until_said(gateway, "trunk test: not registered: 401")
        assert gateway.get("/readyz").status_code == 200
        assert gateway.stop() == 0
        assert f"saved {USER}" not in registrar.log


def test_the_doctor_tells_a_right_password_from_a_wrong_one_and_registers_nothing(tmp_path: Path) -> None:
    with trunk(tmp_path / "trunk") as registrar:
        for password, ok, said in (
            (PASSWORD, True, "lets callplex register"),
            ("wrong", False, "the password is wrong, or not 'callplex''s (401"),
            ("", False, "wants a password (401), and none is set"),
        ):
            one = {"name": "test", "registrar": f"sip:{registrar.address}", "user": USER, "password": password}
            settings = SipSettings.model_validate({"listen": "127.0.0.1:0", "trunks": [one]})
            found = [finding for finding in examine_sip(settings, 10, True) if finding.name == "sip_trunk"]
            assert [(finding.ok, finding.warning, said in finding.detail) for finding in found] == [(ok, False, True)]
        registrar.wait_for("saved callplex 0")
        assert registrar.log.count(f"saved {USER}") == 1
