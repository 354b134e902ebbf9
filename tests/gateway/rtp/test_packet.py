"""RTP packets: bytes as on the wire, and what is not RTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rtp.packet import RtpError, RtpPacket, build_rtp, is_rtcp, pack_rtp, parse_rtp

PLAIN = bytes.fromhex("80 80 ab cd 00 01 e2 40 de ad be ef") + b"\xff\xfe\xfd"
"""Version 2, marker, PCMU, sequence 0xabcd, timestamp 123456, three samples."""


def test_a_plain_packet() -> None:
    packet = parse_rtp(PLAIN)
    assert packet == RtpPacket(0, True, 0xABCD, 123_456, 0xDEADBEEF, b"\xff\xfe\xfd")
    assert build_rtp(packet) == PLAIN
    assert pack_rtp(8, 1, 2, 3, b"x") == build_rtp(RtpPacket(8, False, 1, 2, 3, b"x"))


def test_sources_extension_and_padding_are_passed_over() -> None:
    head = bytes.fromhex("b2 08 00 01 00 00 00 02 00 00 00 03")  # padding, extension, two sources
    extension = bytes.fromhex("be de 00 01 00 00 00 00")
    packet = parse_rtp(head + bytes(8) + extension + b"sound" + b"\0\0\x03")
    assert packet == RtpPacket(8, False, 1, 2, 3, b"sound")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (PLAIN[:11], "at least 12 bytes"),
        (b"\x40" + PLAIN[1:], "version is 1"),
        (b"\x8f" + PLAIN[1:], "inside its header"),
        (b"\x90" + PLAIN[1:], "before its header extension"),
        (b"\x90" + PLAIN[1:12] + bytes.fromhex("be de 00 09"), "inside its header"),
        (b"\xa0" + PLAIN[1:12] + b"\x09", "inside its header"),
        (b"\xa0" + PLAIN[1:12] + b"\x00", "counts nothing"),
    ],
)
def test_what_is_no_packet(data: bytes, why: str) -> None:
    with pytest.raises(RtpError, match=why):
        parse_rtp(data)


@given(st.binary(max_size=80))
def test_garbage_raises_only_the_peers_fault(data: bytes) -> None:
    try:
        packet = parse_rtp(data)
    except RtpError:
        return
    assert packet.payload in data


def test_reports_are_told_from_sound_by_their_type() -> None:
    assert is_rtcp(b"\x80\xc8")
    assert is_rtcp(b"\x81\xc9")
    assert not is_rtcp(b"\x80\x80")
    assert not is_rtcp(b"\x80\x65")
    assert not is_rtcp(b"\x80\xe5")
    assert not is_rtcp(b"\x80")
