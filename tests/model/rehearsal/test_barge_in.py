"""Interruptions and listening remarks over the agent, scored on recordings and on a second voice.

Callers interrupt with every turn of the recordings and with single words; they listen with "mm-hm" and its
kin, in a voice made from the agent's by shifting it. With echo, the agent comes back 25 dB down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
import pytest

from model.rehearsal.pieces import Sentence
from model.rehearsal.session import Models
from model.rehearsal.turns import Agent, Pause, Turns
from model.wire import FRAME_SAMPLES, SAMPLE_RATE, AgentText, CallerText
from tests.model.rehearsal.calls import (
    Floats,
    Script,
    converse,
    over_the_line,
    recording,
    resampled,
    seconds,
    to_int16,
    trimmed,
)
from tests.model.rehearsal.calls import turns as turns_of

pytestmark = pytest.mark.anyio

TALK = [
    "Our branches are open from nine to five on weekdays, and from ten to two on Saturdays, except on public holidays.",
    "The monthly fee for the standard account is twelve dollars, and it is waived when you keep a balance of fifteen"
    " hundred dollars.",
]
RECORDINGS = ["bank-hours", "bank-declined", "bank-barge-in", "clinic-appointment", "clinic-refill", "card-number"]
WORDS = ["Wait.", "No.", "Excuse me.", "Hello?", "Operator.", "Wait a second."]
REMARKS = ["Mm-hm.", "Uh-huh.", "Yeah.", "Right.", "Okay.", "I see.", "Got it.", "Okay, right.", "Sure.", "Alright."]
SHIFTS = [0.8, 0.9, 1.1]


def shifted(models: Models, text: str, shift: float) -> Floats:
    """The agent's voice, lower and slower or higher and faster, over the line."""
    speech = models.synthesizer.synthesize(text).pcm.astype(np.float32) / 32_768
    return 0.8 * over_the_line(trimmed(resampled(speech, int(24_000 * shift), 24_000)))


def interruptions(models: Models) -> list[Floats]:
    clips = [
        trimmed(recording(name)[int(turn["start"] * 24_000) : int(turn["end"] * 24_000)])
        for name in RECORDINGS
        for turn in turns_of(name)
    ]
    return clips + [shifted(models, word, SHIFTS[place % 3]) for place, word in enumerate(WORDS)]


def agents_voice(models: Models) -> Floats:
    """14 s of the agent, 24 kHz."""
    return np.concatenate([models.synthesizer.synthesize(text).pcm.astype(np.float32) / 32_768 for text in TALK])


def gives_way(models: Models, caller: Floats, agent: Floats, begins: float) -> float | None:
    """The second at which the agent, which begins to speak at `begins`, is stopped; None: it is not."""
    listener, turns = models.listener(), Turns()
    said = np.concatenate([seconds(begins), agent, seconds(len(caller) / SAMPLE_RATE)])
    for start in range(0, len(caller) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        end = start + FRAME_SAMPLES
        if start / SAMPLE_RATE <= begins < end / SAMPLE_RATE:
            # What the caller said before has been answered.
            turns = Turns()
            turns.agent = Agent.SPEAKING
        for speech in listener.hear(to_int16(caller[start:end]).tobytes(), to_int16(said[start:end]).tobytes()):
            if any(isinstance(action, Pause) for action in turns.hear(speech)):
                return end / SAMPLE_RATE
    return None


@dataclass
class Score:
    clips: int = 0
    wrong: list[str] = field(default_factory=list)
    until_silence: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.wrong) / self.clips


async def score(models: Models, clips: list[tuple[Floats, float | None]], interrupting: bool) -> Score:
    """Play each clip over the agent, with echo at so many dB or without."""
    result = Score(len(clips))
    for place, (clip, echo_db) in enumerate(clips):
        # Different places in the agent's words and in the frame.
        at = 1.5 + 0.37 * (place % 5)
        script = Script(TALK, [[Sentence("All right.")]] * 3)
        caller = np.concatenate([seconds(at), clip, seconds(2)])
        call = await converse(models, script, caller, echo_db=echo_db, echo_delay=0.35)
        if bool(script.heard) != interrupting:
            result.wrong.append(f"{place}: {[said.text for said in call.of(CallerText)]}")
        elif interrupting:
            result.until_silence.append(call.flushes()[0] - at)
        else:
            assert call.sound()[-1] >= len(call.agent()) // 1920 - 6, "the agent went on"
    return result


