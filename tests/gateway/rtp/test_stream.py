"""Two media streams wired to each other without sockets, under explicit time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rtp.codec import CODECS, COMFORT_NOISE, PCMA, PCMU
from gateway.rtp.packet import RtpPacket, build_rtp, parse_rtp
from gateway.rtp.plan import Identity, MediaPlan
from gateway.rtp.srtp import DEFAULT_SUITE, SrtpKeys
from gateway.rtp.stream import MediaStream
from tests.gateway.rtp.tones import AMPLITUDE, TICK, packets, roughness

LEFT, RIGHT, STRANGER = ("192.0.2.1", 4_000), ("192.0.2.2", 5_000), ("203.0.113.9", 6_000)
ONE, OTHER = bytes(range(30)), bytes(range(100, 130))


class Pair:
    """Two ends and the wire between; `lose` says which datagrams it loses."""

    def __init__(self, left: MediaPlan, right: MediaPlan, lose: Callable[[], bool] = lambda: False) -> None:
        self.left = MediaStream(Identity(1, 65_530, 2**32 - 1_000, "left"), left, 0.0)
        self.right = MediaStream(Identity(2, 7, 7, "right"), right, 0.0)
        self.heard: list[bytes] = []
        self.digits: list[str] = []
        self.right.on_frame = self.heard.append
        self.right.on_digit = self.digits.append
        self.ticks = 0
        self._lose = lose

    def run(self, seconds: float, say: bytes = b"") -> None:
        """`say` is handed to the left end 80 ms at a time."""
        for _ in range(round(seconds / TICK)):
            now = self.ticks * TICK
            if self.ticks % 4 == 0 and say:
                self.left.sender.talk.push(say[:1_280])
                say = say[1_280:]
            for sender, receiver, source in ((self.left, self.right, LEFT), (self.right, self.left, RIGHT)):
                for data in sender.tick(now):
                    if not self._lose():
                        receiver.receive_rtp(data, source, now + 0.005)
                if now >= sender.reporter.due:
                    receiver.receive_rtcp(sender.report(now, 1.7e9 + now, 0.5), (source[0], source[1] + 1), now + 0.03)
            self.ticks += 1

    def sound(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.frombuffer(b"".join(self.heard), np.int16).astype(np.float64)


def plans(**agreed: object) -> tuple[MediaPlan, MediaPlan]:
    return MediaPlan(RIGHT, **agreed), MediaPlan(LEFT, **agreed)  # type: ignore[arg-type]


def tone(seconds: float) -> bytes:
    return b"".join(one.pcm for one in packets(seconds))


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
@pytest.mark.parametrize("ptime", [10, 20, 30, 40, 60])
def test_sound_at_any_packet_time_in_either_codec(codec: str, ptime: int) -> None:
    pair = Pair(*plans(codec=CODECS[codec], ptime=ptime))
    pair.run(5, tone(4.8))
    sound = pair.sound()
    middle = sound[8_000:32_000]
    assert np.abs(middle).max() == pytest.approx(AMPLITUDE, rel=0.05)
    # G.711's own noise, 38 dB down, and no more than it.
    assert roughness(middle) < 900
    assert len(pair.heard) > 230
    assert pair.right.summary().lost == pair.right.jitter.counters.concealed == 0


def test_packets_are_numbered_timed_and_marked() -> None:
    stream = MediaStream(Identity(9, 65_535, 2**32 - 160), MediaPlan(RIGHT, PCMA), 0.0)
    sent = [parse_rtp(stream.tick(index * TICK)[0]) for index in range(3)]
    assert sent == [
        RtpPacket(8, True, 65_535, 2**32 - 160, 9, b"\xd5" * 160),
        RtpPacket(8, False, 0, 0, 9, b"\xd5" * 160),
        RtpPacket(8, False, 1, 160, 9, b"\xd5" * 160),
    ]
    stream.skip(5)
    assert parse_rtp(stream.tick(1.0)[0]).timestamp == 160 * 7


def test_ticks_that_were_left_out_while_somebody_spoke_are_missing() -> None:
    stream = MediaStream(Identity(9, 1, 1), MediaPlan(RIGHT), 0.0)
    stream.skip(7)
    stream.sender.talk.push(b"\x00\x10" * 640)
    for index in range(3):
        stream.tick(index * TICK)
    stream.skip(30)
    stream.tick(33 * TICK)
    assert stream.sender.talk.missing == 30


def test_the_peer_may_change_codec_at_any_packet() -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(LEFT), 0.0)
    heard: list[bytes] = []
    stream.on_frame = heard.append
    for index, one in enumerate(packets(2)):
        codec = (PCMU, PCMA)[index // 7 % 2]
        payload = codec.encode(one.pcm)
        stream.receive_rtp(build_rtp(RtpPacket(codec.payload_type, False, index, one.number, 5, payload)), LEFT, one.at)
        stream.tick(one.at + 0.001)
    assert roughness(np.frombuffer(b"".join(heard[50:]), np.int16).astype(float)) < 900


def test_a_call_in_srtp() -> None:
    left, right = plans()
    left = replace(left, keys=SrtpKeys(DEFAULT_SUITE, ONE, OTHER))
    right = replace(right, keys=SrtpKeys(DEFAULT_SUITE, OTHER, ONE))
    pair = Pair(left, right)
    pair.run(12, tone(11))
    assert roughness(pair.sound()[8_000:80_000]) < 900
    assert pair.left.reporter.received >= 1
    assert pair.right.counters.unauthentic == 0
    # What is not encrypted, or encrypted by somebody else, is counted and leaves no trace.
    pair.right.receive_rtp(build_rtp(RtpPacket(0, False, 1, 1, 1, bytes(160))), LEFT, 12.0)
    pair.right.receive_rtcp(bytes.fromhex("80c90001 00000001"), LEFT, 12.0)
    assert pair.right.counters.unauthentic == 2


def test_the_peer_may_change_its_key_in_the_middle_of_a_call() -> None:
    """Ours stays, 65,536 packets and more into the call: what we send is still understood."""
    left, right = plans()
    left = replace(left, keys=SrtpKeys(DEFAULT_SUITE, ONE, OTHER))
    right = replace(right, keys=SrtpKeys(DEFAULT_SUITE, OTHER, ONE))
    pair = Pair(left, right)
    pair.run(1, tone(1))
    new = bytes(range(200, 230))
    pair.left.change(replace(left, keys=SrtpKeys(DEFAULT_SUITE, ONE, new)), 1.0)
    pair.right.change(replace(right, keys=SrtpKeys(DEFAULT_SUITE, new, ONE)), 1.0)
    before = [pair.left.summary().received, pair.right.summary().received]
    pair.run(1, tone(1))
    assert [pair.left.summary().received - before[0], pair.right.summary().received - before[1]] == [50, 50]
    assert pair.left.counters.unauthentic == pair.right.counters.unauthentic == 0
    pair.left.change(MediaPlan(RIGHT), 2.0)
    pair.right.change(MediaPlan(LEFT), 2.0)
    pair.run(1, tone(1))
    assert pair.right.counters.unauthentic == pair.right.counters.malformed == 0


def test_each_side_uses_the_numbers_that_the_other_named() -> None:
    """RFC 3264, section 5.1: we offered 101 and the peer answered 96, so it sends 101 and hears 96; sound likewise."""
    dynamic = replace(PCMU, payload_type=97)
    ours = MediaStream(Identity(1, 1, 1), MediaPlan(LEFT, dynamic, dtmf_type=96, dtmf_in=101), 0.0)
    digits: list[str] = []
    ours.on_digit = digits.append
    assert parse_rtp(ours.tick(0.0)[0]).payload_type == 97
    ours.sender.digits.push("5")
    assert parse_rtp(ours.tick(0.02)[0]).payload_type == 96
    told = bytes((7, 10, 0, 160))
    for number, payload_type in enumerate((101, 96)):
        ours.receive_rtp(build_rtp(RtpPacket(payload_type, True, number, 1_000 * number, 5, told)), LEFT, 0.1)
    for number, payload_type in enumerate((97, 0, 8), 2):
        ours.receive_rtp(build_rtp(RtpPacket(payload_type, False, number, 160 * number, 5, bytes(160))), LEFT, 0.1)
    assert digits == ["7", "7"]
    assert ours.counters.unknown == 0
    assert ours.summary().received == 5


def test_strangers_are_dropped_and_counted() -> None:
    pair = Pair(*plans())
    pair.run(1)
    for sequence in range(100):
        packet = build_rtp(RtpPacket(0, False, sequence, 160 * sequence, 1, PCMU.encode(b"\x00\x20" * 160)))
        pair.right.receive_rtp(packet, STRANGER, 1.0)
        pair.right.receive_rtp(packet, (LEFT[0], 9), 1.0)
    pair.right.receive_rtcp(bytes.fromhex("80c90001 00000001"), STRANGER, 1.0)
    pair.run(1)
    assert pair.right.counters.strangers == pair.right.summary().strangers == 201
    assert not pair.sound().any()
    assert pair.right.remote == LEFT


def test_the_caller_behind_nat_is_answered_where_it_is() -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(("10.0.0.5", 4_000)), 0.0)
    assert stream.remote == ("10.0.0.5", 4_000)
    assert stream.remote_rtcp == ("10.0.0.5", 4_001)
    heard: list[bytes] = []
    stream.on_frame = heard.append
    for index, one in enumerate(packets(1)):
        packet = build_rtp(RtpPacket(0, False, index, one.number, 5, PCMU.encode(one.pcm)))
        stream.receive_rtp(packet, STRANGER, one.at)
        stream.tick(one.at + 0.001)
    assert stream.remote == STRANGER
    assert stream.remote_rtcp == (STRANGER[0], STRANGER[1] + 1)
    assert stream.reception is not None
    assert stream.reception.received == 50
    # A re-INVITE that does not move the peer does not open the door again; one that does, does.
    stream.change(MediaPlan(("10.0.0.5", 4_000), PCMA), 2.0)
    assert stream.remote == STRANGER
    stream.change(MediaPlan(LEFT, PCMA), 2.0)
    assert stream.remote == LEFT


def test_there_is_no_port_above_the_last_one_for_our_reports() -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(("10.0.0.5", 4_000)), 0.0)
    for number in range(3):
        packet = build_rtp(RtpPacket(0, False, number, 160 * number, 5, bytes(160)))
        stream.receive_rtp(packet, ("10.0.0.9", 65_535), 0.02 * number)
    assert stream.remote == ("10.0.0.9", 65_535)
    assert stream.remote_rtcp is None


def test_another_source_at_the_same_address_takes_over() -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(LEFT), 0.0)
    heard: list[bytes] = []
    stream.on_frame = heard.append
    for index, one in enumerate(packets(6)):
        later = index >= 150
        numbers = (index + 31_000, one.number + 99_999_999, 6) if later else (index, one.number, 5)
        packet = RtpPacket(0, False, numbers[0] & 0xFFFF, numbers[1], numbers[2], PCMU.encode(one.pcm))
        stream.receive_rtp(build_rtp(packet), LEFT, one.at)
        stream.tick(one.at + 0.001)
    assert stream.counters.sources == 2
    assert stream.summary().lost == 0
    sound = np.frombuffer(b"".join(heard), np.int16).astype(float)
    assert np.abs(np.diff(sound[8_000:])).max() < 3_500
    assert roughness(sound[-8_000:]) < 900


def test_a_single_packet_of_another_source_changes_nothing() -> None:
    pair = Pair(*plans())
    pair.run(1)
    for sequence in (5, 50, 500):
        pair.right.receive_rtp(build_rtp(RtpPacket(0, False, sequence, 0, 77, bytes(160))), LEFT, 1.0)
    pair.run(1)
    assert pair.right.counters.sources == 1


@pytest.mark.parametrize("ptime", [20, 30])
def test_digits_cross_a_lossy_line(ptime: int) -> None:
    chance = random.Random(3)
    pair = Pair(*plans(dtmf_type=101, ptime=ptime), lose=lambda: chance.random() < 0.3)
    pair.left.sender.digits.push("0123456789*#ABCD")
    pair.run(5)
    assert "".join(pair.digits) == "0123456789*#ABCD"


def test_time_goes_on_while_digits_are_sent() -> None:
    stream = MediaStream(Identity(9, 0, 0), MediaPlan(RIGHT, dtmf_type=96), 0.0)
    stream.sender.digits.push("5")
    sent = [parse_rtp(packet) for tick in range(14) for packet in stream.tick(tick * TICK)]
    events = [packet for packet in sent if packet.payload_type == 96]
    assert {packet.timestamp for packet in events} == {0}
    assert len(events) == 7
    assert [packet.sequence for packet in sent] == list(range(14))
    assert [packet.timestamp for packet in sent if packet.payload_type == 0] == [160 * tick for tick in range(7, 14)]
    assert [packet.marker for packet in sent] == [True] + 6 * [False] + [True] + 6 * [False]


def test_on_hold_nothing_is_sent_and_time_goes_on() -> None:
    stream = MediaStream(Identity(9, 5, 0), MediaPlan(RIGHT), 0.0)
    stream.tick(0.0)
    stream.change(MediaPlan(RIGHT, sends=False), 0.02)
    assert [stream.tick(0.02 * tick) for tick in range(1, 11)] == 10 * [[]]
    stream.change(MediaPlan(RIGHT), 0.22)
    packet = parse_rtp(stream.tick(0.22)[0])
    assert (packet.sequence, packet.timestamp, packet.marker) == (6, 160 * 11, True)


def test_reports_tell_both_sides_of_loss_jitter_and_distance() -> None:
    chance = random.Random(4)
    pair = Pair(*plans(), lose=lambda: chance.random() < 0.1)
    pair.run(30)
    for end in (pair.left, pair.right):
        summary = end.summary()
        assert 100 < summary.lost < 200
        assert 100 < summary.peer_lost < 200
        assert summary.round_trip_ms == pytest.approx(60, abs=3)
        assert summary.peer_jitter_ms < 3
        assert summary.jitter_ms < 3
    assert pair.left.remote_rtcp == (RIGHT[0], RIGHT[1] + 1)
    pair.right.receive_rtcp(pair.left.report(30.0, 1.7e9, 0.5, goodbye=True), LEFT, 30.0)
    assert pair.right.reporter.goodbye


def test_comfort_noise_and_unknown_types_are_no_sound() -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(LEFT), 0.0)
    for sequence, (kind, payload) in enumerate([(COMFORT_NOISE, b"\x40"), (111, b"x"), (0, b""), (0, bytes(5_000))]):
        stream.receive_rtp(build_rtp(RtpPacket(kind, False, sequence, 0, 5, payload)), LEFT, 3.0 + sequence)
    assert stream.last_heard == 3.0
    assert (stream.counters.unknown, stream.counters.malformed) == (1, 2)
    assert stream.tick(9.0)
    assert not stream.jitter.playing


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=30))
def test_nothing_a_peer_sends_raises(datagrams: list[bytes]) -> None:
    stream = MediaStream(Identity(1, 1, 1), MediaPlan(LEFT, dtmf_type=101), 0.0)
    for index, data in enumerate(datagrams):
        for head in (b"", b"\x80\x00", b"\x80\x65", b"\x80\xc8", b"\xb1\x00"):
            stream.receive_rtp(head + data, LEFT, index * TICK)
            stream.receive_rtcp(head + data, LEFT, index * TICK)
        stream.tick(index * TICK)
    stream.summary()


def test_a_packet_time_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="packet time of 5 ms"):
        MediaPlan(LEFT, ptime=5)
