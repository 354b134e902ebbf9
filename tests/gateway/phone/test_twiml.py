"""TwiML as a carrier reads it: what the gateway builds, what other gateways write, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.phone.twiml import MAX_BYTES, Stream, TwimlInvalid, Verb, parse
from gateway.twilio import twiml as ours


def test_reads_what_our_gateway_builds() -> None:
    document = ours.connect_stream(
        "wss://x.example/twilio/stream", "https://x.example/after", {"token": '<&">', "p": ""}
    )
    [connect] = parse(document)
    assert connect.name == "Connect"
    assert connect.attributes == {"action": "https://x.example/after", "method": "POST"}
    assert connect.stream == Stream("wss://x.example/twilio/stream", {"token": '<&">', "p": ""})
    assert [verb.name for verb in parse(ours.dial("sip:a@b.example"))] == ["Dial", "Hangup"]
    assert parse(ours.dial("sip:a@b.example"))[0].detail == "sip:a@b.example"
    assert parse(ours.hangup()) == [Verb("Hangup")]


def test_reads_the_other_verbs() -> None:
    document = b"""<?xml version="1.0" encoding="UTF-8"?>
        <Response><!-- a comment --><Say voice="x">Hello
          there.</Say><Pause length="2"/><Pause/><Play>https://x/y.mp3</Play><Gather/>
        <Dial timeout="9"><Number>+1555</Number></Dial><Redirect method="GET">/next</Redirect>
        <Reject reason="busy"/></Response>"""
    shown = [f"{verb.name} {verb.detail}".strip() for verb in parse(document)]
    assert shown == [
        *("Say Hello there.", "Pause 2 s", "Pause 1 s", "Play https://x/y.mp3", "Gather"),
        *("Dial +1555", "Redirect /next", "Reject busy"),
    ]
    assert parse(b"<Response/>") == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "not XML"),
        (b"hello", "not XML"),
        (b"<Response>", "not XML"),
        (b"<html/>", "instead of <Response>"),
        (b"<Response><Connect/></Response>", "holds nothing"),
        (b"<Response><Connect><Room>a</Room></Connect></Response>", "holds Room"),
        (b'<Response><Connect><Stream url="https://x"/></Connect></Response>', "wss://"),
        (b"<Response>" + b" " * MAX_BYTES + b"</Response>", "bytes"),
        (b'<!DOCTYPE r [<!ENTITY a "b">]><Response>&a;</Response>', "document type"),
        (b'<!DOCTYPE r SYSTEM "file:///etc/passwd"><Response/>', "document type"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE r><Response/>'.encode("utf-16"), "document type"),
        (b'<?xml version="1.0" encoding="no-such"?><Response/>', "not XML"),
    ],
)
def test_refuses_what_is_not_twiml(document: bytes, words: str) -> None:
    with pytest.raises(TwimlInvalid, match=words):
        parse(document)


@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet='<>/="& ResponsConectStamurl!', max_size=80).map(str.encode))
)
def test_garbage_raises_only_twiml_invalid(document: bytes) -> None:
    with suppress(TwimlInvalid):
        assert all(isinstance(verb, Verb) for verb in parse(document))
