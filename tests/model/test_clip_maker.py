"""Clips are made by the model's own voice and kept only if recognition hears their text."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from model.clip_maker import MOST_FRAMES, ClipRequest, ClipUnsaid, Floats, make_clip, rehearsal_recogniser, same_words
from model.conversation import Conversation, Models, load_models, load_voice
from model.wire import FRAME_SAMPLES, Sampling
from tests.model.tiny_folder import VOICE, make_folder

TEXT = "this call is recorded"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return load_models(make_folder(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> ClipRequest:
    folder = make_folder(tmp_path_factory.mktemp("voices"))
    path = folder.voices / f"{VOICE}.pt"
    return ClipRequest(TEXT, VOICE, path, "you are a teacher", "bank", "0123456789ab", seed=3, attempts=3)


def test_a_clip_says_its_text_and_knows_where_it_is_from(models: Models, request_: ClipRequest) -> None:
    made = make_clip(models, request_, lambda pcm: "This call is recorded.")
    clip, length = made.clip, made.clip.tokens.shape[1]
    assert models.tokenizer.text(clip.tokens[0].tolist()).strip() == TEXT
    assert models.tokenizer.piece(int(clip.tokens[0, 1])), "the first word comes in the second frame"
    assert made.pcm.shape == (length * FRAME_SAMPLES,)
    assert (clip.text, clip.voice, clip.persona, clip.version) == (TEXT, VOICE, "bank", "0123456789ab")
    assert (clip.heard, clip.seed) == ("This call is recorded.", "3")


def test_another_seed_is_tried_until_it_is_heard(models: Models, request_: ClipRequest) -> None:
    hearings = iter(["this ball is recorded", "", "this call is recorded"])
    sounds: list[Floats] = []

    def recognise(pcm: Floats) -> str:
        sounds.append(pcm)
        return next(hearings)

    assert make_clip(models, request_, recognise).clip.seed == "5"
    assert len(sounds) == 3
    assert not np.array_equal(sounds[0], sounds[1])


def test_what_is_never_heard_is_never_kept(models: Models, request_: ClipRequest) -> None:
    with pytest.raises(ClipUnsaid, match=r"in 3 attempts .*heard: 'no such words'"):
        make_clip(models, request_, lambda pcm: "no such words")


def test_a_clip_that_was_made_is_played_code_for_code(models: Models, request_: ClipRequest) -> None:
    clip = make_clip(models, request_, lambda pcm: TEXT).clip
    voice = load_voice(models, request_.voice_path)
    conversation = Conversation(models, voice, [5, 6], Sampling(seed=77))
    caller = torch.randn(MOST_FRAMES, FRAME_SAMPLES, generator=torch.Generator().manual_seed(1)) * 0.05
    for pcm in caller[:4]:
        conversation.frame(pcm)
    conversation.speech.play(0, clip)
    length = clip.tokens.shape[1]
    heard = [conversation.frame(pcm) for pcm in caller[4 : 5 + length]]
    assert torch.equal(torch.tensor([frame.tokens[:9] for frame in heard[1:]]).T, clip.tokens)
    ended = heard[-1].spoken
    assert ended is not None
    assert (ended.heard, ended.complete) == (TEXT, True)


@pytest.mark.parametrize(
    ("text", "heard", "same"),
    [
        ("This call may be recorded.", "this call may be recorded", True),
        ("I'm an automated agent; press 1.", "I'm an automated agent, press one.", True),
        ("It\u2019s e-mail, okay?", "Its email okay", True),
        ("This call may be recorded.", "This call may not be recorded.", False),
        ("This call may be recorded.", "This call may be", False),
        ("...", "", False),
    ],
)
def test_words_are_compared_as_they_sound(text: str, heard: str, same: bool) -> None:
    assert same_words(text, heard) is same


@pytest.mark.skipif(find_spec("hibari") is None, reason="the rehearsal engine is not installed")
def test_the_rehearsal_engine_s_ears_hear_a_sentence() -> None:
    """Said by that engine's own voice; the recogniser is the real one."""
    from model.rehearsal.tts import HibariSynthesizer
    from model.rehearsal.weights import find_weights

    text = "This call may be recorded for training."
    sound = HibariSynthesizer(find_weights().tts).synthesize(text).pcm
    assert same_words(text, rehearsal_recogniser()(np.asarray(sound / 32_768, np.float32)))
