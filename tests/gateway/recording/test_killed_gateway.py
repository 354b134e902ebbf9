"""A gateway that is killed in a call, and what it had recorded: the next start brings that to the bucket."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.phone.call import CallOptions, place_call
from gateway.phone.caller import Clip, ScriptedCaller
from gateway.phone.script import CALLERS
from gateway.phone.sound import read_wav
from gateway.recording.bucket import Bucket
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.recording.s3_server import admin, running_s3, settings

pytestmark = [pytest.mark.anyio, pytest.mark.long]

TWO_SECONDS = 2 * 8_000 * 4


def writers(gateway: int) -> list[int]:
    """The processes that a gateway started to write recordings."""
    children = Path(f"/proc/{gateway}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in pids if b"gateway.recording.writer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@asynccontextmanager
async def calling(gateway: GatewayProcess) -> AsyncIterator[None]:
    """A caller who talks on while inside, whatever becomes of the gateway."""
    voice = ScriptedCaller([Clip(read_wav(CALLERS / "bank-hours.wav"), "at_once", 0.0)] * 5)
    call = asyncio.create_task(place_call(CallOptions(gateway.url, voice)))
    try:
        yield
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("writer_too", [False, True])
async def test_the_next_start_moves_what_a_killed_gateway_had_recorded(tmp_path: Path, writer_too: bool) -> None:
    personas = tmp_path / "personas"
    personas.mkdir()
    (personas / "bank.yaml").write_text("voice: NATF0\nrole: You work for a bank.\nrecord: true\n")
    (personas / "routing.yaml").write_text("default:\n  persona: bank\n")
    with running_s3() as endpoint:
        admin(endpoint).make_bucket("calls")
        values = {f"CALLPLEX_S3_{name}": value for name, value in bucket_values(endpoint).items()}
        more = {"CALLPLEX_EMBEDDED_ECHO": "1", "CALLPLEX_DATA_KEY": base64.b64encode(bytes(range(32))).decode()}
        configured = {**values, **more, "CALLPLEX_PERSONAS": str(personas)}
        with running_gateway(tmp_path / "gateway", **configured) as gateway:
            async with calling(gateway):
                await until(lambda: recorded(gateway) > TWO_SECONDS)
                doomed = writers(gateway.process.pid)
                assert len(doomed) == 1
                size = recorded(gateway)
                for pid in (*(doomed if writer_too else ()), gateway.process.pid):
                    os.kill(pid, signal.SIGKILL)
            (name,) = (path.relative_to(gateway.data).as_posix() for path in gateway.data.glob("calls/*/call.*"))
        with running_gateway(tmp_path / "gateway", **configured) as gateway:
            bucket = Bucket(settings(endpoint, "calls"))
            await until(lambda: not (gateway.data / name).exists())
            stored = bucket.stat(name)
            assert stored is not None
            assert stored.size >= size
            played = gateway.get_admin(f"/api/calls/{name.split('/')[1]}/recording")
            assert played.status_code == 200, played.text
            with wave.open(io.BytesIO(played.content)) as file:
                assert file.getnchannels() == 2
                assert file.getnframes() * 4 >= TWO_SECONDS


def recorded(gateway: GatewayProcess) -> int:
    return sum(path.stat().st_size for path in gateway.data.glob("calls/*/call.*"))


def bucket_values(endpoint: str) -> dict[str, str]:
    known = settings(endpoint, "calls")
    plain = {"SECRET": known.secret.get_secret_value()}
    return plain | {n.upper(): str(getattr(known, n)) for n in ("endpoint", "bucket", "region", "key_id")}
