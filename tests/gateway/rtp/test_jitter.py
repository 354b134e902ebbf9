"""The jitter buffer under explicit time: what a listener would hear of every kind of bad network."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest

from gateway.rtp.conceal import FADED
from gateway.rtp.delay import MAX_DELAY, MIN_DELAY
from gateway.rtp.jitter import MAX_PACKETS, JitterBuffer
from tests.gateway.rtp.tones import AMPLITUDE, RATE, STEP, TICK, largest_step, packets, play, roughness

MIN, MAX = MIN_DELAY / RATE, MAX_DELAY / RATE


@pytest.mark.parametrize("ppm", [200.0, -200.0])
def test_an_hour_of_clock_skew_makes_no_click_and_no_delay(ppm: float) -> None:
    buffer = JitterBuffer()
    heard = play(buffer, packets(3_602, ppm=ppm), 3_600)
    assert None not in heard.frames[2:]
    settled = heard.sound(2)
    assert roughness(settled) < 60
    assert largest_step(settled) < 1.02 * STEP
    assert np.abs(settled[:: RATE // 10].reshape(-1)).max() <= AMPLITUDE + 40
    delays = heard.delays[int(10 / TICK) :]
    assert min(delays) > MIN - 0.008
    assert max(delays) < MIN + 0.012
    # An hour at 200 ppm is 0.72 s, all of it absorbed a sample at a time.
    assert abs(buffer.counters.stretched - 0.72 * RATE) < 500
    assert buffer.counters.concealed == buffer.counters.late == buffer.counters.jumps == 0


@pytest.mark.parametrize("samples", [80, 160, 240, 320, 480])
def test_any_packet_time_comes_out_whole(samples: int) -> None:
    buffer = JitterBuffer()
    heard = play(buffer, packets(10, samples), 9.5)
    assert roughness(heard.sound(1)) < 100
    assert buffer.counters.concealed == buffer.counters.late == 0
    assert max(heard.delays[100:]) < 0.06


def test_the_packet_time_may_change() -> None:
    mixed = [one for one in packets(3) if one.number < 80 * 160]
    mixed += [one for one in packets(3, 320) if one.number >= 80 * 160]
    buffer = JitterBuffer()
    heard = play(buffer, sorted(mixed), 2.9)
    assert roughness(heard.sound(0.5)) < 60


def test_reordered_and_doubled_packets_leave_no_trace() -> None:
    chance = random.Random(1)
    arrivals = packets(20, delay=lambda index: 0.03 * chance.random())
    doubled = [one for one in arrivals[::3] if one.at < 19.8]
    arrivals = sorted(arrivals + doubled)
    assert any(one.number > other.number for one, other in itertools.pairwise(arrivals))
    buffer = JitterBuffer()
    heard = play(buffer, arrivals, 19.9)
    assert roughness(heard.sound(1)) < 60
    assert buffer.counters.concealed == 0
    # A double is seen while the first waits, and is late once that has been played.
    assert buffer.counters.duplicate + buffer.counters.late == len(doubled)
    assert all(delay < 0.07 for delay in heard.delays)


def test_timestamps_wrap() -> None:
    buffer = JitterBuffer()
    heard = play(buffer, packets(4), 3.9, base=2**32 - RATE)
    assert roughness(heard.sound(1)) < 60
    assert buffer.counters.concealed == 0


def test_a_lost_packet_is_concealed_and_costs_no_time() -> None:
    buffer = JitterBuffer()
    heard = play(buffer, packets(6, delay=lambda index: None if index == 150 else 0.0), 5.9)
    sound = heard.sound(1)
    assert buffer.counters.concealed == 160
    assert largest_step(sound) < 1.05 * STEP
    # Repeated sound holds its strength: nobody hears a hole.
    near = heard.sound(2.96, 3.1)
    assert min(np.abs(near[start : start + 40]).max() for start in range(0, len(near) - 40, 40)) > 0.8 * AMPLITUDE
    assert heard.delays[-1] < MIN + 0.012


@pytest.mark.parametrize("samples", [80, 160, 480])
def test_heavy_loss_makes_no_clicks(samples: int) -> None:
    chance = random.Random(2)
    buffer = JitterBuffer()
    lossy = packets(30, samples, delay=lambda index: None if chance.random() < 0.2 else 0.01 * chance.random())
    heard = play(buffer, lossy, 29)
    assert largest_step(heard.sound(1)) < 1.15 * STEP
    lost = 1 - len(lossy) / (30 * RATE / samples)
    assert abs(buffer.counters.concealed / (29 * RATE) - lost) < 0.05
    assert max(heard.delays) <= MAX + 0.04


def test_a_long_gap_fades_to_silence_and_returns_softly() -> None:
    buffer = JitterBuffer()
    heard = play(buffer, packets(6, delay=lambda index: None if 150 <= index < 175 else 0.0), 5.9)
    gap = heard.sound(3.2, 3.4)
    assert not gap.any()
    assert largest_step(heard.sound(1)) < 1.15 * STEP
    assert roughness(heard.sound(4)) < 60
    assert buffer.counters.concealed >= FADED


def test_jitter_widens_the_delay_and_calm_narrows_it() -> None:
    chance = random.Random(3)
    rough = packets(60, delay=lambda index: 0.07 * chance.random() if index < 750 else 0.0)
    buffer = JitterBuffer()
    heard = play(buffer, rough, 59)
    assert 0.07 < np.mean(heard.delays[400:700]) < 0.1
    late_at_first = buffer.counters.late
    assert max(heard.delays[2_000:]) < MIN + 0.012
    assert late_at_first < 10
    # After the first seconds every packet is in time, and narrowing is unheard.
    assert roughness(heard.sound(5)) < 200


def test_jitter_beyond_the_bound_is_dropped_not_waited_for() -> None:
    chance = random.Random(4)
    buffer = JitterBuffer()
    heard = play(buffer, packets(30, delay=lambda index: 0.3 * chance.random()), 29)
    assert max(heard.delays) <= MAX + 0.04
    assert buffer.counters.late > 100
    assert largest_step(heard.sound(1)) < 1.3 * STEP


def test_a_stall_of_the_network_leaves_no_delay_behind() -> None:
    def stalled(index: int) -> float:
        sent = (index + 1) * TICK
        return max(0.0, 5.0 - sent) if sent > 4.0 else 0.0

    buffer = JitterBuffer()
    heard = play(buffer, packets(30, delay=stalled), 29)
    assert max(heard.delays) <= MAX + 0.04
    assert heard.delays[-1] < MIN + 0.012
    assert buffer.counters.late >= 40
    assert largest_step(heard.sound(1)) < 1.15 * STEP


def test_ticks_that_were_left_out_do_not_become_delay() -> None:
    buffer = JitterBuffer()
    first = list(packets(10))
    heard = play(buffer, [one for one in first if one.at < 3], 3)
    assert heard.delays[-1] < MAX
    for one in (one for one in first if 3 <= one.at < 4):
        buffer.push(one.number, one.pcm, one.at)
    later = [buffer.pop(4 + tick * TICK) for tick in range(5)]
    assert buffer.counters.jumps == 1
    assert buffer.delay <= MAX + 0.04
    sound = np.frombuffer(b"".join(frame or b"" for frame in later), np.int16).astype(float)
    assert len(sound) == 800
    # Two tones of opposite phase, cross-faded in 5 ms.
    assert largest_step(np.concatenate((heard.sound(2.9), sound))) < 1.4 * STEP


def test_nothing_is_played_before_the_stream_and_nothing_after_it() -> None:
    buffer = JitterBuffer()
    assert buffer.pop(0.0) is None
    heard = play(buffer, packets(1), 4)
    assert heard.frames[-1] is None
    assert not buffer.playing
    # It begins anew with the next packet.
    buffer.push(4 * RATE, bytes(320), 4.02)
    assert buffer.pop(4.03) is not None


def test_silence_between_talk_spurts_costs_no_delay() -> None:
    spurts = packets(20, delay=lambda index: 0.0 if index % 50 < 30 else None)
    buffer = JitterBuffer()
    heard = play(buffer, spurts, 19.9)
    # In the middle of each spurt.
    assert max(heard.delays[70::50]) < 0.06
    assert buffer.counters.late == 0
    assert buffer.counters.played == len(spurts)


def test_timestamps_that_jump_for_good_are_followed() -> None:
    arrivals = packets(6)
    buffer = JitterBuffer()
    for one in arrivals:
        if one.at < 3:
            buffer.push(one.number, one.pcm, one.at)
            buffer.pop(one.at + 0.001)
    stray = next(one for one in arrivals if one.at >= 3)
    buffer.push(stray.number + 10_000_000, stray.pcm, stray.at)
    assert buffer.counters.stray == 1
    frames = []
    for one in (one for one in arrivals if one.at >= 3):
        buffer.push((one.number + 77_000_000) & 0xFFFFFFFF, one.pcm, one.at)
        frames.append(buffer.pop(one.at + 0.001))
    sound = np.frombuffer(b"".join(frame or bytes(320) for frame in frames), np.int16).astype(float)
    assert largest_step(sound) < 1.15 * STEP
    assert roughness(sound[RATE:]) < 60


def test_a_flood_is_bounded() -> None:
    buffer = JitterBuffer()
    for number in range(3 * MAX_PACKETS):
        buffer.push(number * 20, bytes(40), 1.0)
    assert buffer.counters.overflow + buffer.counters.stray >= MAX_PACKETS
    assert buffer.pop(1.02) is not None


def unreliable(chance: random.Random, loss: float, spread: float, index: int) -> float | None:
    return None if chance.random() < loss else spread * chance.random()


def test_a_random_network_never_breaks_the_frame() -> None:
    chance = random.Random(5)
    for _ in range(60):
        buffer = JitterBuffer()
        sizes = chance.choice((80, 160, 240, 320, 480))
        spread, loss = chance.random() * 0.2, chance.random() * 0.2
        arrivals = packets(
            4,
            sizes,
            chance.uniform(-300, 300),
            partial(unreliable, chance, loss, spread),
        )
        doubled = sorted(arrivals + chance.sample(arrivals, len(arrivals) // 5))
        heard = play(buffer, doubled, 4, chance.randrange(2**32), chance.random() * TICK)
        assert all(frame is None or len(frame) == 320 for frame in heard.frames)
        assert max(heard.delays) <= MAX + 0.045
        assert np.abs(heard.sound()).max() <= 1.05 * AMPLITUDE
