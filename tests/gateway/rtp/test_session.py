"""RTP sessions over real loopback sockets: two of them talk, and the clock that drives them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest

from gateway.rtp.packet import RtpPacket, build_rtp
from gateway.rtp.plan import Identity, MediaPlan
from gateway.rtp.ports import PortRange, PortsExhausted
from gateway.rtp.session import MOST_READ, RtpSession
from gateway.rtp.ticker import PHASES, TICK, Ticker
from tests.virtual_time import run as run_virtually

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


class Ticks:
    def __init__(self) -> None:
        self.times: list[float] = []
        self.sent: list[float] = []
        self.skipped = 0
        self.breaks = 0

    def send_due(self, now: float) -> None:
        self.sent.append(now)

    def tick(self, now: float) -> None:
        self.times.append(now)
        assert self.sent[-1] == now

    def skip(self, ticks: int) -> None:
        self.skipped += ticks

    def broke(self) -> None:
        self.breaks += 1


def test_an_hour_of_ticks_does_not_drift() -> None:
    async def an_hour() -> None:
        ticker, calls = Ticker(), [Ticks(), Ticks()]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(3_600)
        for call in calls:
            ticker.remove(call)
        for call in calls:
            assert abs(len(call.times) - 3_600 / TICK) <= 1
            assert call.times[-1] - call.times[0] == pytest.approx((len(call.times) - 1) * TICK, abs=1e-6)
            assert call.skipped == 0
        before = len(calls[0].times)
        await asyncio.sleep(1)
        assert len(calls[0].times) == before

    run_virtually(an_hour())


def test_late_ticks_are_made_up_for_and_a_long_stall_is_left_out() -> None:
    async def stalls() -> None:
        loop = asyncio.get_running_loop()
        ticker, call = Ticker(), Ticks()
        ticker.add(call)
        await asyncio.sleep(0.1)
        selector = loop._jumping  # type: ignore[attr-defined]
        selector.elapsed += 0.15
        await asyncio.sleep(0.05)
        assert call.skipped == 0
        assert np.diff(call.times) == pytest.approx(TICK)
        selector.elapsed += 5
        await asyncio.sleep(0.05)
        assert call.skipped == ticker.skipped > 200
        assert len(call.times) + call.skipped == pytest.approx(5.35 / TICK, abs=2)
        ticker.remove(call)

    run_virtually(stalls())


def test_calls_are_spread_over_the_phases() -> None:
    async def many() -> None:
        ticker, calls = Ticker(), [Ticks() for _ in range(2 * PHASES)]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(2 * TICK)
        for call in calls:
            ticker.remove(call)
        phases = Counter(round(call.times[0] / TICK % 1, 3) % 1 for call in calls)
        assert list(phases.values()) == [2] * PHASES

    run_virtually(many())


def test_all_calls_of_a_phase_send_before_any_of_them_does_more() -> None:
    async def one_phase() -> None:
        order: list[str] = []

        class Noted(Ticks):
            def send_due(self, now: float) -> None:
                super().send_due(now)
                order.append("send")

            def tick(self, now: float) -> None:
                super().tick(now)
                order.append("rest")

        ticker, calls = Ticker(), [Noted() for _ in range(3 * PHASES)]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(5 * TICK)
        for call in calls:
            ticker.remove(call)
        assert len(order) >= 6 * PHASES
        assert order == ["send", "send", "send", "rest", "rest", "rest"] * (len(order) // 6)

    run_virtually(one_phase())


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


def test_a_call_may_end_inside_a_tick() -> None:
    class Last(Ticks):
        def __init__(self, ticker: Ticker) -> None:
            super().__init__()
            self._ticker = ticker

        def tick(self, now: float) -> None:
            super().tick(now)
            self._ticker.remove(self)

    async def once() -> None:
        ticker = Ticker()
        last, other = Last(ticker), Ticks()
        for call in (last, other):
            ticker.add(call)
        await asyncio.sleep(0.1)
        ticker.remove(other)
        assert len(last.times) == 1
        assert len(other.times) >= 4

    run_virtually(once())


@pytest.mark.parametrize("part", ["send_due", "tick"])
def test_a_call_that_breaks_is_taken_off_the_clock_and_all_others_go_on(part: str) -> None:
    class Broken(Ticks):
        def send_due(self, now: float) -> None:
            super().send_due(now)
            self._break("send_due")

        def tick(self, now: float) -> None:
            super().tick(now)
            self._break("tick")

        def _break(self, here: str) -> None:
            if here == part:
                raise ZeroDivisionError

    async def half_a_second() -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        ticker, broken, others = Ticker(), Broken(), [Ticks() for _ in range(2 * PHASES)]
        begun = asyncio.get_running_loop().time()
        for call in (broken, *others):
            ticker.add(call)
        await asyncio.sleep(0.5)
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        assert len(broken.times) == (part == "tick")
        assert (len(broken.sent), broken.breaks) == (1, 1)
        assert min(len(call.times) for call in others) >= 23
        for call in others:
            assert np.diff(call.times) == pytest.approx(TICK), "they had the tick in which it broke"
            assert (call.sent, call.breaks) == (call.times, 0)
            assert call.times[0] < begun + 1.1 * TICK
        for call in others:
            ticker.remove(call)

    run_virtually(half_a_second())
