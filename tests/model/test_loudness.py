"""Recordings as voice prompts: their level, and what makes one unfit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.io import wavfile  # type: ignore[import-untyped]

from model.loudness import RATE, TARGET_LUFS, LoudnessError, loudness, normalise, read_voice
from model.wav import WavError

Sound = npt.NDArray[np.float32]


def tone(seconds: float, level: float = 0.1, rate: int = RATE, pitch: float = 440.0) -> Sound:
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


@pytest.mark.parametrize("level", [0.9, 0.1, 1e-3])
def test_sound_is_brought_to_the_level_of_voice_prompts(level: float) -> None:
    result = normalise(tone(1.0, level))
    assert result.dtype == np.float32
    assert loudness(result) == pytest.approx(TARGET_LUFS, abs=1e-3)


def test_loud_peaks_are_not_clipped() -> None:
    clicks = np.zeros(RATE, np.float32)
    clicks[::2000] = 0.5
    assert np.abs(normalise(clicks)).max() > 1.0


def test_silent_stretches_are_fine() -> None:
    pcm = np.concatenate([np.zeros(RATE, np.float32), tone(1.0), np.zeros(RATE, np.float32)])
    assert loudness(normalise(pcm)) == pytest.approx(TARGET_LUFS, abs=1e-3)


def test_just_long_enough() -> None:
    assert normalise(tone(0.4)).shape == (9600,)


@pytest.mark.parametrize(
    ("pcm", "said"),
    [
        (np.zeros(RATE, np.float32), "digital silence"),
        (tone(1.0, 1e-6), "too quiet: nothing in it is louder than -70 LUFS"),
        (tone(0.39), r"0\.39 s of sound; at least 0\.4 s are needed"),
        (np.zeros(0, np.float32), r"0\.00 s of sound"),
        (np.stack([tone(1.0), tone(1.0)]), "mono"),
        (np.full(RATE, np.nan, np.float32), "finite"),
        (np.append(tone(1.0), np.float32(np.inf)), "finite"),
    ],
)
def test_what_cannot_be_measured_says_why(pcm: Sound, said: str) -> None:
    with pytest.raises(LoudnessError, match=said):
        normalise(pcm)


def test_a_recording_of_another_rate_is_resampled(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 44_100, tone(2.0, rate=44_100))
    pcm = read_voice(tmp_path / "a.wav")
    assert pcm.shape == (2 * RATE,)
    assert loudness(pcm) == pytest.approx(TARGET_LUFS, abs=1e-3)
    pitch = np.abs(np.fft.rfft(pcm)).argmax() / 2.0
    assert pitch == 440.0


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        (np.stack([tone(1.0), tone(1.0)], axis=1), r"voice\.wav has 2 channels; a voice prompt is mono"),
        (np.zeros(RATE, np.int16), r"voice\.wav: digital silence"),
        (np.zeros(0, np.int16), r"voice\.wav: 0\.00 s"),
        (tone(0.3), r"voice\.wav: 0\.30 s"),
    ],
)
def test_an_unfit_recording_is_named(tmp_path: Path, sound: Sound, said: str) -> None:
    wavfile.write(tmp_path / "voice.wav", RATE, sound)
    with pytest.raises(LoudnessError, match=said):
        read_voice(tmp_path / "voice.wav")


def test_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "voice.wav").write_bytes(b"ID3\x04 something else altogether")
    with pytest.raises(WavError, match=r"voice\.wav: not a WAV file"):
        read_voice(tmp_path / "voice.wav")
    with pytest.raises(FileNotFoundError):
        read_voice(tmp_path / "none.wav")
