"""Telnyx's messages, as documented: what each becomes, what waits for another, and what is refused."""

from __future__ import annotations

import itertools
import json
import random
from base64 import b64encode
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import decode_ulaw, encode_alaw
from gateway.telnyx.protocol import MAX_WAITING, PENDING, TelnyxProtocol
from gateway.twilio.protocol import (
    DUPLICATE,
    LATE,
    TRACK,
    UNKNOWN,
    Connected,
    Dtmf,
    Event,
    Mark,
    Media,
    PeerError,
    Start,
    Stop,
)

STREAM = "32DE0DEA-53CB-4B21-89A4-9E1819C043BC"
CALL = "v3:T02llQxIyaRkhfRKxgAP8nY511EhFLizdvdUKJiSw8d6A9BborherQ"


def start(encoding: str = "PCMU", **more: Any) -> dict[str, Any]:
    inner = {
        "user_id": "3E6F995F-85F7-4705-9741-53B116D28237",
        "call_control_id": CALL,
        "call_session_id": "ff55a038-6f5d-11ef-9692-02420aeffb1f",
        "from": "+13122010094",
        "to": "+13122123456",
        "client_state": None,
        "custom_parameters": {"token": "abc"},
        "media_format": {"encoding": encoding, "sample_rate": 8000, "channels": 1},
    }
    return {"event": "start", "sequence_number": "1", "stream_id": STREAM, "start": inner | more}


def media(number: int, sound: bytes, **more: Any) -> dict[str, Any]:
    inner = {
        "track": "inbound",
        "chunk": str(number),
        "timestamp": str(20 * number),
        "payload": b64encode(sound).decode(),
    }
    return {"event": "media", "sequence_number": "4", "stream_id": STREAM, "media": inner | more}


def started(encoding: str = "PCMU") -> TelnyxProtocol:
    protocol = TelnyxProtocol()
    assert tell(protocol, {"event": "connected", "version": "1.0.0"}) == Connected("1.0.0")
    tell(protocol, start(encoding))
    return protocol


def tell(protocol: TelnyxProtocol, message: Any) -> Event:
    return protocol.receive_text(json.dumps(message))


def frame(number: int) -> bytes:
    return bytes((number & 0xFF,)) * 160


def sound(events: list[Event]) -> bytes:
    return b"".join(event.payload for event in events if isinstance(event, Media))


def test_a_stream_from_beginning_to_end() -> None:
    protocol = TelnyxProtocol()
    tell(protocol, {"event": "connected", "version": "1.0.0"})
    began = tell(protocol, start())
    assert began == Start(STREAM, CALL, "3E6F995F-85F7-4705-9741-53B116D28237", {"token": "abc"})
    assert tell(protocol, media(2, frame(2))) == Media(frame(2), 40, 2, 0)
    assert tell(protocol, {"event": "dtmf", "stream_id": STREAM, "dtmf": {"digit": "1"}}) == Dtmf("1")
    assert tell(protocol, {"event": "mark", "stream_id": STREAM, "mark": {"name": "m"}}) == Mark("m")
    assert tell(protocol, {"event": "error", "stream_id": STREAM, "payload": {"code": 100003}}) == UNKNOWN
    assert tell(protocol, {"event": "something new"}) == UNKNOWN
    assert tell(protocol, {"event": "stop", "stream_id": STREAM, "stop": {"call_control_id": CALL}}) == Stop()
    assert (protocol.errors, protocol.counters.unknown, protocol.counters.media) == (1, 1, 1)


def test_what_we_send() -> None:
    protocol = started()
    assert orjson.loads(protocol.media(b"\xff\x00")) == {"event": "media", "media": {"payload": "/wA="}}
    assert orjson.loads(protocol.mark('a"b')) == {"event": "mark", "mark": {"name": 'a"b'}}
    assert orjson.loads(protocol.clear()) == {"event": "clear"}


