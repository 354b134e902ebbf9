"""Prompts and clips from a thread of their own: what they are, what is looked at again, what is refused."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from model import voice_store
from model.assets import FileAssets, find_clip
from model.clip import Clip, ClipError, save_clip
from model.conversation import Models, load_voice, role_ids
from model.folder import ModelFolder
from model.offline import write_wav
from model.prompt import PromptTooLong
from model.prompt_cache import make_prompt
from model.voice_store import VoiceStore
from model.voices import Consent, VoiceRefused, add_voice, remove_voice, voice_file
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("one_thread")

_T = TypeVar("_T")


def waited(parts: Generator[bool, None, _T]) -> _T:
    """What a generator returns once its thread is done."""
    while True:
        try:
            assert next(parts) is False
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with the recording of somebody who agreed."""
    sound = (np.sin(np.arange(24_000) * 0.06) * 0.3).astype(np.float32)
    write_wav(tmp_path / "ann.wav", [sound])
    consent = Consent("Ann Lee", "2026-03-31", "this test")
    add_voice(tmp_path / "voices", "ann-lee", tmp_path / "ann.wav", consent, datetime.date(2026, 4, 1))
    return tmp_path / "voices"


@pytest.fixture
def assets(models: Models, tiny: ModelFolder, recordings: Path, tmp_path: Path) -> Iterator[FileAssets]:
    voices = VoiceStore(models, tiny.voices, recordings)
    made = FileAssets(models, voices, lambda name: find_clip(tmp_path, name))
    yield made
    made.close()


def test_a_prompt_is_its_voice_and_role_and_one_for_all_calls_that_want_the_same(
    assets: FileAssets, models: Models, tiny: ModelFolder
) -> None:
    prompt = waited(assets.prompt(VOICE, "you are kind"))
    voice = load_voice(models, tiny.voices / f"{VOICE}.pt")
    assert prompt.key == make_prompt(models.config, voice, role_ids(models, "you are kind")).key
    assert waited(assets.prompt(VOICE, "you are kind")) is prompt
    assert assets.read(VOICE, "you are kind") is prompt
    assert waited(assets.prompt(VOICE, "you are wise")).key != prompt.key


def test_nobody_waits_within_the_generator_while_the_thread_works(models: Models, tiny: ModelFolder) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def find(name: str) -> Clip:
        begun.set()
        assert go_on.wait(60)
        return Clip(name, torch.ones((9, 2), dtype=torch.long))

    assets = FileAssets(models, VoiceStore(models, tiny.voices, Path("nowhere")), find)
    first, second, third = assets.clip("a"), assets.clip("b"), assets.prompt(VOICE, "hello")
    assert [next(parts) for parts in (first, second)] == [False] * 2
    assert begun.wait(60)
    assert next(first) is False
    assert waited(third).frames > 0, "a prompt waits for no clip"
    second.close()
    go_on.set()
    assert waited(first).text == "a"
    assets.close()


def test_a_recording_is_looked_at_for_each_call_but_once_for_those_who_asked_before(
    assets: FileAssets, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def counted(name: str, published: Path, folder: Path) -> Path:
        looks.append(name)
        return voice_file(name, published, folder)

    monkeypatch.setattr(voice_store, "voice_file", counted)
    waited(assets.prompt("ann-lee", "hello"))
    assert len(looks) == 1
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert release.wait(60)

    assets._thread.submit(hold)
    assert held.wait(60)
    together = [assets.prompt("ann-lee", f"hello {number}") for number in range(8)]
    assert [next(parts) for parts in together] == [False] * 8
    release.set()
    for parts in together:
        waited(parts)
    assert len(looks) == 2
    remove_voice(recordings, "ann-lee")
    with pytest.raises(VoiceRefused, match="no consent is recorded"):
        waited(assets.prompt("ann-lee", "hello"))


def test_a_prompt_that_is_too_long_is_refused_where_it_is_asked_for(assets: FileAssets) -> None:
    with pytest.raises(PromptTooLong, match="shorten the text"):
        waited(assets.prompt(VOICE, "the bank " * 200))


def test_a_folder_that_cannot_be_looked_into_costs_a_call_its_clip_or_its_voice_and_the_engine_nothing(
    models: Models, assets: FileAssets, tmp_path: Path
) -> None:
    """As while it is replaced, or where a network's disk is gone. Here the system refuses a name for its length."""
    (tmp_path / "bank" / "clips").mkdir(parents=True)
    with pytest.raises(ClipError, match="a" * 300):
        waited(assets.clip("a" * 300))
    gone = VoiceStore(models, tmp_path / ("a" * 300), tmp_path)
    lost = FileAssets(models, gone, lambda name: find_clip(tmp_path, name))
    with pytest.raises(VoiceRefused, match=f"the voice {VOICE} "):
        waited(lost.prompt(VOICE, "hello"))
    lost.close()


def test_a_clip_is_found_in_any_personas_folder_of_clips_and_nowhere_else(assets: FileAssets, tmp_path: Path) -> None:
    clips = tmp_path / "bank" / "clips"
    clips.mkdir(parents=True)
    save_clip(clips / "notice-1.clip", Clip("hello", torch.ones((9, 4), dtype=torch.long)))
    save_clip(tmp_path / "outside.clip", Clip("hello", torch.ones((9, 4), dtype=torch.long)))
    assert waited(assets.clip("notice-1")).text == "hello"
    with pytest.raises(ClipError, match=r"there is no clips/outside\.clip"):
        waited(assets.clip("outside"))
    with pytest.raises(ClipError, match="is no name of a clip"):
        waited(assets.clip("../clips/notice-1"))
