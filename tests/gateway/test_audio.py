"""G.711, the resamplers' response and exactness, the jitter buffer's and the pacer's behaviour in time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import (
    CARRIER_FRAME_BYTES,
    LINE_FRAME_BYTES,
    LONGEST_HOLE,
    TAPS,
    Downsampler,
    JitterBuffer,
    Pacer,
    Upsampler,
    decode_ulaw,
    encode_ulaw,
    level,
    lowpass,
)


def noise(samples: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(-32_768, 32_768, samples).astype(np.int16).tobytes()


def tone(hertz: float, rate: int, samples: int, peak: float = 8_000) -> bytes:
    return np.rint(peak * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.int16).tobytes()


def test_ulaw_vectors() -> None:
    # ITU-T G.711 table 2a: the extremes and the two zeros of mu-law.
    assert np.frombuffer(decode_ulaw(bytes([0x00, 0x80, 0xFF, 0x7F])), np.int16).tolist() == [-32_124, 32_124, 0, 0]
    assert encode_ulaw(np.array([0, 32_124, -32_124], np.int16).tobytes()) == bytes([0xFF, 0x80, 0x00])


def test_every_ulaw_byte_survives_a_round_trip() -> None:
    codes = bytes(set(range(256)) - {0x7F})  # 0x7F is negative zero and comes back as positive zero
    assert encode_ulaw(decode_ulaw(codes)) == codes


def test_lowpass_is_flat_to_3400_hz_and_60_db_down_from_4000() -> None:
    spectrum = np.abs(np.fft.rfft(lowpass() / 2**16, 1 << 16))
    hertz = np.arange(len(spectrum)) * 24_000 / (1 << 16)
    decibel = 20 * np.log10(spectrum + 1e-12)
    assert np.abs(decibel[hertz <= 3_400]).max() <= 0.01
    assert decibel[hertz >= 4_000].max() <= -60


@pytest.mark.parametrize("hertz", [200, 1_000, 3_300])
def test_a_tone_keeps_its_level_up_and_down(hertz: int) -> None:
    up = Upsampler()(tone(hertz, 8_000, 8_000))
    assert level(up[4_800:-4_800]) == pytest.approx(8_000 / 2**0.5, rel=0.003)
    down = Downsampler()(up)
    assert level(down[1_600:-1_600]) == pytest.approx(8_000 / 2**0.5, rel=0.005)


def test_downsampling_removes_what_would_alias() -> None:
    assert level(Downsampler()(tone(5_000, 24_000, 24_000))[400:]) <= 8


def test_delay_is_three_milliseconds_each_way() -> None:
    click = np.zeros(800, np.int16)
    click[400] = 20_000
    up = np.frombuffer(Upsampler()(click.tobytes()), np.int16)
    assert int(np.argmax(up)) - 3 * 400 == (TAPS - 1) // 2 == 73


def test_full_scale_clips_and_never_wraps() -> None:
    square = np.repeat(np.array([32_767, -32_768] * 50, np.int16), 8).tobytes()
    up = np.frombuffer(Upsampler()(square), np.int16).astype(int)
    assert up.max() == 32_767
    assert up.min() == -32_768
    assert np.abs(np.diff(up)).max() < 40_000


@given(st.lists(st.integers(0, 700) | st.just(640), max_size=12), st.integers(0, 99))
def test_upsampling_in_pieces_equals_the_whole(cuts: list[int], seed: int) -> None:
    sound = noise(sum(cuts), seed)
    whole, pieces, resampler, at = Upsampler()(sound), [], Upsampler(), 0
    for cut in cuts:
        pieces.append(resampler(sound[2 * at : 2 * (at + cut)]))
        at += cut
    assert b"".join(pieces) == whole
    assert len(whole) == 3 * len(sound)


@given(st.lists(st.integers(0, 2_000) | st.just(1_920), max_size=12), st.integers(0, 99))
def test_downsampling_in_pieces_equals_the_whole(cuts: list[int], seed: int) -> None:
    sound = noise(sum(cuts), seed)
    whole, pieces, resampler, at = Downsampler()(sound), [], Downsampler(), 0
    for cut in cuts:
        pieces.append(resampler(sound[2 * at : 2 * (at + cut)]))
        at += cut
    assert b"".join(pieces) == whole
    assert len(whole) // 2 == len(sound) // 2 // 3


def frame(number: int) -> bytes:
    return np.full(160, number, np.int16).tobytes()


def numbers(pcm: bytes) -> list[int]:
    return [int(n) for n in np.frombuffer(pcm, np.int16)[::160]]


def test_jitter_buffer_delays_by_its_target_then_loses_nothing() -> None:
    buffer, heard, sent = JitterBuffer(), [], 0
    for _ in range(6):  # what has come 100 ms after the first frame
        sent += 1
        buffer.push(frame(sent))
    for _ in range(50):
        heard += numbers(buffer.pop())
        for _ in range(4):
            sent += 1
            buffer.push(frame(sent))
    assert heard == list(range(1, 201))
    assert (buffer.missing, buffer.dropped) == (0, 0)


def test_jitter_buffer_fills_what_is_late_with_silence_and_plays_it_after() -> None:
    buffer = JitterBuffer()
    for n in range(1, 7):
        buffer.push(frame(n))
    assert numbers(buffer.pop()) == [1, 2, 3, 4]
    assert numbers(buffer.pop()) == [5, 6, 0, 0]
    assert buffer.missing == 2
    for n in range(7, 13):
        buffer.push(frame(n))
    assert numbers(buffer.pop()) == [7, 8, 9, 10]


def test_jitter_buffer_waits_for_its_target_after_running_dry() -> None:
    buffer = JitterBuffer()
    assert numbers(buffer.pop()) == [0, 0, 0, 0]
    assert buffer.missing == 0  # nothing was expected yet
    for n in range(1, 6):
        buffer.push(frame(n))
    assert numbers(buffer.pop()) == [0, 1, 2, 3]
    for n in range(6, 10):
        buffer.push(frame(n))
    assert numbers(buffer.pop()) == [4, 5, 6, 7]


def test_jitter_buffer_is_bounded() -> None:
    buffer = JitterBuffer(limit=16)
    for n in range(1, 41):
        buffer.push(frame(n))
    assert buffer.dropped == 24


def test_jitter_buffer_begins_without_the_sound_that_waited_for_the_call() -> None:
    buffer = JitterBuffer()
    for n in range(1, 15):
        buffer.push(frame(n))
    assert numbers(buffer.pop()) == [9, 10, 11, 12]
    assert buffer.dropped == 8


def test_jitter_buffer_gives_back_all_delay_in_a_pause() -> None:
    buffer = JitterBuffer()
    for arriving in (6, 12, 4, 4, 4, 4, 4):
        for _ in range(arriving):
            buffer.push(bytes(CARRIER_FRAME_BYTES))
        buffer.pop()
    assert len(buffer) == 2  # the target; it was ten when the burst had come


def test_jitter_buffer_gives_back_delay_it_does_not_need() -> None:
    buffer, sent = JitterBuffer(), 200  # numbers are levels too: these are no pause

    def arrive(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            sent += 1
            buffer.push(frame(sent))

    arrive(6)
    buffer.pop()
    arrive(12)  # 160 ms more than the clock took: the burst after a stall
    dropped = []
    for _ in range(25 * 4):
        buffer.pop()
        dropped.append(buffer.dropped)
        arrive(4)
    assert dropped[3] == 0
    assert dropped[4] == 6  # from ten frames left over, four remain
    assert [dropped.index(7) + 1, dropped.index(8) + 1] == [25, 50]  # then one every two seconds
    assert dropped[-1] == 8  # to the target of two
    assert buffer.missing == 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200))
def test_jitter_buffer_always_gives_80_ms_and_keeps_order(arrivals: list[int]) -> None:
    buffer, sent = JitterBuffer(), 0
    heard: list[int] = []
    for count in arrivals:
        for _ in range(count):
            sent += 1
            buffer.push(frame(sent))
        pcm = buffer.pop()
        assert len(pcm) == LINE_FRAME_BYTES == 4 * CARRIER_FRAME_BYTES
        heard += [n for n in numbers(pcm) if n]
    assert heard == sorted(set(heard))
    assert sent - len(heard) - buffer.dropped <= 16


LOUD = tone(440, 8_000, 640)
QUIET = bytes(LINE_FRAME_BYTES)


CUSHION = bytes(CARRIER_FRAME_BYTES)


def test_pacer_passes_frames_that_come_on_time_behind_a_cushion() -> None:
    pacer = Pacer()
    for tick in range(10):
        now = 5.0 + 0.08 * tick
        pacer.push(LOUD, now)
        assert pacer.pop(now) == (LOUD if tick else CUSHION + LOUD)
        assert pacer.next_time(now) is None
        assert pacer.unheard(now) == pytest.approx(0.1)
    assert (pacer.missing, pacer.dropped) == (0, 0)


def play(pacer: Pacer, arrivals: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """When sound leaves, and what, for sound that comes at given times."""
    left = []
    for (now, sound), until in zip(arrivals, [*(when for when, _ in arrivals[1:]), math.inf], strict=True):
        pacer.push(sound, now)
        while (due := pacer.next_time(now)) is not None and due < until:
            assert due == now or pacer.pop(due - 0.001) is None
            left.append((round(due, 3), pacer.pop(due) or b""))
            now = due
    return left


def test_pacer_keeps_a_burst_within_100_ms_of_the_clock_beside_its_cushion() -> None:
    left = play(Pacer(), [(1.0, LOUD)] * 4)
    assert left == [(1.0, CUSHION + LOUD), (1.06, LOUD), (1.14, LOUD), (1.22, LOUD)]


@pytest.mark.parametrize("late", [0.001, 0.005, 0.012, 0.0199])
def test_frames_sooner_than_the_first_wait_for_no_timer_unless_a_pause_would_give_it_back(late: float) -> None:
    arrivals = [(late, LOUD), *((0.08 * tick, LOUD if tick % 5 else QUIET) for tick in range(1, 50))]
    pacer = Pacer()
    assert [when for when, _ in play(pacer, arrivals)] == [round(when, 3) for when, _ in arrivals]
    assert (pacer.missing, pacer.dropped, pacer.shortened) == (0, 0, 0)


def test_pacer_shortens_quiet_frames_to_catch_up_which_is_no_loss() -> None:
    pacer = Pacer()
    for sound in (LOUD, QUIET, LOUD, LOUD):
        pacer.push(sound, 0.0)
    # 60 ms of the quiet one, so that the cushion stays.
    assert (pacer.dropped, pacer.shortened) == (0, 3)
    assert pacer.unheard(0.0) == pytest.approx(0.26)


@pytest.mark.parametrize(
    ("pieces", "dropped"), [([4] * 5, 0), ([4] * 6, 4), ([1] * 20, 0), ([1] * 21, 1), ([1, 4, 4, 4, 4, 4], 1)]
)
def test_of_more_than_400_ms_however_cut_the_oldest_go(pieces: list[int], dropped: int) -> None:
    pacer = Pacer()
    for frames in pieces:
        pacer.push(LOUD[: frames * CARRIER_FRAME_BYTES], 0.0)
    assert (pacer.dropped, pacer.shortened) == (dropped, 0)
    assert pacer.unheard(0.0) == pytest.approx(0.02 * (sum(pieces) - dropped))


def test_of_what_is_left_out_is_told_how_many_frames_before_the_newest_it_came() -> None:
    pacer = Pacer()
    assert [list(pacer.push(LOUD, 0.0)) for _ in range(5)] == [[]] * 5
    assert (pacer.push(LOUD, 0.0), pacer.gone, pacer.handed) == ([5], 1, 6)
    # The quiet one gives way as it comes: of it nothing waits.
    assert (pacer.push(QUIET, 0.0), pacer.gone, pacer.handed) == ([], 1, 7)
    assert (pacer.push(LOUD, 0.0), pacer.gone) == ([6], 2)
    pacer.pop(0.0)
    assert pacer.gone == 3
    pacer.clear(0.0)
    assert (pacer.gone, pacer.handed) == (8, 8)


@pytest.mark.parametrize(("late", "missing"), [(0.0, 0), (0.019, 0), (0.020, 0), (0.021, 1), (0.040, 1), (0.055, 2)])
def test_what_is_later_than_the_cushion_leaves_a_hole_and_what_follows_may_be_as_late(
    late: float, missing: int
) -> None:
    pacer = Pacer()
    lateness = (0.0, 0.0, late, 0.0, late, late, 0.0, late)
    play(pacer, [(0.08 * tick + behind, LOUD) for tick, behind in enumerate(lateness)])
    assert (pacer.missing, pacer.dropped) == (missing, 0)


def test_a_process_that_stood_still_for_a_minute_counts_one_hole() -> None:
    pacer = Pacer()
    play(pacer, [(0.0, LOUD), (60.0, LOUD)])
    assert pacer.missing == LONGEST_HOLE


def test_pacer_takes_a_stalls_delay_back_in_the_first_pause_but_not_its_cushion() -> None:
    pacer = Pacer()
    # The first five come together, 320 ms late, and speech goes on: the delay stays as long.
    speech = [(0.32, LOUD)] * 5 + [(0.08 * tick, LOUD) for tick in range(5, 10)]
    pause = [(0.08 * tick, QUIET) for tick in range(10, 16)]
    left = play(pacer, [*speech, *pause, (0.08 * 16, LOUD)])
    # It leaves 20 ms before it must, see `ahead`.
    assert left[9][0] == pytest.approx(0.08 * 9 + 0.32 - 0.02)
    assert left[-1][0] == pytest.approx(0.08 * 16, abs=0.02)
    assert (pacer.missing, pacer.dropped, pacer.shortened) == (0, 0, 16)


@pytest.mark.parametrize(("late", "given_back"), [(0.0, 0), (0.019, 0), (0.021, 1), (0.039, 1), (0.041, 2)])
def test_a_pause_gives_back_whole_20_ms_of_what_is_over_the_cushion(late: float, given_back: int) -> None:
    pacer = Pacer()
    pacer.push(LOUD, late)
    pacer.pop(late)
    pacer.push(QUIET, 0.08)
    assert (pacer.shortened, pacer.dropped) == (given_back, 0)


def test_pacer_starts_afresh_after_clear() -> None:
    pacer = Pacer()
    pacer.push(LOUD, 0.0)
    pacer.pop(0.0)
    pacer.push(LOUD, 0.0)
    pacer.clear(0.01)
    assert pacer.unheard(0.01) == 0
    pacer.push(LOUD, 0.3)
    assert pacer.pop(0.3) == CUSHION + LOUD
    assert pacer.missing == 0, "silence that was asked for"
