"""The doctor's view of SIP: ports, certificate, trunks, an open door."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from gateway.sip.doctor import SipFinding, examine_sip
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.settings import SipSettings

TLS = Path(__file__).parents[2] / "model/tls"


def findings(**values: object) -> dict[str, SipFinding]:
    settings = SipSettings.model_validate({"listen": "udp:127.0.0.1:0", **values})
    return {found.name: found for found in examine_sip(settings, 100, True)}


def test_nothing_wrong() -> None:
    found = findings()
    assert all(one.ok for one in found.values())
    assert found["sip_rtp"].detail.endswith("5000 calls")


def test_an_open_door_and_sip_switched_off() -> None:
    assert "anybody can call" in findings(listen="0.0.0.0:0")["sip"].detail
    assert findings(listen="")["sip"].ok


def test_a_port_in_use_and_too_few_for_sound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        used = findings(listen=f"udp:127.0.0.1:{other.getsockname()[1]}")["sip"]
    assert not used.ok
    assert "in use" in used.detail
    few = findings(rtp_ports="10000-10019")["sip_rtp"]
    assert few.warning
    assert few.fix == "export CALLPLEX_SIP_RTP_PORTS=10000-10199"


def test_a_certificate_that_is_one_and_one_that_is_none(tmp_path: Path) -> None:
    good = findings(listen="tls:127.0.0.1:0", tls_cert=TLS / "cert.pem", tls_key=TLS / "key.pem")["sip_tls"]
    assert good.ok, good
    (tmp_path / "bad.pem").write_text("nonsense")
    bad = findings(listen="tls:127.0.0.1:0", tls_cert=tmp_path / "bad.pem", tls_key=TLS / "key.pem")["sip_tls"]
    assert not bad.ok
    assert "cannot be used" in bad.detail


def test_a_trunk_that_answers_and_one_that_does_not() -> None:
    up, done, port = threading.Event(), threading.Event(), [0]

    async def trunk() -> None:
        endpoint = SipEndpoint(SipSettings.model_validate({"listen": "udp:127.0.0.1:0"}))
        await endpoint.open()
        port[0] = endpoint.addresses["udp"][1]
        up.set()
        await asyncio.to_thread(done.wait)
        await endpoint.close()

    other = threading.Thread(target=lambda: asyncio.run(trunk()))
    other.start()
    up.wait(10)
    try:
        here = {"name": "here", "registrar": f"sip:127.0.0.1:{port[0]}", "register": False}
        assert "answers (200)" in findings(trunks=[here])["sip_trunk"].detail
        # A gateway is no registrar.
        asked = findings(trunks=[{**here, "register": True}])["sip_trunk"]
        assert not asked.ok
        assert "does not let us register: 405" in asked.detail
    finally:
        done.set()
        other.join()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        there = {"name": "there", "registrar": f"sip:127.0.0.1:{closed.getsockname()[1]};transport=tcp"}
        silent = findings(trunks=[there])["sip_trunk"]
    assert silent.warning
    assert "cannot be reached" in silent.detail


def test_a_trunk_is_asked_from_where_its_transport_is_listened_on() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as closed:
        closed.bind(("::1", 0))
        trunk = {"name": "far", "registrar": f"sip:[::1]:{closed.getsockname()[1]};transport=tcp", "register": False}
        found = findings(listen="udp:127.0.0.1:0,tcp:[::1]:0", trunks=[trunk])["sip_trunk"]
    assert not found.ok
    assert "out of service (503)" in found.detail


@pytest.mark.parametrize("host", ["127.1", "127.0.0.1"])
def test_a_trunk_at_the_other_kind_of_address(host: str) -> None:
    """127.1 is a name to us, which the system knows as 127.0.0.1."""
    trunk = {"name": "far", "registrar": f"sip:{host}:9", "register": False}
    found = findings(listen="udp:[::1]:0", trunks=[trunk])["sip_trunk"]
    assert not found.ok
    assert "only IPv6 is listened on" in found.detail
    assert "listen on [::]" in found.detail
