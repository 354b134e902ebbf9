"""Voice prompts: recordings through the codec, and `.pt` files that are what they should be or are refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile  # type: ignore[import-untyped]

from model.codec_lengths import HEARD
from model.config import DepformerConfig, LMConfig, TransformerConfig
from model.mimi.codec import MimiState
from model.voice import VoiceError, load_replay, voice_codes, voice_codes_from_wav
from tests.model.mimi.tiny import FRAME, random_mimi, random_pcm

CONFIG = LMConfig(
    transformer=TransformerConfig(dim=8, heads=2, layers=1, context=12, hidden=8),
    depformer=DepformerConfig(dim=8, heads=2, layers=1, hidden=8, steps=16),
    text_card=40,
    card=50,
    delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
)


def stored(frames: int = 6) -> dict[str, Any]:
    """What a `.pt` file of this model holds."""
    return {"embeddings": torch.randn(frames - 1, 1, 1, 8), "cache": torch.full((1, 17, 4), 40).tril(0)}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_recording_is_streamed_through_a_fresh_codec() -> None:
    mimi = random_mimi()
    pcm = random_pcm(1, 7 * FRAME + 5)
    padded = torch.nn.functional.pad(pcm, (0, FRAME - 5))
    state, slot = mimi.streaming(1), torch.tensor([0])
    stepped = [mimi.encode_step(state, slot, padded[..., n * FRAME : (n + 1) * FRAME]) for n in range(8)]
    assert torch.equal(voice_codes(mimi, pcm[0, 0]), torch.cat(stepped, dim=-1)[0])
    assert torch.equal(voice_codes(mimi, pcm[0, 0]), voice_codes(mimi, padded[0, 0]))


def test_a_long_recording_goes_through_the_codec_in_the_lengths_that_calls_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last frame begun but not full; the parts do not show."""
    mimi, seen = random_mimi(), []
    pcm = random_pcm(2, 36 * FRAME + 5)
    whole = mimi.encode_step(mimi.streaming(1), torch.tensor([0]), torch.nn.functional.pad(pcm, (0, FRAME - 5)))
    encode = mimi.encode_step

    def watched(state: MimiState, slots: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        seen.append(sound.shape[-1] // FRAME)
        return encode(state, slots, sound)

    monkeypatch.setattr(mimi, "encode_step", watched)
    assert torch.equal(voice_codes(mimi, pcm[0, 0]), whole[0])
    assert seen == [25, 5, 5, 1, 1]
    assert set(seen) == set(HEARD)


def test_a_wav_file_becomes_codes(tmp_path: Path) -> None:
    mimi = random_mimi()
    pcm = random_pcm(3, 10 * FRAME + 1)[0, 0].numpy()
    wavfile.write(tmp_path / "a.wav", 24_000, pcm)
    wavfile.write(tmp_path / "b.wav", 24_000, np.float32(0.25) * pcm)
    codes = voice_codes_from_wav(mimi, tmp_path / "a.wav")
    assert codes.shape == (8, 11)
    assert torch.equal(voice_codes_from_wav(mimi, tmp_path / "b.wav"), codes)  # as loud as the other, once normalised


@pytest.mark.parametrize(
    ("pcm", "said"),
    [
        (np.zeros(24_000, np.float32), "digital silence"),
        (np.ones((24_000, 2), np.float32), "2 channels"),
        (np.ones(9_599, np.float32), r"0\.40 s of sound; at least 0\.4 s|0\.39"),
    ],
)
def test_an_unfit_recording_is_refused(tmp_path: Path, pcm: Any, said: str) -> None:
    wavfile.write(tmp_path / "a.wav", 24_000, pcm)
    with pytest.raises(VoiceError, match=rf"a\.wav.*{said}"):
        voice_codes_from_wav(random_mimi(), tmp_path / "a.wav")


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    mimi = random_mimi()
    with pytest.raises(VoiceError, match=r"none\.wav cannot be read: No such file"):
        voice_codes_from_wav(mimi, tmp_path / "none.wav")
    with pytest.raises(VoiceError, match=r"cannot be read: Is a directory"):
        voice_codes_from_wav(mimi, tmp_path)
    (tmp_path / "a.wav").write_bytes(b"OggS")
    with pytest.raises(VoiceError, match=r"a\.wav: not a WAV file"):
        voice_codes_from_wav(mimi, tmp_path / "a.wav")
    with pytest.raises(VoiceError, match="mono"):
        voice_codes(mimi, torch.zeros(2, 24_000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_published_voice_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    content = stored(frames=6)
    content["embeddings"] = content["embeddings"].to(dtype)
    replay = load_replay(save(tmp_path / "a.pt", content), CONFIG)
    assert (replay.frames, replay.embeddings.dtype) == (6, dtype)
    assert torch.equal(replay.embeddings, content["embeddings"][:, 0, 0])
    assert torch.equal(replay.cache, content["cache"][0])


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def other(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: {**content, key: value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("cache"), r"it holds \['embeddings'\]"),
        (without("embeddings"), r"it holds \['cache'\]"),
        (other("more", torch.zeros(1)), r"it holds \['cache', 'embeddings', 'more'\]"),
        (lambda content: list(content), "it holds list"),
        (lambda content: content["cache"], "it holds Tensor"),
        (other("cache", [1, 2]), "not all it holds are tensors"),
        (
            other("embeddings", torch.zeros(5, 1, 1, 16)),
            r"embeddings \[5, 1, 1, 16\]; this model takes \[frames, 1, 1, 8\]",
        ),
        (other("embeddings", torch.zeros(0, 1, 1, 8)), r"embeddings \[0, 1, 1, 8\]"),
        (other("embeddings", torch.zeros(5, 8)), r"embeddings \[5, 8\]"),
        (other("embeddings", torch.zeros(5, 1, 1, 8, dtype=torch.long)), "not finite numbers"),
        (other("embeddings", torch.full((5, 1, 1, 8), float("nan"))), "not finite numbers"),
        (other("cache", torch.zeros(1, 17, 4)), r"cache torch\.float32"),
        (other("cache", torch.zeros(1, 9, 4, dtype=torch.long)), r"cache torch\.int64 \[1, 9, 4\].*\[1, 17, 4\]"),
        (other("cache", torch.full((1, 17, 4), 51)), "ids that are no tokens"),
        (other("cache", torch.full((1, 17, 4), -3)), "ids that are no tokens"),
    ],
)
def test_a_voice_of_a_wrong_shape_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = save(tmp_path / "a.pt", change(stored()))
    with pytest.raises(VoiceError, match=rf"a\.pt.*{said}"):
        load_replay(path, CONFIG)


class _RunsCode:
    """What an attacker's pickle holds."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_voice_never_runs(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {**stored(), "cache": _RunsCode(tmp_path / "mark")})
    with pytest.raises(VoiceError, match="holds more than tensors"):
        load_replay(path, CONFIG)
    assert not (tmp_path / "mark").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.pt", stored()).read_bytes()
    with pytest.raises(VoiceError, match=r"none\.pt cannot be read: No such file"):
        load_replay(tmp_path / "none.pt", CONFIG)
    torch.save(stored(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    for data in (old, b"", b"\0" * 100, b"garbage", whole[:-200], whole[: len(whole) // 2], whole[:10]):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(VoiceError, match=r"a\.pt is not a voice prompt"):
            load_replay(tmp_path / "a.pt", CONFIG)


def test_garbled_files_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever the reader trips over in a garbled file, it is told as a VoiceError."""
    original = save(tmp_path / "a.pt", stored()).read_bytes()
    dice = np.random.default_rng(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on odd pickle versions before it fails
        for _ in range(300):
            data = bytearray(original)
            for at in dice.integers(0, len(data), 5):
                data[at] = dice.integers(0, 256)
            (tmp_path / "a.pt").write_bytes(bytes(data))
            try:
                load_replay(tmp_path / "a.pt", CONFIG)
            except VoiceError:
                refused += 1
    assert refused > 100
