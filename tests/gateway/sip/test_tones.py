"""What the tones are made of."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.sip.tones import BUSY, RINGING, Tone, tone_frame

FRAMES_A_SECOND = 12.5


def samples(tone: Tone, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    frames = [tone_frame(tone, index) for index in range(round(seconds * FRAMES_A_SECOND))]
    return np.frombuffer(b"".join(frames), np.int16).astype(np.float64)


@pytest.mark.parametrize(("tone", "hertz", "dbm0"), [(RINGING, (440, 480), -19), (BUSY, (480, 620), -24)])
def test_a_tone_is_two_sines_at_their_level(tone: Tone, hertz: tuple[int, int], dbm0: float) -> None:
    part = samples(tone, 2.0)[:4_000]
    amplitudes = 2 * np.abs(np.fft.rfft(part)) / len(part)
    loud = np.flatnonzero(amplitudes > 100) * 8_000 / len(part)
    assert tuple(loud) == hertz
    for one in hertz:
        level = 20 * np.log10(amplitudes[one * len(part) // 8_000] / 32_767) + 3.17
        assert level == pytest.approx(dbm0, abs=0.1)


@pytest.mark.parametrize(("tone", "on", "off"), [(RINGING, 2.0, 4.0), (BUSY, 0.5, 0.5)])
def test_a_tone_comes_and_goes_in_its_cadence(tone: Tone, on: float, off: float) -> None:
    sound = samples(tone, 4 * (on + off))
    at = np.arange(len(sound)) % round(8_000 * (on + off))
    audible = at < 8_000 * on
    assert not sound[~audible].any()
    assert (np.abs(sound[audible]).reshape(-1, 400).max(axis=1) > 500).all()
