"""The commands for voices and clips, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from model.clip_maker import ClipRequest
from model.commands import CommandFailed, clip
from model.offline import write_wav
from tests.model.tiny_folder import VOICE, make_folder


def callplex(folder: Path, *arguments: str, weights: Path | None = None) -> tuple[int, str, str]:
    """Status, standard output, standard error."""
    environment = {"PATH": "/usr/bin:/bin", "CALLPLEX_WEIGHTS_DIR": str(weights or folder / "weights")}
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stdout, done.stderr


def test_a_voice_is_added_listed_and_removed(tmp_path: Path) -> None:
    sound = np.sin(np.arange(24_000) / 20).astype(np.float32) * np.float32(0.3)
    write_wav(tmp_path / "ann.wav", [sound])
    consent = ("--who", "Ann Lee", "--when", "2026-03-30", "--purpose", "the bank's agent")
    status, shown, _ = callplex(tmp_path, "voices", "add", "ann", "ann.wav", *consent)
    assert (status, shown) == (0, "personas/voices/ann.wav: Ann Lee, 2026-03-30: the bank's agent\n")
    voices = json.loads(callplex(tmp_path, "voices", "list", "--json")[1])
    assert voices["ann"] == {"kind": "recording", "usable": True, "detail": "Ann Lee, 2026-03-30: the bank's agent"}
    assert len(voices) == 19
    assert callplex(tmp_path, "voices", "remove", "ann")[0] == 0
    assert not (tmp_path / "personas" / "voices" / "ann.wav").exists()


def test_a_voice_without_consent_is_wrong_use_or_refused(tmp_path: Path) -> None:
    assert callplex(tmp_path, "voices", "add", "ann", "ann.wav")[0] == 2
    consent = ("--who", "Ann Lee", "--when", "soon", "--purpose", "calls")
    status, _, error = callplex(tmp_path, "voices", "add", "ann", "ann.wav", *consent)
    assert (status, error) == (1, "callplex: 'soon' is not a date such as 2026-03-31\n")
    status, _, error = callplex(tmp_path, "voices", "remove", "NATF2")
    assert (status, error) == (1, "callplex: NATF2 is published with the model; only recordings can be removed\n")


def test_a_date_that_there_is_not_in_the_records_is_told_in_a_sentence(tmp_path: Path) -> None:
    records = tmp_path / "personas" / "voices" / "voices.yaml"
    records.parent.mkdir(parents=True)
    records.write_text("voices:\n  ann:\n    when: 2026-02-30\n")
    status, shown, error = callplex(tmp_path, "voices", "list")
    assert (status, shown) == (1, "")
    assert error == "callplex: personas/voices/voices.yaml cannot be read: day is out of range for month\n"


@pytest.mark.skipif(find_spec("hibari") is None, reason="the rehearsal engine is not installed")
def test_what_a_model_cannot_say_becomes_no_clip(tmp_path: Path) -> None:
    """The tiny model makes noise; the real recogniser hears no words in it."""
    folder = make_folder(tmp_path / "weights").path
    persona = tmp_path / "bank.yaml"
    persona.write_text(f"voice: {VOICE}\nrole: you are a teacher\ndisclosure: this call is recorded\n")
    status, _, error = callplex(tmp_path, "personas", "clip", "bank.yaml", "--attempts", "2", weights=folder)
    assert status == 1
    assert error.startswith("callplex: in 2 attempts 'this call is recorded' was not said word for word; heard: ")
    assert not (tmp_path / "clips").exists()
    persona.write_text(f"voice: {VOICE}\nrole: you are a teacher\n")
    assert "has no disclosure" in callplex(tmp_path, "personas", "clip", "bank.yaml", weights=folder)[2]
    other = callplex(tmp_path, "personas", "clip", "bank.yaml", "--text", "goodbye", weights=folder)
    assert other[0] == 1
    assert "say where to keep it with --out" in other[2]


def test_a_clip_never_takes_the_place_of_its_own_sound(tmp_path: Path) -> None:
    request = ClipRequest("hello", VOICE, tmp_path / "absent.pt", "you are a teacher")
    with pytest.raises(CommandFailed, match=r"name the clip .*hello\.clip"):
        clip(request, tmp_path, "cpu", tmp_path / "hello.wav")
