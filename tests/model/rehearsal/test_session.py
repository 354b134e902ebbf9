"""A whole session in lock-step: recordings in, frames, words and turns out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from model.rehearsal import session as session_module
from model.rehearsal.pieces import End, Sentence, Wanted
from model.rehearsal.session import Models, RehearsalSession
from model.wire import FRAME_SECONDS, AgentFrame, AgentText, CallerFrame, CallerText, Done, Flush
from tests.model.rehearsal.calls import Script, converse, recording, seconds, to_int16, turns

pytestmark = pytest.mark.anyio

GREETING = ["Thank you for calling First Neuron Bank.", "How can I help you today?"]
SILENT = bytes(3840)


def after(length: float, name: str, turn: int) -> np.ndarray:
    """Silence, then one turn of a recording, then five seconds of silence; 24 kHz."""
    said = turns(name)[turn]
    cut = recording(name)[int(said["start"] * 24_000) : int(said["end"] * 24_000)]
    return np.concatenate([seconds(length), cut, seconds(5)])


async def test_the_greeting_is_said_first_word_by_word_in_the_frames_they_are_heard(models: Models) -> None:
    call = await converse(models, Script(GREETING), seconds(6))
    frames = call.of(AgentFrame)
    assert [frame.index for frame in frames] == list(range(75))
    assert call.sound()[0] == 0
    words = call.of(AgentText)
    assert "".join(word.text for word in words) == " " + " ".join(GREETING)
    for word in words:
        assert call.outputs.index(word) < call.outputs.index(frames[word.index])
        assert word.index in call.sound()
    assert [o for o in call.outputs if not isinstance(o, AgentFrame | AgentText)] == []


async def test_a_question_is_answered_within_half_a_second_of_its_end(models: Models) -> None:
    script = Script(GREETING, [[Sentence("We close at two.")]])
    call = await converse(models, script, after(6, "bank-hours", 0))
    assert script.heard == ["Hello, what time does the branch close on Saturday?"]
    (said,) = call.of(CallerText)
    assert said.text == script.heard[0]
    end = said.end * FRAME_SECONDS
    assert abs(end - (6 + 3.02)) < 0.2
    assert call.said_after(end) <= 0.65
    assert script.told == [(" ".join(GREETING), True)]
    assert call.of(Flush) == []


async def test_an_interruption_silences_the_agent_and_is_answered(models: Models) -> None:
    script = Script(["Let me tell you about all of our fees, one after the other, from the first to the last."])
    call = await converse(models, script, after(1.5, "bank-barge-in", 1))
    (cut,) = call.flushes()
    assert cut - 1.5 < 0.26 + 0.25, "the recording begins with a quarter of a second of silence"
    assert call.sound()[-1] == round(cut / FRAME_SECONDS) - 1
    assert "I want to talk to" in script.heard[0]
    ((told, complete),) = script.told
    assert not complete
    assert told == "".join(word.text for word in call.of(AgentText)).strip()


async def test_goodbye_ends_with_done_after_the_last_sound(models: Models) -> None:
    farewell: list[Sentence | End] = [Sentence("Thank you for calling."), Sentence("Goodbye."), End("goodbye")]
    call = await converse(models, Script(GREETING, [farewell]), after(5, "clinic-refill", 2))
    done = call.outputs[-1]
    assert done == Done(call.sound()[-1], "goodbye")
    assert call.of(AgentFrame)[-1].index == done.index


async def test_a_transfer_names_its_target(models: Models) -> None:
    reply: list[Sentence | End] = [Sentence("One moment."), End("transfer", "fraud desk")]
    call = await converse(models, Script(["Hello."], [reply]), after(2, "bank-barge-in", 1))
    assert call.outputs[-1] == Done(call.sound()[-1], "transfer", "fraud desk")


async def test_a_silent_caller_is_asked_again_and_again(models: Models) -> None:
    script = Script(["Hello."])
    call = await converse(models, script, seconds(24))
    assert script.silences == 2
    text = "".join(word.text for word in call.of(AgentText))
    assert text == " Hello. Are you still there? Are you still there?"


async def test_a_reply_without_words_leaves_the_turn_with_the_caller(models: Models) -> None:
    script = Script(["Hello."], [[], [Sentence("Yes.")]])
    caller = np.concatenate([after(2, "bank-hours", 0), after(0, "bank-barge-in", 0)])
    await converse(models, script, caller)
    assert len(script.heard) == 2


async def test_what_an_operator_has_said_is_said_next(models: Models) -> None:
    session = RehearsalSession(models, Script(["Hello."]))
    await session.settled()
    session.say("Please hold the line.")
    await session.settled()
    for index in range(50):
        session.push(CallerFrame(index, SILENT))
    await session.settled()
    await session.close()
    words = [output.text async for output in session.outputs() if isinstance(output, AgentText)]
    assert "".join(words) == " Hello. Please hold the line."


async def test_what_a_caller_says_as_they_hang_up_is_told_and_not_answered(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LAST_WORDS_SECONDS", 60.0)
    script = Script(["Hello."], [[Sentence("Goodbye.")]])
    said = turns("bank-hours")[1]
    caller = to_int16(recording("bank-hours")[int(said["start"] * 24_000) : int(said["end"] * 24_000)])
    caller = caller[: np.flatnonzero(np.abs(caller) > 300)[-1]]
    session = RehearsalSession(models, script)
    await session.settled()
    for index in range(len(caller) // 1_920):
        session.push(CallerFrame(index, caller[index * 1_920 : (index + 1) * 1_920].tobytes()))
    words = session.finish()
    await session.close()
    assert words is not None
    (text,) = [text async for text in words]
    assert text.text.replace(",", "") == "Great thanks bye."
    assert script.heard == []
    await session.settled()


async def test_what_was_said_but_not_sent_when_the_call_ended_is_among_its_last_words(models: Models) -> None:
    script = Script(["Hello."])
    session = RehearsalSession(models, script)
    await session.settled()
    caller = to_int16(after(0.5, "bank-hours", 0))
    for index in range(len(caller) // 1_920):
        session.push(CallerFrame(index, caller[index * 1_920 : (index + 1) * 1_920].tobytes()))
    await session.settled()
    assert len(script.heard) == 1
    words = session.finish()
    await session.close()
    assert words is not None
    assert [text.text async for text in words] == script.heard


async def test_a_session_that_is_no_more_has_no_last_words(models: Models) -> None:
    session = RehearsalSession(models, Script(["Hello."]))
    await session.close()
    assert session.finish() is None


async def test_last_words_that_take_too_long_are_given_up(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "LAST_WORDS_SECONDS", 0.05)
    stuck = threading.Event()
    models.listening.submit(stuck.wait)
    session = RehearsalSession(models, Script(["Hello."]))
    session.push(CallerFrame(0, SILENT))
    words = session.finish()
    await session.close()
    assert words is not None
    assert [text async for text in words] == []
    stuck.set()
    assert "not recognised in time" in caplog.text


async def test_a_frame_is_answered_at_once_even_while_everything_is_being_computed(models: Models) -> None:
    session = RehearsalSession(models, Script(GREETING))
    outputs = session.outputs()
    for index in range(5):
        session.push(CallerFrame(index, SILENT))
        answer = await anext(outputs)
        assert answer == AgentFrame(index, SILENT), "nothing is rendered yet, and nothing was waited for"
    await session.close()


async def test_close_ends_the_outputs_and_is_final(models: Models) -> None:
    session = RehearsalSession(models, Script(GREETING))
    await session.close()
    session.push(CallerFrame(0, SILENT))
    session.say("Too late.")
    assert [output async for output in session.outputs()] == []


def told_in_two(pause: float) -> np.ndarray:
    """A story with a longer pause before its last sentence than it was recorded with; 24 kHz."""
    story = recording("bank-declined")
    return np.concatenate([seconds(2), story[int(0.8 * 24_000) : int(6.75 * 24_000)], seconds(pause), cut_question()])


def cut_question() -> np.ndarray:
    return np.concatenate([recording("bank-declined")[int(6.9 * 24_000) : int(8.6 * 24_000)], seconds(4)])


async def test_a_story_with_a_pause_in_it_is_heard_to_its_end(models: Models) -> None:
    script = Script(["Hello."], [[Sentence("I am sorry about that.")]])
    call = await converse(models, script, told_in_two(0.1))
    (heard,) = script.heard
    assert heard.startswith("Hi, my card was just declined")
    assert heard.endswith("going on?")
    assert call.flushes() == []


async def test_an_agent_that_cut_in_starts_again_as_if_it_had_said_nothing(models: Models) -> None:
    sorry = [Sentence("I am sorry about that, and I will look into it for you right away.")]
    script = Script(["Hello."], [sorry, sorry])
    call = await converse(models, script, told_in_two(0.7))
    first, both = script.heard
    assert both == f"{first} What is going on?"
    assert len(call.flushes()) == 1
    assert script.told == [("Hello.", True), ("", False)]
    said = "".join(word.text for word in call.of(AgentText)).split()
    assert said.count("sorry") <= 2, "at most a word or two of the reply that was dropped"
    assert " ".join(said).endswith(sorry[0].text)


class Pondering(Script):
    """Finds no words for its first reply as long as that is wanted."""

    def __init__(self) -> None:
        super().__init__(["Hello."], [[], [Sentence("Yes.")]])
        self.asked = [threading.Event(), threading.Event()]

    def reply(self, heard: str, wanted: Wanted) -> Iterator[Sentence | End]:
        words = super().reply(heard, wanted)
        asked = self.asked.pop(0)
        asked.set()
        while self.asked and wanted():
            threading.Event().wait(0.01)
        return words


async def test_a_reply_that_is_outdated_does_not_hold_up_the_next(models: Models) -> None:
    script = Pondering()
    session = RehearsalSession(models, script)
    index = count()

    def say(sound: np.ndarray) -> None:
        for start in range(0, len(sound) - 1919, 1920):
            session.push(CallerFrame(next(index), to_int16(sound[start : start + 1920]).tobytes()))

    for _ in range(20):
        await session.settled()
        say(seconds(0.08))
    for asked in list(script.asked):
        say(after(0, "bank-hours", 0))
        assert await asyncio.to_thread(asked.wait, 20)
    await session.settled()
    say(seconds(1))
    await session.settled()
    await session.close()
    said = [output.text async for output in session.outputs() if isinstance(output, AgentText)]
    assert "".join(said) == " Hello. Yes."
    question = "Hello, what time does the branch close on Saturday?"
    assert script.heard == [question, f"{question} {question}"]
    assert script.told == [("Hello.", True), ("", False)]


class Broken(Script):
    def reply(self, heard: str, wanted: Wanted) -> None:  # type: ignore[override]
        raise RuntimeError("no answer")


async def test_what_breaks_a_session_is_raised_to_its_reader(models: Models) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(converse(models, Broken(["Hello."]), after(2, "bank-hours", 0)), 20)
    assert caught.group_contains(RuntimeError, match="no answer")
