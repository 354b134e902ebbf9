"""`callplex records ...` as an operator types it, beside a real database and real files."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.recording.seal import data_keys
from gateway.records.database import Database
from gateway.records.files import Records
from gateway.records.tables import audit
from tests.databases import sqlite_url
from tests.gateway.recording.sound import record
from tests.gateway.records.made_up import NOON, all_of
from tests.gateway.records.test_erasure import keep, lease

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
CALLER, ANOTHER = "+15550199", "+15550177"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three calls, two of one caller, one of these with a sealed recording; settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"DATA_DIR": str(tmp_path), "DATABASE_URL": sqlite_url(tmp_path), "DATA_KEY": KEY}.items():
        monkeypatch.setenv(f"CALLPLEX_{name}", value)
    recorder = Recorder(RecordingPlan(tmp_path / "calls" / "c1", key=data_keys(KEY)[0]))
    record(recorder, 20)
    recorder.close().result(5)

    async def fill() -> None:
        async with Database.open(sqlite_url(tmp_path)) as database:
            await keep(database, tmp_path, "c1", sound="call.wav.sealed")
            await keep(database, tmp_path, "c2", sound=False, started_at=NOON + 60)
            await keep(database, tmp_path, "c3", sound=False, started_at=NOON + 120, from_number=ANOTHER)

    asyncio.run(fill())
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["records", *words])


def audited(folder: Path) -> list[tuple[str, str]]:
    async def read() -> list[tuple[str, str]]:
        async with Database.open(sqlite_url(folder)) as database:
            return [(row["action"], row["call_id"]) for row in await all_of(database, audit)]

    return asyncio.run(read())


def test_the_list_as_json_is_one_object_page_by_page(folder: Path) -> None:
    first = json.loads(run("list", "--limit", "2", "--json").stdout)
    assert [one["call_id"] for one in first["calls"]] == ["c3", "c2"]
    assert set(first["calls"][0]) == {
        *("call_id", "state", "carrier", "direction", "from", "to", "persona", "persona_version", "engine"),
        *("started_at", "ended_at", "seconds", "end_reason", "transfer_target", "recorded", "erased_at"),
    }
    last = json.loads(run("list", "--limit", "2", "--after", first["next"], "--json").stdout)
    assert ([one["call_id"] for one in last["calls"]], last["next"]) == (["c1"], "")
    found = json.loads(run("list", "--number", CALLER, "--text", "declined", "--json").stdout)
    assert [one["call_id"] for one in found["calls"]] == ["c2", "c1"]
    assert "c3" in run("list").stdout
    assert {action for action, _ in audited(folder)} == {"list"}


def test_a_list_of_nothing_says_so_beside_standard_output(folder: Path) -> None:
    nothing = run("list", "--number", "+19998887777")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "no such calls\n")
    tokens = run("token", "list")
    assert (tokens.exit_code, tokens.stdout) == (0, "")
    assert "no tokens" in tokens.stderr


def test_a_call_is_shown(folder: Path) -> None:
    shown = json.loads(run("show", "c1", "--json").stdout)
    assert (shown["call_id"], shown["recorded"], len(shown["utterances"])) == ("c1", True, 3)
    assert {"events", "deliveries", "metrics"} <= set(shown)
    assert "Caller: My card was declined." in run("show", "c1").stdout
    assert audited(folder) == [("view", "c1")] * 2


def test_a_call_is_exported(folder: Path) -> None:
    for form, sign in (("json", '"call_id": "c1"'), ("text", "Agent: "), ("vtt", "WEBVTT")):
        assert sign in run("export", "c1", "--format", form).stdout
    assert run("export", "c1", "--format", "vtt", "--out", "out/file").exit_code == 0
    assert "WEBVTT" in Path("out/file").read_text()
    assert audited(folder) == [("export", "c1")] * 4


def test_all_that_is_kept_of_a_caller_is_exported_sound_too(folder: Path) -> None:
    done = run("export", "--number", CALLER, "--out", "theirs")
    assert done.exit_code == 0
    assert sorted(path.name for path in Path("theirs").iterdir()) == ["c1.json", "c1.wav", "c2.json"]
    with wave.open("theirs/c1.wav") as file:
        assert (file.getnchannels(), file.getnframes()) == (2, 20 * 640)


def test_sound_that_no_key_opens_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPLEX_DATA_KEY", "")
    done = run("export", "c1", "--format", "wav", "--out", "c1.wav")
    assert done.exit_code == 1
    assert "CALLPLEX_DATA_KEY" in done.stderr
    assert not Path("c1.wav").exists()


def test_a_caller_is_erased_sound_too(folder: Path) -> None:
    done = run("erase", "--number", CALLER, "--yes", "--json")
    erased = json.loads(done.stdout)["erased"]
    assert [one["call_id"] for one in erased] == ["c1", "c2"]
    assert erased[0]["recording"]["places"] == ["folder"]
    assert [path.name for path in (folder / "calls").iterdir()] == ["c3"]
    left = json.loads(run("show", "c1", "--json").stdout)
    assert (left["from"], left["utterances"], left["recorded"]) == ("", [], False)
    again = run("erase", "c9", "--yes")
    assert (again.exit_code, "there is no call c9" in again.stderr) == (1, True)


def test_a_call_that_only_another_gateway_can_erase_stops_no_other(folder: Path) -> None:
    async def add() -> None:
        async with Database.open(sqlite_url(folder)) as database:
            await lease(database, folder / "there")
            for call_id, place in (("c0", Records(folder / "there").place), ("c00", "stopped:/data")):
                await keep(database, folder / "there", call_id, sound=False, files_on=place, started_at=NOON - 60)

    asyncio.run(add())
    done = run("erase", "--number", CALLER, "--yes", "--json")
    assert done.exit_code == 1
    assert f"calls/c0/transcript.json lies on the gateway {socket.gethostname()}, in {folder}/there" in done.stderr
    assert "files of c00 may be left on the gateway stopped, in /data, which does not run" in done.stderr
    assert [one["call_id"] for one in json.loads(done.stdout)["erased"]] == ["c00", "c1", "c2"]
    alone = run("erase", "c0", "--yes")
    assert (alone.exit_code, alone.stdout) == (1, "")


def test_sound_in_a_bucket_that_is_away_is_not_called_erased(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = {"ENDPOINT": "http://127.0.0.1:9", "BUCKET": "calls", "KEY_ID": "me", "SECRET": "secret"}
    for name, value in bucket.items():
        monkeypatch.setenv(f"CALLPLEX_S3_{name}", value)
    done = run("erase", "c1", "--yes")
    assert (done.exit_code, "may still be in the bucket" in done.stderr) == (1, True)
    assert json.loads(run("show", "c1", "--json").stdout)["recorded"]


def test_tokens_are_made_listed_and_revoked(folder: Path) -> None:
    made = json.loads(run("token", "create", "crm", "--json").stdout)
    assert made["name"] == "crm"
    (listed,) = json.loads(run("token", "list", "--json").stdout)["tokens"]
    assert (set(listed), listed["revoked_at"]) == ({"name", "created_at", "revoked_at"}, None)
    twice = run("token", "create", "crm")
    assert (twice.exit_code, "Traceback" in twice.stderr) == (1, False)
    assert run("token", "revoke", "crm").exit_code == 0
    assert json.loads(run("token", "list", "--json").stdout)["tokens"][0]["revoked_at"] is not None


@pytest.mark.parametrize(
    "words", [("export",), ("export", "c1", "--number", "+1"), ("export", "--number", "+1"), ("erase",)]
)
def test_wrong_use_ends_with_2(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


@pytest.mark.long
def test_as_a_process_json_is_all_that_is_on_standard_output(folder: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "records", "show", "c1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=60, check=True)
    assert (json.loads(done.stdout)["call_id"], done.stderr) == ("c1", "")
    missing = subprocess.run([*command[:-2], "c9"], capture_output=True, text=True, timeout=60, check=False)
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", "callplex: there is no call c9\n")
