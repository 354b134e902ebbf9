"""The codec, the loudness and the voice prompts against the reference, every case of the golden files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile  # type: ignore[import-untyped]
from torch import Tensor

from model import loudness
from model.mimi.codec import Mimi
from model.voice import load_replay, voice_codes, voice_codes_from_wav
from tests.model.golden_files import (
    GOLDEN,
    NOTHING,
    PCM_LIMIT,
    Case,
    assert_near,
    assert_same,
    tiny_lm_config,
    tiny_mimi,
)

STAGE_LIMIT = 2e-4
LOUDNESS_LIMIT = 1e-6
CONVERSATIONS = ("prompt-wav", "prompt-pt", "prompt-pt-random", "prompt-pt-short")


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return tiny_mimi()


def along_time(transformer: torch.nn.ModuleDict, x: Tensor) -> Tensor:
    """A whole transformer pass over `[B, D, T]`."""
    result: Tensor = transformer["transformer"](x.transpose(1, 2))
    return result.transpose(1, 2)


def decode_stream(mimi: Mimi, codes: Tensor) -> Tensor:
    """Codes `[B, K, n]`, one column a call, from a fresh codec."""
    state, slots = mimi.streaming(codes.shape[0]), torch.arange(codes.shape[0])
    return torch.cat([mimi.decode_step(state, slots, codes[..., n : n + 1]) for n in range(codes.shape[-1])], dim=-1)


def voice_sound(case: Case) -> Tensor:
    """The voice prompt of a case, normalised: `[samples]`."""
    return torch.from_numpy(loudness.normalise(case.pcm("in_voice_pcm_i16").numpy()))


def test_every_stage_of_the_encoder(mimi: Mimi) -> None:
    case = Case("mimi-offline")
    pcm = case.pcm("in_pcm_i16")
    x = mimi.encoder(pcm)
    assert_near(x, case["out_enc_seanet"], STAGE_LIMIT)
    x = along_time(mimi.encoder_transformer, x)
    assert_near(x, case["out_enc_transformer"], STAGE_LIMIT)
    assert_near(mimi.downsample["conv"](x), case["out_latent"], STAGE_LIMIT)
    assert_same(mimi.encode(pcm), case["out_codes"])


def test_every_stage_of_the_decoder(mimi: Mimi) -> None:
    case = Case("mimi-offline")
    x = mimi.quantizer.decode(case["in_dec_codes"])
    assert_near(x, case["out_dec_latent"], STAGE_LIMIT)
    x = mimi.upsample["convtr"](x)
    assert_near(x, case["out_dec_upsampled"], STAGE_LIMIT)
    assert_near(along_time(mimi.decoder_transformer, x), case["out_dec_transformer"], STAGE_LIMIT)
    assert_near(mimi.decode(case["in_dec_codes"]), case["out_dec_pcm"], PCM_LIMIT)


@pytest.mark.parametrize("frames", [1, 3, 1000])
def test_streams_past_the_window(mimi: Mimi, frames: int) -> None:
    """The reference took one frame a call; several at once give the same."""
    case = Case("mimi-stream")
    pcm, codes = case.pcm("in_pcm_i16"), case["out_codes"]
    state, slots = mimi.streaming(pcm.shape[0]), torch.arange(pcm.shape[0])
    starts = range(0, codes.shape[-1], frames)
    size = mimi.frame_size
    heard = [mimi.encode_step(state, slots, pcm[..., n * size : (n + frames) * size]) for n in starts]
    assert_same(torch.cat(heard, dim=-1), codes)
    said = [mimi.decode_step(state, slots, codes[..., n : n + frames]) for n in starts]
    assert_near(torch.cat(said, dim=-1), case["out_pcm"], PCM_LIMIT)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_sound_of_the_conversations(mimi: Mimi, name: str) -> None:
    case = Case(name)
    if "out_conv_pcm" not in case:
        pytest.skip(f"{name} comes without sound here")
    tokens = case["out_conv_out_tokens"]
    returned = tokens[:, :, (tokens[0, 0] != NOTHING)]
    assert_near(decode_stream(mimi, returned[:, 1:9]), case["out_conv_pcm"], PCM_LIMIT)


def test_loudness() -> None:
    if not (GOLDEN / "loudness.npz").exists():
        pytest.skip("these golden files come without loudness")
    case = Case("loudness")
    for name in ("a", "b"):
        pcm = case.pcm(f"in_pcm_i16_{name}").numpy()
        lufs = loudness.loudness(pcm)
        assert lufs == pytest.approx(float(case[f"out_loudness_{name}"]), abs=LOUDNESS_LIMIT)
        assert loudness.gain(lufs) == pytest.approx(float(case[f"out_gain_{name}"]), abs=LOUDNESS_LIMIT)
        assert_near(torch.from_numpy(loudness.normalise(pcm)), case[f"out_normalised_{name}"], LOUDNESS_LIMIT)


def test_a_recorded_voice(mimi: Mimi) -> None:
    case = Case("prompt-wav")
    assert_near(voice_sound(case)[None], case["out_voice_pcm_normalised"], LOUDNESS_LIMIT)
    assert_same(voice_codes(mimi, voice_sound(case))[None], case["out_voice_codes"])


def test_a_recorded_voice_from_its_file(mimi: Mimi, tmp_path: Path) -> None:
    case = Case("prompt-wav")
    wavfile.write(tmp_path / "voice.wav", loudness.RATE, case["in_voice_pcm_i16"].numpy().astype(np.int16))
    assert_same(voice_codes_from_wav(mimi, tmp_path / "voice.wav")[None], case["out_voice_codes"])


def test_a_published_voice(mimi: Mimi, tmp_path: Path) -> None:
    """The file as the reference writes it. Its cache ends with the codes that our codec gives the same recording."""
    case, config = Case("voice-pt"), tiny_lm_config()
    torch.save({"embeddings": case["out_embeddings"], "cache": case["out_cache"]}, tmp_path / "voice.pt")
    replay = load_replay(tmp_path / "voice.pt", config)
    assert_same(replay.embeddings, case["out_embeddings"][:, 0, 0])
    assert_same(replay.cache, case["out_cache"][0])
    codes = voice_codes(mimi, voice_sound(case))
    assert replay.frames == codes.shape[1]
    columns = [(replay.frames - 1 + delay) % config.columns for delay in config.delays[1:9]]
    assert_same(replay.cache[range(1, 9), columns], codes[:, -1])
