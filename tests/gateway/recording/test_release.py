"""What of a call may be kept: nothing before it was released or consented to, and nothing that was muted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.recording.disk import FLUSH_PIECES, interleave, muted
from gateway.recording.recorder import Recorder
from tests.gateway.recording.sound import (
    BATCH_SECONDS,
    PIECE_SECONDS,
    SAMPLES,
    decoded,
    expected,
    piece,
    plan,
    record,
    samples,
    seconds,
    tone,
    wait_for,
)


def test_what_was_not_released_is_never_stored(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path, held=True))
    record(recorder, 10 * FLUSH_PIECES)
    recorder.release(5 * BATCH_SECONDS)
    recorder.close().result(5)
    left, _ = samples(recorder.plan.path)
    assert 4 * BATCH_SECONDS <= len(left) / 8_000 <= 5 * BATCH_SECONDS
    assert np.array_equal(left, expected(len(left) // SAMPLES, 0))


def test_muting_is_to_the_sample_and_of_one_side(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path, held=True))
    record(recorder, 40)
    recorder.mute("caller", 0.5, 1.25)
    recorder.mute("agent", 3.1, 99.0)
    recorder.release(1e9)
    recorder.close().result(5)
    left, right = samples(recorder.plan.path)
    caller, agent = expected(40, 0).copy(), expected(40, 1).copy()
    caller[4_000:10_000] = 0
    agent[24_800:] = 0
    assert np.array_equal(left, caller)
    assert np.array_equal(right, agent)


@pytest.mark.parametrize("kind", ["wav", "opus.sealed"])
def test_sound_moves_on_while_the_call_runs_and_marks_come_in_between(tmp_path: Path, kind: str) -> None:
    recorder = Recorder(plan(tmp_path, kind, held=True))
    for index in range(100):
        recorder.write(tone(index, 400), tone(index, 1_000))
        at = (index + 1) * PIECE_SECONDS
        if index % 25 == 24:
            recorder.mute("caller", at - 0.5, at - 0.1)
        recorder.release(at - 1.5)
        wait_for(lambda: not recorder.backlog)
    path = recorder.plan.path
    wait_for(lambda: path.exists() and path.stat().st_size > 60 and seconds(path) > 8.0 - 1.5 - 3 * BATCH_SECONDS - 0.3)
    assert seconds(path) <= 8.0 - 1.5
    recorder.release(1e9)
    recorder.close().result(5)
    left, right = decoded(recorder.plan.path)
    rate = 8_000 if kind == "wav" else 48_000
    for end in (2.0, 4.0, 6.0, 8.0):
        span = slice(int((end - 0.45) * rate), int((end - 0.15) * rate))
        assert np.abs(left[span]).max() < 0.01
        assert np.abs(right[span]).max() > 0.1
        assert np.abs(left[int((end - 1.0) * rate) : int((end - 0.6) * rate)]).max() > 0.1


def test_a_mark_that_comes_too_late_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(plan(tmp_path))
    record(recorder, 3 * FLUSH_PIECES)
    recorder.mute("caller", 0.1, 0.2)
    recorder.close().result(5)
    assert "0.10 to 0.20 s were to be muted too late and are kept" in caplog.text


@pytest.mark.parametrize("held", [False, True])
def test_before_consent_nothing_is_stored_and_silence_keeps_the_time(tmp_path: Path, held: bool) -> None:
    recorder = Recorder(plan(tmp_path, after_consent=True, held=held))
    record(recorder, 21)
    assert not recorder.begun
    assert not recorder.plan.path.exists()
    recorder.begin()
    recorder.mute("agent", 21 * PIECE_SECONDS, 22 * PIECE_SECONDS)
    for index in range(21, 40):
        recorder.write(piece(index, 0), piece(index, 1))
    recorder.release(1e9)
    recorder.close().result(5)
    left, right = samples(recorder.plan.path)
    assert not left[: 21 * SAMPLES].any()
    assert not right[: 21 * SAMPLES].any()
    assert np.array_equal(left[21 * SAMPLES :], expected(40, 0)[21 * SAMPLES :])
    assert not right[21 * SAMPLES : 22 * SAMPLES].any()
    assert np.array_equal(right[22 * SAMPLES :], expected(40, 1)[22 * SAMPLES :])


def test_a_call_without_consent_leaves_no_file(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path, after_consent=True))
    record(recorder, 50)
    recorder.close().result(5)
    recorder.begin()
    assert list(tmp_path.iterdir()) == []
    assert recorder.failed == ""


def test_interleaving_and_muting() -> None:
    left, right = np.array([1, 2, 3], "<i2").tobytes(), np.array([-1, -2, -3], "<i2").tobytes()
    stereo = interleave(left, right)
    assert np.frombuffer(stereo, "<i2").tolist() == [1, -1, 2, -2, 3, -3]
    assert np.frombuffer(muted(stereo, [(0, -5, 1), (1, 2, 9)]), "<i2").tolist() == [0, -1, 2, -2, 3, 0]
    assert muted(stereo, [(0, -5, 0), (1, 3, 9)]) == stereo
