"""Call.run between a line in memory and real engines, on a clock that jumps from timer to timer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.audio import CARRIER_FRAME_BYTES, LINE_FRAME_BYTES
from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.engine import EchoEngine, EchoSession
from model.wire import (
    FRAME_BYTES,
    TOKENS_BYTES,
    AgentFrame,
    AgentText,
    CallerText,
    Done,
    Flush,
    Output,
    SessionRequest,
)
from tests import virtual_time
from tests.gateway.memory_line import LOUD, PLAN, MemoryLeg, ScriptedEngine, place
from tests.gateway.told import Told

QUIET = bytes(FRAME_BYTES)
SPEECH = np.full(FRAME_BYTES // 2, 6_000, np.int16).tobytes()


def test_one_frame_in_and_one_out_for_every_80_ms() -> None:
    leg = MemoryLeg(seconds=60)
    call = place(leg, EchoEngine())
    assert call.outcome.result().reason == "caller_hangup"
    assert leg.hung_up == ["caller_hangup"]
    times = [at for at, _ in leg.played]
    assert np.allclose(np.diff(times), 0.08)
    assert call.counters.frames_in == len(leg.played) == pytest.approx(60 / 0.08, abs=2)
    assert {len(pcm) for _, pcm in leg.played} == {LINE_FRAME_BYTES}
    assert (call.counters.frames_lost, call.counters.deadline_misses) == (0, 0)


def test_what_the_line_lost_of_the_agent_is_counted() -> None:
    call = place(MemoryLeg(seconds=1, lost=3), EchoEngine())
    assert (call.counters.frames_lost, call.counters.agent_frames_lost) == (0, 3)


def test_the_echo_comes_back_after_the_designed_delay() -> None:
    leg = MemoryLeg(seconds=4)
    place(leg, EchoEngine())
    heard = np.frombuffer(b"".join(pcm for _, pcm in leg.played), np.int16)
    # First tick 105 ms after the first sample; both filters together hold 6 ms back.
    assert leg.played[0][0] == pytest.approx(0.105)
    assert int(np.argmax(heard > 2_500)) == pytest.approx(48, abs=2)
    assert heard[200:-200].min() > 4_900


@pytest.mark.parametrize("late", [0.004, 0.012, 0.019, 0.1, 0.25])
def test_a_late_first_frame_is_no_delay_for_the_rest_of_the_call(late: float) -> None:
    leg = MemoryLeg(seconds=4, late=late)
    place(leg, EchoEngine())
    first = leg.played[0][0]
    # Just after a frame that was on time, and at most one frame later than the late ones asked for.
    assert round(first % 0.02, 6) <= 0.007
    assert first <= 0.105 + late + 0.02
    heard = np.frombuffer(b"".join(pcm for _, pcm in leg.played), np.int16)
    assert heard[400:-200].min() > 4_900


def test_a_line_that_sends_nothing_still_hears_its_agent_and_is_let_go_after_ten_seconds() -> None:
    leg = MemoryLeg(seconds=0, then_silent=True)
    call = place(leg, EchoEngine())
    assert call.outcome.result().reason == "no_media"
    assert leg.played[0][0] == pytest.approx(0.325)
    # No sound for ten seconds, then as long as the agent may take to say goodbye.
    assert leg.played[-1][0] == pytest.approx(0.2 + 10 + 8, abs=0.2)


def test_hold_suspends_the_silence_limit() -> None:
    leg = MemoryLeg(seconds=1, then_silent=True, on_hold=True)
    plan = CallPlan("bank", "abc123", SessionRequest("c1"), max_seconds=60, max_silence_seconds=20)
    assert place(leg, EchoEngine(), plan).outcome.result().reason == "time_limit"


def test_a_call_at_its_limit_takes_its_leave_first() -> None:
    engine = ScriptedEngine()
    leg = MemoryLeg(seconds=1_000)
    call = place(leg, engine, CallPlan("bank", "abc123", SessionRequest("c1"), max_seconds=30, farewell="Time is up."))
    assert engine.session.said == ["Time is up."]
    assert call.outcome.result().reason == "time_limit"
    assert leg.played[-1][0] == pytest.approx(38, abs=0.3)  # this engine never finishes speaking


def test_a_call_in_which_nobody_speaks_is_ended() -> None:
    class Muted(EchoSession):
        async def send(self, pcm: bytes, line: bytes = b"") -> None:
            await super().send(bytes(len(pcm)))

    class Engine:
        async def open(self, request: SessionRequest) -> Muted:
            return Muted()

    leg = MemoryLeg(seconds=4, then_silent=True)
    plan = CallPlan("bank", "abc123", SessionRequest("c1"), max_silence_seconds=20, no_media_seconds=100)
    assert place(leg, Engine(), plan).outcome.result().reason == "silence"
    # The caller is heard until second 4.1; the agent then has 8 s to take its leave.
    assert leg.played[-1][0] == pytest.approx(4.1 + 20 + 8, abs=0.3)


class FarewellEngine:
    """Silent, but for two seconds of what it is told to say."""

    async def open(self, request: SessionRequest) -> EchoSession:
        class Session(EchoSession):
            speaking = 0

            async def say(self, text: str) -> None:
                self.speaking = 25

            async def send(self, pcm: bytes, line: bytes = b"") -> None:
                self.speaking -= 1
                await super().send(np.full(1_920, 4_000 if self.speaking > 0 else 0, np.int16).tobytes())

        return Session()


def test_a_farewell_is_heard_to_its_end_and_the_call_ends_soon_after() -> None:
    leg = MemoryLeg(seconds=100)
    plan = CallPlan("bank", "abc123", SessionRequest("c1"), max_seconds=30)
    assert place(leg, FarewellEngine(), plan).outcome.result().reason == "time_limit"
    loud = [at for at, pcm in leg.played if np.frombuffer(pcm, np.int16).max() > 3_000]
    assert loud[-1] - loud[0] == pytest.approx(23 * 0.08, abs=0.09)
    assert 0.7 < leg.played[-1][0] - loud[-1] < 1.2


class LosesItsWorker(EchoSession):
    """Talks until shortly after its farewell was asked for, is then silent for a second, and says it word by word.

    With `worker_lost` that second is a hand-over, as a session that resumes hands it out.
    """

    def __init__(self, worker_lost: bool) -> None:
        super().__init__()
        self._worker_lost = worker_lost
        self._asked: int | None = None
        self._left: list[str] = []

    async def say(self, text: str) -> None:
        self._asked = self._index
        self._left = text.split()

    async def outputs(self) -> AsyncIterator[Output]:
        column = bytes(TOKENS_BYTES) if self._worker_lost else b""
        async for output in super().outputs():
            assert isinstance(output, AgentFrame)
            since = 0 if self._asked is None else output.index - self._asked
            if output.index == 0:
                yield AgentText(0, " Well")
            if 3 <= since < 16:
                yield AgentFrame(output.index, QUIET)
            elif since >= 16 and not self._left:
                yield AgentFrame(output.index, QUIET, column)
            else:
                if since >= 16:
                    yield AgentText(output.index, f" {self._left.pop(0)}")
                yield AgentFrame(output.index, SPEECH, column)


@pytest.mark.parametrize("worker_lost", [False, True])
def test_a_pause_before_the_farewell_or_a_lost_worker_does_not_end_the_call_before_it_is_said(
    worker_lost: bool,
) -> None:
    class Engine:
        async def open(self, request: SessionRequest) -> EchoSession:
            return LosesItsWorker(worker_lost)

    leg = MemoryLeg(seconds=100)
    call = place(leg, Engine(), CallPlan("bank", "abc123", SessionRequest("c1"), max_seconds=2))
    assert call.outcome.result().reason == "time_limit"
    assert call.transcript.utterances()[-1].text.endswith("Goodbye.")
    assert leg.played[-1][0] == pytest.approx(2.1 + 1.28 + 11 * 0.08 + 0.8, abs=0.2)


def test_a_line_that_never_says_it_has_played_all_does_not_turn_a_goodbye_into_a_loss() -> None:
    leg = MemoryLeg(seconds=30, never_drains=True)
    assert place(leg, ScriptedEngine({20: [Done(19, "goodbye")]})).outcome.result().reason == "agent_goodbye"
    leg = MemoryLeg(seconds=30, never_drains=True)
    assert place(leg, ScriptedEngine({20: [Done(19, "transfer", "person")]})).outcome.result().reason == "transfer"


@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0])
def test_calls_survive_a_process_that_stood_still(seconds: float) -> None:
    leg = MemoryLeg(seconds=20, then_silent=False)

    async def run() -> Call:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualTimeLoop)
        loop.call_later(5.0, loop.stand_still, seconds)
        call = Call(leg, EchoEngine(), PLAN)
        await call.run()
        return call

    call = virtual_time.run(run())
    assert call.outcome.result().reason == "caller_hangup"
    assert call.counters.deadline_misses > 0


def test_a_caller_who_hangs_up_before_the_engine_is_ready_is_not_kept() -> None:
    class SlowEngine:
        async def open(self, request: SessionRequest) -> EchoSession:
            await asyncio.sleep(60)
            return EchoSession()

    async def run() -> tuple[str, float]:
        reason = await Call(MemoryLeg(seconds=1), SlowEngine(), PLAN).run()
        return reason, asyncio.get_running_loop().time()

    reason, at = virtual_time.run(run())
    assert reason == "caller_hangup"
    assert at == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("frames", [0, 1, 8])
def test_a_call_that_ends_as_it_begins_ends_at_once(frames: int) -> None:
    class Burst(MemoryLeg):
        async def listen(self, heard: Callable[[bytes], None]) -> None:
            await asyncio.sleep(0)
            for _ in range(frames):
                heard(LOUD)

    async def run() -> tuple[str, float]:
        reason = await Call(Burst(seconds=0), EchoEngine(), PLAN).run()
        return reason, asyncio.get_running_loop().time()

    assert virtual_time.run(run()) == ("caller_hangup", 0.0)


def test_agent_says_goodbye() -> None:
    engine = ScriptedEngine({10: [AgentText(10, " Goodbye.")], 20: [Done(19, "goodbye")]})
    leg = MemoryLeg(seconds=30)
    call = place(leg, engine)
    assert call.outcome.result().reason == "agent_goodbye"
    assert [one.text for one in call.transcript.utterances()] == ["Goodbye."]
    assert engine.session.closed == 1


def test_transfer_goes_to_the_personas_number_only() -> None:
    leg = MemoryLeg(seconds=30)
    outcome = place(leg, ScriptedEngine({5: [Done(4, "transfer", "person")]})).outcome.result()
    assert (outcome.reason, outcome.target, leg.transferred) == ("transfer", "+15550123", "+15550123")
    leg = MemoryLeg(seconds=30)
    outcome = place(leg, ScriptedEngine({5: [Done(4, "transfer", "+19005550000")]})).outcome.result()
    assert (outcome.reason, outcome.target, outcome.fallback) == ("failed", "", "+15550999")
    assert leg.transferred == ""


def test_flush_reaches_the_line_and_the_transcript() -> None:
    script: dict[int, list[Output]] = {
        10: [AgentText(10, " Our"), AgentText(12, " fees")],
        13: [Flush(11)],
        30: [CallerText(8, 20, "Stop.")],
    }
    leg = MemoryLeg(seconds=5)
    call = place(leg, ScriptedEngine(script))
    assert leg.flushed == 1
    assert [(u.speaker, u.text, u.interrupted) for u in call.transcript.utterances()] == [
        ("caller", "Stop.", False),
        ("agent", "Our", True),
    ]


def test_nothing_of_a_word_that_was_cut_is_heard_after_the_flush() -> None:
    class CutSession(EchoSession):
        """In the middle of a word when it is cut, and silent from then on, as the rehearsal engine is."""

        async def outputs(self) -> AsyncIterator[Output]:
            async for output in super().outputs():
                if isinstance(output, AgentFrame):
                    if output.index == 20:
                        yield Flush(19)
                    yield AgentFrame(output.index, SPEECH if output.index < 20 else QUIET)

    class Engine:
        async def open(self, request: SessionRequest) -> CutSession:
            return CutSession()

    leg = MemoryLeg(seconds=3)
    place(leg, Engine())
    assert leg.flushed == 1
    assert any(leg.played[19][1])
    # What the filter held of the word would be a click, 100 ms after the line went silent.
    assert {pcm for _, pcm in leg.played[20:]} == {bytes(LINE_FRAME_BYTES)}


def test_what_happens_in_a_call_is_told_with_its_time() -> None:
    log_book = Told()

    async def run() -> None:
        leg = MemoryLeg(seconds=2)
        script: dict[int, list[Output]] = {10: [AgentText(10, " Our")], 13: [Flush(11)]}
        call = Call(leg, ScriptedEngine(script), PLAN, log_book=log_book)
        await call.run()
        assert leg.on_digit is not None
        leg.on_digit("5")

    virtual_time.run(run())
    told = log_book.events
    assert log_book.was_over == 1
    assert [kind for _, kind, _ in told] == ["answer", "flush", "keypad"]
    assert told[1][2] == {"heard": 0.96}
    assert told[2][2] == {"key": "5"}
    assert [at for at, _, _ in told] == sorted(at for at, _, _ in told)


class TalkingEngine(ScriptedEngine):
    """Takes two seconds over what the caller was still saying when the call ended."""

    def __init__(self) -> None:
        super().__init__()

        async def last_words() -> AsyncIterator[CallerText]:
            assert self.session.closed
            await asyncio.sleep(2)
            yield CallerText(10, 20, "Thanks, bye.")

        self.session.last_words = last_words  # type: ignore[method-assign]


@pytest.mark.parametrize("cancelled", [False, True])
def test_last_words_are_waited_for_but_not_with_the_line(cancelled: bool) -> None:
    times: dict[str, float] = {}

    class Line(MemoryLeg):
        async def hangup(self, reason: str) -> None:
            await super().hangup(reason)
            times["line"] = asyncio.get_running_loop().time()

    class LogBook(Told):
        def over(self) -> None:
            super().over()
            times["log book"] = asyncio.get_running_loop().time()
            assert [one.text for one in self.utterances] == ["Thanks, bye."]

    async def run() -> Call:
        call = Call(Line(100 if cancelled else 1), TalkingEngine(), PLAN, log_book=LogBook())
        task = asyncio.create_task(call.run())
        if cancelled:
            await asyncio.sleep(1)
            task.cancel()
        await asyncio.wait([task])
        return call

    call = virtual_time.run(run())
    assert times == {"line": pytest.approx(1, abs=0.1), "log book": pytest.approx(3, abs=0.1)}
    assert [one.text for one in call.transcript.utterances()] == ["Thanks, bye."]


def test_every_tick_is_in_the_recording(tmp_path: Path) -> None:
    leg = MemoryLeg(seconds=8)
    call = place(leg, EchoEngine(), recording=tmp_path)
    stereo = np.frombuffer((tmp_path / "call.wav").read_bytes()[44:], np.int16).reshape(-1, 2)
    assert len(stereo) * 2 == call.counters.frames_in * LINE_FRAME_BYTES
    assert stereo[CARRIER_FRAME_BYTES:-2_000].min() > 4_000


def test_response_time_is_measured_from_the_sound() -> None:
    class LateEcho(EchoSession):
        """Silent while the caller speaks, then speaks itself."""

        async def send(self, pcm: bytes, line: bytes = b"") -> None:
            loud = 60 <= self._index < 80
            await super().send((np.full(1_920, 5_000, np.int16) if loud else np.zeros(1_920, np.int16)).tobytes())

    class Engine:
        async def open(self, request: SessionRequest) -> LateEcho:
            return LateEcho()

    call = place(MemoryLeg(seconds=3.6, then_silent=True), Engine())
    # The last caller frame is number 44 or 45 (3.6 s, 100 ms late); the agent begins with frame 60.
    assert len(call.responses.responses) == 1
    assert call.responses.responses[0] == pytest.approx(1_150, abs=90)
