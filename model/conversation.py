"""One conversation with the whole model: the caller's sound in, the agent's sound and text out, frame by frame.

Owns loading a model's folder and the way of a frame: encode, step, decode. For work outside calls (files, clips);
the worker's engine does the same for many calls at once. Knows no files but the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import LMConfig
from model.folder import FolderInvalid, ModelFolder
from model.forced_speech import ForcedSpeech, Spoken
from model.fp8_weights import shrink
from model.lm import LM, Sampler, greedy
from model.load import load_lm, load_mimi
from model.mimi.codec import Mimi
from model.prompt import check_length, prompt_frames, role_frames, wrapped
from model.sampling import SlotSampling
from model.tokenizer import Tokenizer
from model.voice import VoiceReplay, load_replay, voice_codes_from_wav
from model.wire import Sampling
from model.word_queue import WordQueue

Voice = VoiceReplay | Tensor
"""A published voice, or the codes `[8, frames]` of a recording."""


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded networks and the tokenizer, all of one release."""

    lm: LM
    mimi: Mimi
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        return self.lm.text_emb.weight.device

    @property
    def config(self) -> LMConfig:
        return self.lm.config


def load_models(folder: ModelFolder, device: torch.device | str = "cpu", *, fp8: bool = False) -> Models:
    """Load a folder. Raises FolderInvalid, WeightsError, TokenizerError.

    The published language model computes in bfloat16, as it is stored; small ones in float32. `fp8` rounds its
    matrices to 8 bits (`model.fp8_weights`). Of the depformer's steps those of one voice are kept.
    """
    folder.require()
    config = folder.lm_config()
    tokenizer = Tokenizer(folder.tokenizer)
    if tokenizer.size != config.text_card:
        raise FolderInvalid(
            f"{folder.tokenizer} has {tokenizer.size} pieces and the model's vocabulary {config.text_card}"
        )
    dtype = torch.bfloat16 if folder.published else torch.float32
    lm = load_lm(folder.lm, config, dtype=dtype, device="cpu" if fp8 else device)
    lm.keep_steps(config.codebooks)
    if fp8:
        lm = shrink(lm, device)
    # No code depends on the decoder, and a telephone hears no difference.
    fast = folder.published and torch.device(device).type == "cuda"
    mimi = load_mimi(folder.mimi, folder.mimi_config(), device=device, decoder_tf32=fast)
    return Models(lm, mimi, tokenizer)


def load_voice(models: Models, path: Path) -> Voice:
    """A voice from its file, which must be one that may be used (`model.voices`). Raises VoiceError."""
    if path.suffix == ".pt":
        return load_replay(path, models.config)
    return voice_codes_from_wav(models.mimi, path)


def role_ids(models: Models, prompt: str) -> list[int]:
    """The role's text as ids, between its tags; none for an empty one."""
    return models.tokenizer.encode(wrapped(prompt)) if prompt.strip() else []


def check_prompt(models: Models, voice: Voice, text_ids: Sequence[int], *, reprimed: bool = False) -> int:
    """Frames of the prompt; `reprimed`: calls are to be given it back. Raises PromptTooLong."""
    frames = voice.frames if isinstance(voice, VoiceReplay) else voice.shape[1]
    return check_length(frames, len(text_ids), models.config.transformer.context, reprimed=reprimed)


@dataclass(frozen=True, slots=True)
class Heard:
    """80 ms of the agent. tokens: `[17]` ids; pcm: `[1920]`, float32."""

    tokens: list[int]
    pcm: Tensor
    spoken: Spoken | None
    """Something it had been told to say, if it came to its end in this frame."""


class Conversation:
    """A conversation after its prompt. `speech` takes what the agent is told to say, for slot 0."""

    def __init__(self, models: Models, voice: Voice, text_ids: Sequence[int], sampling: Sampling | None) -> None:
        """`sampling`: None chooses the likeliest. The prompt may be longer than the window: see `check_prompt`."""
        self._models = models
        self._slot = torch.zeros(1, dtype=torch.long, device=models.device)
        self._state = models.lm.streaming(1)
        self._codec = models.mimi.streaming(1)
        self._words = WordQueue(self._sampler(sampling), models.tokenizer.word_starts(), 1, models.device)
        self.speech = ForcedSpeech(self._words, models.tokenizer, 1, models.config.rows, models.config.card)
        self._prompt(voice, text_ids)

    def _sampler(self, sampling: Sampling | None) -> Sampler:
        if sampling is None:
            return greedy
        sampler = SlotSampling(1, self._models.device)
        sampler.set(0, sampling)
        return sampler

    def _prompt(self, voice: Voice, text_ids: Sequence[int]) -> None:
        lm = self._models.lm
        if isinstance(voice, VoiceReplay):
            lm.replay_voice(self._state, 0, voice.embeddings, voice.cache)
            frames = role_frames(text_ids)
        else:
            frames = prompt_frames(voice.T.tolist(), text_ids)
        lm.prefill(self._state, 0, torch.tensor(frames, device=self._models.device).T)

    def frame(self, pcm: Tensor) -> Heard:
        """The caller's next 80 ms, `[1920]` float32, and what the agent says meanwhile.

        The agent's first frame is the silence that ended the prompt; its sound lags the caller's by one frame.
        """
        models = self._models
        codes = models.mimi.encode_step(self._codec, self._slot, pcm.to(models.device)[None, None])[:, :, 0]
        forced, mask = self.speech.rows([0])
        output = models.lm.step(
            self._state,
            self._slot,
            codes,
            forced.to(models.device),
            mask.to(models.device),
            sampler=self._words,
            depformer_steps=models.config.codebooks,
        )
        agent = output.tokens[:, 1 : 1 + models.config.codebooks, None]
        sound = models.mimi.decode_step(self._codec, self._slot, agent)[0, 0].cpu()
        tokens: list[int] = output.tokens[0].tolist()
        return Heard(tokens, sound, self.speech.returned(0, tokens))
