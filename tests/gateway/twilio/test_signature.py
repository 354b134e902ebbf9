"""Our signatures against the oracle: Twilio's own package."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import ImmutableMultiDict
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from gateway.twilio.signature import sign, verify

TOKEN = "12345"
URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
FORM = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Caller", "+14158675309"),
    ("Digits", "1234"),
    ("From", "+14158675309"),
    ("To", "+18005551212"),
]

Pairs = list[tuple[str, str]]
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hosts = st.sampled_from(["example.com", "localhost", "a-b.example.org", "127.0.0.1"])
urls = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https", "wss"]),
    hosts,
    st.sampled_from(["", ":8080", ":443", ":80"]),
    st.sampled_from(["/", "/twilio/voice", "/p%C3%A5/x"]),
    st.sampled_from(["", "?a=1", "?a=b:c@d&x=%20", "?u=http://other:99/"]),
)


def oracle(url: str, pairs: Pairs) -> str:
    return str(RequestValidator(TOKEN).compute_signature(url, ImmutableMultiDict(pairs)))


def oracle_accepts(url: str, pairs: Pairs, signature: str) -> bool:
    return bool(RequestValidator(TOKEN).validate(url, ImmutableMultiDict(pairs), signature))


def test_twilios_own_example() -> None:
    assert sign(TOKEN, URL, FORM) == "RSOYDt4T1cUTdK1PDd93/VVr8B8="
    assert verify(TOKEN, URL, reversed(FORM), "RSOYDt4T1cUTdK1PDd93/VVr8B8=")


@given(urls, st.lists(st.tuples(plain, plain), max_size=6), st.booleans())
def test_any_form_is_signed_as_twilio_signs_it(url: str, pairs: Pairs, twice: bool) -> None:
    pairs = pairs * (1 + twice)
    signature = oracle(url, pairs)
    assert sign(TOKEN, url, pairs) == signature
    assert verify(TOKEN, url, pairs, signature)


def test_a_name_with_several_values_counts_each_once_in_order() -> None:
    pairs = [("Digits", "2"), ("Digits", "1"), ("A", "x"), ("Digits", "2"), ("Digits", "")]
    assert sign(TOKEN, URL, pairs) == oracle(URL, pairs)


@pytest.mark.parametrize("signed", ["https://a.example/x", "https://a.example:443/x"])
@pytest.mark.parametrize("asked", ["https://a.example/x", "https://a.example:443/x"])
def test_the_default_port_may_be_spelt_or_not(signed: str, asked: str) -> None:
    assert verify(TOKEN, asked, FORM, sign(TOKEN, signed, FORM))
    assert oracle_accepts(asked, FORM, sign(TOKEN, signed, FORM))


def test_a_handshake_is_signed_over_its_wss_url() -> None:
    url = "wss://a.example/twilio/stream?x=1"
    assert verify(TOKEN, url, (), oracle(url, []))
    assert verify(TOKEN, url, (), sign(TOKEN, "wss://a.example:443/twilio/stream?x=1"))
    assert not verify(TOKEN, url, (), sign(TOKEN, "https://a.example/twilio/stream?x=1"))


def test_an_address_in_brackets_keeps_its_colons() -> None:
    assert verify(TOKEN, "https://[::1]:8443/x", (), sign(TOKEN, "https://[::1]/x"))
    assert verify(TOKEN, "https://[::1]/x", (), sign(TOKEN, "https://[::1]:443/x"))


@pytest.mark.parametrize(
    ("token", "url", "pairs"),
    [
        ("12346", URL, FORM),
        (TOKEN, URL + "&", FORM),
        (TOKEN, URL.replace("https", "http"), FORM),
        (TOKEN, URL.replace("mycompany", "myc0mpany"), FORM),
        (TOKEN, URL, FORM[1:]),
        (TOKEN, URL, [*FORM, ("X", "1")]),
        (TOKEN, URL, [*FORM[:-1], ("To", "+18005551213")]),
        (TOKEN, "https://mycompany.com:99999/x", FORM),
    ],
)
def test_anything_else_does_not_match(token: str, url: str, pairs: Pairs) -> None:
    assert not verify(token, url, pairs, "RSOYDt4T1cUTdK1PDd93/VVr8B8=")


@given(st.text(), st.text(max_size=30))
def test_a_made_up_signature_never_matches_and_never_raises(signature: str, value: str) -> None:
    assert not verify(TOKEN, URL, [("a", value)], signature)
