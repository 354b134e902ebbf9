"""Whom the guard lets in, by where a connection comes from; what needs no server to show."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from gateway.twilio.guard import Guard, Refused, as_ws
from gateway.twilio.signature import sign
from tests.gateway.twilio.serving import settings

AUTH = "secret-auth-token"


def connection(
    client: str | None = "127.0.0.1", headers: dict[str, str] | None = None, kind: str = "http", **scope: object
) -> HTTPConnection:
    names = {"host": "localhost"} | {name.lower(): value for name, value in (headers or {}).items()}
    raw = [(name.encode(), value.encode()) for name, value in names.items()]
    return HTTPConnection(
        {
            "type": kind,
            "scheme": {"http": "http", "websocket": "ws"}[kind],
            "client": (client, 5060) if client else None,
            "path": "/twilio/voice",
            "raw_path": b"/twilio/voice",
            "query_string": b"",
            "headers": raw,
        }
        | scope
    )


@pytest.mark.parametrize("client", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_served_without_a_token(client: str) -> None:
    assert Guard(settings()).admit(connection(client)) == "http://localhost"


@pytest.mark.parametrize("client", ["192.168.0.2", "8.8.8.8", "::ffff:8.8.8.8", "fe80::1", "unix", None])
def test_nobody_else_is_served_without_a_token(client: str | None) -> None:
    with pytest.raises(Refused, match="only this machine is served; set CALLPLEX_TWILIO_AUTH_TOKEN"):
        Guard(settings()).admit(connection(client))
    assert Guard(settings(allow_unsigned=True)).admit(connection(client)) == "http://localhost"


def test_a_trusted_proxy_does_not_make_unsigned_requests_welcome() -> None:
    guard = Guard(settings(trusted_proxies="127.0.0.1"))
    with pytest.raises(Refused, match="nothing forwarded is served"):
        guard.admit(connection(headers={"X-Forwarded-Host": "localhost"}))


@pytest.mark.parametrize("name", ["X-FORWARDED-FOR", "x-forwarded-client-cert", "True-Client-IP", "CF-Ray", "Via"])
def test_traces_of_a_proxy_are_seen_however_they_are_spelt(name: str) -> None:
    bare = connection()
    bare.scope["headers"].append((name.encode(), b"x"))
    with pytest.raises(Refused, match="nothing forwarded is served"):
        Guard(settings()).admit(bare)


def test_allow_unsigned_does_not_switch_off_a_signature_that_can_be_checked() -> None:
    with pytest.raises(Refused, match="must carry one X-Twilio-Signature"):
        Guard(settings(allow_unsigned=True, twilio_auth_token=AUTH)).admit(connection())


def test_a_signed_request_may_come_from_anywhere_with_any_headers() -> None:
    guard = Guard(settings(twilio_auth_token=AUTH, public_url="https://phone.example/base/"))
    signature = sign(AUTH, "https://phone.example/base/twilio/voice?a=%20b", [("A", "1")])
    headers = {"X-Twilio-Signature": signature, "X-Forwarded-For": "1.2.3.4", "Host": "inside:8080"}
    asked = connection("8.8.8.8", headers, query_string=b"a=%20b")
    assert guard.admit(asked, [("A", "1")]) == "https://phone.example/base"
    with pytest.raises(Refused, match=r"does not match https://phone\.example/base/twilio/voice: check"):
        guard.admit(asked, [("A", "2")])


def test_two_signatures_are_none() -> None:
    signature = sign(AUTH, "http://localhost/twilio/voice")
    twice = connection(headers={"X-Twilio-Signature": signature})
    assert Guard(settings(twilio_auth_token=AUTH)).admit(twice) == "http://localhost"
    twice.scope["headers"].append((b"x-twilio-signature", signature.encode()))
    with pytest.raises(Refused, match="one X-Twilio-Signature"):
        Guard(settings(twilio_auth_token=AUTH)).admit(HTTPConnection(twice.scope))


@pytest.mark.parametrize("public", ["wss://phone.example", "https://phone.example"])
def test_a_handshake_is_checked_over_the_wss_url(public: str) -> None:
    guard = Guard(settings(twilio_auth_token=AUTH, public_url=public))
    for url, good in (("wss://phone.example/twilio/voice", True), ("https://phone.example/twilio/voice", False)):
        asked = connection("8.8.8.8", {"X-Twilio-Signature": sign(AUTH, url)}, "websocket")
        if good:
            assert as_ws(guard.admit(asked)) == "wss://phone.example"
        else:
            with pytest.raises(Refused):
                guard.admit(asked)


def test_of_several_proxies_the_nearest_one_counts() -> None:
    guard = Guard(settings(allow_unsigned=True, trusted_proxies="10.0.0.0/8"))
    headers = {"X-Forwarded-Proto": "http, HTTPS", "X-Forwarded-Host": "forged.example, phone.example"}
    assert guard.admit(connection("10.1.2.3", headers)) == "https://phone.example"
    assert guard.admit(connection("11.1.2.3", headers)) == "http://localhost"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": ""},
        {"Host": 'a"><x'},
        {"Host": "a b"},
        {"Host": "a/b"},
        {"Host": "user@a"},
        {"X-Forwarded-Proto": "ftp"},
        {"X-Forwarded-Host": "a/b?c"},
    ],
)
def test_a_host_that_is_none_is_refused(headers: dict[str, str]) -> None:
    guard = Guard(settings(allow_unsigned=True, trusted_proxies="127.0.0.1"))
    with pytest.raises(Refused, match="names no usable host"):
        guard.admit(connection(headers=headers))
