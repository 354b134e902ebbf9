"""A recording is a voice only with the consent record that belongs to it."""

from __future__ import annotations

import datetime
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from gateway.persona_fields import VOICES
from model.offline import write_wav
from model.voices import (
    PUBLISHED,
    Consent,
    VoiceRefused,
    add_voice,
    list_voices,
    permitted,
    remove_voice,
    voice_file,
)

TODAY = datetime.date(2026, 3, 31)
AGREED = Consent("Ann Lee", "2026-03-30", "the telephone agent of First Neuron Bank")


def recording(path: Path, seconds: float = 1.0, pitch: float = 220) -> Path:
    time = np.arange(int(seconds * 24_000)) / 24_000
    write_wav(path, [(np.sin(time * 2 * np.pi * pitch) * 0.3).astype(np.float32)])
    return path


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """A folder with one recording that may be used."""
    folder = tmp_path / "voices"
    add_voice(folder, "ann", recording(tmp_path / "original.wav"), AGREED, TODAY)
    return folder


def test_the_published_voices_are_those_that_personas_can_name() -> None:
    assert PUBLISHED == VOICES
    assert len(set(PUBLISHED)) == 18


def test_a_recording_with_consent_can_be_used(voices: Path, tmp_path: Path) -> None:
    path = permitted(voices, "ann")
    assert path.read_bytes() == (tmp_path / "original.wav").read_bytes()
    record = (voices / "voices.yaml").read_text()
    for part in ("who: Ann Lee", "when: '2026-03-30'", AGREED.purpose, hashlib.sha256(path.read_bytes()).hexdigest()):
        assert part in record
    assert sorted(one.name for one in voices.iterdir()) == ["ann.wav", "voices.yaml"]


def test_one_without_is_refused(tmp_path: Path, voices: Path) -> None:
    recording(voices / "bob.wav")
    with pytest.raises(VoiceRefused, match="no consent is recorded"):
        permitted(voices, "bob")
    with pytest.raises(VoiceRefused, match="no consent is recorded"):
        permitted(tmp_path / "empty", "ann")


@pytest.mark.parametrize("name", ["../voices/ann", "ann.wav", "/etc/passwd", "Ann", "", "ann\n"])
def test_a_name_is_not_a_path(voices: Path, name: str) -> None:
    with pytest.raises(VoiceRefused, match=r"there is no voice .* callplex voices add NAME "):
        permitted(voices, name)


def test_another_recording_under_the_name_is_refused(voices: Path) -> None:
    recording(voices / "ann.wav", pitch=221)
    with pytest.raises(VoiceRefused, match="is not the recording that Ann Lee agreed to"):
        permitted(voices, "ann")


@pytest.mark.parametrize("field", ["who", "when", "purpose", "sha256"])
def test_a_record_that_lacks_something_is_none(voices: Path, field: str) -> None:
    path = voices / "voices.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.strip().startswith(f"{field}:")]
    path.write_text("\n".join(lines))
    with pytest.raises(VoiceRefused, match=f"lacks {field}"):
        permitted(voices, "ann")


def test_a_recording_that_is_gone(voices: Path) -> None:
    (voices / "ann.wav").unlink()
    with pytest.raises(VoiceRefused, match=r"ann\.wav cannot be read"):
        permitted(voices, "ann")


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "voices: 3\n", "voices:\n  ann: yes\n", "\x00"])
def test_records_that_cannot_be_read_permit_nothing(voices: Path, text: str) -> None:
    (voices / "voices.yaml").write_text(text)
    with pytest.raises(VoiceRefused, match=r"voices\.yaml (cannot be read|must hold)"):
        permitted(voices, "ann")


@pytest.mark.parametrize(
    "value",
    ["2026-02-30", "2026-01-01T25:00:00", "9" * 5000, "!!bool maybe", '"\\U00110000"', '"\\UFFFFFFFF"', "[" * 1000],
)
def test_a_record_with_a_value_that_there_cannot_be_is_refused_as_one_that_is_no_yaml(
    voices: Path, tmp_path: Path, value: str
) -> None:
    path = voices / "voices.yaml"
    path.write_text(path.read_text().replace("'2026-03-30'", value))
    for read in (lambda: permitted(voices, "ann"), lambda: list_voices(tmp_path, voices)):
        with pytest.raises(VoiceRefused, match=r"voices\.yaml cannot be read: "):
            read()


