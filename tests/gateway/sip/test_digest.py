"""Digest: the RFCs' own examples, both roles against each other, and every way to be refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gateway.sip.chance import Chance
from gateway.sip.digest import (
    MAX_NONCES,
    NONCE_SECONDS,
    ClientDigest,
    Proof,
    ServerDigest,
    parse_auth,
    read_challenges,
    without_proof,
)
from gateway.sip.errors import SipError
from gateway.sip.events import Credentials, IncomingCall
from gateway.sip.message import Headers, Request, Response
from tests.gateway.sip.script import Script, ask, invite


def chance(seed: int = 1) -> Chance:
    return Chance(random.Random(seed).randbytes)


def server() -> ServerDigest:
    return ServerDigest("here", {"ann": "secret"}, chance())


def request(uri: str = "sip:here", body: bytes = b"") -> Request:
    return Request(Headers(), body, method="INVITE", uri=uri)


def refusal(digest: ServerDigest, signed: Request, now: float = 0.0) -> SipError:
    with pytest.raises(SipError) as caught:
        digest.check(signed, now)
    return caught.value


def challenge_of(error: SipError) -> Response:
    return Response(Headers(error.headers), code=error.code)


RFC_7616: dict[str, Any] = {
    "user": "Mufasa",
    "realm": "http-auth@example.org",
    "password": "Circle of Life",
    "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
    "method": "GET",
    "uri": "/dir/index.html",
    "qop": "auth",
    "count": "00000001",
    "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
}


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_examples_of_rfc_7616(algorithm: str, response: str) -> None:
    assert Proof(algorithm, **RFC_7616).response() == response


def test_the_example_of_rfc_2617() -> None:
    proof = Proof(
        "MD5",
        "Mufasa",
        "testrealm@host.com",
        "Circle Of Life",
        "dcd98b7102dd2f0e8b11d0f600bfb0c093",
        "GET",
        "/dir/index.html",
        "auth",
        "00000001",
        "0a4f113b",
    )
    assert proof.response() == "6629fae49393a05397450978507c4ef1"


def test_without_qop_it_is_as_rfc_2069_had_it() -> None:
    fields: dict[str, Any] = {**RFC_7616, "qop": "", "count": "", "cnonce": ""}
    old, new = Proof("MD5", **fields), Proof("MD5", **RFC_7616)
    assert len(old.response()) == 32
    assert old.response() != new.response()
    assert Proof("MD5-sess", **RFC_7616).response() != new.response()


def test_client_and_server_understand_each_other_again_and_again() -> None:
    ours, theirs = server(), ClientDigest(Credentials("ann", "secret"), chance(2))
    signed = request()
    error = refusal(ours, signed)
    assert error.code == 401
    names = [parse_auth(value)["algorithm"] for _, value in error.headers]
    assert names == ["SHA-256", "MD5"]
    assert theirs.challenged(challenge_of(error))
    for count in range(1, 20):
        theirs.sign(signed)
        fields = parse_auth(signed.headers.first("Authorization"))
        assert fields["algorithm"] == "SHA-256"
        assert int(fields["nc"], 16) == count
        assert ours.check(signed, 1.0) == "ann"


def test_a_copied_proof_is_worth_nothing() -> None:
    ours, theirs = server(), ClientDigest(Credentials("ann", "secret"), chance(2))
    signed = request()
    theirs.challenged(challenge_of(refusal(ours, signed)))
    theirs.sign(signed)
    ours.check(signed, 1.0)
    replayed = refusal(ours, signed, 1.0)
    assert "stale=true" in replayed.headers[0][1]
    elsewhere = Request(signed.headers, method="INVITE", uri="sip:elsewhere")
    assert "stale" not in refusal(ours, elsewhere, 1.0).headers[0][1]
    other_method = Request(signed.headers, method="BYE", uri=signed.uri)
    assert refusal(ours, other_method, 1.0).code == 401


def test_an_old_nonce_is_stale_and_the_client_goes_on_with_a_new_one() -> None:
    ours, theirs = server(), ClientDigest(Credentials("ann", "secret"), chance(2))
    signed = request()
    theirs.challenged(challenge_of(refusal(ours, signed)))
    theirs.sign(signed)
    error = refusal(ours, signed, NONCE_SECONDS + 1)
    assert theirs.challenged(challenge_of(error))
    theirs.sign(signed)
    assert ours.check(signed, NONCE_SECONDS + 2) == "ann"


@pytest.mark.parametrize(("user", "password"), [("ann", "wrong"), ("bob", "secret"), ("", "")])
def test_who_does_not_know_the_password_is_asked_again_without_end_of_patience(user: str, password: str) -> None:
    ours, theirs = server(), ClientDigest(Credentials(user, password), chance(2))
    signed = request()
    assert theirs.challenged(challenge_of(refusal(ours, signed)))
    theirs.sign(signed)
    error = refusal(ours, signed, 1.0)
    assert "stale" not in error.headers[0][1]
    assert not theirs.challenged(challenge_of(error))


@pytest.mark.parametrize(
    "change",
    [
        ("qop=auth", "qop=auth-int"),
        ("algorithm=SHA-256", "algorithm=SHA-512"),
        ('realm="here"', 'realm="there"'),
        ("nc=00000001", "nc=zzz"),
        ('nonce="', 'nonce="x'),
        ("Digest ", "Basic "),
        ('username="ann"', "username"),
        ('response="', 'response="0'),
    ],
)
def test_a_proof_tampered_with_is_refused(change: tuple[str, str]) -> None:
    ours, theirs = server(), ClientDigest(Credentials("ann", "secret"), chance(2))
    signed = request()
    theirs.challenged(challenge_of(refusal(ours, signed)))
    theirs.sign(signed)
    proof = signed.headers.first("Authorization")
    assert change[0] in proof
    signed.headers.put("Authorization", proof.replace(*change))
    assert refusal(ours, signed, 1.0).code == 401


def test_forgetting_old_nonces_never_lets_one_be_used_twice() -> None:
    ours, theirs = server(), ClientDigest(Credentials("ann", "secret"), chance(2))
    signed = request()
    theirs.challenged(challenge_of(refusal(ours, signed)))
    theirs.sign(signed)
    ours.check(signed, 1.0)
    for number in range(MAX_NONCES):
        other = ClientDigest(Credentials("ann", "secret"), chance(3))
        mine = request()
        other.challenged(challenge_of(refusal(ours, mine, 2.0 + number / 1000)))
        other.sign(mine)
        ours.check(mine, 2.0 + number / 1000)
    assert "stale=true" in refusal(ours, signed, 8.0).headers[0][1]


def test_a_client_answers_the_first_challenge_it_understands() -> None:
    response = Response(
        Headers(
            [
                ("WWW-Authenticate", 'Digest realm="a", nonce="1", algorithm=SHA-512-256, qop="auth"'),
                ("WWW-Authenticate", 'Digest realm="a", nonce="2", algorithm=SHA-256, qop="auth,auth-int"'),
                ("WWW-Authenticate", 'Digest realm="a", nonce="3", algorithm=MD5'),
                ("WWW-Authenticate", "Negotiate"),
                ("Proxy-Authenticate", 'Digest realm="b", nonce="4", opaque="o,p", qop="auth-int"'),
                ("Proxy-Authenticate", 'Digest realm="c"'),
            ]
        )
    )
    chosen = read_challenges(response)
    assert [(one.realm, one.nonce, one.algorithm, one.qop) for one in chosen] == [
        ("a", "2", "SHA-256", "auth"),
        ("b", "4", "MD5", "auth-int"),
    ]
    client = ClientDigest(Credentials('we "are"', "secret"), chance())
    assert client.challenged(response)
    signed = request(body=b"body")
    client.sign(signed)
    assert parse_auth(signed.headers.first("Authorization"))["username"] == 'we "are"'
    other = parse_auth(signed.headers.first("Proxy-Authorization"))
    assert other["opaque"] == "o,p"
    expected = Proof(
        "MD5", 'we "are"', "b", "secret", "4", "INVITE", "sip:here", "auth-int", "00000001", other["cnonce"], b"body"
    )
    assert other["response"] == expected.response()
    assert "Authorization" not in without_proof(signed.headers)
    assert "Authorization" in signed.headers


def test_a_stranger_proves_itself_and_may_then_call() -> None:
    script = Script(trusted=lambda addr: False, users={"ann": "secret"}, realm="here")
    assert script.say(invite()) == ["401 Unauthorized"]
    assert script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKINVITE1")) == []
    client = ClientDigest(Credentials("ann", "secret"), chance(5))
    client.challenged(script.response())
    signed = Request(method="INVITE", uri="sip:agent@192.0.2.1")
    client.sign(signed)
    proof = f"Authorization: {signed.headers.first('Authorization')}"
    assert script.say(invite(proof, cseq=2)) == ["100 Trying"]
    script.take(IncomingCall)
    assert script.say(ask("OPTIONS", cseq=9)) == ["401 Unauthorized"]
    assert script.events == []
