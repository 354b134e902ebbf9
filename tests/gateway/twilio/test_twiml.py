"""TwiML is read back with an XML parser: what went in comes out, in its place."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from gateway.twilio import twiml


def verbs(document: bytes) -> list[ET.Element]:
    response = ET.fromstring(document)
    assert response.tag == "Response"
    return list(response)


def test_connect_stream() -> None:
    document = twiml.connect_stream("wss://a.example/s", "https://a.example/after", {"persona": "bank", "token": "t"})
    [connect] = verbs(document)
    assert connect.tag == "Connect"
    assert connect.attrib == {"action": "https://a.example/after", "method": "POST"}
    [stream] = connect
    assert stream.attrib == {"url": "wss://a.example/s"}
    assert [(p.tag, p.get("name"), p.get("value")) for p in stream] == [
        ("Parameter", "persona", "bank"),
        ("Parameter", "token", "t"),
    ]


def test_the_other_documents() -> None:
    assert [v.tag for v in verbs(twiml.hangup())] == ["Hangup"]
    [reject] = verbs(twiml.reject())
    assert reject.attrib == {"reason": "busy"}
    number, after = verbs(twiml.dial("+15551234567"))
    assert (number.tag, number.text, after.tag) == ("Dial", "+15551234567", "Hangup")
    sip, _ = verbs(twiml.dial("sip:desk@example.com"))
    assert [(child.tag, child.text) for child in sip] == [("Sip", "sip:desk@example.com")]
    words, after = verbs(twiml.say("Sorry & goodbye"))
    assert (words.tag, words.text, after.tag) == ("Say", "Sorry & goodbye", "Hangup")


@given(st.text(), st.text())
def test_nothing_breaks_out_of_its_place(text: str, name: str) -> None:
    [connect] = verbs(twiml.connect_stream("wss://" + text, text, {name: text}))
    assert [child.tag for child in connect.iter()] == ["Connect", "Stream", "Parameter"]
    assert [v.tag for v in verbs(twiml.say(text))] == ["Say", "Hangup"]
    dialled, _ = verbs(twiml.dial("+" + text))
    assert list(dialled) == []


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"])))
def test_printable_text_survives(text: str) -> None:
    words, _ = verbs(twiml.say(text))
    assert (words.text or "") == text