def test_chunks_out_of_order_are_put_in_order() -> None:
    chance = random.Random(1)
    order = list(range(1, 400))
    for at in range(1, len(order) - 3, 3):
        part = order[at : at + 3]
        chance.shuffle(part)
        order[at : at + 3] = part
    protocol = started()
    heard = sound([tell(protocol, media(number, frame(number))) for number in order])
    assert heard == b"".join(map(frame, range(1, 400)))
    assert protocol.counters.missing == 0


def test_a_chunk_that_never_comes_is_given_up_and_told() -> None:
    protocol = started()
    events = [tell(protocol, media(number, frame(number))) for number in (1, 3, 4, 5, 6, 7)]
    assert events[1 : 1 + MAX_WAITING] == MAX_WAITING * [PENDING]
    assert events[1 + MAX_WAITING] == Media(b"".join(map(frame, (3, 4, 5, 6))), 120, 6, 1)
    assert tell(protocol, media(2, frame(2))) == LATE
    assert tell(protocol, media(7, frame(7))) == DUPLICATE
    assert (protocol.counters.missing, protocol.counters.late, protocol.counters.duplicate) == (1, 1, 1)


def test_chunks_of_any_length_become_frames() -> None:
    protocol = started()
    whole = bytes(index % 251 for index in range(160 * 30))
    cuts = [0, 1, 240, 480, 800, 801, 2_400, len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    events = [tell(protocol, media(number, piece)) for number, piece in enumerate(pieces)]
    assert sound(events) == whole
    assert all(len(event.payload) % 160 == 0 for event in events if isinstance(event, Media))
    assert events[0] == PENDING


def test_a_law_becomes_mu_law() -> None:
    pcm = b"".join(int(level).to_bytes(2, "little", signed=True) for level in range(-16_000, 16_000, 200))
    event = tell(started("PCMA"), media(1, encode_alaw(pcm)))
    assert isinstance(event, Media)
    heard = decode_ulaw(event.payload)
    for at in range(0, 320, 2):
        told, got = (int.from_bytes(data[at : at + 2], "little", signed=True) for data in (pcm, heard))
        assert abs(told - got) < 60 + abs(told) / 15


def test_the_other_track_is_not_the_caller() -> None:
    protocol = started()
    assert tell(protocol, media(1, frame(1), track="outbound")) == TRACK
    assert protocol.counters.media == 0


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"event": "connected"}, "connected came where only media"),
        (media(1, frame(1)) | {"stream_id": "other"}, "another stream"),
        (media(1, b""), "media.payload must be base64"),
        (media(1, bytes(8_001)), "media.payload must be base64"),
        (media(1, frame(1), payload="!"), "media.payload must be base64"),
        (media(1, frame(1), chunk="x"), "media.chunk must be"),
        (media(1, frame(1), timestamp=None), "media.timestamp must be"),
        ({"event": "media", "media": []}, "media must be an object"),
        ({"event": "dtmf", "dtmf": {"digit": "12"}}, "dtmf.digit"),
        ({"event": "mark", "mark": {}}, "mark.name"),
        ({"event": 7}, "no event name"),
        ([], "not a JSON object"),
    ],
)
def test_the_peers_faults(message: Any, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        tell(started(), message)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (start("OPUS"), "media_format must be PCMU or PCMA"),
        (start(media_format=None), "media_format must be"),
        (start(call_control_id=""), "call_control_id must be a string"),
        (start(custom_parameters={"a": 1}), "every value in start.custom_parameters"),
        (start(custom_parameters=[1]), "must be an object of at most"),
    ],
)
def test_a_start_that_is_none(message: Any, why: str) -> None:
    protocol = TelnyxProtocol()
    tell(protocol, {"event": "connected"})
    with pytest.raises(PeerError, match=why):
        tell(protocol, message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["media", "chunk", "payload"]), inner),
    max_leaves=8,
)


@given(st.sampled_from(["connected", "start", "media", "dtmf", "mark", "error", "stop"]), JSON)
def test_garbage_raises_only_the_peers_fault(event: str, body: Any) -> None:
    for protocol in (TelnyxProtocol(), started()):
        try:
            tell(protocol, {"event": event, event: body})
        except PeerError:
            continue
