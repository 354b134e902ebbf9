"""What the calls of the engine's benchmark ask for: prompts, pasts, and an agent's first word.

Owns how long they are, cut to what a small model's window holds, and the random numbers that they are made of.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from model.bench.drive import SOUND
from model.clip import Clip, ClipError
from model.config import LMConfig
from model.history import CODEC_FRAMES, FAST_FRAMES, kept_frames, renewal_margin
from model.prompt_cache import Prompt, make_prompt
from model.wire import TOKENS_BYTES, History, Resume, SessionRequest

PROMPT_FRAMES = 300
_PAUSES = 12
"""Frames of silence in a prompt, around the text."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A session as `Calls.open` takes it, and the index of its first frame."""

    request: SessionRequest
    history: History
    first: int = 0


class Asking:
    """Makes sessions for one model. Implements `model.assets.Assets` with the prompts that it has made."""

    def __init__(self, config: LMConfig) -> None:
        self._config = config
        self._prompts: dict[str, Prompt] = {}
        self.known = self._prompt()
        """That of all calls but those of `fresh`."""
        self.deep = kept_frames(config.transformer.context, self.known.frames)
        """Frames that a call remembers after it was re-primed: the fewest of a long one."""
        context = config.transformer.context
        self.whole = max(self.deep, context - 1 - self.known.frames - 2 * renewal_margin(context))
        """Frames that one remembers shortly before it is re-primed again: nearly the most that are taken over."""
        self.fast = min(FAST_FRAMES, self.deep)
        """Frames with which one taken over speaks again."""

    def plain(self) -> Asked:
        return Asked(SessionRequest("plain", prompt=self.known.key), History())

    def fresh(self) -> Asked:
        """With a prompt that nobody has asked for."""
        return Asked(SessionRequest("fresh", prompt=self._prompt().key), History())

    def resumed(self, frames: int) -> Asked:
        """One that another worker began: so many columns, and as much of the caller's sound as a gateway keeps."""
        heard = min(frames, CODEC_FRAMES)
        request = SessionRequest("resumed", prompt=self.known.key, resume=Resume(0, frames, heard, 0))
        ids = torch.randint(0, min(self._config.card, self._config.text_card), (frames, TOKENS_BYTES // 2))
        return Asked(request, History(ids.numpy().astype("<u2").tobytes(), SOUND * heard), frames)

    def _prompt(self) -> Prompt:
        """Another prompt each time, of 300 frames where the window allows, different from its beginning on."""
        config, number = self._config, len(self._prompts) + 1
        frames = min(PROMPT_FRAMES, config.transformer.context // 3)
        voice = torch.full((config.codebooks, frames // 2), 7 * number % config.card)
        text = [4 + (index * number) % (config.text_card - 4) for index in range(frames - frames // 2 - _PAUSES)]
        prompt = make_prompt(config, voice, text)
        self._prompts[prompt.key] = prompt
        return prompt

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        """The prompt whose key `text` is. As one that is read beside the calls it is not there at once."""
        yield False
        return self._prompts[text]

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        yield False
        raise ClipError("the benchmark has no clips")

    def unfinished(self) -> dict[str, object]:
        return {"voices": None, "clips": None}