def test_a_date_that_yaml_reads_as_one_is_as_good(voices: Path) -> None:
    path = voices / "voices.yaml"
    path.write_text(path.read_text().replace("'2026-03-30'", "2026-03-30"))
    assert permitted(voices, "ann").name == "ann.wav"


@pytest.mark.parametrize(
    ("name", "consent", "says"),
    [
        ("Ann Lee", AGREED, "lower-case letters"),
        ("NATF2", AGREED, "lower-case letters"),
        ("ann", Consent("", "2026-03-30", "calls"), "needs `who`"),
        ("ann", Consent("Ann Lee", "2026-03-30", "  "), "needs `purpose`"),
        ("ann", Consent("Ann Lee", "yesterday", "calls"), "is not a date"),
        ("ann", Consent("Ann Lee", "2026-04-01", "calls"), "in the future"),
    ],
)
def test_consent_must_be_whole(tmp_path: Path, name: str, consent: Consent, says: str) -> None:
    with pytest.raises(VoiceRefused, match=says):
        add_voice(tmp_path / "voices", name, recording(tmp_path / "a.wav"), consent, TODAY)
    assert not (tmp_path / "voices").exists()


@pytest.mark.parametrize(("seconds", "says"), [(0.3, "0.30 s of sound"), (31.0, "30 s at most")])
def test_a_recording_must_be_fit_for_a_prompt(tmp_path: Path, seconds: float, says: str) -> None:
    with pytest.raises(VoiceRefused, match=says):
        add_voice(tmp_path / "voices", "ann", recording(tmp_path / "a.wav", seconds), AGREED, TODAY)
    with pytest.raises(VoiceRefused, match=r"absent\.wav cannot be read"):
        add_voice(tmp_path / "voices", "ann", tmp_path / "absent.wav", AGREED, TODAY)


def test_what_is_kept_is_what_was_examined(tmp_path: Path) -> None:
    """A pipe gives its bytes once."""
    sound, pipe = recording(tmp_path / "a.wav").read_bytes(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(sound,), daemon=True)
    writer.start()
    assert add_voice(tmp_path / "voices", "ann", pipe, AGREED, TODAY).path.read_bytes() == sound
    writer.join(10)


def test_a_voice_is_removed_with_its_record(voices: Path, tmp_path: Path) -> None:
    add_voice(voices, "bob", recording(tmp_path / "bob.wav", pitch=110), AGREED, TODAY)
    remove_voice(voices, "ann")
    assert sorted(one.name for one in voices.iterdir()) == ["bob.wav", "voices.yaml"]
    assert permitted(voices, "bob").name == "bob.wav"
    for name, says in (("ann", "there is no recording"), ("NATF2", "only recordings"), ("../bob", "no recording")):
        with pytest.raises(VoiceRefused, match=says):
            remove_voice(voices, name)


def test_all_voices_are_listed_with_what_is_wrong(voices: Path, tmp_path: Path) -> None:
    published = tmp_path / "weights" / "voices"
    published.mkdir(parents=True)
    (published / "NATF2.pt").write_bytes(b"")
    add_voice(voices, "bob", recording(tmp_path / "bob.wav"), AGREED, TODAY)
    recording(voices / "bob.wav", pitch=111)
    found = {voice.name: voice for voice in list_voices(published, voices)}
    assert [*found] == [*PUBLISHED, "ann", "bob"]
    assert [name for name, voice in found.items() if voice.usable] == ["NATF2", "ann"]
    assert found["NATF0"].detail == "not downloaded"
    assert found["ann"].detail == "Ann Lee, 2026-03-30: the telephone agent of First Neuron Bank"
    assert "agreed to" in found["bob"].detail


def test_the_file_of_a_voice(voices: Path, tmp_path: Path) -> None:
    assert voice_file("ann", tmp_path, voices) == voices / "ann.wav"
    (tmp_path / "NATF2.pt").write_bytes(b"")
    assert voice_file("NATF2", tmp_path, voices) == tmp_path / "NATF2.pt"
    with pytest.raises(VoiceRefused, match="weights download"):
        voice_file("NATF3", tmp_path, voices)
