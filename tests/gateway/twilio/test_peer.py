"""The carrier's side, paired with ours: what one builds the other reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.twilio.peer import CarrierStream, Cleared, Marked, Played
from gateway.twilio.protocol import Connected, Dtmf, Mark, Media, PeerError, Start, Stop, StreamProtocol


def carrier() -> CarrierStream:
    return CarrierStream('MZ"1', "CA1", "AC1")


def paired() -> tuple[CarrierStream, StreamProtocol]:
    ours, theirs = StreamProtocol(), carrier()
    ours.receive_text(theirs.connected())
    ours.receive_text(theirs.start({}))
    return theirs, ours


def test_what_the_carrier_sends_is_what_we_read() -> None:
    theirs, ours = carrier(), StreamProtocol()
    assert ours.receive_text(theirs.connected()) == Connected("1.0.0")
    assert ours.receive_text(theirs.start({"a": "<é>"})) == Start('MZ"1', "CA1", "AC1", {"a": "<é>"})
    assert ours.receive_text(theirs.media(bytes(160))) == Media(bytes(160), 0, 1, 0)
    assert ours.receive_text(theirs.dtmf("#")) == Dtmf("#")
    assert ours.receive_text(theirs.media(b"\xff" * 160)) == Media(b"\xff" * 160, 20, 2, 0)
    theirs.skip(3)
    assert ours.receive_text(theirs.media(bytes(160))) == Media(bytes(160), 100, 6, 3)
    assert ours.receive_text(theirs.mark("m")) == Mark("m")
    assert ours.receive_text(theirs.stop()) == Stop()


@given(st.binary(max_size=2000), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_we_send_is_what_the_carrier_reads(payload: bytes, name: str) -> None:
    theirs, ours = paired()
    assert theirs.receive_text(ours.media(payload)) == Played(payload)
    assert theirs.receive_text(ours.mark(name)) == Marked(name)
    assert theirs.receive_text(ours.clear()) == Cleared()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "not a JSON object"),
        ('{"event":"clear","streamSid":"MZ2"}', "does not name this stream"),
        ('{"event":"clear"}', "does not name this stream"),
        ('{"event":"stop","streamSid":"MZ\\"1"}', "not media, mark or clear"),
        ('{"event":["media"],"streamSid":"MZ\\"1"}', "not media, mark or clear"),
        ('{"event":"media","streamSid":"MZ\\"1","media":{"payload":1}}', "not media, mark or clear"),
        ('{"event":"mark","streamSid":"MZ\\"1","mark":{}}', "not media, mark or clear"),
        ('{"event":"media","streamSid":"MZ\\"1","media":{"payload":"a"}}', "not base64"),
        ('{"event":"media","streamSid":"MZ\\"1","media":{"payload":"é==="}}', "not base64"),
    ],
)
def test_what_the_server_may_not_send(text: str, says: str) -> None:
    with pytest.raises(PeerError, match=says):
        carrier().receive_text(text)


@given(st.text())
def test_garbage_from_the_server_raises_only_the_peers_fault(text: str) -> None:
    with pytest.raises(PeerError):
        carrier().receive_text(text)
