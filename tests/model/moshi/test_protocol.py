"""The query and the messages of Moshi's protocol."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.moshi import protocol
from model.wire import Sampling, SessionRequest, WireError

WEB_CLIENT = (
    "/api/chat?text_prompt=You%20work%20for%20a%20bank.&voice_prompt=NATM1.pt&text_temperature=0.6&text_topk=20"
    "&audio_temperature=0.75&audio_topk=200&pad_mult=0&text_seed=12345&audio_seed=67890"
    "&repetition_penalty_context=64&repetition_penalty=1&worker_auth_id=abc&email=a%40b.example"
)


def test_the_web_clients_settings_are_those_of_its_session() -> None:
    request = protocol.session_request(protocol.query(WEB_CLIENT), "c1", seed=9)
    assert request == SessionRequest(
        "c1", prompt="You work for a bank.", voice="NATM1", sampling=Sampling(0.75, 0.6, 200, 20, 9)
    )


def test_a_client_that_asks_for_nothing_gets_the_defaults() -> None:
    assert protocol.session_request({}, "c1", seed=9) == SessionRequest("c1", sampling=Sampling(seed=9))


def test_a_seed_is_used() -> None:
    assert protocol.session_request({"seed": "42"}, "c1", seed=9).sampling.seed == 42


def test_a_seed_of_minus_one_asks_for_none_as_the_original_has_it() -> None:
    assert protocol.session_request({"seed": "-1"}, "c1", seed=9).sampling.seed == 9


@pytest.mark.parametrize("voice", ["NATF2", "NATF2.pt", "ann.wav", "Ann_Lee-2"])
def test_a_voice_is_known_by_its_name(voice: str) -> None:
    assert protocol.session_request({"voice_prompt": voice}, "c1", 0).voice == voice.partition(".")[0]


@pytest.mark.parametrize(
    "voice", ["../../etc/passwd", "/etc/passwd", "a/b.pt", "..", ".pt", "a\x00", "a" * 65, "a.b.pt"]
)
def test_a_voice_is_never_a_path(voice: str) -> None:
    with pytest.raises(WireError, match="voice_prompt must be the name of a voice"):
        protocol.session_request({"voice_prompt": voice}, "c1", 0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", "x", "a whole number from 0 to 9223372036854775807, not 'x'"),
        ("seed", "1.5", "a whole number from 0 to 9223372036854775807, not '1.5'"),
        ("seed", "-2", "a whole number from 0 to 9223372036854775807, not '-2'"),
        ("seed", str(1 << 63), "a whole number from 0 to 9223372036854775807, not '9223372036854775808'"),
        ("audio_topk", "0", "a whole number from 1 to 2048, not '0'"),
        ("audio_topk", "2049", "a whole number from 1 to 2048, not '2049'"),
        ("text_topk", "0", "a whole number from 1 to 32000, not '0'"),
        ("text_topk", "9" * 5_000, f"a whole number from 1 to 32000, not '{'9' * 40}'"),
        ("audio_temperature", "warm", "a number from 0.0 to 2.0, not 'warm'"),
        ("audio_temperature", "nan", "a number from 0.0 to 2.0, not 'nan'"),
        ("audio_temperature", "-0.1", "a number from 0.0 to 2.0, not '-0.1'"),
        ("text_temperature", "1e400", "a number from 0.0 to 2.0, not '1e400'"),
    ],
)
def test_a_bad_parameter_is_named_with_its_bounds(name: str, value: str, words: str) -> None:
    with pytest.raises(WireError) as refused:
        protocol.session_request({name: value}, "c1", 0)
    assert str(refused.value) == f"{name} must be {words}"


def test_the_ends_of_the_bounds_are_allowed() -> None:
    asked = {"audio_temperature": "0", "text_temperature": "2", "audio_topk": "2048", "text_topk": "1", "seed": "0"}
    request = protocol.session_request(asked, "c1", 9)
    assert request.sampling == Sampling(0.0, 2.0, 2_048, 1, 0)


def test_of_a_parameter_given_twice_the_first_counts() -> None:
    assert protocol.query("/api/chat?a=1&a=2&b=") == {"a": "1", "b": ""}


def test_messages_are_a_kind_and_a_payload() -> None:
    assert protocol.sound(b"OggS") == b"\x01OggS"
    assert protocol.text(" päivä") == b"\x02 p\xc3\xa4iv\xc3\xa4"
    assert protocol.error("full") == b"\x05full"
    assert protocol.sound_in(b"\x01OggS") == b"OggS"


@pytest.mark.parametrize(
    "message", [b"", "", "hello", b"\x00", b"\x02hello", b"\x03\x01", b"\x04{}", b"\x06", b"\xffOggS"]
)
def test_what_is_not_sound_is_let_pass(message: str | bytes) -> None:
    assert protocol.sound_in(message) == b""


def test_a_message_of_sound_has_bounds() -> None:
    with pytest.raises(WireError, match="65536 bytes"):
        protocol.sound_in(b"\x01" + bytes(protocol.MAX_SOUND))


@given(st.text(max_size=40), st.sampled_from(["seed", "voice_prompt", "text_prompt", "audio_topk", "text_temperature"]))
def test_garbage_raises_only_the_peers_fault(value: str, name: str) -> None:
    target = f"/api/chat?{name}={quote(value, errors='replace')}&{value}"
    with contextlib.suppress(WireError):
        protocol.session_request(protocol.query(target), "c1", 0)