async def test_interruptions_are_heard(models: Models, record_property: Callable[[str, object], None]) -> None:
    clips = [(clip, (None, -25.0)[place % 2]) for place, clip in enumerate(interruptions(models))]
    result = await score(models, clips, interrupting=True)
    record_property("missed interruptions", result.rate)
    record_property("median seconds until silence", median(result.until_silence))
    assert result.rate <= 0.1, result.wrong
    assert median(result.until_silence) <= 0.3
    assert max(result.until_silence) <= 0.6


@pytest.mark.parametrize("loudness", [1.0, 1.5])
def test_a_short_word_stops_the_agent_wherever_it_falls_in_the_frames_and_windows(
    models: Models, loudness: float
) -> None:
    # "Wait," lasts 0.2 s, and its end is softer than the agent's echo may be; "stop" comes 0.34 s after its beginning.
    agent = loudness * agents_voice(models)
    begins = turns_of("bank-barge-in")[1]["start"] - 1.8
    found = []
    for place in range(20):
        later = 0.004 * place
        at = gives_way(models, np.concatenate([seconds(later), recording("bank-barge-in")]), agent, begins)
        assert at is not None
        found.append(round(at - later - 6.62, 3))
    assert max(found) <= 0.35, found


@pytest.mark.parametrize(("echo_db", "noise_db"), [(-25, -34), (-20, -40)])
def test_echo_with_peaks_of_the_lines_noise_on_it_does_not_stop_the_agent(
    models: Models, echo_db: float, noise_db: float
) -> None:
    agent = agents_voice(models)
    echo = np.concatenate([seconds(0.25), agent])[: len(agent)] * np.float32(10 ** (echo_db / 20))
    random = np.random.default_rng(5)
    hiss = 10 ** (noise_db / 20) * random.standard_normal(len(agent))
    bursts = np.repeat(2.5 * random.random(len(agent) // 1_200 + 1) ** 3, 1_200)[: len(agent)]
    caller = over_the_line(np.asarray(echo + bursts * hiss, np.float32))
    assert gives_way(models, caller, agent, 0.0) is None


async def test_listening_remarks_do_not_take_the_floor(
    models: Models, record_property: Callable[[str, object], None]
) -> None:
    remarks = [shifted(models, text, SHIFTS[place % 3]) for place, text in enumerate(REMARKS)]
    result = await score(models, [(clip, echo) for clip in remarks for echo in (None, -25.0)], interrupting=False)
    record_property("false interruptions", result.rate)
    assert result.rate <= 0.15, result.wrong


@pytest.mark.parametrize("echo_db", [-25.0, -20.0])
@pytest.mark.parametrize("delay", [0.15, 0.25, 0.7])
async def test_the_agents_own_echo_never_interrupts(models: Models, echo_db: float, delay: float) -> None:
    call = await converse(models, Script(TALK), seconds(14), echo_db=echo_db, echo_delay=delay)
    assert call.flushes() == []
    assert call.of(CallerText) == []
    assert "".join(word.text for word in call.of(AgentText)).endswith(" hundred dollars.")


async def test_after_a_listening_remark_the_agent_goes_on_from_the_word_it_was_at(models: Models) -> None:
    caller = np.concatenate([seconds(2), shifted(models, "Okay, right.", 0.8), seconds(14)])
    call = await converse(models, Script(TALK), caller)
    assert len(call.flushes()) == 1
    said = [word.text.strip() for word in call.of(AgentText)]
    repeated = [first for first, second in pairwise(said) if first == second]
    assert len(repeated) == 1, "the word that was cut is said again"
    said.remove(repeated[0])
    assert " ".join(said) == " ".join(TALK)
