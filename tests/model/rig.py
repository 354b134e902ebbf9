"""Calls on a tiny engine, with a clock that the test moves."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.assets import FileAssets
from model.calls import Calls
from model.capacity import batch_sizes
from model.clip import Clip, ClipError
from model.conversation import Models
from model.engine import Stepper
from model.engine_options import Context
from model.folder import ModelFolder
from model.history import Columns
from model.lm import LM, LMState
from model.pace import FRAME
from model.prompt_cache import PromptCache
from model.scheduler import Scheduler
from model.voice_store import VoiceStore
from model.wire import AgentFrame, AgentText, FromWorker, History, Ready, Resume, Sampling, SessionRequest
from tests.model.tiny_folder import VOICE

GREEDY = Sampling(temperature=0.0, text_temperature=0.0)
WINDOW = 40
"""Frames in sight of the fixture `short`, which a call outlives within a test."""


def request(call: str = "c1", prompt: str = "you are a kind teacher", **more: object) -> SessionRequest:
    return SessionRequest(call, prompt=prompt, **{"voice": VOICE, "sampling": GREEDY, **more})  # type: ignore[arg-type]


def caller_pcm(seed: int, index: int, level: int = 300) -> bytes:
    """80 ms of a caller, another for each frame: too quiet to be taken for an interruption unless `level` is more."""
    random = np.random.default_rng((seed, index))
    return (random.standard_normal(1920) * level).astype("<i2").tobytes()


def with_window(models: Models, frames: int) -> Models:
    """The same weights with another window."""
    config = models.config
    narrow = replace(config, transformer=replace(config.transformer, context=frames))
    lm = LM(narrow)
    lm.keep_steps(narrow.codebooks)
    lm.load_state_dict(models.lm.state_dict())
    return replace(models, lm=lm.eval().requires_grad_(False).to(models.device))


MEMORIES = (
    *("model's keys", "model's values"),
    *("encoder's rows", "encoder's keys", "encoder's values"),
    *("decoder's rows", "decoder's keys", "decoder's values"),
)
"""What a slot remembers numbers in."""


def memories(stepper: Stepper, slot: int) -> dict[str, Tensor]:
    """Each of `MEMORIES`: what the convolutions carry, and of keys and values the first position of all layers."""
    codec, parts = stepper.codec, {}
    parts["encoder's rows"], parts["decoder's rows"] = codec.encoder_rows[slot], codec.decoder_rows[slot]
    stores = (
        ("model", stepper.state.kv, stepper.lm_slot[slot]),
        ("encoder", codec.encoder_kv, slot),
        ("decoder", codec.decoder_kv, slot),
    )
    for owner, kv, place in stores:
        parts[f"{owner}'s keys"], parts[f"{owner}'s values"] = kv.keys[:, place, :, 0], kv.values[:, place, :, 0]
    return parts


class Rig:
    """An engine's calls and what each session was told."""

    def __init__(
        self,
        models: Models,
        folder: ModelFolder,
        *,
        slots: int = 3,
        context: Context = "reprime",
        spares: int = 1,
        kv_dtype: torch.dtype = torch.float32,
        costs: Mapping[int, float] | None = None,
    ) -> None:
        """`costs`: seconds of a step by number of slots, as the scheduler knows them. On a GPU its steps are captured,
        as in production."""
        self.now = 0.0
        self.told: dict[int, list[FromWorker]] = defaultdict(list)
        self.clips: dict[str, Clip] = {}
        self.reading = threading.Event()
        """While it is not set, clips are being read."""
        self.reading.set()
        batches = batch_sizes(slots) if models.device.type == "cuda" else []
        self.stepper = Stepper(models, slots, spares=spares, kv_dtype=kv_dtype, batches=batches)
        self.scheduler = Scheduler(slots, costs=costs)
        self.prompts = PromptCache(self.stepper, 1 << 30)
        voices = VoiceStore(models, folder.voices, Path("nowhere"))
        self.assets = FileAssets(models, voices, self._clip, reprimed=context == "reprime")
        self.calls = Calls(
            self.stepper, self.scheduler, self.prompts, self.assets, self._tell, lambda: self.now, context
        )

    def _tell(self, session: int, message: FromWorker) -> None:
        self.told[session].append(message)

    def _clip(self, name: str) -> Clip:
        assert self.reading.wait(60)
        if name not in self.clips:
            raise ClipError(f"there is no clip {name}")
        return self.clips[name]

    def open(self, session: int, asked: SessionRequest, history: History | None = None) -> FromWorker:
        """Open and wait until it speaks or is refused: what it was told first."""
        self.calls.open(session, asked, history or History())
        while not self.told[session]:
            self.settle(once=True)
        return self.told[session][0]

    def settle(self, once: bool = False) -> None:
        """Let everything be done that waits; time jumps to when it is due."""
        while self.calls.work() or self._jump():
            if once:
                return

    def _jump(self) -> bool:
        # A thread works in real time, in which this clock would be minutes ahead of it.
        if isinstance(reading := self.assets.unfinished()["voices"], Future):
            wait([reading], 0.01)
        wake = self.calls.wake_at()
        if wake is None:
            return False
        self.now = max(self.now, wake)
        return True

    def part(self) -> bool:
        """The next part of the work between steps, as soon as the device has done the one before."""
        self.wait_for_device()
        return self.calls._advance_job()

    def wait_for_device(self) -> None:
        """Until it has done all that it was given, in whichever stream."""
        if self.stepper.device.type == "cuda":
            torch.cuda.synchronize()

    def hear(self, session: int, index: int, pcm: bytes) -> None:
        """A caller frame comes now."""
        self.calls.frame(session, index, pcm, self.now)

    def speak(self, session: int, start: int, end: int, seed: int = 0) -> None:
        """The caller's frames from `start` up to `end`, one every 80 ms, each answered before the next."""
        for index in range(start, end):
            self.hear(session, index, caller_pcm(seed, index))
            self.settle()
            self.now += FRAME

    @property
    def history_of_nothing(self) -> History:
        return History()

    def frames(self, session: int) -> list[AgentFrame]:
        return [message for message in self.told[session] if isinstance(message, AgentFrame)]

    def columns(self, session: int) -> list[bytes]:
        return [frame.tokens for frame in self.frames(session)]

    def text(self, session: int) -> str:
        return "".join(message.text for message in self.told[session] if isinstance(message, AgentText))

    def history(self, session: int, cut: int, missed: int = 0, seed: int = 0) -> tuple[Resume, History]:
        """What a gateway has of a session since `cut`, with `missed` frames that nobody answered."""
        mine = self.frames(session)
        columns = b"".join(frame.tokens for frame in mine if frame.index >= cut)
        frames = len(columns) // len(mine[0].tokens)
        following = cut + frames + missed
        heard = min(following, 125)
        sound = b"".join(caller_pcm(seed, index) for index in range(following - heard, following))
        return Resume(cut, frames, heard, missed), History(columns, sound)


@contextmanager
def read_passes(rig: Rig) -> Iterator[list[tuple[list[int], int]]]:
    """Of each pass of the language model's over more than a step: the LM slots, and how many columns."""
    lm, seen = rig.stepper.models.lm, list[tuple[list[int], int]]()
    read = lm.read_together

    def watched(state: LMState, lm_slots: Tensor, inputs: Tensor, lengths: Tensor | None) -> None:
        seen.append((lm_slots.tolist(), inputs.shape[1 if inputs.is_floating_point() else 2]))
        read(state, lm_slots, inputs, lengths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "read_together", watched)
        yield seen


def is_ready(message: FromWorker) -> bool:
    return isinstance(message, Ready)


def as_ids(columns: Columns) -> list[list[int]]:
    rows: list[list[int]] = columns.between(columns.start, columns.end).T.tolist()
    return rows
