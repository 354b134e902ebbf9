"""The records over HTTP: pages, one call, exports, tokens, and the audit log of all that."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import socket
import time
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateway.app import admin_app
from gateway.desk import Desk
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.recording.store import RecordingStore
from gateway.records import api_tokens
from gateway.records.database import Database
from gateway.records.tables import audit, instances
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.recording.sound import record
from tests.gateway.records.made_up import NOON, all_of
from tests.gateway.records.test_erasure import keep
from tests.gateway.test_desk import desk_in

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def api(folder: Path, **values: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Desk, Database]]:
    desk = desk_in(folder, **values)
    transport = httpx.ASGITransport(admin_app(desk))
    async with desk.open(), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert desk.archive.database is not None
        yield client, desk, desk.archive.database


def cursor(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


async def test_a_call_is_listed_shown_exported_and_erased(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, _, database):
        await keep(database, tmp_path / "data", "c1")
        listed = (await client.get("/api/calls", params={"text": "declined", "number": "+15550199"})).json()
        assert [one["call_id"] for one in listed["calls"]] == ["c1"]
        shown = (await client.get("/api/calls/c1")).json()
        assert (shown["from"], shown["end_reason"], shown["seconds"]) == ("+15550199", "caller_hangup", 60.0)
        assert [one["speaker"] for one in shown["utterances"]] == ["agent", "caller", "agent"]
        assert shown["events"] == [{"at": 2.0, "kind": "keypad", "data": {"key": "5"}}]
        assert {one["event"] for one in shown["deliveries"]} == {"call.started", "call.ended"}
        for form, sign in (("json", '"call_id"'), ("text", "Caller: My card"), ("vtt", "WEBVTT")):
            exported = await client.get("/api/calls/c1", params={"format": form})
            assert sign in exported.text
            assert "c1." in exported.headers["content-disposition"]
        assert (await client.delete("/api/calls/c1")).json()["erased"]["rows"]["utterances"] == 3
        assert (await client.get("/api/calls/c1")).json()["utterances"] == []
        entries = (await client.get("/api/audit", params={"call_id": "c1"})).json()["entries"]
        actions = [(one["who"], one["action"]) for one in reversed(entries)]
        assert actions == [("local", one) for one in ("view", "export", "export", "export", "erase", "view")]


async def test_a_sealed_recording_is_played_and_that_is_told(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(32)).decode()
    async with api(tmp_path, data_key=key) as (client, desk, database):
        await keep(database, tmp_path / "data", "c1", sound=False)
        assert (await client.get("/api/calls/c1/recording")).status_code == 404
        folder = tmp_path / "data" / "calls" / "c2"
        recorder = Recorder(RecordingPlan(folder, key=desk.settings.data_keys[0]))
        record(recorder, 20)
        recorder.close().result(5)
        await keep(database, tmp_path / "data", "c2", sound="call.wav.sealed")
        played = await client.get("/api/calls/c2/recording")
        assert (played.status_code, played.headers["content-type"]) == (200, "audio/wav")
        with wave.open(io.BytesIO(played.content)) as file:
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8_000, 20 * 640)
        sealed = folder / "call.wav.sealed"
        sealed.write_bytes(sealed.read_bytes()[:-40] + bytes(40))
        damaged = await client.get("/api/calls/c2/recording")
        assert (damaged.status_code, "was altered" in damaged.text) == (503, True)
        assert (await client.delete("/api/calls/c2")).json()["erased"]["recording"]["places"] == ["folder"]
        assert (await client.get("/api/calls/c2/recording")).status_code == 404
        entries = (await client.get("/api/audit", params={"call_id": "c2"})).json()["entries"]
        assert [one["action"] for one in reversed(entries)] == ["play", "play", "erase"]


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, _, database):
        for number in range(5):
            await keep(database, tmp_path / "data", f"c{number}")
        seen, after = [], ""
        while True:
            page = (await client.get("/api/calls", params={"limit": 2, "after": after})).json()
            seen += [one["call_id"] for one in page["calls"]]
            after = page["next"]
            if not after:
                break
        assert seen == ["c4", "c3", "c2", "c1", "c0"]
        told = (await client.get("/api/deliveries", params={"call_id": "c1"})).json()["deliveries"]
        assert {one["event"] for one in told} == {"call.started", "call.ended"}
        assert "body" not in told[0]


async def test_pages_of_deliveries_miss_none_of_those_stored_at_once(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, _, database):
        for number in range(3):
            await keep(database, tmp_path / "data", f"c{number}")
        seen, before = [], ""
        while True:
            page = (await client.get("/api/deliveries", params={"limit": 1, "before": before})).json()
            seen += [(one["call_id"], one["event"]) for one in page["deliveries"]]
            before = page["next"]
            if not before:
                break
        assert sorted(seen) == [(f"c{n}", event) for n in range(3) for event in ("call.ended", "call.started")]


async def test_what_is_stored_is_counted_in_the_metrics(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, _, database):
        await keep(database, tmp_path / "data", "c1")
        await keep(database, tmp_path / "data", "c2", live=True)
        shown = (await client.get("/metrics")).text
        for line in (
            'callplex_records_calls{state="ended"} 1.0',
            'callplex_records_calls{state="live"} 1.0',
            'callplex_deliveries{endpoint="crm",state="waiting"} 3.0',
        ):
            assert line in shown
        (oldest,) = re.findall(r'callplex_deliveries_oldest_waiting_seconds\{endpoint="crm"\} (\S+)', shown)
        assert abs(float(oldest) - (time.time() - NOON)) < 60


async def test_from_the_first_token_on_everybody_must_bring_one(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, _, database):
        assert (await client.get("/api/calls")).status_code == 200
        token = await api_tokens.create(database, "crm")
        for path in ("/api/calls", "/api/calls/c1", "/api/deliveries", "/api/audit", "/api/calls/live"):
            refused = await client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/api/calls", headers={"Authorization": "Bearer made-up"})).status_code == 401
        good = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/api/calls", headers=good)).status_code == 200
        entries = (await client.get("/api/audit", headers=good)).json()["entries"]
        assert [one["who"] for one in entries] == ["crm", "local"]
        await api_tokens.revoke(database, "crm")
        assert (await client.get("/api/calls", headers=good)).status_code == 401
        assert (await client.get("/api/calls")).status_code == 401


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/api/calls/none", 404, "there is no call none"),
        ("/api/calls?since=yesterday", 400, "'yesterday' is no time"),
        ("/api/calls?after=x", 400, "cursor is none of ours"),
        ("/api/calls?text=%3F", 400, "has no words"),
        ("/api/calls?limit=0", 422, "greater than or equal to 1"),
        (f"/api/calls?text=hello&after={cursor('9' * 40)}", 400, "cursor is none of ours"),
        (f"/api/audit?before={'9' * 40}", 422, "less than"),
        ("/api/deliveries?before=x", 400, "cursor is none of ours"),
    ],
)
async def test_a_bad_question_gets_a_sentence(tmp_path: Path, path: str, status: int, sentence: str) -> None:
    async with api(tmp_path) as (client, _, _database):
        answer = await client.get(path)
        assert answer.status_code == status
        assert sentence in answer.text


async def test_before_the_records_are_open_nothing_is_shown(tmp_path: Path) -> None:
    transport = httpx.ASGITransport(admin_app(desk_in(tmp_path)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/api/calls")).status_code == 503


async def test_a_recording_on_another_gateway_s_disk_is_said_to_lie_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    async with (
        api(tmp_path / "one", database_url=url) as (one, desk, _),
        api(tmp_path / "other", database_url=url) as (other, _, database),
    ):
        await desk.answer(MemoryLeg(seconds=0.5), "bank")
        assert (await one.get("/api/calls/c1/recording")).status_code == 200
        for answer in (await other.get("/api/calls/c1/recording"), await other.delete("/api/calls/c1")):
            assert answer.status_code == 421
            host, folder = socket.gethostname(), (tmp_path / "one" / "data").absolute()
            where = f"calls/c1/call.wav lies on the gateway {host}, in {folder}; ask that one"
            assert answer.json()["detail"].startswith(where)
        # The gateway that had it is gone, and its disk with it: the rest is erased, so says the proof.
        async with database.begin() as connection:
            await connection.execute(sa.delete(instances).where(instances.c.host == desk.records.place))
        proof = (await other.delete("/api/calls/c1")).json()["erased"]["recording"]
        assert (proof["gone"], proof["places"], proof["not_reached"]) == (False, [], desk.records.place)


async def test_what_was_said_in_another_gateway_s_call_waits_for_that_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    transcript = tmp_path / "one" / "data" / "calls" / "c1" / "transcript.json"
    async with api(tmp_path / "other", database_url=url) as (other, _, database):
        async with api(tmp_path / "one", database_url=url, record=False) as (one, desk, _):
            await desk.answer(MemoryLeg(seconds=0.5), "bank")
            answer = await other.delete("/api/calls/c1")
            where = f"calls/c1/transcript.json lies on the gateway {socket.gethostname()}, in {desk.settings.data_dir}"
            assert (answer.status_code, answer.json()["detail"]) == (421, f"{where}; ask that one")
            assert transcript.exists()
            assert (await one.get("/api/calls/c1")).json()["erased_at"] is None
        # It has stopped: the rows go now, its files when it starts again.
        assert (await other.delete("/api/calls/c1")).json()["erased"]["not_reached"] == desk.records.place
        assert transcript.exists()
        async with api(tmp_path / "one", database_url=url) as (_, desk, _):
            await asyncio.wait_for(desk.archive.cleared.wait(), 30)
            assert not transcript.parent.exists()
        entries = [row["detail"] for row in await all_of(database, audit) if row["action"] in ("erase", "delete")]
        assert [(one["what"], [file["name"] for file in one["files"]]) for one in entries] == [
            ("caller", []),
            ("left", ["transcript.json"]),
        ]


async def test_sound_that_a_stopped_gateway_still_had_never_reaches_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    recording = tmp_path / "one" / "data" / "calls" / "c1" / "call.wav"
    async with api(tmp_path / "other", database_url=url) as (other, _, _):
        async with api(tmp_path / "one", database_url=url) as (_, desk, _):
            await desk.answer(MemoryLeg(seconds=0.5), "bank")
        assert recording.exists()
        assert (await other.delete("/api/calls/c1")).status_code == 200
        moved: list[str] = []

        async def move(store: RecordingStore) -> None:
            moved.extend(store.local())

        monkeypatch.setattr(RecordingStore, "run", move)
        async with api(tmp_path / "one", database_url=url) as (_, desk, _):
            await asyncio.wait_for(desk.archive.cleared.wait(), 30)
            assert not recording.exists()
        assert moved == []
