"""The consumer to start from, as a process of its own: it believes what is signed, and does it once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from gateway.webhooks.delivery import Sender
from gateway.webhooks.endpoints import Endpoint
from gateway.webhooks.events import ENDED, sample
from gateway.webhooks.guard import LOOPBACK
from gateway.webhooks.signature import signing_key
from tests.gateway.webhooks.receiver import OTHER_SECRET, SECRET

pytestmark = pytest.mark.anyio

CONSUMER = Path(__file__).parents[2] / "deploy" / "webhooks" / "consumer.py"
BODY = sample(ENDED, 0.0).body()


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, str(CONSUMER), "127.0.0.1:0", str(tmp_path / "seen.sqlite3")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "WEBHOOK_SECRET": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    yield "http://" + process.stdout.readline().removeprefix("listening on ").strip() + "/"
    process.kill()
    process.wait()
    process.stdout.close()


async def deliver(url: str, webhook_id: str, secret: str = SECRET) -> int:
    endpoint = Endpoint("crm", url, (signing_key(secret),), allowed=LOOPBACK)
    sender = Sender(endpoint, httpx.create_ssl_context(trust_env=False))
    answer = await sender.attempt(webhook_id, BODY)
    await sender.close()
    return answer.status


async def test_it_does_each_event_once_and_believes_no_forgery(consumer: str, tmp_path: Path) -> None:
    assert [await deliver(consumer, one) for one in ("msg_1", "msg_1", "msg_2")] == [204, 204, 204]
    assert await deliver(consumer, "msg_3", OTHER_SECRET) == 401
    with closing(sqlite3.connect(tmp_path / "seen.sqlite3")) as database:
        assert database.execute("select kind, call_id from events").fetchall() == [(ENDED, "call_sample")] * 2
