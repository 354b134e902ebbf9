"""Every case of the golden files: codec, language model, prompts, voices and loudness as the reference has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile  # type: ignore[import-untyped]
from torch import Tensor

from model import loudness
from model.lm import LM, LMState, StepTrace
from model.mimi.codec import Mimi
from model.prompt import role_frames, voice_frames
from model.voice import load_replay, voice_codes, voice_codes_from_wav
from tests.model.golden_files import (
    AUDIO_LIMIT,
    EMBEDDING_LIMIT,
    GOLDEN,
    LOUDNESS_LIMIT,
    NOTHING,
    PCM_LIMIT,
    STAGE_LIMIT,
    TEXT_LIMIT,
    TRANSFORMER_LIMIT,
    Case,
    assert_near,
    assert_same,
    tiny_lm,
    tiny_lm_config,
    tiny_mimi,
)

PROMPTS = ("prompt-wav", "prompt-pt", "prompt-pt-random", "prompt-pt-short")


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm()


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return tiny_mimi()


@dataclass
class Calls:
    """What a row of step calls gave, with the arrays' filler where there was nothing."""

    tokens: Tensor
    """`[B, R, T]`."""
    returned: Tensor
    """`[T]`."""
    traces: list[StepTrace]
    first: int
    """The first call whose model run counts: 1 from a fresh slot."""

    def stacked(self, name: str) -> Tensor:
        """A field of the traces along dimension 1, filled where the model did not run: NaN, or NOTHING."""
        rows = torch.stack([getattr(trace, name) for trace in self.traces], dim=1)
        rows[:, : self.first] = float("nan") if rows.is_floating_point() else NOTHING
        return rows


def run_calls(lm: LM, state: LMState, codes: Tensor | None, count: int) -> Calls:
    """Step all slots `count` times with `codes [B, 8, count]`, or with nothing given."""
    first = 0 if int(state.cache.offset[0]) else 1
    outputs = [lm.step(state, None, None if codes is None else codes[:, :, call]) for call in range(count)]
    tokens = torch.stack([torch.where(out.valid[:, None], out.tokens, NOTHING) for out in outputs], dim=2)
    returned = torch.stack([out.valid.all() for out in outputs])
    return Calls(tokens, returned, [out.trace for out in outputs], first)


def check_calls(case: Case, calls: Calls, prefix: str = "") -> None:
    """Everything that the files record of stepping, in `out_<prefix>...`."""
    assert_same(calls.tokens, case[f"out_{prefix}out_tokens"])
    assert_same(calls.stacked("chosen")[:, :, 1:].transpose(1, 2), case[f"out_{prefix}sampled_audio"])
    assert_near(calls.stacked("text_logits"), case[f"out_{prefix}text_logits"], TEXT_LIMIT)
    if f"out_{prefix}returned" not in case:
        return
    assert_same(calls.returned, case[f"out_{prefix}returned"])
    assert_same(calls.stacked("inputs").transpose(1, 2), case[f"out_{prefix}model_input"])
    assert_same(calls.stacked("chosen")[:, :, 0], case[f"out_{prefix}sampled_text"])
    kept, stride = case["in_logit_calls"], case.number("in_vocab_stride")
    audio = calls.stacked("audio_logits")[:, kept][..., ::stride]
    assert_near(audio, case[f"out_{prefix}audio_logits_sub"], AUDIO_LIMIT)
    assert_near(calls.stacked("hidden")[:, kept], case[f"out_{prefix}transformer_out"], TRANSFORMER_LIMIT)


def test_teacher_forced_logits(lm: LM) -> None:
    case, stride = Case("lm-forward"), Case("lm-forward").number("in_vocab_stride")
    with torch.no_grad():
        out = lm(case["in_codes"])
    assert_same(out.text_mask, case["out_text_mask"])
    assert_same(out.audio_mask, case["out_audio_mask"])
    assert_near(out.text_logits, case["out_text_logits"], TEXT_LIMIT)
    assert_near(out.audio_logits[..., ::stride], case["out_audio_logits_sub"], AUDIO_LIMIT)
    argmax, present = case["out_audio_argmax"], case["out_audio_argmax"] != NOTHING
    assert_same(out.audio_logits.argmax(-1)[present], argmax[present])
    known = ~out.audio_logits.isnan().any(-1)
    assert torch.equal(known, ~case["out_audio_logsumexp"].isnan())
    assert_near(out.audio_logits.logsumexp(-1), case["out_audio_logsumexp"], AUDIO_LIMIT)
    if "out_audio_logits_b0t3" in case:
        assert_near(out.audio_logits[0, :, 3], case["out_audio_logits_b0t3"], AUDIO_LIMIT)


def test_teacher_forced_logits_past_the_context(lm: LM) -> None:
    case = Case("lm-forward")
    stride = 4 * case.number("in_vocab_stride")
    assert case["in_codes_long"].shape[2] > lm.config.transformer.context
    with torch.no_grad():
        out = lm(case["in_codes_long"])
    assert_near(out.text_logits, case["out_long_text_logits"], TEXT_LIMIT)
    assert_near(out.audio_logits[..., ::stride], case["out_long_audio_logits_sub"], AUDIO_LIMIT)
    assert_same(out.audio_mask, case["out_long_audio_mask"])


def test_steps_past_the_window(lm: LM) -> None:
    case = Case("lm-step")
    batch, _, count = case["in_user_codes"].shape
    assert count > lm.config.transformer.context
    check_calls(case, run_calls(lm, lm.streaming(batch), case["in_user_codes"], count))


def test_steps_with_nothing_given(lm: LM) -> None:
    case = Case("lm-step")
    check_calls(case, run_calls(lm, lm.streaming(1), None, case.number("in_free_calls")), "free_")


