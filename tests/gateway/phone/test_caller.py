"""When a caller speaks and hangs up, stepped through 20 ms at a time."""

from __future__ import annotations

import pytest

from gateway.phone.caller import FINISHED, PATIENCE, Clip, ScriptedCaller
from gateway.phone.metrics import Turn
from gateway.phone.playout import SILENCE

LOUD = b"\x00\x10" * 160
SAID = b"\x01\x20" * 160


def live(caller: ScriptedCaller, heard: str, tick: int = 50) -> str:
    """Step through `heard`, one letter for every `tick` steps ('A' the agent speaks); what the caller says, alike."""
    said = ""
    for letter in heard:
        steps = [caller.step(LOUD if letter == "A" else SILENCE) != SILENCE for _ in range(tick)]
        said += "C" if any(steps) else "."
    return said


def clip(**options: object) -> Clip:
    return Clip(SAID * 50, turns=(Turn(0.0, 1.0, "hi"),), **options)  # type: ignore[arg-type]


def test_a_recording_starts_at_once() -> None:
    caller = ScriptedCaller([clip()], quiet=2, linger=3)
    assert live(caller, "....") == "C..."
    assert caller.turns == [Turn(0.0, 1.0, "hi")]


def test_waits_until_the_agent_has_finished() -> None:
    caller = ScriptedCaller([clip(when="agent_finished", after=1.0)])
    live(caller, "..AA.......")
    assert caller.turns[0].start == pytest.approx(4.98)


def test_a_pause_shorter_than_after_is_not_the_end() -> None:
    caller = ScriptedCaller([clip(when="agent_finished", after=2.5)])
    assert "C" not in live(caller, "AA..AA..A")


def test_interrupts_while_the_agent_speaks() -> None:
    caller = ScriptedCaller([clip(when="agent_speaking", after=2.0)])
    assert live(caller, ".AAAA..") == "...C..."
    assert caller.turns[0].start == pytest.approx(3.0)


def test_speaks_also_when_there_was_too_little_to_interrupt() -> None:
    caller = ScriptedCaller([clip(when="agent_speaking", after=3.0)])
    assert "C" in live(caller, ".A" + "." * round(FINISHED + 1))


def test_an_agent_that_stays_silent_is_not_waited_for_forever() -> None:
    caller = ScriptedCaller([clip(when="agent_finished")])
    assert live(caller, "." * round(PATIENCE + 2)).index("C") == round(PATIENCE)


def test_only_what_the_agent_says_after_the_last_clip_counts() -> None:
    caller = ScriptedCaller([clip(), clip(when="agent_finished", after=1.0)])
    # The agent spoke during the first clip only; the second waits for an answer to it.
    assert live(caller, "A....") == "C...."


@pytest.mark.parametrize(
    ("heard", "hung_up"), [(".AA", False), (".AA.", True), (".....", False), (".......", True), ("", False)]
)
def test_hangs_up_after_the_agents_last_words_or_after_lingering(heard: str, hung_up: bool) -> None:
    caller = ScriptedCaller([clip()], quiet=1.0, linger=5.0)
    live(caller, heard)
    assert caller.hung_up is hung_up
