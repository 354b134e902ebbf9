"""Voice activity, line echo and recognition, on recordings."""

from __future__ import annotations

import numpy as np
import pytest
from rapidfuzz import fuzz

from model.rehearsal.asr import Hypothesis, invented, repeats
from model.rehearsal.line_echo import LEAST_LOSS_DB, EchoGate
from model.rehearsal.listener import Listener
from model.rehearsal.resample import Downsampler
from model.rehearsal.session import Models
from model.rehearsal.vad import SAMPLE_RATE as HEARD_RATE
from model.rehearsal.vad import WINDOW_SAMPLES
from model.wire import FRAME_SAMPLES
from tests.model.rehearsal.calls import Floats, over_the_line, recording, resampled, seconds, to_int16, turns

SILENT = bytes(2 * FRAME_SAMPLES)
NOISE = np.random.default_rng(1)


def listen(listener: Listener, caller: Floats, agent: Floats | None = None) -> list[bool]:
    decisions = []
    for start in range(0, len(caller) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        said = SILENT if agent is None else to_int16(agent[start : start + FRAME_SAMPLES]).tobytes()
        decisions += listener.hear(to_int16(caller[start : start + FRAME_SAMPLES]).tobytes(), said)
    return decisions


def test_resampling_in_frames_equals_resampling_at_once() -> None:
    sound = to_int16(NOISE.standard_normal(24 * FRAME_SAMPLES).astype(np.float32) * 0.1)
    whole = Downsampler().process(sound.tobytes())
    parts = Downsampler()
    cut = [parts.process(sound[i : i + FRAME_SAMPLES].tobytes()) for i in range(0, len(sound), FRAME_SAMPLES)]
    assert np.array_equal(np.concatenate(cut), whole)
    assert len(whole) == len(sound) * 2 // 3


@pytest.mark.parametrize(("hertz", "least", "most"), [(300, -0.1, 0.1), (3400, -0.1, 0.1), (9000, -200, -55)])
def test_resampling_keeps_the_telephone_band_and_nothing_that_would_alias(
    hertz: int, least: float, most: float
) -> None:
    time = np.arange(24_000) / 24_000
    tone = to_int16((0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))
    heard = Downsampler().process(tone.tobytes())[200:]
    level = 20 * np.log10(np.sqrt(2 * np.mean(heard**2)) / 0.5 + 1e-12)
    assert least < level < most


def test_the_echo_gate_passes_the_caller_and_not_the_agent_25_db_down() -> None:
    gate = EchoGate()
    window = (0.1 * NOISE.standard_normal(WINDOW_SAMPLES)).astype(np.float32)
    assert gate.above_db(window * 0.01) > 0, "nobody spoke: anything may be the caller"
    gate.played(window)
    for _ in range(20):
        gate.played(np.zeros(WINDOW_SAMPLES, np.float32))
        assert gate.above_db(window * 10 ** (-25 / 20)) == pytest.approx(LEAST_LOSS_DB - 25, abs=0.01)
        assert gate.above_db(window * 10 ** (-(LEAST_LOSS_DB - 2) / 20)) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("name", ["bank-hours", "bank-declined", "clinic-appointment", "card-number"])
def test_speech_is_found_where_it_is_and_nowhere_else(models: Models, name: str) -> None:
    decisions = listen(models.listener(), recording(name))
    times = [(t["start"], t["end"]) for t in turns(name)]
    for window, speech in enumerate(decisions):
        at = (window + 0.5) * WINDOW_SAMPLES / HEARD_RATE
        assert not speech or any(start < at < end for start, end in times), at
    for start, end in times:
        span = slice(int(start / 0.032), int(end / 0.032))
        assert sum(decisions[span]) > 0.35 * len(decisions[span])


def test_noise_is_not_speech(models: Models) -> None:
    hiss = (0.02 * NOISE.standard_normal(5 * 24_000)).astype(np.float32)
    assert not any(listen(models.listener(), hiss))


def test_the_sound_of_a_turn_is_what_was_heard_also_after_the_memory_is_full(models: Models) -> None:
    listener = models.listener()
    caller = (0.1 * NOISE.standard_normal(34 * 24_000)).astype(np.float32)
    listen(listener, caller)
    whole = Downsampler().process(to_int16(caller).tobytes())
    assert np.array_equal(listener.sound(1000, 1050), whole[1000 * 512 : 1050 * 512])
    assert len(listener.sound(0, 1050)) < 31 * HEARD_RATE
    assert len(listener.sound(2000, 2010)) == 0


def test_echo_alone_is_silenced_in_what_is_recognised(models: Models) -> None:
    agent = recording("clinic-refill")[: 5 * 24_000]
    echo = np.concatenate([seconds(0.2), agent * 10 ** (-25 / 20)])[: len(agent)]
    listener = models.listener()
    assert not any(listen(listener, echo, agent))
    assert not listener.sound(40, 140).any()


ACCURACY = {"bank-hours": 90, "bank-declined": 90, "bank-barge-in": 90, "clinic-appointment": 90, "clinic-refill": 80}


@pytest.mark.parametrize("name", ACCURACY)
def test_recordings_are_understood(models: Models, name: str) -> None:
    for turn in turns(name):
        span = recording(name)[int(turn["start"] * 24_000) : int((turn["end"] - 0.3) * 24_000)]
        heard = models.recogniser.recognise(resampled(span, 24_000, HEARD_RATE))
        assert fuzz.ratio(normal(heard.text), normal(turn["text"])) >= ACCURACY[name], heard


def normal(text: str) -> str:
    text = text.lower().replace("dr.", "doctor").replace("$1,200", "twelve hundred dollars").replace("10", "ten")
    return "".join(c for c in text if c.isalnum() or c == " ")


@pytest.mark.parametrize("level", [0.1, 0.03, 0.003])
def test_noise_gives_no_words(models: Models, level: float) -> None:
    hiss = (level * NOISE.standard_normal(HEARD_RATE)).astype(np.float32)
    assert models.recogniser.recognise(hiss).text == ""


@pytest.mark.parametrize("word", ["Stop.", "No.", "Yes.", "Wait.", "Okay.", "Right."])
def test_a_single_word_is_heard_once(models: Models, word: str) -> None:
    speech = models.synthesizer.synthesize(word).pcm.astype(np.float32) / 32_768
    padded = np.concatenate([seconds(0.25), over_the_line(speech), seconds(0.25)])
    assert normal(models.recogniser.recognise(resampled(padded, 24_000, HEARD_RATE)).text) == normal(word)


def test_what_whisper_makes_of_noise_is_not_believed() -> None:
    assert invented(Hypothesis("I'm going to go.", confidence=-2.3, no_speech=0.8, looped=False))
    assert invented(Hypothesis("...", confidence=-0.1, no_speech=0.0, looped=False))
    assert not invented(Hypothesis("Bye.", confidence=-0.65, no_speech=0.02, looped=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The code is 737. The code is 737.", True),
        ("Can you tell me the fees please? Can you tell me", True),
        ("4 1 1 1 1 1 1 1", False),
        ("No no no no", False),
        ("My name is David Cohen.", False),
    ],
)
def test_a_phrase_said_over_again_is_a_loop(text: str, expected: bool) -> None:
    assert repeats(text) is expected