def test_the_window_one_key_wider_is_told_apart(lm: LM) -> None:
    case = Case("lm-step")
    batch, _, count = case["in_user_codes"].shape
    calls = run_calls(lm, lm.streaming(batch, "full"), case["in_user_codes"], count)
    away = (calls.stacked("text_logits") - case["out_text_logits"]).abs().amax(dim=(0, 2))[1:]
    full = lm.config.transformer.context - 1
    assert away[:full].max() < TEXT_LIMIT
    assert away[full:].max() > 10 * TEXT_LIMIT


def voice_sound(case: Case) -> Tensor:
    """The voice prompt of a case, normalised: `[samples]`."""
    return torch.from_numpy(loudness.normalise(case.pcm("in_voice_pcm_i16").numpy()))


def voice(case: Case) -> Tensor:
    """The voice part of a prompt, `[R, N]`."""
    return torch.tensor(voice_frames(case["out_voice_codes"][0].T.tolist())).T


def role(case: Case) -> Tensor:
    """Silence, the role's text over silence, silence: `[R, L]`."""
    return torch.tensor(role_frames(case["in_text_tokens"].flatten().tolist())).T


def prompted(lm: LM, case: Case, chunk: int) -> tuple[LMState, Tensor]:
    """A slot after the case's whole prompt, and the last output of its transformer."""
    state = lm.streaming(1)
    if "in_embeddings" in case:
        lm.replay_voice(state, 0, case["in_embeddings"][:, 0, 0], case["in_cache"][0], chunk)
    else:
        lm.prefill(state, 0, voice(case), chunk)
    hidden = lm.prefill(state, 0, role(case), chunk)
    assert hidden is not None
    return state, hidden


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_and_the_conversation_after_it(lm: LM, name: str, chunk: int) -> None:
    case = Case(name)
    state, hidden = prompted(lm, case, chunk)
    assert_same(state.cache.tokens, case["out_prompt_state_cache"])
    assert_same(state.cache.provided, case["out_prompt_state_provided"])
    assert int(state.cache.offset[0]) == case.number("out_prompt_state_offset")
    assert_near(hidden[None], case["out_prompt_last_transformer_out"], TRANSFORMER_LIMIT)
    assert_near(lm.text_linear(hidden)[None], case["out_prompt_last_text_logits"], TEXT_LIMIT)
    codes = case["out_conv_user_codes"]
    calls = run_calls(lm, state, codes, codes.shape[2])
    check_calls(case, calls, "conv_")
    assert_near(calls.traces[0].text_logits, case["out_first_text_logits"], TEXT_LIMIT)


def test_the_columns_a_prompt_reads(lm: LM) -> None:
    case = Case("prompt-wav")
    inputs = lm.streaming(1).cache.extend(0, torch.cat((voice(case), role(case)), dim=1))
    assert_same(inputs[None], case["out_prompt_model_input"][:, :, 1:])


def test_a_voice_file_is_written_as_the_reference_does(lm: LM, mimi: Mimi) -> None:
    case = Case("voice-pt")
    codes = voice_codes(mimi, voice_sound(case))
    embeddings, cache = lm.record_voice(torch.tensor(voice_frames(codes.T.tolist())).T)
    assert_near(embeddings[:, None, None], case["out_embeddings"], EMBEDDING_LIMIT)
    assert_same(cache[None], case["out_cache"])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_conversation_from_sound_to_sound(lm: LM, mimi: Mimi, name: str) -> None:
    """As it runs live: frame by frame, with only the depformer steps that a conversation needs."""
    converse(lm, mimi, Case(name))


def test_a_conversation_without_the_weights_of_the_other_steps(mimi: Mimi) -> None:
    """As the engine keeps them."""
    lm = tiny_lm()
    lm.keep_steps(lm.config.codebooks)
    converse(lm, mimi, Case(PROMPTS[0]))


def converse(lm: LM, mimi: Mimi, case: Case) -> None:
    """The case's caller heard, and every token and sound compared."""
    if "out_voice_pcm_normalised" in case:
        assert_same(voice_codes(mimi, case["out_voice_pcm_normalised"][0])[None], case["out_voice_codes"])
    state, _ = prompted(lm, case, 256)
    codec, slots = mimi.streaming(1), torch.tensor([0])
    tokens, sound = [], []
    for pcm in torch.split(case.pcm("in_user_pcm_i16")[None, None], mimi.frame_size, dim=2):
        heard = mimi.encode_step(codec, slots, pcm, lm.config.codebooks)[..., 0]
        frame = lm.step(state, slots, heard, depformer_steps=lm.config.codebooks).tokens
        tokens.append(frame)
        sound.append(mimi.decode_step(codec, slots, frame[:, 1 : 1 + lm.config.codebooks, None]))
    assert_same(torch.stack(tokens, dim=2), case["out_conv_out_tokens"])
    if "out_conv_pcm" in case:
        assert_near(torch.cat(sound, dim=2), case["out_conv_pcm"], PCM_LIMIT)


def along_time(transformer: torch.nn.ModuleDict, x: Tensor) -> Tensor:
    """A whole transformer pass over `[B, D, T]`."""
    result: Tensor = transformer["transformer"](x.transpose(1, 2))
    return result.transpose(1, 2)


def decode_stream(mimi: Mimi, codes: Tensor) -> Tensor:
    """Codes `[B, K, n]`, one column a call, from a fresh codec."""
    state, slots = mimi.streaming(codes.shape[0]), torch.arange(codes.shape[0])
    return torch.cat([mimi.decode_step(state, slots, codes[..., n : n + 1]) for n in range(codes.shape[-1])], dim=-1)


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


@pytest.mark.parametrize("name", PROMPTS)
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
