"""Calls with a consent line: from when on they are kept, if the phone line or a worker fails them too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.transcript import Utterance
from model.wire import (
    FRAME_BYTES,
    TOKENS_BYTES,
    AgentFrame,
    AgentText,
    CallerText,
    Flush,
    Output,
    SessionRequest,
)
from tests import virtual_time
from tests.gateway.memory_line import MemoryLeg, ScriptedEngine, ScriptedSession
from tests.gateway.recording.sound import samples
from tests.gateway.recording.test_consent import LINE, spoken
from tests.gateway.told import Told


class LostSession(ScriptedSession):
    """Its answers have columns; frames from `first` up to `end` are answered by nobody."""

    def __init__(self, script: dict[int, list[Output]], first: int, end: int) -> None:
        super().__init__(script)
        self.gap = range(first, end)

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if not isinstance(output, AgentFrame):
                yield output
            elif output.index in self.gap:
                yield AgentFrame(output.index, bytes(FRAME_BYTES))
            else:
                yield replace(output, tokens=bytes(TOKENS_BYTES))


def held_call(
    script: dict[int, list[Output]],
    folder: Path,
    seconds: float = 8.0,
    gap: tuple[int, int] | None = None,
    **line: Any,
) -> tuple[Call, list[Utterance]]:
    """A call with a consent line on a line that also presses keys at 0.5 s and 6 s."""
    told: list[Utterance] = []
    leg = MemoryLeg(seconds=seconds, **line)
    plan = CallPlan("bank", "abc123", SessionRequest("c1"), consent=LINE)
    engine = ScriptedEngine(script)
    if gap is not None:
        engine.session = LostSession(script, *gap)

    async def run() -> Call:
        recorder = Recorder(RecordingPlan(folder, after_consent=True))
        call = Call(leg, engine, plan, recorder, Told(told))
        for at in (0.5, 6.0):
            asyncio.get_running_loop().call_later(at, lambda: leg.on_digit and leg.on_digit("5"))
        await call.run()
        return call

    call = virtual_time.run(run())
    assert engine.session.said == [] or "cut" in str(folder)
    return call, told


def test_a_call_is_kept_from_the_moment_the_line_was_heard(tmp_path: Path) -> None:
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)}
    script |= {word.index: [word] for word in spoken("How can I help?", at=36)}
    script[34] = [CallerText(2, 20, "my number is four one one one")]
    script[60] = [CallerText(50, 58, "What are your hours?")]
    call, told = held_call(script, tmp_path)
    texts = [utterance.text for utterance in call.transcript.utterances()]
    assert texts == ["How can I help?", "What are your hours?", "[keypad 5]"]
    assert not [utterance for utterance in told if "four" in utterance.text or "recorded" in utterance.text]
    left, right = samples(tmp_path / "call.wav")
    assert len(left) == call.counters.frames_in * 640
    start = int(np.argmax(np.abs(left) > 0)) / 8_000
    # The last word begins with frame 29, at 2.32 s, and takes 0.32 s.
    assert 2.32 + 0.32 + 0.1 <= start < 2.9
    assert not right[: int(start * 8_000)].any()
    assert np.abs(left[int(start * 8_000) + 10 :]).min() > 0


@pytest.mark.parametrize("holds", [0.3, 1.0])
def test_a_line_that_is_late_with_the_last_word_is_recorded_only_once_it_has_played_it(
    holds: float, tmp_path: Path
) -> None:
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)}
    script |= {word.index: [word] for word in spoken("How can I help?", at=36)}
    call, _ = held_call(script, tmp_path, holds=holds)
    left, _ = samples(tmp_path / "call.wav")
    # The last word's end is handed over at 2.64 s, and counts 0.1 s later.
    assert 2.74 + holds <= int(np.argmax(np.abs(left) > 0)) / 8_000 < 2.9 + holds
    assert [utterance.text for utterance in call.transcript.utterances()] == ["How can I help?", "[keypad 5]"]


def test_of_a_call_whose_line_never_tells_that_it_played_the_last_word_nothing_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)}
    call, told = held_call(script, folder, never_drains=True)
    assert (call.transcript.utterances(), told, folder.exists()) == ([], [], False)


def test_a_caller_who_interrupts_while_the_line_still_holds_the_last_word_has_not_heard_it(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)}
    script[36] = [Flush(35)]
    call, told = held_call(script, folder, holds=0.5)
    assert (call.transcript.utterances(), told, folder.exists()) == ([], [], False)


def test_a_call_whose_line_is_cut_off_leaves_nothing_and_asks_for_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cut"
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)[:4]}
    script[18] = [Flush(18), CallerText(2, 17, "I want to speak to a person")]
    call, told = held_call(script, folder, seconds=16)
    assert call.transcript.utterances() == []
    assert told == []
    assert not folder.exists()
    assert "never heard, so nothing was kept" in caplog.text


@pytest.mark.parametrize("place", range(7))
def test_a_call_whose_line_lost_a_word_with_its_worker_leaves_nothing(place: int, tmp_path: Path) -> None:
    """Nobody goes on with the call, nor does whoever would begin after that word."""
    folder, words = tmp_path / "cut", spoken(LINE, at=5)
    script: dict[int, list[Output]] = {word.index: [word] for word in words[: place + 1]}
    script |= {word.index + 20: [replace(word, index=word.index + 20)] for word in words[place + 1 :]}
    lost = words[place].index + 1
    call, told = held_call(script, folder, gap=(lost, lost + 20))
    assert call.transcript.utterances() == []
    assert told == []
    assert not folder.exists()


def test_a_call_whose_lost_word_is_said_again_is_kept_from_the_end_of_the_line(tmp_path: Path) -> None:
    words = spoken(LINE, at=5)
    script: dict[int, list[Output]] = {word.index: [word] for word in words[:4]}
    script |= {word.index + 24: [replace(word, index=word.index + 24)] for word in words[3:]}
    script[70] = [AgentText(70, " Hello.")]
    call, _ = held_call(script, tmp_path, gap=(18, 38))
    assert [utterance.text for utterance in call.transcript.utterances()] == ["Hello.", "[keypad 5]"]
    left, _ = samples(tmp_path / "call.wav")
    # The last word begins with frame 53, at 4.24 s, and takes 0.32 s.
    assert 4.24 + 0.32 + 0.1 <= int(np.argmax(np.abs(left) > 0)) / 8_000 < 4.9
