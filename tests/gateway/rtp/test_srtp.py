"""Encrypted media: SDP's keys, RFC 3711's packets, and everything that is not the peer's."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rtp.packet import RtpError, RtpPacket, build_rtp
from gateway.rtp.rtcp import Report, build_report
from gateway.rtp.srtp import (
    DEFAULT_SUITE,
    LARGEST,
    SUITES,
    CryptoAttribute,
    SrtpContext,
    SrtpKeys,
    choose_crypto,
    key_length,
    parse_crypto,
)

# RFC 4568, section 4's example.
EXAMPLE = "1 AES_CM_128_HMAC_SHA1_80 inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20"
ONE, OTHER = bytes(range(46)), bytes(range(100, 146))


def pair(suite: str = DEFAULT_SUITE) -> tuple[SrtpContext, SrtpContext]:
    length = key_length(suite)
    one, other = ONE[:length], OTHER[:length]
    return SrtpContext(SrtpKeys(suite, one, other)), SrtpContext(SrtpKeys(suite, other, one))


def packet(sequence: int) -> bytes:
    return build_rtp(RtpPacket(0, False, sequence, 160 * sequence, 9, bytes(160)))


@pytest.mark.parametrize("suite", SUITES)
def test_both_ways_in_every_suite(suite: str) -> None:
    left, right = pair(suite)
    hidden = left.protect(packet(1))
    assert hidden[:12] == packet(1)[:12]
    assert hidden[12:40] != packet(1)[12:40]
    assert right.unprotect(hidden) == packet(1)
    assert left.unprotect(right.protect(packet(65_535))) == packet(65_535)
    report = build_report(Report(9), "me")
    assert right.unprotect_rtcp(left.protect_rtcp(report)) == report


def test_sequence_numbers_wrap() -> None:
    left, right = pair()
    for sequence in (65_534, 65_535, 0, 1):
        assert right.unprotect(left.protect(packet(sequence))) == packet(sequence)


def test_what_is_not_the_peers_is_refused() -> None:
    left, right = pair()
    hidden = left.protect(packet(1))
    forged = hidden[:-1] + bytes((hidden[-1] ^ 1,))
    for data in (forged, packet(1), b"", hidden[:11], bytes(LARGEST + 1)):
        with pytest.raises(RtpError):
            right.unprotect(data)
        with pytest.raises(RtpError):
            right.unprotect_rtcp(data)
    assert right.unprotect(hidden) == packet(1)
    with pytest.raises(RtpError, match="replay"):
        right.unprotect(hidden)


@given(st.binary(max_size=200))
def test_garbage_raises_only_the_peers_fault(data: bytes) -> None:
    _, right = pair()
    for unprotect in (right.unprotect, right.unprotect_rtcp):
        with pytest.raises(RtpError):
            unprotect(data)


def test_the_rfcs_example_is_read() -> None:
    assert parse_crypto(EXAMPLE) == CryptoAttribute(1, DEFAULT_SUITE, b"=-n@%^x!Bjufr9)?,#5h\\`=&]{qiPQ")


def test_what_is_written_is_read() -> None:
    for suite in SUITES:
        attribute = CryptoAttribute(3, suite, ONE[: key_length(suite)])
        assert parse_crypto(str(attribute)) == attribute


def test_a_key_never_reaches_a_log() -> None:
    attribute = parse_crypto(EXAMPLE)
    assert "key" not in repr(attribute)
    assert repr(ONE[:30]) not in repr(SrtpKeys(DEFAULT_SUITE, ONE[:30], OTHER[:30]))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("nonsense", "tag suite inline:key"),
        (EXAMPLE.replace("HMAC_SHA1_80", "HMAC_SHA1_99"), "not known"),
        (EXAMPLE + "|1:4", "key identifier"),
        (EXAMPLE + " UNENCRYPTED_SRTP", "session parameters"),
        (EXAMPLE + ";inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20", "several keys"),
        (f"1 {DEFAULT_SUITE} inline:abc", "not base64"),
        (f"1 {DEFAULT_SUITE} inline:{b64encode(ONE[:16]).decode()}", "must have 30 bytes, not 16"),
    ],
)
def test_what_cannot_be_done_as_offered(value: str, why: str) -> None:
    with pytest.raises(RtpError, match=why):
        parse_crypto(value)


def test_the_first_offer_that_can_be_done_is_chosen() -> None:
    offers = [
        "1 F8_128_HMAC_SHA1_80 inline:xyz",
        EXAMPLE.replace("1 ", "2 ", 1) + "|1:4",
        EXAMPLE.replace("1 ", "3 ", 1),
    ]
    chosen = choose_crypto(offers)
    assert chosen is not None
    assert chosen.tag == 3
    assert choose_crypto(offers[:2]) is None


@given(st.text(max_size=100))
def test_any_attribute_is_read_or_refused(value: str) -> None:
    assert choose_crypto([value]) is None
