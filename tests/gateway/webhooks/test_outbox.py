"""Every stored event reaches the endpoint, whatever the endpoint, the network or the process does."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from gateway.webhooks import outbox as webhooks
from gateway.webhooks.outbox import Outbox, OutboxError, WebhookInvalid, check_secret, next_delay, retry_after_seconds

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass
class Receiver:
    """A real HTTP server that answers with the given statuses in turn, then with 204."""

    statuses: list[int] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: int = 0
    """So many requests get no answer at all."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=private"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {
                name.lower(): value for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            async with self.arrived:
                self.got.append((headers, body))
                self.arrived.notify_all()
            if len(self.got) <= self.hang:
                await reader.read()
                return
            status = self.statuses.pop(0) if self.statuses else 204
            lines = [f"HTTP/1.1 {status} X", "content-length: 0", "connection: close"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def requests(self, count: int) -> None:
        async with asyncio.timeout(10), self.arrived:
            await self.arrived.wait_for(lambda: len(self.got) >= count)


def soon(attempt: int, chance: float, retry_after: float) -> float:
    return 0.01


@asynccontextmanager
async def running(folder: Path, url: str, **options: Any) -> AsyncIterator[Outbox]:
    """An outbox whose deliveries are under way, cancelled at the end as the app does."""
    async with httpx.AsyncClient(trust_env=False) as client:
        outbox = Outbox(folder, url, SECRET, client, **{"delay": soon, **options})
        task = asyncio.create_task(outbox.run())
        try:
            yield outbox
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """The outbox works in threads and files, so there is nothing to be woken by."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


async def test_an_event_arrives_signed_and_leaves_the_outbox(tmp_path: Path) -> None:
    async with Receiver().listening() as receiver, running(tmp_path, receiver.url) as outbox:
        webhook_id = await outbox.put("call.ended", {"call_id": "call_1", "text": "Grüezi"})
        await until(lambda: outbox.delivered == 1 and outbox.pending == 0)
    ((headers, body),) = receiver.got
    assert headers["webhook-id"] == webhook_id
    assert headers["content-type"] == "application/json"
    event = Webhook(SECRET).verify(body, headers)
    assert event["type"] == "call.ended"
    assert event["data"] == {"call_id": "call_1", "text": "Grüezi"}
    assert event["timestamp"].endswith("Z")
    assert (outbox.delivered, outbox.pending) == (1, 0)


async def test_it_is_on_disk_when_put_returns(tmp_path: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        outbox = Outbox(tmp_path, "http://127.0.0.1:9/", SECRET, client)
        webhook_id = await outbox.put("call.ended", {"call_id": "call_1"})
    kept = json.loads((tmp_path / f"{webhook_id}.json").read_bytes())
    assert json.loads(kept["body"])["data"] == {"call_id": "call_1"}
    assert SECRET not in json.dumps(kept)


async def test_a_failing_endpoint_gets_the_same_event_again_until_it_takes_it(tmp_path: Path) -> None:
    async with Receiver([500, 400, 503, 302]).listening() as receiver, running(tmp_path, receiver.url) as outbox:
        webhook_id = await outbox.put("call.ended", {"call_id": "call_1"})
        await until(lambda: outbox.delivered == 1 and outbox.pending == 0)
    assert receiver.ids == [webhook_id] * 5
    assert len({body for _, body in receiver.got}) == 1
    for headers, body in receiver.got:
        Webhook(SECRET).verify(body, headers)


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    async with Receiver().listening() as elsewhere:
        first = Receiver([307], {"location": elsewhere.url})
        async with first.listening(), running(tmp_path, first.url) as outbox:
            await outbox.put("call.ended", {})
            await until(lambda: outbox.delivered == 1)
    assert len(first.got) == 2
    assert elsewhere.got == []


async def test_an_endpoint_that_is_down_gets_it_when_it_is_up(tmp_path: Path) -> None:
    receiver = Receiver()
    async with receiver.listening():
        port = receiver.port
    attempts = 0

    def count(attempt: int, chance: float, retry_after: float) -> float:
        nonlocal attempts
        attempts = attempt
        return 0.01

    async with running(tmp_path, receiver.url, delay=count) as outbox:
        webhook_id = await outbox.put("call.ended", {})
        await until(lambda: attempts >= 3)
        async with receiver.listening(port):
            await until(lambda: outbox.delivered == 1)
    assert receiver.ids == [webhook_id]


async def test_a_slow_endpoint_is_given_up_on_and_delays_neither_put_nor_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.3)
    async with Receiver(hang=1).listening() as receiver, running(tmp_path, receiver.url) as outbox:
        slow = await outbox.put("call.ended", {"n": 1})
        await receiver.requests(1)
        quick = await asyncio.wait_for(outbox.put("call.ended", {"n": 2}), 0.25)
        await until(lambda: outbox.delivered == 2)
    assert receiver.ids == [slow, quick, slow]


async def test_410_ends_it_and_keeps_it_for_a_person(tmp_path: Path) -> None:
    async with Receiver([410]).listening() as receiver, running(tmp_path, receiver.url) as outbox:
        webhook_id = await outbox.put("call.ended", {"call_id": "call_1"})
        await until(lambda: outbox.dead == 1)
        assert outbox.pending == 0
    assert stored(tmp_path) == []
    kept = json.loads((tmp_path / "dead" / f"{webhook_id}.json").read_bytes())
    assert "410" in kept["reason"]
    assert kept["attempts"] == 1


async def test_after_three_days_it_is_given_up_with_the_last_reason(tmp_path: Path) -> None:
    now = 1_000_000.0

    def later(attempt: int, chance: float, retry_after: float) -> float:
        nonlocal now
        now += 30 * 3600
        return 0.0

    receiver = Receiver([500] * 20)
    async with receiver.listening(), running(tmp_path, receiver.url, delay=later, clock=lambda: now) as outbox:
        webhook_id = await outbox.put("call.ended", {})
        await until(lambda: outbox.dead == 1)
    assert len(receiver.got) == 4
    assert "500" in json.loads((tmp_path / "dead" / f"{webhook_id}.json").read_bytes())["reason"]


async def test_what_the_endpoint_asks_for_reaches_the_schedule_and_outlives_a_restart(tmp_path: Path) -> None:
    asked: list[float] = []

    def note(attempt: int, chance: float, retry_after: float) -> float:
        asked.append(retry_after)
        return next_delay(attempt, chance, retry_after)

    receiver = Receiver([503] * 9, {"retry-after": "120"})
    async with receiver.listening(), running(tmp_path, receiver.url, delay=note, clock=lambda: 5_000.0) as outbox:
        webhook_id = await outbox.put("call.ended", {})
        await until(lambda: '"attempts":1' in (tmp_path / f"{webhook_id}.json").read_text())
    assert asked == [120.0]
    now = 5_119.0
    async with receiver.listening(), running(tmp_path, receiver.url, clock=lambda: now) as outbox:
        await until(lambda: outbox.pending == 1)
        now = 5_120.5
        await outbox.put("call.ended", {"wakes": "the schedule"})
        await receiver.requests(3)
    assert webhook_id in receiver.ids[1:]


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"location": "http://[::1"},
        {"location": "http://example.com:99999999"},
        {"set-cookie": "a=b; expires=Mon, 01 Jan 99999999999999999999 00:00:00 GMT; max-age=" + "9" * 5000},
    ],
)
async def test_no_answer_whatever_it_holds_ends_the_deliveries(tmp_path: Path, headers: Mapping[str, str]) -> None:
    receiver = Receiver([302], headers)
    async with receiver.listening(), running(tmp_path, receiver.url) as outbox:
        webhook_id = await outbox.put("call.ended", {})
        await until(lambda: outbox.delivered == 1 and outbox.pending == 0)
    assert receiver.ids == [webhook_id] * 2


SENDER = """
import asyncio, sys
from pathlib import Path
import httpx
from gateway.webhooks.outbox import Outbox

async def main(folder, url, secret):
    async with httpx.AsyncClient(trust_env=False) as client:
        outbox = Outbox(Path(folder), url, secret, client)
        if sys.argv[4] == "deliver":
            asyncio.get_running_loop().create_task(outbox.run())
        print(await outbox.put("call.ended", {"call_id": "call_1"}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:4]))
"""


async def killed_sender(folder: Path, receiver: Receiver, mode: str) -> str:
    """Run a real sender until it has stored its event (and, delivering, been heard), then kill -9 it."""
    arguments = [sys.executable, "-c", SENDER, str(folder), receiver.url, SECRET, mode]
    child = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    assert child.stdout is not None
    async with asyncio.timeout(30):
        webhook_id = (await child.stdout.readline()).decode().strip()
        if mode == "deliver":
            await receiver.requests(1)
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
    return webhook_id


async def test_killed_between_put_and_delivery_the_next_start_delivers_that_very_event(tmp_path: Path) -> None:
    async with Receiver().listening() as receiver:
        webhook_id = await killed_sender(tmp_path, receiver, "store")
        assert receiver.got == []
        async with running(tmp_path, receiver.url) as outbox:
            await until(lambda: outbox.delivered == 1 and outbox.pending == 0)
        async with running(tmp_path, receiver.url) as again:
            later = await again.put("call.ended", {"call_id": "call_2"})
            await until(lambda: again.delivered == 1 and again.pending == 0)
    assert webhook_id.startswith("msg_")
    assert receiver.ids == [webhook_id, later]


async def test_killed_before_the_answer_the_endpoint_gets_it_twice_under_one_id(tmp_path: Path) -> None:
    async with Receiver(hang=1).listening() as receiver:
        webhook_id = await killed_sender(tmp_path, receiver, "deliver")
        async with running(tmp_path, receiver.url) as outbox:
            await until(lambda: outbox.delivered == 1)
    assert receiver.ids == [webhook_id, webhook_id]
    assert receiver.got[0][1] == receiver.got[1][1]


async def test_a_hundred_events_at_once_all_arrive_once(tmp_path: Path) -> None:
    async with Receiver().listening() as receiver, running(tmp_path, receiver.url) as outbox:
        ids = await asyncio.gather(*(outbox.put("call.ended", {"n": n}) for n in range(100)))
        await until(lambda: outbox.pending == 0)
    assert sorted(receiver.ids) == sorted(ids)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"webhook_id": "msg_x"}', b'{"webhook_id":1,"created":"","body":2}']
)
async def test_a_damaged_file_is_set_aside_and_the_others_delivered(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "msg_x.json").write_bytes(damage)
    (tmp_path / "msg_y.json.tmp").write_bytes(b"half")
    async with Receiver().listening() as receiver, running(tmp_path, receiver.url) as outbox:
        await outbox.put("call.ended", {})
        await until(lambda: outbox.delivered == 1)
    assert (tmp_path / "dead" / "msg_x.json").read_bytes() == damage
    assert not (tmp_path / "msg_y.json.tmp").exists()


async def test_it_can_be_stopped_in_the_moment_an_event_comes(tmp_path: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client, Receiver([500]).listening() as receiver:
        outbox = Outbox(tmp_path, receiver.url, SECRET, client, delay=lambda *_: 3600.0)
        task = asyncio.create_task(outbox.run())
        first = await outbox.put("call.ended", {})
        await until(lambda: '"attempts":1' in (tmp_path / f"{first}.json").read_text())
        await outbox.put("call.ended", {})
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=3)
        task.cancel()
        assert done == {task}


async def test_an_event_taken_from_the_folder_by_hand_is_not_delivered(tmp_path: Path) -> None:
    async with Receiver([500] * 99).listening() as receiver, running(tmp_path, receiver.url) as outbox:
        webhook_id = await outbox.put("call.ended", {})
        await receiver.requests(1)
        while outbox.pending:
            (tmp_path / f"{webhook_id}.json").unlink(missing_ok=True)
            await asyncio.sleep(0.001)
        other = await outbox.put("call.ended", {})
        await until(lambda: other in receiver.ids)


async def test_without_an_endpoint_nothing_happens(tmp_path: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        outbox = Outbox(tmp_path / "outbox", "", "", client)
        assert await outbox.put("call.ended", {}) == ""
        await asyncio.wait_for(outbox.run(), 1)
    assert not (tmp_path / "outbox").exists()


async def test_a_disk_that_refuses_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    async with httpx.AsyncClient(trust_env=False) as client:
        outbox = Outbox(tmp_path / "outbox", "http://127.0.0.1:9/", SECRET, client)
        with pytest.raises(OutboxError, match=r"call\.ended cannot be stored"):
            await outbox.put("call.ended", {})
        assert outbox.pending == 0


async def test_an_outbox_that_cannot_be_read_does_not_stop_the_gateway(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    async with Receiver().listening() as receiver, running(tmp_path / "outbox", receiver.url) as outbox:
        await until(lambda: "cannot be read" in caplog.text)
        (tmp_path / "outbox").unlink()
        await outbox.put("call.ended", {})
        await until(lambda: outbox.delivered == 1)


async def test_logs_hold_neither_the_secret_nor_the_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")
    async with Receiver([500, 410]).listening() as receiver, running(tmp_path, receiver.url) as outbox:
        await outbox.put("call.ended", {"text": "confidential"})
        await until(lambda: outbox.dead == 1)
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("gateway"))
    assert "attempt 1" in own
    assert not [word for word in (SECRET, SECRET[6:], "private", "confidential") if word in own]


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("", "must start with whsec_"),
        ("hunter2", "must start with whsec_"),
        ("whsec_not base64!", "not base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "24 to 64 bytes"),
    ],
)
async def test_a_secret_that_cannot_sign_is_refused_without_repeating_it(secret: str, says: str) -> None:
    with pytest.raises(WebhookInvalid, match=says) as refused:
        check_secret(secret)
    assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize("url", ["example.com/hook", "ftp://example.com", "https://", "http://[::1", "/path"])
async def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(WebhookInvalid, match="CALLPLEX_WEBHOOK_URL"):
            Outbox(tmp_path, url, SECRET, client)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_stay_between_a_second_and_an_hour(attempt: int, chance: float) -> None:
    assert 1.0 <= next_delay(attempt, chance) <= 3600.0


def test_delays_double_spread_and_obey_the_endpoint() -> None:
    assert [next_delay(attempt, 0.0) for attempt in (1, 2, 3, 11, 12, 13)] == [1, 2, 4, 1024, 1800, 1800]
    assert next_delay(3, 0.5) == 6.0
    assert next_delay(1, 0.5, retry_after=300) == 300
    assert next_delay(12, 0.5, retry_after=3) == 2700


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
        ("9" * 400, 999_999_999.0),
        ("Thu, 01 Jan 1970 00:17:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:17:40", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after_seconds(header, now=1_000.0) == seconds


@given(st.text(max_size=40))
def test_retry_after_reads_anything(header: str) -> None:
    assert retry_after_seconds(header, now=1_000.0) >= 0
