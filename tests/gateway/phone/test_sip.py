"""The terminal phone over SIP against the real gateway: UDP, a password, TLS with SRTP, refusals."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from pathlib import Path

import pytest

from gateway.phone.call import CallFailed
from gateway.phone.caller import Clip, ScriptedCaller
from gateway.phone.sip import SipCallOptions, place_sip_call
from gateway.sip.events import Credentials
from tests.gateway.gateway_process import running_gateway

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parents[2] / "model" / "tls"
ECHO = {"CALLPLEX_EMBEDDED_ECHO": "1", "CALLPLEX_SIP_LISTEN": "127.0.0.1:0"}


def voice() -> ScriptedCaller:
    """Whistles for a second, listens to the echo, and hangs up."""
    samples = (int(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(8000))
    return ScriptedCaller([Clip(b"".join(struct.pack("<h", sample) for sample in samples))], quiet=0.5, linger=5.0)


async def test_a_call_comes_back_as_it_was_spoken(tmp_path: Path) -> None:
    with running_gateway(tmp_path, **ECHO) as gateway:
        options = SipCallOptions(
            f"sip:+15035550111@{gateway.sip['udp']}", voice(), "+12065550142", out=tmp_path / "out"
        )
        report = await place_sip_call(options)
        assert gateway.stop() == 0
    assert report.ended_by == "caller"
    assert report.metrics.frames_received > 50
    assert report.metrics.frames_lost == 0
    assert report.metrics.answer_ms is not None
    assert report.call_wav.endswith("call.wav")
    (record,) = [json.loads(path.read_text()) for path in gateway.data.glob("calls/*/transcript.json")]
    assert (record["from"], record["to"], record["end_reason"]) == ("+12065550142", "+15035550111", "caller_hangup")


async def test_a_password_is_given_and_a_wrong_one_refused(tmp_path: Path) -> None:
    with running_gateway(tmp_path, **ECHO, CALLPLEX_SIP_USERS='{"bob": "secret"}') as gateway:
        target = f"sip:agent@{gateway.sip['tcp']};transport=tcp"
        report = await place_sip_call(SipCallOptions(target, voice(), credentials=Credentials("bob", "secret")))
        assert report.ended_by == "caller"
        assert report.metrics.frames_received > 50
        for credentials in (Credentials("bob", "wrong"), None):
            with pytest.raises(CallFailed, match="wants a password"):
                await place_sip_call(SipCallOptions(target, voice(), credentials=credentials))


async def test_over_tls_with_encrypted_sound(tmp_path: Path) -> None:
    settings = {
        "CALLPLEX_EMBEDDED_ECHO": "1",
        "CALLPLEX_SIP_LISTEN": "tls:127.0.0.1:0",
        "CALLPLEX_SIP_TLS_CERT": str(TLS / "cert.pem"),
        "CALLPLEX_SIP_TLS_KEY": str(TLS / "key.pem"),
        "CALLPLEX_SIP_SRTP": "required",
    }
    with running_gateway(tmp_path, **settings) as gateway:
        target = f"sip:agent@{gateway.sip['tls']};transport=tls"
        report = await place_sip_call(SipCallOptions(target, voice(), tls_ca=TLS / "cert.pem", encrypted=True))
        assert report.metrics.frames_received > 50
        with pytest.raises(CallFailed, match="SIP 488"):
            await place_sip_call(SipCallOptions(target, voice(), tls_ca=TLS / "cert.pem"))


async def test_the_phone_is_put_down_by_hand(tmp_path: Path) -> None:
    with running_gateway(tmp_path, **ECHO) as gateway:
        options = SipCallOptions(f"sip:agent@{gateway.sip['udp']}", ScriptedCaller([], linger=600.0))
        asyncio.get_running_loop().call_later(0.5, options.hangup.set)
        assert (await place_sip_call(options)).ended_by == "caller"


@pytest.mark.parametrize("target", ["http://127.0.0.1", "sip:", "sip:a@b;transport=sctp"])
async def test_what_is_no_address(target: str) -> None:
    with pytest.raises(CallFailed, match="write it like sip:agent@"):
        await place_sip_call(SipCallOptions(target, voice()))
