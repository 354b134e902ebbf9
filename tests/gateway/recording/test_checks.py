"""The doctor knows whether recordings can be made, sealed and kept as personas and settings want it."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

from gateway.persona_model import Persona
from gateway.recording.checks import Check, recording_checks
from gateway.recording.opus import MISSING
from gateway.recording.process import WriterProcess
from gateway.recording.recorder import Recorder
from gateway.settings import SettingsInvalid, load_settings
from tests.gateway.recording.s3_server import admin, running_s3
from tests.gateway.recording.sound import plan, record

KEY = base64.b64encode(bytes(32)).decode()
S3 = {"bucket": "calls", "key_id": "key", "secret": "secret"}


def persona(name: str, **fields: object) -> Persona:
    return Persona.model_validate({"voice": "NATF0", "role": "You answer.", **fields}).identified(name, "1")


PLAIN, WAV = persona("plain"), persona("wav", record=True)
OPUS = persona("opus", record=True, recording={"format": "opus"})


def found(*personas: Persona, **values: object) -> list[Check]:
    return list(recording_checks(load_settings(**values), personas))


@pytest.fixture(autouse=True)
def _away_from_the_machines_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_recordings_there_is_nothing_to_say() -> None:
    assert found(PLAIN) == []


def test_recordings_without_a_key_are_worth_a_note_with_the_command() -> None:
    (check,) = found(WAV, PLAIN)
    assert (check.ok, check.warning) == (False, True)
    assert check.detail.startswith("wav is recorded, and without a data key")
    assert "openssl rand -base64 32" in check.fix


def test_a_key_is_named_by_its_id_only() -> None:
    (check,) = found(WAV, data_key=f"{KEY}, {base64.b64encode(b'o' * 32).decode()}")
    assert check.ok
    assert KEY not in check.detail
    assert "1 older open what they sealed" in check.detail


@pytest.mark.parametrize("key", ["short", base64.b64encode(bytes(16)).decode(), KEY + ",x", "ä" * 44])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"^CALLPLEX_DATA_KEY: a data key must be base64 of 32") as caught:
        load_settings(data_key=key)
    assert key not in str(caught.value)


WITHOUT_CODEC = """
import sys
from gateway.recording.writer import main

sys.modules["av"] = None
main(int(sys.argv[1]))
"""


def test_opus_without_its_codec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found(OPUS, data_key=KEY)[1].ok
    monkeypatch.setitem(sys.modules, "av", None)
    (_, check) = found(OPUS, WAV, data_key=KEY)
    assert not check.ok
    assert check.detail == "opus is recorded in Opus, and PyAV is not installed"
    recorder = Recorder(plan(tmp_path, "opus"), WriterProcess((sys.executable, "-c", WITHOUT_CODEC)))
    record(recorder, 20)
    recorder.close().result(5)
    assert recorder.failed.endswith(MISSING)
    assert recorder.kept is None
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_asked() -> None:
    (check,) = found(s3={**S3, "endpoint": "http://127.0.0.1:9"})
    assert not check.ok
    assert "cannot be reached" in check.detail
    with running_s3() as endpoint:
        assert "there is no bucket calls" in found(s3={**S3, "endpoint": endpoint})[0].detail
        admin(endpoint).make_bucket("calls")
        assert found(s3={**S3, "endpoint": endpoint}) == [Check("s3", True, f"recordings move to calls at {endpoint}")]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bucket": "calls"}, "a bucket needs CALLPLEX_S3_ENDPOINT, CALLPLEX_S3_KEY_ID, CALLPLEX_S3_SECRET too"),
        ({**S3, "endpoint": "s3.example.com"}, "is not a server's URL"),
        ({**S3, "endpoint": "https://s3.example.com/path"}, "is not a server's URL"),
    ],
)
def test_a_bucket_that_is_described_by_halves(values: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsInvalid, match=says):
        load_settings(s3=values)


def test_a_bucket_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**S3, "endpoint": "https://s3.example.com/"}.items():
        monkeypatch.setenv(f"CALLPLEX_S3_{name.upper()}", value)
    settings = load_settings().s3
    assert (settings.endpoint, settings.key_id) == ("https://s3.example.com", "key")
    assert settings.secret.get_secret_value() == "secret"
