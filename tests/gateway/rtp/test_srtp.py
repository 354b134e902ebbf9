"""Encrypted media: RFC 3711's packets, other keys in the middle of a call, and everything that is not the peer's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rtp.packet import RtpError, RtpPacket, build_rtp
from gateway.rtp.rtcp import Report, build_report
from gateway.rtp.srtp import DEFAULT_SUITE, LARGEST, SUITES, SrtpContext, SrtpKeys

ONE, OTHER = bytes(range(46)), bytes(range(100, 146))


def pair(suite: str = DEFAULT_SUITE) -> tuple[SrtpContext, SrtpContext]:
    length = SUITES[suite].key + SUITES[suite].salt
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


def test_a_key_that_stays_keeps_its_place_when_the_other_changes() -> None:
    """65,536 packets on, an index begun anew would repeat the keystream, and the peer could not follow."""
    left, right = pair()
    one, other, new = ONE[:30], OTHER[:30], bytes(range(200, 230))
    for sequence in (65_535, 0, 1):
        right.unprotect(left.protect(packet(sequence)))
    left.rekey(SrtpKeys(DEFAULT_SUITE, one, new))
    right.rekey(SrtpKeys(DEFAULT_SUITE, new, one))
    assert right.unprotect(left.protect(packet(2))) == packet(2)
    assert left.unprotect(right.protect(packet(7))) == packet(7)
    old = SrtpContext(SrtpKeys(DEFAULT_SUITE, other, one))
    with pytest.raises(RtpError):
        left.unprotect(old.protect(packet(8)))


def test_keys_never_reach_a_log() -> None:
    assert repr(ONE[:30]) not in repr(SrtpKeys(DEFAULT_SUITE, ONE[:30], OTHER[:30]))
