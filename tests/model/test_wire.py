"""The wire's messages: what goes in comes out, and garbage raises only the peer's-fault error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import wire
from model.wire import AgentFrame, AgentText, CallerFrame, WireError

INDEX = st.integers(0, 2**32 - 1)
COUNT = st.integers(0, 2**63 - 1)
SURE = st.none() | st.floats(0, 1)
PCM = st.binary(min_size=wire.FRAME_BYTES, max_size=wire.FRAME_BYTES)
TOKENS = st.just(b"") | st.binary(min_size=wire.TOKENS_BYTES, max_size=wire.TOKENS_BYTES)
TEXT = st.text(max_size=40)

TO_WORKER = (
    st.builds(CallerFrame, INDEX, PCM) | st.builds(wire.Say, TEXT) | st.builds(wire.Play, TEXT) | st.just(wire.Close())
)
FROM_WORKER = (
    st.builds(AgentFrame, INDEX, PCM, TOKENS)
    | st.builds(AgentText, INDEX, TEXT)
    | st.builds(wire.CallerText, COUNT, COUNT, TEXT, st.booleans(), st.lists(COUNT, max_size=4).map(tuple), SURE)
    | st.builds(wire.Flush, COUNT)
    | st.builds(wire.Cut, COUNT)
    | st.builds(wire.Columns, INDEX, st.binary(min_size=34, max_size=34) | st.just(bytes(34 * 125)))
    | st.builds(wire.Played, COUNT, TEXT)
    | st.builds(wire.GaveWay, COUNT, TEXT)
    | st.builds(wire.Late, COUNT)
    | st.just(wire.Closed())
    | st.builds(wire.Done, COUNT, st.sampled_from(["goodbye", "transfer"]), TEXT)
    | st.builds(wire.Ready, TEXT, TEXT, st.booleans())
    | st.builds(wire.Error, st.sampled_from(["full", "invalid", "unauthorized", "failed", "draining"]), TEXT)
)
WORDS = st.lists(TEXT, max_size=3).map(tuple)


@st.composite
def resumes(draw: st.DrawFn) -> wire.Resume:
    cut, frames = draw(st.integers(0, 2**31)), draw(st.integers(0, wire.MAX_HISTORY_FRAMES))
    missed = draw(st.integers(0, 50))
    most = min(cut + frames + missed, wire.MAX_HISTORY_CALLER_FRAMES)
    caller = draw(st.integers(missed, most))
    levels = draw(
        st.just(()) | st.lists(st.integers(0, wire.AGENT_SILENT), min_size=caller, max_size=caller).map(tuple)
    )
    return wire.Resume(cut, frames, caller, missed, draw(COUNT), draw(WORDS), levels)


REQUEST = st.builds(
    wire.SessionRequest,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.builds(
        wire.Sampling,
        st.floats(0, 2),
        st.floats(0, 2),
        st.integers(0, 2048),
        st.integers(0, 2048),
        st.integers(0, 2**31),
    ),
    st.builds(
        wire.Script,
        st.lists(
            st.builds(wire.Answer, TEXT, TEXT, WORDS, WORDS, WORDS, st.sampled_from(["", "hangup", "transfer"])),
            max_size=2,
        ).map(tuple),
        st.lists(
            st.builds(wire.Question, TEXT, st.sampled_from(["name", "digits", "date", "words"]), TEXT), max_size=2
        ).map(tuple),
    ),
    st.none() | resumes(),
)
DECODERS: list[Callable[[str | bytes], object]] = [wire.decode_open, wire.decode_to_worker, wire.decode_from_worker]


@given(TO_WORKER)
def test_what_a_gateway_says_survives_the_wire(message: wire.ToWorker) -> None:
    assert wire.decode_to_worker(wire.encode(message)) == message


@given(FROM_WORKER)
def test_what_a_worker_says_survives_the_wire(message: wire.FromWorker) -> None:
    assert wire.decode_from_worker(wire.encode(message)) == message


@given(REQUEST)
def test_an_open_request_survives_the_wire(request: wire.SessionRequest) -> None:
    assert wire.decode_open(wire.encode_open(request)) == request


def test_a_frame_is_a_kind_an_index_and_sound() -> None:
    pcm = bytes(range(256)) * 15
    assert wire.encode_frame(CallerFrame(0x01020304, pcm)) == b"\x01\x04\x03\x02\x01" + pcm


def test_agent_text_is_a_kind_an_index_and_utf8() -> None:
    assert wire.encode(AgentText(7, " päivä")) == b"\x02\x07\x00\x00\x00 p\xc3\xa4iv\xc3\xa4"


def test_agent_text_that_is_no_text_is_still_sent() -> None:
    assert wire.encode(AgentText(7, " a\ud83d")) == b"\x02\x07\0\0\0 a?"


def test_a_history_is_a_kind_the_cut_columns_and_sound() -> None:
    resume = wire.Resume(cut=0x0102, frames=2, caller_frames=1, missed=1)
    history = wire.History(bytes(range(68)), bytes(range(256)) * 15)
    message = wire.encode_history(resume, history)
    assert message == b"\x03\x02\x01\x00\x00" + bytes(range(68)) + bytes(range(256)) * 15
    assert wire.decode_history(message, resume) == history
    assert resume.next_index == 0x0102 + 3


def test_the_longest_history_is_a_message() -> None:
    resume = wire.Resume(0, wire.MAX_HISTORY_FRAMES, wire.MAX_HISTORY_CALLER_FRAMES)
    columns = bytes(wire.TOKENS_BYTES * resume.frames)
    history = wire.History(columns, bytes(wire.FRAME_BYTES * resume.caller_frames))
    message = wire.encode_history(resume, history)
    assert len(message) <= wire.MAX_MESSAGE
    assert wire.decode_history(message, resume) == history


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("{}", "followed by its history"),
        (b"\x03", "at least 5 bytes"),
        (b"\x01\x02\x00\x00\x00" + bytes(3840), "not by binary kind 1"),
        (b"\x03\x03\x00\x00\x00" + bytes(3908), "begins at frame 3, the request says 2"),
        (b"\x03\x02\x00\x00\x00" + bytes(3907), "has 3908 bytes, this one 3907"),
        (b"\x03\x02\x00\x00\x00" + bytes(3909), "has 3908 bytes, this one 3909"),
    ],
)
def test_a_history_is_the_one_that_was_announced(message: str | bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.decode_history(message, wire.Resume(cut=2, frames=2, caller_frames=1))


def test_a_history_comes_only_after_its_request() -> None:
    with pytest.raises(WireError, match="unknown binary kind 3"):
        wire.decode_to_worker(wire.encode_history(wire.Resume(), wire.History()))


def test_a_flush_is_json() -> None:
    assert json.loads(wire.encode(wire.Flush(9))) == {"type": "flush", "index": 9}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "at least 5 bytes"),
        (b"\x01\x00\x00\x00\x00", "3840 bytes"),
        (b"\x01\x00\x00\x00\x00" + bytes(3839), "3839"),
        (b"\x02\x00\x00\x00\x00hello", "unknown binary kind 2"),
        (b"\x09\x00\x00\x00\x00", "unknown binary kind 9"),
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"type": ["say"]}', "unknown message type"),
        ('{"type": "flush", "index": 1}', "unknown message type"),
        ('{"type": "say"}', "lacks a field"),
        ('{"type": "say", "text": 1}', "say.text must be str"),
        ('{"type": "say", "text": "a", "loud": true}', "no field 'loud'"),
    ],
)
def test_a_gateway_is_told_what_is_wrong(message: str | bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.decode_to_worker(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x01\x00\x00\x00\x00" + bytes(3841), "3841"),
        (b"\x02\x00\x00\x00\x00\xff", "not UTF-8"),
        (b"\x04\x00\x00\x00\x00", "cannot have 0 bytes"),
        (b"\x04\x00\x00\x00\x00" + bytes(35), "cannot have 35 bytes"),
        (b"\x04\x00\x00\x00\x00" + bytes(34 * 126), "cannot have 4284 bytes"),
        ('{"type": "done", "index": 1, "reason": "bored"}', "done.reason must be one of"),
        ('{"type": "done", "index": 1, "reason": ["goodbye"]}', "done.reason must be one of"),
        ('{"type": "flush", "index": -1}', "flush.index is out of range"),
        ('{"type": "flush", "index": true}', "flush.index must be int"),
        ('{"type": "flush", "index": 1e3}', "flush.index must be int"),
        ('{"type": "say", "text": "a"}', "unknown message type"),
    ],
)
def test_a_worker_is_told_what_is_wrong(message: str | bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.decode_from_worker(message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "say"}, "type open"),
        ({"call_id": None}, "open.call_id must be str"),
        ({"mood": "good"}, "open has no field 'mood'"),
        ({"sampling": []}, "sampling must be an object"),
        ({"sampling": {"top_k": 1.5}}, "sampling.top_k must be int"),
        ({"sampling": {"temperature": "hot"}}, "sampling.temperature must be float"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature is out of range"),
        ({"sampling": {"temperature": 10**400}}, "sampling.temperature is out of range"),
        ({"script": 3}, "script must be an object"),
        ({"script": {"answers": {}}}, "script.answers must be a list"),
        ({"script": {"answers": [{"id": "a"}]}}, "script.answers lacks a field"),
        ({"script": {"answers": [{"id": "a", "say": "b", "when": "c"}]}}, "script.answers.when must be a list"),
        ({"script": {"questions": [{"name": "a", "kind": "poem"}]}}, "script.questions.kind must be one of"),
        ({"script": {"unknown": 1}}, "script.unknown must be str"),
        ({"resume": []}, "resume must be an object"),
        ({"resume": {"cut": -1}}, "resume.cut is out of range"),
        ({"resume": {"frames": 3001}}, "resume.frames may be 3000 at most"),
        ({"resume": {"frames": 200, "caller_frames": 126}}, "resume.caller_frames may be 125 at most"),
        ({"resume": {"frames": 9, "caller_frames": 2, "missed": 3}}, "must hold every missed frame"),
        ({"resume": {"frames": 2, "caller_frames": 3}}, "none that was never sent"),
        ({"resume": {"cut": 2**32}}, "beyond the last index"),
        ({"resume": {"queued": "hello"}}, "resume.queued must be a list"),
    ],
)
def test_a_bad_open_request_names_the_field(change: dict[str, Any], words: str) -> None:
    message = json.dumps({"type": "open", "call_id": "c", **change})
    with pytest.raises(WireError, match=words):
        wire.decode_open(message)


def test_half_a_character_becomes_a_question_mark() -> None:
    half = '{"type": "caller_text", "start": 0, "end": 1, "text": "hei \\ud83d \\ud83d\\ude00 \\u00e4"}'
    assert wire.decode_from_worker(half) == wire.CallerText(0, 1, "hei ? 😀 ä")
    script = {"answers": [{"id": "a", "say": "b", "when": ["c", "\udc00"]}]}
    request = wire.decode_open(json.dumps({"type": "open", "call_id": "c", "script": script}))
    assert request.script.answers[0].when == ("c", "?")


def test_an_open_request_is_text() -> None:
    with pytest.raises(WireError, match="JSON text"):
        wire.decode_open(b"{}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["type", "call_id", "text", "clip", "index", "reason", "sampling", "script", "code", "start", "resume"]
)
TYPES = st.sampled_from(["open", "say", "play", "close", "ready", "error", "caller_text", "flush", "cut", "done"])
NEAR_JSON = st.builds(
    lambda kind, rest: json.dumps({"type": kind, **rest}), TYPES, st.dictionaries(FIELDS, JSON, max_size=4)
)
NEAR_BINARY = st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 4), st.binary(max_size=40))


@given(NEAR_JSON | JSON.map(json.dumps) | st.text() | NEAR_BINARY | st.binary())
def test_garbage_raises_only_the_peers_fault(message: str | bytes) -> None:
    for decode in DECODERS:
        with contextlib.suppress(WireError):
            decode(message)
    with contextlib.suppress(WireError):
        wire.decode_history(message, wire.Resume(frames=1))


def test_a_worker_is_not_told_of_loudness_where_there_is_none_to_tell() -> None:
    """One that speaks 1.2 refuses fields that it does not know, and a gateway of then says nothing of it."""
    resume = wire.Resume(frames=2, caller_frames=2)
    before = json.loads(wire.encode_open(wire.SessionRequest("c", resume=resume)))
    assert "agent_levels" not in before["resume"]
    assert wire.decode_open(json.dumps(before)) == wire.SessionRequest("c", resume=resume)


@pytest.mark.parametrize("levels", [[10], [10, 20, 30], [10, 91], [10, -1], [10, 2.5], "ab"])
def test_loudness_that_does_not_fit_the_sound_is_refused(levels: object) -> None:
    data = {"type": "open", "call_id": "c", "resume": {"frames": 2, "caller_frames": 2, "agent_levels": levels}}
    with pytest.raises(WireError, match="agent_levels"):
        wire.decode_open(json.dumps(data))
