"""The stream's state machine: byte vectors as Twilio sends them, every way to be wrong, and garbage."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.leg import LegError
from gateway.twilio.protocol import (
    DUPLICATE,
    LATE,
    MAX_MISSING,
    MAX_TEXT,
    TRACK,
    UNKNOWN,
    Connected,
    Dtmf,
    Mark,
    Media,
    PeerError,
    Start,
    Stop,
    StreamProtocol,
)

SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
CALL = "CA2b9ea6f5a1d2b5c8a6e6c0c9f5a31f0e"
ACCOUNT = "AC0123456789abcdef0123456789abcdef"
PAYLOAD = bytes(range(160))
CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'
START = (
    '{"event":"start","sequenceNumber":"1","start":{"accountSid":"' + ACCOUNT + '","streamSid":"' + SID + '",'
    '"callSid":"' + CALL + '","tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,'
    '"channels":1},"customParameters":{"persona":"bank","token":"t\\u00f8"}},"streamSid":"' + SID + '"}'
)
DTMF = '{"event":"dtmf","streamSid":"' + SID + '","sequenceNumber":"5","dtmf":{"track":"inbound_track","digit":"1"}}'
MARK = '{"event":"mark","sequenceNumber":"4","streamSid":"' + SID + '","mark":{"name":"m 1"}}'
STOP = (
    '{"event":"stop","sequenceNumber":"5","stop":{"accountSid":"'
    + ACCOUNT
    + '","callSid":"'
    + CALL
    + '"},"streamSid":"'
    + SID
    + '"}'
)


def media(chunk: object = "1", timestamp: object = "0", payload: object = None, **other: object) -> str:
    body = {"track": "inbound", "chunk": chunk, "timestamp": timestamp}
    body["payload"] = b64encode(PAYLOAD).decode() if payload is None else payload
    return json.dumps({"event": "media", "sequenceNumber": "3", "media": body, "streamSid": SID, **other})


def started() -> StreamProtocol:
    stream = StreamProtocol()
    stream.receive_text(CONNECTED)
    stream.receive_text(START)
    return stream


def test_a_stream_from_connected_to_stop() -> None:
    stream = StreamProtocol()
    assert stream.receive_text(CONNECTED) == Connected("1.0.0")
    assert stream.receive_text(START) == Start(SID, CALL, ACCOUNT, {"persona": "bank", "token": "tø"})
    assert stream.receive_text(media("1", "0")) == Media(PAYLOAD, 0, 1, 0)
    assert stream.receive_text(MARK) == Mark("m 1")
    assert stream.receive_text(DTMF) == Dtmf("1")
    assert stream.receive_text(media("2", "20")) == Media(PAYLOAD, 20, 2, 0)
    assert stream.receive_text(STOP) == Stop()
    assert stream.counters.media == 2


def test_what_we_send_is_what_twilio_documents() -> None:
    stream = started()
    payload = b64encode(PAYLOAD).decode()
    assert json.loads(stream.media(PAYLOAD)) == {"event": "media", "streamSid": SID, "media": {"payload": payload}}
    assert json.loads(stream.mark('a"b\n')) == {"event": "mark", "streamSid": SID, "mark": {"name": 'a"b\n'}}
    assert json.loads(stream.clear()) == {"event": "clear", "streamSid": SID}


def test_a_stream_sid_cannot_break_out_of_what_we_send() -> None:
    odd = 'MZ"},"x":{"'
    stream = StreamProtocol()
    stream.receive_text(CONNECTED)
    stream.receive_text(START.replace(SID, json.dumps(odd)[1:-1]))
    for text in (stream.media(b""), stream.mark("m"), stream.clear()):
        assert json.loads(text)["streamSid"] == odd


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], START),
        ([], media()),
        ([], MARK),
        ([], DTMF),
        ([], STOP),
        ([CONNECTED], CONNECTED),
        ([CONNECTED], media()),
        ([CONNECTED], MARK),
        ([CONNECTED], DTMF),
        ([CONNECTED], STOP),
        ([CONNECTED, START], START),
        ([CONNECTED, START], CONNECTED),
        ([CONNECTED, START, STOP], media()),
        ([CONNECTED, START, STOP], STOP),
        ([CONNECTED, START, STOP], START),
        ([CONNECTED, START, STOP], MARK),
    ],
)
def test_wrong_order_is_the_peers_fault(first: list[str], second: str) -> None:
    stream = StreamProtocol()
    for text in first:
        stream.receive_text(text)
    with pytest.raises(PeerError, match=r"came where only .* may come"):
        stream.receive_text(second)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"connected"', "not a JSON object"),
        ("NaN", "not JSON"),
        ('{"event":NaN}', "not JSON"),
        ('{"event":"\ud800"}', "not JSON"),
        ("{}", "no event name"),
        ('{"event":1}', "no event name"),
        ('{"event":["media"]}', "no event name"),
        ("[" * 30_000 + "]" * 30_000, "not JSON"),
        ('{"event":"x","y":' * 3_000 + "1" + "}" * 3_000, "not JSON"),
        ('{"event":"x","y":"' + "a" * MAX_TEXT + '"}', "longer than"),
    ],
)
def test_what_is_no_message_is_the_peers_fault(text: str, says: str) -> None:
    for stream in (StreamProtocol(), started()):
        with pytest.raises(PeerError, match=says):
            stream.receive_text(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (media(payload=b64encode(PAYLOAD[:-1]).decode()), "160 bytes"),
        (media(payload=b64encode(PAYLOAD + b"a").decode()), "160 bytes"),
        (media(payload=b64encode(PAYLOAD + b"ab").decode()), "160 bytes"),
        (media(payload=""), "160 bytes"),
        (media(payload="!" * 216), "160 bytes"),
        (media(payload="é" * 216), "160 bytes"),
        (media(payload=b64encode(PAYLOAD).decode()[:-3] + "\n=="), "160 bytes"),
        (media(payload=[1] * 216), "160 bytes"),
        (media(payload=7), "160 bytes"),
        (media(payload=False), "160 bytes"),
        (media(chunk=1), "media.chunk"),
        (media(chunk="x"), "media.chunk"),
        (media(chunk=1.5), "media.chunk"),
        (media(chunk=True), "media.chunk"),
        (media(chunk="9" * 5000), "media.chunk"),
        (media(chunk="9" * 20), "smaller"),
        (media(timestamp="9" * 20), "smaller"),
        (media(timestamp={}), "media.timestamp"),
        (media(media=None), "media must be an object"),
        (media(media=[]), "media must be an object"),
        (media(media="track"), "media must be an object"),
        (media(streamSid="MZother"), "another stream"),
        (media(streamSid=None), "another stream"),
        (media().replace(f', "streamSid": "{SID}"', ""), "names no stream"),
        (media().replace('"track": "inbound", ', ""), "names no track"),
        (media().replace('"track": "inbound"', '"track": 3'), "media.track"),
        (DTMF.replace('"digit":"1"', '"digit":"12"'), "dtmf.digit"),
        (DTMF.replace('"digit":"1"', '"digit":1'), "dtmf.digit"),
        (DTMF.replace('"digit":"1"', '"digit":""'), "dtmf.digit"),
        (DTMF.replace(SID, "MZother"), "another stream"),
        (MARK.replace('{"name":"m 1"}', "[]"), "mark must be an object"),
        (MARK.replace('"m 1"', "null"), "mark.name"),
    ],
)
def test_wrong_fields_are_the_peers_fault(text: str, says: str) -> None:
    with pytest.raises(PeerError, match=says):
        started().receive_text(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"callSid":"' + CALL + '",', "", "callSid"),
        ('"' + CALL + '"', "5", "callSid"),
        ('"' + CALL + '"', '""', "callSid"),
        ('"' + ACCOUNT + '"', '"' + "a" * 129 + '"', "accountSid"),
        (',"streamSid":"' + SID + '"}', "}", "streamSid"),
        (',"streamSid":"' + SID + '"}', ',"streamSid":"MZother"}', "two different streams"),
        ("8000", "16000", "mediaFormat"),
        ("audio/x-mulaw", "audio/x-l16", "mediaFormat"),
        ('"start":{', '"start":[],"other":{', "start must be an object"),
        ('"persona":"bank"', '"persona":1', "customParameters must be a string"),
        ('{"persona":"bank","token":"t\\u00f8"}', "[]", "customParameters must be an object"),
        ('"persona"', ",".join(f'"k{i}":"v"' for i in range(100)) + ',"persona"', "at most 100"),
    ],
)
def test_a_wrong_start_is_the_peers_fault(old: str, new: str, says: str) -> None:
    stream = StreamProtocol()
    stream.receive_text(CONNECTED)
    text = START.replace(old, new)
    assert text != START
    with pytest.raises(PeerError, match=says):
        stream.receive_text(text)


def test_the_fault_is_the_lines_as_the_call_sees_it() -> None:
    with pytest.raises(LegError):
        StreamProtocol().receive_text("")


def test_unknown_events_and_other_tracks_are_counted_and_ignored() -> None:
    stream = StreamProtocol()
    assert stream.receive_text('{"event":"news"}') is UNKNOWN
    stream.receive_text(CONNECTED)
    stream.receive_text(START)
    assert stream.receive_text('{"event":"news","news":[1]}') is UNKNOWN
    assert stream.receive_text(media().replace('"inbound"', '"outbound"')) is TRACK
    assert stream.counters.unknown == 3
    assert stream.counters.media == 0


def test_media_twice_or_late_is_dropped_and_counted() -> None:
    stream = started()
    stream.receive_text(media("1", "0"))
    stream.receive_text(media("3", "40"))
    assert stream.receive_text(media("3", "40")) is DUPLICATE
    assert stream.receive_text(media("2", "20")) is LATE
    assert stream.receive_text(media("-4", "60")) is LATE
    assert stream.receive_text(media("4", "39")) is LATE
    assert stream.receive_text(media("4", "60")) == Media(PAYLOAD, 60, 4, 0)
    counters = stream.counters
    assert (counters.media, counters.missing, counters.duplicate, counters.late) == (3, 1, 1, 3)


@pytest.mark.parametrize(
    ("first", "then", "missing"),
    [
        (("1", "0"), ("2", "20"), 0),
        (("1", "0"), ("2", "39"), 0),
        (("1", "0"), ("2", "0"), 0),
        (("1", "7"), ("2", "27"), 0),
        (("1", "0"), ("5", "80"), 3),
        (("1", "0"), ("5", "20"), 3),
        (("1", "0"), ("2", "80"), 3),
        (("1", "0"), (str(1 << 53), "20"), MAX_MISSING),
        (("1", "0"), ("2", str(1 << 53)), MAX_MISSING),
    ],
)
def test_missing_media_is_told_with_the_next_frame(first: tuple[str, str], then: tuple[str, str], missing: int) -> None:
    stream = started()
    stream.receive_text(media(*first))
    event = stream.receive_text(media(*then))
    assert isinstance(event, Media)
    assert event.missing == missing
    assert stream.counters.missing == missing


def test_the_first_frame_counts_from_one_and_may_come_with_any_time() -> None:
    event = started().receive_text(media("1", "500"))
    assert isinstance(event, Media)
    assert event.missing == 0
    event = started().receive_text(media("4", "60"))
    assert isinstance(event, Media)
    assert event.missing == 3


bodies = ["event", "media", "start", "stop", "mark", "dtmf", "name", "digit", "payload", "chunk", "timestamp", "track"]
heads = ["streamSid", "callSid", "accountSid", "customParameters", "mediaFormat", "sequenceNumber", "version"]
names = st.sampled_from(bodies + heads)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([SID, CALL, "inbound", "1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | names, inner, max_size=5),
    max_leaves=12,
)
events = st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop", "news"])


def feed(text: str) -> None:
    for stream in (StreamProtocol(), started()):
        fault = ""
        try:
            stream.receive_text(text)
        except PeerError as error:
            fault = str(error)
        assert len(fault) < 120


@given(st.text())
def test_garbage_raises_only_the_peers_fault(text: str) -> None:
    feed(text)


@given(st.dictionaries(names, values, max_size=6), events)
def test_garbage_in_the_shape_of_messages_raises_only_the_peers_fault(body: dict[str, Any], event: str) -> None:
    feed(json.dumps({**body, "event": event, "streamSid": SID}))


@given(st.dictionaries(names, values, max_size=8), st.sampled_from([media(), DTMF, MARK, STOP, START]))
def test_a_good_message_with_garbage_in_its_body_raises_only_the_peers_fault(
    garbage: dict[str, Any], good: str
) -> None:
    message = json.loads(good)
    message[message["event"]].update(garbage)
    feed(json.dumps(message))


@given(st.sampled_from([media(), DTMF, MARK, STOP, START]), st.data())
def test_a_damaged_message_raises_only_the_peers_fault(good: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good) - 1))
    length = data.draw(st.integers(0, 20))
    feed(good[:at] + data.draw(st.text(max_size=5)) + good[at + length :])


@given(st.lists(st.integers(0, 40), max_size=60))
def test_chunks_in_any_order_are_each_accepted_at_most_once_and_in_order(chunks: list[int]) -> None:
    stream = started()
    accepted = []
    for chunk in chunks:
        event = stream.receive_text(media(str(chunk), str(20 * chunk)))
        if isinstance(event, Media):
            accepted.append(event.chunk)
    assert accepted == sorted(set(accepted))
    counters = stream.counters
    assert counters.media + counters.duplicate + counters.late == len(chunks)
    assert counters.missing == max(accepted, default=0) - len(accepted)
