"""What an agent is told to say, in words and in clips, and what of it a caller who speaks over it lets go."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
import torch

from model.clip import Clip
from model.conversation import Models
from model.folder import ModelFolder
from model.pace import FRAME
from model.wire import AgentFrame, AgentText, GaveWay, Played, Resume
from tests.model.rig import Rig, caller_pcm, is_ready, request

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rig(models: Models, tiny: ModelFolder) -> Rig:
    return Rig(models, tiny, slots=2)


def test_what_it_is_told_to_say_comes_out_as_words_and_the_greeting_first(rig: Rig) -> None:
    rig.open(1, request(greeting="hello"))
    rig.calls.say(1, "thank you")
    rig.speak(1, 0, 24)
    text = rig.text(1)
    assert text.strip().startswith("hello")
    assert "thank you" in text[text.index("hello") :]
    text_frames = [message.index for message in rig.told[1] if isinstance(message, AgentText)]
    order = [message for message in rig.told[1] if isinstance(message, AgentText | AgentFrame)]
    for before, after in pairwise(order):
        if isinstance(before, AgentText) and isinstance(after, AgentFrame):
            assert before.index == after.index, "text belongs to the frame that follows it"
    assert text_frames == sorted(text_frames)


def test_a_clip_is_played_code_for_code_and_one_that_is_not_there_harms_nobody(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    codes = torch.randint(0, 2048, (8, 6), generator=torch.Generator().manual_seed(4))
    rig.clips["disclosure"] = Clip("recorded", torch.cat((torch.full((1, 6), 3), codes)))
    rig.open(1, request())
    rig.calls.play(1, "absent")
    rig.settle()
    assert "the clip 'absent' is not played: there is no clip absent" in caplog.text
    rig.calls.play(1, "disclosure")
    rig.settle()
    rig.speak(1, 0, 8)
    columns = [[int.from_bytes(c[i : i + 2], "little") for i in range(0, 34, 2)] for c in rig.columns(1)]
    assert [column[1] for column in columns[:6]] == codes[0].tolist()
    assert [column[2:9] for column in columns[1:7]] == codes[1:].T.tolist()
    assert [message for message in rig.told[1] if isinstance(message, Played)] == [Played(6, "disclosure")]


def test_while_a_clip_is_read_steps_go_on_and_what_is_asked_for_next_waits_its_turn(rig: Rig) -> None:
    rig.clips["first"], rig.clips["last"] = (Clip(name, torch.full((9, 3), 5)) for name in ("first", "last"))
    rig.open(1, request())
    rig.reading.clear()
    rig.calls.play(1, "first")
    rig.calls.say(1, "thank you")
    rig.calls.play(1, "last")
    queued = rig.calls._calls[1].speech.queued
    for index in range(3):
        rig.hear(1, index, caller_pcm(0, index))
        rig.now += FRAME
        for _ in range(4):
            rig.calls.work()
    assert [frame.index for frame in rig.frames(1)] == [0, 1, 2]
    assert not queued
    rig.reading.set()
    rig.settle()
    assert [each.clip for each in queued] == ["first", "", "last"]
    rig.calls.say(1, "hello")
    assert len(queued) == 4, "nothing waits any more: it is queued at once"


def test_a_call_that_hangs_up_while_a_clip_is_read_leaves_nothing_behind(rig: Rig) -> None:
    rig.clips["first"] = Clip("first", torch.full((9, 3), 5))
    rig.open(1, request())
    rig.reading.clear()
    rig.calls.play(1, "first")
    rig.calls.work()
    rig.calls.close(1)
    rig.reading.set()
    rig.settle()
    assert rig.calls.wake_at() is None
    assert is_ready(rig.open(2, request()))
    assert not rig.stepper.speech.busy(rig.calls._calls[2].slot)


def test_a_prepared_clip_takes_the_place_of_its_words_in_the_greeting(rig: Rig, models: Models) -> None:
    word = models.tokenizer.words("hello")[0]
    text = torch.tensor([3, *word, *[3] * (7 - len(word))])
    codes = torch.randint(0, 2048, (8, 8), generator=torch.Generator().manual_seed(4))
    rig.clips["bank-1"] = Clip("hello", torch.cat((text[None], codes)))
    asked = {"greeting": "hello thank you", "notice": "hello", "clip": "bank-1"}
    rig.open(1, request(**asked))
    rig.speak(1, 0, 30)
    columns = [[int.from_bytes(c[i : i + 2], "little") for i in range(0, 34, 2)] for c in rig.columns(1)]
    assert [column[1] for column in columns[:8]] == codes[0].tolist()
    assert rig.text(1).split()[:1] == ["hello"], "consent is told by its words, which a clip has, too"
    assert rig.text(1).count("hello") == 1
    assert "thank you" in rig.text(1)
    assert not any(isinstance(message, Played) for message in rig.told[1]), "nobody asked `play` for it"


@pytest.mark.parametrize("clip", [None, "good night"], ids=["not there", "of other words"])
def test_without_a_clip_that_fits_the_whole_greeting_is_said_in_words(rig: Rig, clip: str | None) -> None:
    if clip is not None:
        rig.clips["bank-1"] = Clip(clip, torch.full((9, 4), 3))
    rig.open(1, request(greeting="hello thank you", notice="hello", clip="bank-1"))
    rig.speak(1, 0, 24)
    text = rig.text(1)
    assert "thank you" in text[text.index("hello") :]


def interrupted(rig: Rig, **asked: str) -> str:
    """What comes out when the caller is loud from the second word of the greeting on."""
    rig.open(1, request(**asked))
    for index in range(60):
        loud = " you" in rig.text(1) or "thank" in rig.text(1)
        rig.hear(1, index, caller_pcm(0, index, level=3000 if loud else 300))
        rig.settle()
        rig.now += FRAME
    return rig.text(1)


LONG = "thank you hello thank you hello thank you hello thank you hello"


def test_words_the_caller_speaks_over_are_let_go_but_not_those_that_must_be_heard(
    models: Models, tiny: ModelFolder
) -> None:
    free, bound = Rig(models, tiny, slots=1), Rig(models, tiny, slots=1)
    cut = interrupted(free, greeting=LONG)
    assert "thank" in cut
    assert LONG not in cut
    assert not free.stepper.speech.busy(0)
    assert free.calls._calls[1].speech.queued == deque()
    (gave_way,) = (message for message in free.told[1] if isinstance(message, GaveWay))
    assert gave_way.text == LONG
    assert [message.index for message in free.told[1] if isinstance(message, AgentFrame)][-1] > gave_way.index
    bound.open(1, request(greeting=LONG, notice=LONG))
    for index in range(120):
        bound.hear(1, index, caller_pcm(0, index, level=3000))
        bound.settle()
        bound.now += FRAME
    assert LONG in bound.text(1)


def resumed_while_the_caller_is_loud(rig: Rig, queued: str, **asked: str) -> tuple[str, list[str]]:
    """What comes out of a call that another worker lost with `queued` left to say, and what the agent gave up."""
    rig.open(1, request(resume=Resume(queued=(queued,)), **asked))
    index = 0
    while rig.stepper.speech.busy(0):
        rig.hear(1, index, caller_pcm(0, index, level=3000))
        rig.settle()
        rig.now += FRAME
        index += 1
    return rig.text(1), [message.text for message in rig.told[1] if isinstance(message, GaveWay)]


def test_of_what_another_worker_had_left_to_say_only_what_is_inside_the_notice_must_be_heard(
    models: Models, tiny: ModelFolder
) -> None:
    notice, rest = "hello thank you", "hello thank you hello thank you hello thank you hello"
    asked = {"greeting": f"{notice} {rest}", "notice": notice}
    for queued, kept in ((f"you {rest}", "you"), (rest, ""), (rest.removeprefix("hello thank "), "")):
        text, gave_way = resumed_while_the_caller_is_loud(Rig(models, tiny, slots=1), queued, **asked)
        assert kept in text
        assert queued not in text, "the caller speaks over it"
        assert gave_way == [queued.removeprefix(kept).strip()]
    text, gave_way = resumed_while_the_caller_is_loud(Rig(models, tiny, slots=1), "thank you", **asked)
    assert "thank you" in text, "of the notice, which was to be said again"
    assert not gave_way
