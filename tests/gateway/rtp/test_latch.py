"""Whose sound is taken: the SDP's address at once, another only early and only if it keeps at it."""

from __future__ import annotations

from gateway.rtp.latch import PROBATION, WINDOW, Latch
from gateway.rtp.packet import RtpPacket

PEER, NAT, STRANGER = ("192.0.2.1", 4_000), ("198.51.100.7", 61_234), ("203.0.113.9", 5_000)


def packet(sequence: int, ssrc: int = 1) -> RtpPacket:
    return RtpPacket(0, False, sequence & 0xFFFF, 160 * sequence, ssrc, bytes(160))


def test_the_address_of_the_sdp_is_believed_at_once_and_always() -> None:
    latch = Latch(PEER, 0.0)
    assert latch.consider(packet(1), PEER, 1_000.0) == [packet(1)]
    assert latch.source == PEER


def test_another_address_after_packets_in_sequence_none_of_them_lost() -> None:
    latch = Latch(PEER, 0.0)
    sequences = [65_535, 0, 1][:PROBATION]
    taken = [latch.consider(packet(sequence), NAT, 0.1) for sequence in sequences]
    assert taken == [None, None, [packet(65_535), packet(0), packet(1)]]
    assert latch.source == NAT


def test_packets_out_of_sequence_or_of_many_sources_show_nothing() -> None:
    latch = Latch(PEER, 0.0)
    for sequence in range(0, 400, 2):
        assert latch.consider(packet(sequence), STRANGER, 0.1) is None
    for ssrc in range(200):
        assert not latch.consider(packet(ssrc, ssrc), STRANGER, 0.1)
    assert latch.source is None
    assert latch.consider(packet(7), PEER, 0.2) == [packet(7)]


def test_after_the_window_nobody_new_is_considered() -> None:
    latch = Latch(PEER, 100.0)
    for sequence in range(PROBATION + 3):
        assert latch.consider(packet(sequence), NAT, 100.1 + WINDOW) == []
    assert latch.source is None


def test_without_symmetric_rtp_only_the_sdp_counts() -> None:
    latch = Latch(PEER, 0.0, symmetric=False)
    assert [latch.consider(packet(sequence), NAT, 0.1) for sequence in range(5)] == 5 * [[]]
    assert latch.consider(packet(9), PEER, 0.2) == [packet(9)]
