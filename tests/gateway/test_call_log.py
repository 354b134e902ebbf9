"""What is redacted never reaches a live view, the records or the recording: a call that tells a card number."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path

import numpy as np
import pytest

from gateway.call import MASKED_KEY, Call
from gateway.call_log import CallLog
from gateway.call_plan import CallPlan
from gateway.live import LiveFeed, LiveUtterance
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.records.journal import CallJournal
from gateway.records.portion import CallStart
from gateway.redaction.rules import Rules
from gateway.transcript import Utterance
from model.wire import AgentText, CallerText, Output, SessionRequest
from tests import virtual_time
from tests.gateway.memory_line import MemoryLeg, ScriptedEngine

SPOKEN = "My card number is 4111 1111 1111 1111."
START = CallStart("c1", "memory", "CA1", "inbound", "+15550199", "+15550100", "bank", "abc123", "", 0.0)
SCRIPT: dict[int, list[Output]] = {
    10: [AgentText(10, " Hello,"), AgentText(13, " how may I help?")],
    100: [CallerText(50, 90, SPOKEN)],
    160: [AgentText(160, " Thank"), AgentText(165, " you.")],
}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time no writer keeps up with a call, and a recording that lags behind is given up."""
    monkeypatch.setattr("gateway.recording.recorder.MAX_PENDING", 1_000)


def run(folder: Path, rules: Rules) -> tuple[CallLog, CallJournal, list[LiveUtterance]]:
    """A minute's call whose keys are pressed at 20 s."""
    leg, seen = MemoryLeg(seconds=60), list[LiveUtterance]()

    def press(key: str) -> None:
        assert leg.on_digit is not None
        leg.on_digit(key)

    async def watch(live: LiveFeed) -> None:
        async for news in live.watch():
            seen.append(news)

    async def call() -> tuple[CallLog, CallJournal]:
        live, journal = LiveFeed(), CallJournal(START, lambda: None)
        watching = asyncio.create_task(watch(live))
        recorder = Recorder(RecordingPlan(folder, held=bool(rules)))
        log_book = CallLog("c1", live, rules, recorder)
        log_book.journal = journal
        one = Call(leg, ScriptedEngine(SCRIPT), CallPlan("bank", "v", SessionRequest("c1")), recorder, log_book)
        log_book.now = lambda: one.seconds
        for place, key in enumerate("4111111111111111"):
            asyncio.get_running_loop().call_later(20 + 0.3 * place, press, key)
        await one.run()
        await asyncio.sleep(0)
        watching.cancel()
        return log_book, journal

    log_book, journal = virtual_time.run(call())
    return log_book, journal, seen


def written(journal: CallJournal) -> tuple[tuple[Utterance, ...], list[str]]:
    portion = journal.take()
    assert portion is not None
    return tuple(portion.utterances), [str(event.data["key"]) for event in portion.events if event.kind == "keypad"]


def quiet_seconds(folder: Path, track: int) -> list[int]:
    """Whole seconds of one side of the recording in which nothing is to be heard."""
    with wave.open(str(folder / "call.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)[:, track]
    return [second for second in range(len(samples) // 8_000) if not samples[8_000 * second :][:8_000].any()]


def test_a_card_number_is_gone_from_all_that_is_shown_and_kept(tmp_path: Path) -> None:
    log_book, journal, seen = run(tmp_path, Rules.of(["card"]))
    utterances, keys = written(journal)
    kept = log_book.utterances()
    assert kept is not None
    for place in (str(seen), str(utterances), str(kept)):
        assert "4111" not in place
        assert "[card number]" in place
    assert [one.text for one in kept if one.speaker == "agent"] == ["Hello, how may I help?", "Thank you."]
    assert keys == [MASKED_KEY] * 16
    assert {5, 6} <= set(quiet_seconds(tmp_path, 0))
    # Of the caller no sound is kept of which no words came, so that what was misheard or missed is not.
    assert quiet_seconds(tmp_path, 0) == list(range(len(quiet_seconds(tmp_path, 0))))


def test_without_rules_everything_passes_at_once_and_whole(tmp_path: Path) -> None:
    log_book, journal, seen = run(tmp_path, Rules())
    utterances, keys = written(journal)
    assert log_book.utterances() is None
    assert SPOKEN in {one.text for one in utterances}
    assert SPOKEN in {news.utterance.text for news in seen}
    assert "".join(keys) == "4111111111111111"
    assert quiet_seconds(tmp_path, 0) == []


@pytest.mark.parametrize("after", [4.2, 60.0])
def test_what_is_undecided_waits_a_moment_and_no_longer(after: float) -> None:
    async def speak() -> list[str]:
        live, heard, loop = LiveFeed(), list[str](), asyncio.get_running_loop()

        async def watch() -> None:
            async for news in live.watch():
                heard.append(news.utterance.text)

        watching = asyncio.create_task(watch())
        log_book, began = CallLog("c1", live, Rules.of(["card"]), None), loop.time()
        log_book.now = lambda: loop.time() - began
        log_book.utterance(Utterance(1, "agent", "We are open today.", 0.0, 1.0))
        await asyncio.sleep(after)
        log_book.over()
        await asyncio.sleep(0)
        watching.cancel()
        return heard

    assert "We are open today." in virtual_time.run(speak())


def test_the_records_name_a_recording_once_consent_was_heard() -> None:
    journal = CallJournal(START, lambda: None)
    log_book = CallLog("c1", LiveFeed(), Rules.of([]), recording="calls/c1/call.wav")
    log_book.journal = journal
    log_book.event(0.0, "answer", {})
    before = journal.take()
    log_book.event(3.0, "consent", {"heard": True, "line": "This call is recorded.", "at": 3.0})
    after = journal.take()
    assert before is not None
    assert after is not None
    assert (before.recording, after.recording) == ("", "calls/c1/call.wav")
    journal.give_back(after)
    again = journal.take()
    assert again is not None
    assert again.recording == "calls/c1/call.wav", "what could not be stored is stored the next time"
