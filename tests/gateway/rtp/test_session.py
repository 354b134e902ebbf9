"""RTP sessions over real loopback sockets: two of them talk, and the clock that drives them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from gateway.rtp.ports import PortRange, PortsExhausted
from gateway.rtp.session import RtpSession
from gateway.rtp.plan import Identity, MediaPlan
from gateway.rtp.ticker import PHASES, TICK, Ticker
from tests.virtual_time import run as run_virtually

HOST = "127.0.0.1"
TONE = np.rint(6_000 * np.sin(2 * np.pi * 500 * np.arange(8_000) / 8_000)).astype(np.int16).tobytes()


@pytest.fixture
def taken() -> Iterator[int]:
    """The lower of two neighbouring ports that somebody else holds; the ports above are free, most likely."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, 0))
        yield other.getsockname()[1]


def free_range(pairs: int = 8) -> PortRange:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        base: int = min(probe.getsockname()[1], 65_000)
    return PortRange(HOST, base, base + 2 * pairs + 1)


async def two_sessions() -> tuple[RtpSession, RtpSession]:
    ports, ticker = free_range(), Ticker()
    left = RtpSession.open(ports, ticker, Identity(1, 65_530, 2**32 - 100))
    right = RtpSession.open(ports, ticker, Identity(2, 7, 7))
    left.start(MediaPlan((HOST, right.local_port)))
    right.start(MediaPlan((HOST, left.local_port)))
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
