"""Trunks: registering, staying registered, and coming back when a trunk was away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.sip.digest import parse_auth
from gateway.sip.events import Credentials, RegistrationChanged
from gateway.sip.registration import BACKOFF, MAX_BACKOFF, Trunk
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.script import PEER, Script

TRUNK = Trunk("main", parse_uri("sip:trunk.example.com"), "us", Credentials("auth-us", "secret"), PEER)
CHALLENGE = 'WWW-Authenticate: Digest realm="trunk", nonce="n1", qop="auth", algorithm=SHA-256'
REGISTER = "REGISTER sip:trunk.example.com"


def registering(trunk: Trunk = TRUNK) -> Script:
    script = Script()
    script.core.register(trunk, script.now)
    assert script.collect() == [REGISTER]
    return script


def registered(*fields: str) -> Script:
    script = registering()
    script.answer(401, CHALLENGE)
    script.answer(200, *fields)
    return script


def test_a_registration_gives_its_password_when_asked() -> None:
    script = registering()
    first = script.request()
    assert script.arrived[-1][2] == PEER
    assert first.headers.first("To") == "<sip:us@trunk.example.com>"
    assert first.headers.first("Contact") == "<sip:us@192.0.2.1:5060>"
    assert first.headers.first("Expires") == "3600"
    assert script.answer(401, CHALLENGE) == [REGISTER]
    second = script.request()
    assert (second.call_id, second.from_.tag) == (first.call_id, first.from_.tag)
    assert second.cseq.number == first.cseq.number + 1
    assert parse_auth(second.headers.first("Authorization"))["username"] == "auth-us"
    via = str(second.via).replace("rport", "received=203.0.113.9;rport=1024")
    script.say(
        f"SIP/2.0 200 OK\r\nVia: {via}\r\nFrom: {second.from_}\r\nTo: {second.to};tag=r\r\n"
        f"Call-ID: {second.call_id}\r\nCSeq: {second.cseq}\r\nExpires: 600\r\n\r\n".encode()
    )
    event = script.take(RegistrationChanged)
    assert (event.trunk, event.registered, event.code) == ("main", True, 200)
    assert 0.75 * 600 <= event.retry_after <= 0.9 * 600
    assert event.seen_as == Addr("203.0.113.9", 1024)


def test_it_is_refreshed_before_it_expires_with_the_nonce_it_has() -> None:
    script = registered("Contact: <sip:other@192.0.2.1>;expires=30, <sip:us@192.0.2.1:5060>;expires=120")
    wait = script.take(RegistrationChanged).retry_after
    assert 90 <= wait <= 115
    assert script.run(wait + 0.1)[0][1] == REGISTER
    fields = parse_auth(script.request().headers.first("Authorization"))
    assert (fields["nonce"], fields["nc"]) == ("n1", "00000002")
    assert script.answer(401, CHALLENGE.replace("n1", "n2")) == [REGISTER]
    script.answer(200, "Expires: 120")
    assert script.take(RegistrationChanged).registered


def test_a_short_grant_is_not_hammered() -> None:
    script = registered("Expires: 2")
    assert script.take(RegistrationChanged).retry_after >= 1.0


def test_a_longer_interval_is_agreed_to() -> None:
    script = registering()
    assert script.answer(423, "Min-Expires: 7200") == [REGISTER]
    assert script.request().headers.first("Expires") == "7200"
    assert script.answer(423, "Min-Expires: 7200") == []
    assert not script.take(RegistrationChanged).registered


def test_a_wrong_password_is_not_tried_again_at_once() -> None:
    script = registering()
    script.answer(401, CHALLENGE)
    assert script.answer(401, CHALLENGE.replace("n1", "n2")) == []
    event = script.take(RegistrationChanged)
    assert (event.registered, event.code) == (False, 401)
    assert BACKOFF / 2 <= event.retry_after <= BACKOFF


def test_waits_grow_while_a_trunk_refuses_and_shrink_when_it_is_back() -> None:
    script = registering()
    waits = []
    for _ in range(10):
        script.answer(503)
        event = script.take(RegistrationChanged)
        waits.append(event.retry_after)
        assert script.run(event.retry_after + 0.01)[-1][1] == REGISTER
    for place, wait in enumerate(waits):
        longest = min(BACKOFF * 2**place, MAX_BACKOFF)
        assert longest / 2 <= wait <= longest
    script.answer(200, "Expires: 600")
    assert script.take(RegistrationChanged).registered
    script.core.register(TRUNK, script.now)
    script.collect()
    script.answer(500)
    assert script.take(RegistrationChanged).retry_after <= BACKOFF


def test_a_trunk_says_itself_when_to_come_again() -> None:
    script = registering()
    script.answer(503, "Retry-After: 1200 (maintenance)")
    assert script.take(RegistrationChanged).retry_after == 1200
    script = registering()
    script.answer(503, "Retry-After: 99999999")
    assert script.take(RegistrationChanged).retry_after == 2 * MAX_BACKOFF


def test_a_silent_trunk_counts_as_one_that_refuses() -> None:
    script = registering()
    script.run(32.1)
    event = script.take(RegistrationChanged)
    assert (event.registered, event.code, event.seen_as) == (False, 408, None)


def test_taking_a_registration_back() -> None:
    script = registered("Expires: 600")
    script.take(RegistrationChanged)
    script.core.unregister("main", script.now)
    assert script.collect() == [REGISTER]
    assert script.request().headers.first("Expires") == "0"
    script.answer(200)
    assert not script.take(RegistrationChanged).registered
    assert script.run(10_000.0) == []
    assert (script.core.transactions, script.core.timers) == (0, 0)


def test_a_registration_that_was_never_made_is_taken_back_quietly() -> None:
    script = registering()
    script.answer(503)
    script.core.unregister("main", script.now)
    assert script.run(10_000.0) == []


def test_several_trunks_are_several_registrations() -> None:
    script = Script()
    other = replace(TRUNK, name="spare", registrar=parse_uri("sips:spare.example.com"), proxy=None)
    script.core.register(TRUNK, script.now)
    script.core.register(other, script.now)
    assert script.collect() == [REGISTER, "REGISTER sips:spare.example.com"]
    first, second = script.request(0), script.request(1)
    assert first.call_id != second.call_id
    assert script.arrived[-1][2] == Addr("spare.example.com", 5061, "tls")
    assert second.headers.first("Contact") == "<sips:us@192.0.2.1:5061>"
    script.answer(200, to=first)
    script.answer(403, to=second)
    events = [script.take(RegistrationChanged), script.take(RegistrationChanged)]
    assert [(event.trunk, event.registered) for event in events] == [("main", True), ("spare", False)]


@pytest.mark.parametrize("code", [200, 503])
def test_an_answer_to_an_older_register_changes_nothing(code: int) -> None:
    script = registering()
    old = script.request()
    script.core.register(TRUNK, script.now)
    script.collect()
    script.answer(code, to=old)
    assert script.events == []


def test_the_bindings_of_others_may_be_unreadable() -> None:
    """A 200 lists every address that the same user is reached at (RFC 3261, section 10.3)."""
    other = "Contact: <sip:us@[::1>"
    script = registered(other, "Contact: <sip:us@192.0.2.1:5060>;expires=120", "Contact: <sip:a" + "," * 201)
    event = script.take(RegistrationChanged)
    assert event.registered
    assert event.retry_after <= 120
