"""The measured sound survives what a gateway does to it, and says where it is."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.audio import LINE_RATE, Downsampler, Upsampler, decode_ulaw, encode_ulaw
from gateway.bench.measure import FILTER_SECONDS
from gateway.bench.tracks import LEVELS, TRACK_FRAMES, VOICED_FRAMES, find_frames, track, track_payloads

FRAME = 160
FILTER_SAMPLES = FILTER_SECONDS * LINE_RATE


def through_a_gateway(payload: bytes) -> bytes:
    up, down = Upsampler(), Downsampler()
    pcm = decode_ulaw(payload)
    return b"".join(encode_ulaw(down(up(pcm[at : at + 1280]))) for at in range(0, len(pcm), 1280))


def test_every_pair_of_levels_occurs_once() -> None:
    levels = track()
    pairs = set(zip(levels, levels[1:] + levels[:1], strict=True))
    assert len(levels) == len(pairs) == TRACK_FRAMES == len(LEVELS) * (len(LEVELS) - 1)
    assert all(before != after for before, after in pairs)


@pytest.mark.parametrize("cut", [0, 1, 79, 160, 1000])
def test_a_resampled_track_is_found_to_the_sample(cut: int) -> None:
    heard = find_frames(through_a_gateway(b"".join(track_payloads()))[cut:])
    offset = heard.starts + cut - FRAME * heard.frames
    assert len(heard.frames) >= VOICED_FRAMES - -(-cut // FRAME)
    assert np.abs(offset - FILTER_SAMPLES).max() < 0.5
    assert heard.unreadable <= TRACK_FRAMES - VOICED_FRAMES


def test_what_was_dropped_is_not_found_and_silence_is_unreadable() -> None:
    sound = through_a_gateway(b"".join(track_payloads()))
    dropped = set(range(50, 53))
    silence = encode_ulaw(bytes(2 * 2 * FRAME))
    cut = sound[: 100 * FRAME] + silence + sound[100 * FRAME :]
    heard = find_frames(cut[: 50 * FRAME] + cut[53 * FRAME :])
    missing = set(range(VOICED_FRAMES)) - set(heard.frames.tolist())
    # The filters smear each cut over the frame it falls into.
    assert dropped - {50} <= missing <= dropped | {49, 53, 99, 100}
    assert 2 <= heard.unreadable - (TRACK_FRAMES - VOICED_FRAMES) <= 4


def test_silence_and_snippets_hold_no_frames() -> None:
    assert len(find_frames(b"").frames) == 0
    assert len(find_frames(encode_ulaw(bytes(100))).frames) == 0
    silence = find_frames(encode_ulaw(bytes(2 * 20 * FRAME)))
    assert len(silence.frames) == 0
    assert silence.unreadable >= 19
