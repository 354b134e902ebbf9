"""Recordings move to the bucket until it has them, and are deleted with a proof, wherever they are."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from gateway.desk import Desk
from gateway.recording import store as store_module
from gateway.recording.bucket import Bucket, BucketError
from gateway.recording.reading import open_recording
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.recording.store import Deletion, RecordingStore, StoreError
from gateway.settings import load_settings
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.recording.s3_server import admin, running_s3, settings
from tests.gateway.recording.sound import KEY, record, wait_for

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running_s3() as url:
        yield url


@pytest.fixture
def bucket_name(request: pytest.FixtureRequest) -> str:
    return "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]


@pytest.fixture
def bucket(endpoint: str, bucket_name: str) -> Bucket:
    admin(endpoint).make_bucket(bucket_name)
    return Bucket(settings(endpoint, bucket_name))


def recorded(root: Path, call_id: str, pieces: int = 20) -> str:
    recorder = Recorder(RecordingPlan(root / "calls" / call_id, key=KEY))
    record(recorder, pieces)
    recorder.close().result(5)
    return RecordingStore(root).name(recorder.plan.path)


@asynccontextmanager
async def moving(store: RecordingStore) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, condition, 20.0)


def test_a_recording_moves_when_its_call_is_over_and_is_read_from_there(tmp_path: Path, bucket: Bucket) -> None:
    store = RecordingStore(tmp_path, bucket)

    async def run() -> str:
        async with moving(store):
            name = recorded(tmp_path, "one")
            before = (tmp_path / name).read_bytes()
            store.ended(name)
            await until(lambda: not (tmp_path / name).exists())
            with store.open(name) as file:
                assert file.read() == before
                assert len(b"".join(open_recording(file, name, [KEY]).wav())) == 44 + 20 * 4 * 640
        return name

    name = asyncio.run(run())
    assert name == "calls/one/call.wav.sealed"
    assert list(store.local()) == []


def test_the_desk_records_as_the_persona_says_seals_and_moves(
    tmp_path: Path, endpoint: str, bucket_name: str, bucket: Bucket
) -> None:
    personas = tmp_path / "personas"
    personas.mkdir()
    (personas / "bank.yaml").write_text(
        "voice: NATF0\nrole: You work for a bank.\nrecord: true\nrecording: {format: opus}\n"
    )
    (personas / "routing.yaml").write_text("default:\n  persona: bank\n")
    configured = load_settings(
        personas=personas,
        data_dir=tmp_path,
        embedded_echo=True,
        data_key=b64encode(KEY.secret).decode(),
        s3=settings(endpoint, bucket_name).model_dump(),
    )

    async def run() -> None:
        desk = Desk(configured)
        async with desk.open():
            await desk.answer(MemoryLeg(seconds=1.0), "bank")
            await until(lambda: list(desk.recordings.local()) == [])
            with desk.recordings.open("calls/c1/call.opus.sealed") as file:
                wav = b"".join(open_recording(file, "call.opus.sealed", configured.data_keys).wav())
        assert 0.8 < (len(wav) - 44) / 32_000 < 1.6

    asyncio.run(run())


def test_what_an_earlier_run_left_moves_at_the_start_and_a_running_call_does_not(
    tmp_path: Path, bucket: Bucket
) -> None:
    names = [recorded(tmp_path, f"call-{number}") for number in range(6)]
    running = Recorder(RecordingPlan(tmp_path / "calls" / "running"))
    record(running, 20)
    store = RecordingStore(tmp_path, bucket)

    async def run() -> None:
        async with moving(store):
            await until(lambda: len(list(store.local())) <= 1)

    asyncio.run(run())
    assert list(store.local()) == ["calls/running/call.wav"]
    assert all(bucket.stat(name) for name in names)
    assert bucket.stat("calls/running/call.wav") is None
    running.close().result(5)


KILLED_WHILE_MOVING = """
import asyncio, os, sys
from pathlib import Path
from gateway.recording.bucket import Bucket
from gateway.recording.store import RecordingStore
from gateway.settings import load_settings
from tests.gateway.recording.s3_server import settings

class Dies(Bucket):
    def put(self, name, file):
        super().put(name, file)
        os.kill(os.getpid(), 9)

