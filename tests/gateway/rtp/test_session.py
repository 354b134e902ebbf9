"""RTP sessions over real loopback sockets: two of them talk, and what a tick reads."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import numpy as np
import pytest

from gateway.rtp.packet import RtpPacket, build_rtp
from gateway.rtp.plan import Identity, MediaPlan
from gateway.rtp.ports import PortRange, PortsExhausted
from gateway.rtp.session import MOST_READ, RtpSession
from gateway.rtp.ticker import TICK, Ticker

HOST = "127.0.0.1"
TONE = np.rint(6_000 * np.sin(2 * np.pi * 500 * np.arange(8_000) / 8_000)).astype(np.int16).tobytes()


def free_range(pairs: int = 6, host: str = HOST) -> PortRange:
    """A range whose pairs are all free now: other tests on this machine take single ports."""
    for base in range(42_000, 60_000, 2 * pairs):
        ports = PortRange(host, base, base + 2 * pairs - 1)
        with ExitStack() as bound:
            try:
                for _ in range(pairs):
                    for sock in ports.bind():
                        bound.enter_context(sock)
            except PortsExhausted:
                continue
            return ports
    raise AssertionError("no free ports on this machine")


async def two_sessions(dtmf_type: int | None = None) -> tuple[RtpSession, RtpSession]:
    ports, ticker = free_range(), Ticker()
    left = RtpSession.open(ports, ticker, Identity(1, 65_530, 2**32 - 100))
    right = RtpSession.open(ports, ticker, Identity(2, 7, 7))
    left.start(MediaPlan((HOST, right.local_port), dtmf_type=dtmf_type))
    right.start(MediaPlan((HOST, left.local_port), dtmf_type=dtmf_type))
    return left, right


def test_two_sessions_hear_each_other() -> None:
    async def talk() -> None:
        left, right = await two_sessions()
        heard: list[bytes] = []
        enough = asyncio.Event()

        def hear(frame: bytes) -> None:
            heard.append(frame)
            if len(heard) == 30:
                enough.set()

        right.listen(hear)
        left.send(TONE[: 320 * 16])
        async with asyncio.timeout(10):
            await enough.wait()
        left.close()
        right.close()
        assert all(len(frame) == 320 for frame in heard)
        sound = np.frombuffer(b"".join(heard), np.int16).astype(float)
        assert 5_500 < np.abs(sound).max() < 6_500
        # A quarter of a second of sine: its energy arrives, and at its frequency.
        spectrum = np.abs(np.fft.rfft(sound))
        assert abs(np.argmax(spectrum) * 8_000 / len(sound) - 500) < 10

    asyncio.run(talk())


def test_digits_cross_and_the_report_says_what_came() -> None:
    async def talk() -> None:
        left, right = await two_sessions(dtmf_type=101)
        pressed = asyncio.Event()
        digits: list[str] = []

        def press(digit: str) -> None:
            digits.append(digit)
            pressed.set()

        right.on_digit(press)
        left.send_digits("7")
        async with asyncio.timeout(10):
            await pressed.wait()
        summary = right.summary()
        left.close()
        right.close()
        left.close()
        assert digits == ["7"]
        assert summary is not None
        assert summary.received >= 1
        assert summary.malformed == 0

    asyncio.run(talk())


def test_a_peer_over_ipv4_is_itself_on_a_socket_of_ipv6() -> None:
    """Its first packet is believed though it comes late, what it reports is heard, and our sound reaches it."""

    async def talk() -> None:
        loop, ticker = asyncio.get_running_loop(), Ticker()
        session = RtpSession.open(free_range(host="::"), ticker, Identity(1, 1, 1))
        rtp, rtcp = free_range().bind()
        peer = rtp.getsockname()
        with rtp, rtcp:
            session.start(MediaPlan(peer, symmetric=False))
            ticker.remove(session)
            assert session.stream is not None
            rtp.sendto(build_rtp(RtpPacket(0, False, 1, 1, 5, bytes(160))), (HOST, session.local_port))
            rtcp.sendto(b"no report", (HOST, session.local_port + 1))
            session.send(TONE[:640])
            session.send_due(loop.time())
            session.tick(loop.time())
            async with asyncio.timeout(10):
                assert await loop.sock_recv(rtp, 2_048)
                while not (summary := session.stream.summary()).malformed + summary.strangers:  # noqa: ASYNC110  the loop reads it
                    await asyncio.sleep(0)
                session.close()
                assert await loop.sock_recv(rtcp, 2_048), "our goodbye"
        assert session.stream.source == peer
        assert (summary.received, summary.strangers, session.send_errors) == (1, 0, 0)

    asyncio.run(talk())


def test_before_the_answer_and_after_the_end_nothing_breaks() -> None:
    async def unanswered() -> None:
        session = RtpSession.open(free_range(), Ticker())
        session.send(TONE[:640])
        session.flush()
        session.send_digits("1")
        assert session.unheard == 0
        assert session.summary() is None
        assert session.stream is None
        session.close()
        session.start(MediaPlan((HOST, 9)))
        assert session.stream is None

    asyncio.run(unanswered())


def test_a_closed_session_gives_its_ports_back() -> None:
    async def reopen() -> None:
        ports, ticker = free_range(), Ticker()
        sessions = [RtpSession.open(ports, ticker) for _ in range(len(ports))]
        with pytest.raises(PortsExhausted, match="no free pair"):
            RtpSession.open(ports, ticker)
        for session in sessions:
            session.close()
        again = RtpSession.open(ports, ticker)
        assert again.local_port in {session.local_port for session in sessions}
        again.close()

    asyncio.run(reopen())


def test_ports_are_pairs_in_turn_and_taken_ones_are_left_out() -> None:
    ports = free_range(6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        rtp, rtcp = ports.bind()
        first = rtp.getsockname()[1]
        assert first % 2 == 0
        assert rtcp.getsockname()[1] == first + 1
        other.bind((HOST, first + 3))
        following, above = ports.bind()
        assert following.getsockname()[1] == first + 4
        for sock in (rtp, rtcp, following, above):
            assert not sock.getblocking()
            sock.close()


@pytest.mark.parametrize(("low", "high"), [(4_001, 4_002), (0, 10), (60_000, 70_000), (5_000, 4_000)])
def test_a_range_without_a_pair_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"{low}-{high}"):
        PortRange(HOST, low, high)


class Alone(socket.socket):
    """As where the system keeps IPv4 off sockets of IPv6: net.ipv6.bindv6only=1."""

    def __init__(self, family: socket.AddressFamily, kind: socket.SocketKind) -> None:
        super().__init__(family, kind)
        if family == socket.AF_INET6:
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


@pytest.mark.parametrize(("host", "alone"), [("::", 0), ("::1", 1)])
def test_sound_on_every_address_is_taken_over_ipv4_too_whatever_the_system_says(
    host: str, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.rtp.ports.socket.socket", Alone)
    for one in free_range(1, host).bind():
        with one:
            assert one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == alone


def test_packets_that_wait_for_the_tick_are_timed_by_their_arrival() -> None:
    """Read late, together, from a socket: the kernel says that they came 20 ms apart, or more on a busy machine.

    Their timestamps say the same.
    """

    async def read_late() -> None:
        loop, ticker = asyncio.get_running_loop(), Ticker()
        session = RtpSession.open(free_range(), ticker, Identity(1, 1, 1))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HOST, 0))
            session.start(MediaPlan(peer.getsockname()))
            ticker.remove(session)
            begun = loop.time()
            for number in range(6):
                data = build_rtp(RtpPacket(0, False, number, round(8000 * (loop.time() - begun)), 5, bytes(160)))
                peer.sendto(data, (HOST, session.local_port))
                await asyncio.sleep(0.02)
            session.tick(loop.time())
            summary = session.summary()
            session.close()
        assert summary is not None
        assert summary.received == 6
        # All at once would be 160 samples early each time, or more: 5 of them make 5.5 ms.
        assert summary.jitter_ms < 3

    asyncio.run(read_late())


def test_a_flood_costs_one_call_a_bounded_part_of_its_tick() -> None:
    async def flooded() -> None:
        session = RtpSession.open(free_range(), Ticker(), Identity(1, 1, 1))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            early = build_rtp(RtpPacket(0, False, 1, 1, 5, bytes(160)))
            stranger.sendto(early, (HOST, session.local_port))
            session.start(MediaPlan((HOST, 9)))
            for _ in range(3 * MOST_READ):
                stranger.sendto(bytes(3), (HOST, session.local_port))
            session.tick(0.0)
            summary = session.summary()
            session.close()
        assert summary is not None
        assert (summary.malformed, summary.received) == (MOST_READ, 0)

    asyncio.run(flooded())


@pytest.mark.parametrize(
    ("together", "samples", "taken"),
    [((4, 5), 160, 1), ((5, 4), 160, 2), ((4, 5), 80, 2), ((4, 4), 160, 1), ((5, 6), 160, 2)],
    ids=["one is early", "swapped", "short", "doubled", "one was lost"],
)
def test_a_tick_reads_what_it_may_need(
    together: tuple[int, int], samples: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ticks brought a packet each: another is looked for where one may be behind that is needed at once."""
    # So that a slow machine does not make old what came just now.
    monkeypatch.setattr("gateway.rtp.session.TICK", 0.45)

    async def ticks() -> None:
        session = RtpSession.open(free_range(), Ticker(), Identity(1, 1, 1))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HOST, 0))
            session.start(MediaPlan(peer.getsockname()))
            counts = []
            for numbers in ((1,), (2,), (3,), together, ()):
                for number in numbers:
                    packet = RtpPacket(0, False, number, number * samples, 5, bytes(samples))
                    peer.sendto(build_rtp(packet), (HOST, session.local_port))
                session.tick(0.0)
                summary = session.summary()
                assert summary is not None
                counts.append(summary.received + summary.duplicate)
            session.close()
        assert counts == [1, 2, 3, 3 + taken, 5], "what was left is read at the next tick"

    asyncio.run(ticks())


@pytest.mark.parametrize("last", [0, 1])
def test_a_burst_behind_a_gap_and_what_waited_long_is_read_at_once(last: int) -> None:
    async def ticks() -> None:
        ticker = Ticker()
        session = RtpSession.open(free_range(), ticker, Identity(1, 1, 1))
        received = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((HOST, 0))
            session.start(MediaPlan(peer.getsockname()))
            for numbers in ((1,), (2,), (3,) * last, (3 + last, 4 + last, 5 + last)):
                for number in numbers:
                    packet = RtpPacket(0, False, number, number * 160, 5, bytes(160))
                    peer.sendto(build_rtp(packet), (HOST, session.local_port))
                if last and len(numbers) == 3:
                    # The loop was late: the first of them came more than a tick ago.
                    ticker.wall_to_loop -= 1.5 * TICK
                session.tick(0.0)
                summary = session.summary()
                assert summary is not None
                received.append(summary.received)
            session.close()
        assert received == [1, 2, 2 + last, 5 + last]

    asyncio.run(ticks())
