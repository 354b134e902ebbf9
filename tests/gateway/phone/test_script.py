"""Callers read from files: the recordings that come with the package, sidecars, scripts and their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.phone.metrics import Turn, caller_turns
from gateway.phone.playout import SILENCE
from gateway.phone.script import CALLERS, load_caller
from gateway.phone.sound import SoundUnreadable, write_wav

LOUD = b"\x00\x10"


def said(path: Path, seconds: float) -> tuple[bytes, list[Turn]]:
    caller = load_caller(path)
    pcm = b"".join(caller.step(SILENCE) for _ in range(round(seconds * 50)))
    return pcm, caller.turns


@pytest.mark.parametrize("recording", json.loads((CALLERS / "callers.json").read_text()), ids=lambda one: one["file"])
def test_the_packaged_callers_say_their_turns(recording: dict[str, object]) -> None:
    pcm, turns = said(CALLERS / str(recording["file"]), 40)
    heard = caller_turns(pcm, turns)
    expected = recording["turns"]
    assert isinstance(expected, list)
    assert [turn.text for turn in heard] == [turn["text"] for turn in expected]
    for turn, known in zip(heard, expected, strict=True):
        assert known["start"] <= turn.start < known["start"] + 0.6
        assert known["end"] - 1.1 < turn.end <= known["end"]


def test_a_sidecar_of_the_same_name_wins_and_none_is_needed(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", LOUD * 8_000)
    assert said(tmp_path / "a.wav", 1)[1] == []
    (tmp_path / "callers.json").write_text('[{"file": "a.wav", "turns": [{"text": "far", "start": 0, "end": 1}]}]')
    assert said(tmp_path / "a.wav", 1)[1] == [Turn(0, 1, "far")]
    (tmp_path / "a.json").write_text('[{"file": "a.wav", "turns": [{"text": "near", "start": 0, "end": 1}]}]')
    assert said(tmp_path / "a.wav", 1)[1] == [Turn(0, 1, "near")]


def test_a_script_cuts_clips_out_of_recordings(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", b"\0\0" * 4_000 + LOUD * 4_000)
    clip = {"wav": "a.wav", "from": 0.5, "to": 0.7, "text": "hi", "when": "at_once", "after": 0.1}
    (tmp_path / "s.json").write_text(json.dumps({"clips": [clip]}))
    pcm, turns = said(tmp_path / "s.json", 1)
    assert pcm == b"\0\0" * 800 + LOUD * 1_600 + b"\0\0" * 5_600
    assert turns == [Turn(0.1, pytest.approx(0.3), "hi")]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("nonsense", "JSON"),
        ('{"clips": []}', "clips: "),
        ('{"clips": [{"wav": "a.wav", "when": "never"}]}', "clips.0.when"),
        ('{"clips": [{"wav": "a.wav", "words": "x"}]}', "clips.0.words"),
        ('{"clips": [{"wav": "a.wav", "from": 5}]}', "no sound from 5"),
        ('{"clips": [{"wav": "none.wav"}]}', "none.wav cannot be read"),
    ],
)
def test_mistakes_in_a_script_are_named(tmp_path: Path, script: str, words: str) -> None:
    write_wav(tmp_path / "a.wav", LOUD * 8_000)
    (tmp_path / "s.json").write_text(script)
    with pytest.raises(SoundUnreadable, match=words) as error:
        load_caller(tmp_path / "s.json")
    assert "\n" not in str(error.value)