asyncio.run(RecordingStore(Path(sys.argv[1]), Dies(settings(sys.argv[2], sys.argv[3]))).run())
"""


def test_a_gateway_killed_between_the_move_and_its_end_loses_nothing(
    tmp_path: Path, bucket: Bucket, endpoint: str, bucket_name: str
) -> None:
    name = recorded(tmp_path, "one")
    command = [sys.executable, "-c", KILLED_WHILE_MOVING, str(tmp_path), endpoint, bucket_name]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert (tmp_path / name).exists()
    store = RecordingStore(tmp_path, bucket)

    async def run() -> None:
        async with moving(store):
            await until(lambda: not (tmp_path / name).exists())

    asyncio.run(run())
    stored = bucket.stat(name)
    assert stored is not None
    assert stored.size > 20 * 4 * 640


def test_a_bucket_that_is_not_there_yet_is_tried_until_it_is(
    tmp_path: Path, endpoint: str, bucket_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "FIRST_RETRY", 0.02)
    name = recorded(tmp_path, "one")
    store = RecordingStore(tmp_path, Bucket(settings(endpoint, bucket_name)))

    async def run() -> None:
        async with moving(store):
            await until(lambda: len(caplog.records) >= 2)
            assert (tmp_path / name).exists()
            admin(endpoint).make_bucket(bucket_name)
            await until(lambda: not (tmp_path / name).exists())

    asyncio.run(run())
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert "1 recordings wait in" in caplog.text
    assert "NoSuchBucket" in caplog.text
    assert "look at CALLPLEX_S3_BUCKET" in caplog.text


def test_deleting_proves_what_is_gone_from_the_folder(tmp_path: Path) -> None:
    name = recorded(tmp_path, "one")
    data = (tmp_path / name).read_bytes()
    store = RecordingStore(tmp_path)
    deletion = store.delete(name, NOW)
    assert deletion == Deletion(name, NOW, len(data), hashlib.sha256(data).hexdigest(), ("folder",))
    assert deletion.detail()["places"] == ["folder"]
    assert not (tmp_path / name).exists()
    assert store.delete(name, NOW) == Deletion(name, NOW, 0, "", ())
    with pytest.raises(StoreError, match="and no bucket is set"):
        store.open(name)


@pytest.mark.parametrize("versioned", [False, True])
def test_deleting_takes_every_version_out_of_the_bucket(
    tmp_path: Path, bucket: Bucket, endpoint: str, bucket_name: str, versioned: bool
) -> None:
    client = admin(endpoint)
    if versioned:
        client.set_bucket_versioning(bucket_name, VersioningConfig(ENABLED))
    name = recorded(tmp_path, "one")
    data = (tmp_path / name).read_bytes()
    for content in (b"an earlier version", data):
        bucket.put(name, io.BytesIO(content))
    bucket.put(name + "-of-another", io.BytesIO(b"its name only begins alike"))
    deletion = RecordingStore(tmp_path, bucket).delete(name, NOW)
    assert deletion == Deletion(name, NOW, len(data), hashlib.sha256(data).hexdigest(), ("folder", "bucket"))
    left = [one.object_name for one in client.list_objects(bucket_name, recursive=True, include_version=True)]
    assert left == [name + "-of-another"]
    assert RecordingStore(tmp_path, bucket).delete(name, NOW).places == ()


def test_a_running_call_s_recording_is_not_deleted(tmp_path: Path) -> None:
    recorder = Recorder(RecordingPlan(tmp_path / "calls" / "one"))
    record(recorder, 20)
    wait_for(recorder.plan.path.exists)
    wait_for(lambda: recorder.kept is not None)
    store = RecordingStore(tmp_path)
    with pytest.raises(StoreError, match="still being recorded"):
        store.delete("calls/one/call.wav", NOW)
    recorder.close().result(5)
    assert store.delete("calls/one/call.wav", NOW).gone


@pytest.mark.parametrize(
    "name", ["", "calls/../call.wav", "calls/a/b/call.wav", "../calls/x/call.wav", "calls/a/transcript.json", "/etc"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    for use in (RecordingStore(tmp_path).open, lambda name: RecordingStore(tmp_path).delete(name, NOW)):
        with pytest.raises(StoreError, match="is no recording's name"):
            use(name)


def test_a_bucket_out_of_reach_is_told_in_a_sentence(tmp_path: Path) -> None:
    bucket = Bucket(settings("http://127.0.0.1:9", "calls"))
    with pytest.raises(BucketError, match=r"^the bucket cannot be reached: .*refused"):
        bucket.check()
    with pytest.raises(StoreError, match="may still be in the bucket: the bucket cannot be reached"):
        RecordingStore(tmp_path, bucket).delete("calls/one/call.wav", NOW)


def test_checking_a_bucket(bucket: Bucket, endpoint: str) -> None:
    bucket.check()
    with pytest.raises(BucketError, match="there is no bucket nowhere; make it, or look at CALLPLEX_S3_BUCKET"):
        Bucket(settings(endpoint, "nowhere")).check()
