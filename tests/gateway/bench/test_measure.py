"""Latency, loss and underruns, from calls whose delays are known."""

from __future__ import annotations

import base64
from array import array

import numpy as np
import orjson
import pytest

from gateway.audio import CARRIER_FRAME_BYTES, encode_ulaw
from gateway.bench.measure import DESIGNED_SECONDS, FILTER_SECONDS, LineLog, measure, merged
from gateway.bench.tracks import TRACK_FRAMES, track_payloads

from .test_tracks import through_a_gateway

FRAMES = 400
START = 1000.0
IN_HAND = encode_ulaw(bytes(CARRIER_FRAME_BYTES))


def a_call(delay: float, drop: slice = slice(0, 0), late: tuple[int, float] = (0, 0.0)) -> LineLog:
    """A call that gets its sound back in 80 ms messages: each `delay` after its last frame was sent.

    Before the first come 20 ms of silence, as the gateway sends them, for the line to have in hand.
    `drop`: 80 ms messages that never come. `late`: one message and by how much it comes later still.
    """
    payloads = track_payloads()
    sent_at = array("d", (START + 0.02 * number for number in range(FRAMES)))
    sound = through_a_gateway(b"".join(payloads[number % TRACK_FRAMES] for number in range(FRAMES)))
    received = []
    for number in range(FRAMES // 4):
        when = sent_at[4 * number + 3] + delay + (late[1] if number == late[0] else 0.0)
        in_hand = b"" if number else IN_HAND
        payload = base64.b64encode(in_hand + sound[640 * number : 640 * (number + 1)]).decode()
        received.append((when, orjson.dumps({"event": "media", "media": {"payload": payload}})))
    del received[drop]
    return LineLog(sent_at, received)


def test_the_round_trip_counts_from_the_first_sample_spoken() -> None:
    seen = measure([a_call(delay=0.07)], [], START + 1, START + 6)
    # 80 ms until the last frame is sent, then the delay; the sound in the message is older by the filters.
    assert np.allclose(seen.round_trips, 0.08 + 0.07 + FILTER_SECONDS, atol=0.0005)
    assert seen.round_trips.min() - DESIGNED_SECONDS == pytest.approx(0.03, abs=0.0005)
    assert (seen.calls, seen.silent, seen.lost, seen.underruns) == (1, 0, 0, 0)
    assert seen.sent == 251 - 32


def test_messages_that_never_come_are_lost_frames() -> None:
    seen = measure([a_call(delay=0.05, drop=slice(40, 43))], [], START + 1, START + 6)
    assert 12 <= seen.lost <= 14
    assert seen.underruns == 1


def test_one_late_message_is_an_underrun_and_a_long_round_trip() -> None:
    seen = measure([a_call(delay=0.05, late=(40, 0.05))], [], START + 1, START + 6)
    assert (seen.lost, seen.underruns) == (0, 1)
    assert seen.over_best.max() == pytest.approx(0.05, abs=0.0005)
    assert np.median(seen.over_best) < 0.001


def test_the_silence_before_the_first_message_is_no_latency() -> None:
    seen = measure([a_call(delay=0.07)], [], START - 1, START + 6)
    assert np.allclose(seen.round_trips, 0.08 + 0.07 + FILTER_SECONDS, atol=0.0005)
    assert seen.over_best.max() < 0.001


@pytest.mark.parametrize(("late", "underruns"), [(0.015, 0), (0.019, 0), (0.021, 1), (0.039, 1)])
def test_the_playout_has_20_ms_in_hand_and_no_more(late: float, underruns: int) -> None:
    assert measure([a_call(delay=0.05, late=(40, late))], [], START + 1, START + 6).underruns == underruns


def test_a_call_that_hears_nothing_lost_everything() -> None:
    silent = a_call(delay=0.05)
    silent.received.clear()
    seen = merged([measure([silent, a_call(delay=0.05)], [], START + 1, START + 6)])
    assert (seen.calls, seen.silent) == (2, 1)
    assert seen.lost == seen.sent / 2


def test_the_bench_s_own_lateness_is_that_of_the_window() -> None:
    lateness = [(START, 1.0), (START + 2, 0.003), (START + 9, 1.0)]
    assert measure([a_call(delay=0.05)], lateness, START + 1, START + 6).lateness.tolist() == [0.003]
