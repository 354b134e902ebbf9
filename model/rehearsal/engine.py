"""The rehearsal engine: answers calls on a CPU, with the persona's script or a chat endpoint.

Owns the models that all calls share and the threads they run on. It is not the duplex model, and says so
by its name in records.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
from functools import partial
from pathlib import Path

import numpy as np

from model.rehearsal.asr import Recogniser
from model.rehearsal.chat import Chat, ChatSettings
from model.rehearsal.dialogue import Dialogue
from model.rehearsal.listener import Listener
from model.rehearsal.matcher import LexicalMatcher, Matcher
from model.rehearsal.matcher_minilm import MiniLmMatcher
from model.rehearsal.matcher_minilm import WeightsMissing as MatcherWeightsMissing
from model.rehearsal.matcher_minilm import find_weights as find_matcher_weights
from model.rehearsal.session import Models, RehearsalSession
from model.rehearsal.threads import workers
from model.rehearsal.tts import HibariSynthesizer
from model.rehearsal.vad import VadModel
from model.rehearsal.weights import Weights, find_weights
from model.wire import SessionRequest

log = logging.getLogger(__name__)

RECOGNISERS = 2
_TALKERS = 32
"""Threads that think and speak; they may wait for a chat endpoint, and are made when needed."""
_BEHIND = 5
"""Steps of niceness: frames and voice activity, a few per cent of a core, come first."""
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""From glibc's malloc.h."""
_LARGE = 256 * 1024


class RehearsalEngine:
    """Implements `model.worker_engine.WorkerEngine`."""

    name = "rehearsal"

    def __init__(self, weights_dir: Path | None = None, chat: ChatSettings | None = None) -> None:
        """Finds the weights, loads nothing. Raises WeightsMissing with the command that fixes it."""
        self._folder = weights_dir
        self._weights = find_weights(weights_dir)
        self._chat_settings = chat
        self._chat: Chat | None = None
        self._matcher: Matcher | None = None
        self._models: Models | None = None

    async def start(self) -> None:
        """Load the models, about two seconds, and run each once so that the first caller does not wait."""
        _return_memory()
        self._models, self._matcher = await asyncio.gather(
            asyncio.to_thread(load_models, self._weights), asyncio.to_thread(_load_matcher, self._folder)
        )
        self._chat = Chat(self._chat_settings) if self._chat_settings is not None else None
        # Dictionaries of pronunciation are a million objects that never die: not to be walked again.
        gc.freeze()
        # The collector waits until a quarter of what it last found alive is new: that must not count the frozen.
        gc.collect()

    async def stop(self) -> None:
        """Lets the threads end when they have finished what they are at."""
        if self._models is not None:
            self._models.shut_down()
            self._models = None
        if self._chat is not None:
            self._chat.close()
            self._chat = None

    async def open(self, request: SessionRequest) -> RehearsalSession:
        """A new call. The engine must have been started."""
        if self._models is None or self._matcher is None:
            raise RuntimeError("the rehearsal engine is not started")
        return RehearsalSession(self._models, Dialogue(request, self._matcher, self._chat))


def load_models(weights: Weights) -> Models:
    """Load what sessions share, and start no thread yet. Blocks for a second or two."""
    recogniser = Recogniser(weights.whisper, RECOGNISERS)
    recogniser.recognise(np.zeros(16_000, np.float32))
    return Models(
        listener=partial(Listener, VadModel(weights.vad)),
        recogniser=recogniser,
        synthesizer=HibariSynthesizer(weights.tts),
        listening=workers("listen", 1),
        recognising=workers("recognise", RECOGNISERS, behind=_BEHIND),
        talking=workers("talk", _TALKERS, behind=_BEHIND),
    )


def _load_matcher(folder: Path | None) -> Matcher:
    try:
        return MiniLmMatcher(find_matcher_weights(folder))
    except MatcherWeightsMissing as error:
        log.warning("answers are matched by their words, not their meaning: %s", error)
        return LexicalMatcher()


def _return_memory() -> None:
    """Have glibc give large blocks back to the system, and not one heap to every thread.

    Left alone it raises the size from which it does so, and sound and spectra of every length fragment
    what it keeps: 530 MB after 300 calls, instead of 380.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 2)
