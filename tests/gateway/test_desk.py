"""The desk behind the real application and sockets: whom it takes, whom it turns away, what it lets go of."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from gateway import desk as desk_module
from gateway.app import carrier_app
from gateway.desk import Desk
from gateway.leg import CallInfo
from gateway.twilio.peer import CarrierStream
from gateway.twilio.tokens import Ticket
from tests.gateway.token_workers import token_worker
from tests.gateway.twilio.serving import TIMEOUT, serving, settings
from tests.gateway.worker_pools import until

pytestmark = pytest.mark.anyio


@dataclass
class HeldLeg:
    """A line that is held until `release`: it neither speaks nor lets go before."""

    listening: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    playing: asyncio.Event = field(default_factory=asyncio.Event)
    hanging_up: asyncio.Event = field(default_factory=asyncio.Event)
    on_hold: bool = True
    lost: int = 0
    info: CallInfo = field(default_factory=lambda: CallInfo("held", "+1", "+2", "memory", "CA-held"))
    on_digit: Callable[[str], None] | None = None

    def answer(self) -> None:
        return

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        self.listening.set()
        await self.release.wait()

    async def play(self, pcm: bytes) -> Sequence[int]:
        self.playing.set()
        return ()

    async def flush(self) -> None:
        return

    async def drain(self, timeout: float) -> bool:
        return True

    async def transfer(self, target: str) -> None:
        return

    async def hangup(self, reason: str) -> None:
        self.hanging_up.set()
        await self.release.wait()


def desk_in(folder: Path, routing: str = "", *, record: bool = True, **values: object) -> Desk:
    """A desk that echoes, with one persona whose fallback and recording are set. Again in a folder: after a restart."""
    personas = folder / "personas"
    personas.mkdir(parents=True, exist_ok=True)
    persona = "voice: NATF0\nrole: You work for a bank.\nfallback: '+15550999'\nrecord: " + str(record).lower() + "\n"
    (personas / "bank.yaml").write_text(persona)
    (personas / "routing.yaml").write_text("default:\n  persona: bank\n" + routing)
    values = {"embedded_echo": True, **values}
    return Desk(settings(personas=personas, data_dir=folder / "data", **values))


@dataclass
class Carrier:
    client: httpx.AsyncClient

    async def voice(self, call_sid: str) -> tuple[str, Mapping[str, str]]:
        """Announce a call; gives the stream's URL and its parameters."""
        response = await self.client.post("/twilio/voice", data={"CallSid": call_sid, "To": "+2", "From": "+1"})
        stream = ET.fromstring(response.content).find("Connect/Stream")
        assert stream is not None, response.text
        return stream.attrib["url"], {p.attrib["name"]: p.attrib["value"] for p in stream}

    async def after(self, call_sid: str) -> list[tuple[str, str | None]]:
        form = {"CallSid": call_sid, "To": "+2", "From": "+1", "CallStatus": "in-progress"}
        response = await self.client.post("/twilio/after", data=form)
        return [(verb.tag, verb.text) for verb in ET.fromstring(response.content)]


@asynccontextmanager
async def carrier_of(desk: Desk) -> AsyncIterator[Carrier]:
    async with serving(carrier_app(desk)) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield Carrier(client)


@asynccontextmanager
async def stream(call_sid: str, announced: tuple[str, Mapping[str, str]]) -> AsyncIterator[ClientConnection]:
    url, parameters = announced
    line = CarrierStream("MZ1", call_sid, "AC1")
    async with connect(url) as socket:
        await socket.send(line.connected())
        await socket.send(line.start(parameters))
        await socket.send(line.media(bytes(160)))
        yield socket


async def let_go(socket: ClientConnection) -> str | None:
    async with asyncio.timeout(TIMEOUT):
        await socket.wait_closed()
    return socket.close_reason


async def test_one_call_too_many_reaches_the_fallback(tmp_path: Path) -> None:
    desk = desk_in(tmp_path, max_calls=1)
    async with carrier_of(desk) as carrier, desk.open():
        tickets = [await carrier.voice("CA1"), await carrier.voice("CA2")]
        async with stream("CA1", tickets[0]) as first:
            async with asyncio.timeout(TIMEOUT):
                await first.recv()
            async with stream("CA2", tickets[1]) as second:
                assert await let_go(second) == "busy"
            assert desk.active_calls == 1
            assert await carrier.after("CA2") == [("Dial", "+15550999"), ("Hangup", None)]
    assert b'callplex_calls_refused_total{why="busy"} 1.0' in desk.telemetry.render()


async def test_a_call_that_has_ended_keeps_nobody_out_while_it_is_heard_out_and_filed(tmp_path: Path) -> None:
    desk, held = desk_in(tmp_path, max_calls=1), HeldLeg()
    async with asyncio.timeout(TIMEOUT), desk.open():
        answering = asyncio.create_task(desk.answer(held, "bank"))
        await held.listening.wait()
        assert desk.refusal() == "busy"
        (call,) = desk._calls
        call.end("caller_hangup")
        await held.hanging_up.wait()
        assert (desk.refusal(), desk.active_calls) == ("", 1)
        held.release.set()
        await answering


async def test_who_is_turned_away_is_counted(tmp_path: Path) -> None:
    closed = "  hours: never\nhours:\n  never:\n    time_zone: UTC\n    open:\n      mon-sun: []\n"
    desk, held = desk_in(tmp_path, routing=closed), HeldLeg()
    form = {"CallSid": "CA1", "To": "+2", "From": "+1"}
    async with carrier_of(desk) as carrier:
        assert "Dial" in (await carrier.client.post("/twilio/voice", data=form)).text
    assert b'callplex_calls_refused_total{why="closed"} 1.0' in desk.telemetry.render()
    full = desk_in(tmp_path / "full", max_calls=1)
    async with carrier_of(full) as carrier, asyncio.TaskGroup() as tasks:
        tasks.create_task(full.answer(held, "bank"))
        async with asyncio.timeout(TIMEOUT):
            await held.listening.wait()
        assert "Dial" in (await carrier.client.post("/twilio/voice", data=form)).text
        held.release.set()
    assert b'callplex_calls_refused_total{why="busy"} 1.0' in full.telemetry.render()


async def test_a_call_that_comes_while_the_gateway_stops_reaches_the_fallback(tmp_path: Path) -> None:
    desk, held, stop = desk_in(tmp_path), HeldLeg(), asyncio.Event()

    async def serve() -> None:
        async with desk.open():
            await stop.wait()

    async with carrier_of(desk) as carrier, asyncio.TaskGroup() as tasks:
        ticket = await carrier.voice("CA2")
        gateway = tasks.create_task(serve())
        tasks.create_task(desk.answer(held, "bank"))
        async with asyncio.timeout(TIMEOUT):
            await held.listening.wait()
            stop.set()
            await held.hanging_up.wait()
        async with stream("CA2", ticket) as late:
            await let_go(late)
        assert await carrier.after("CA2") == [("Dial", "+15550999"), ("Hangup", None)]
        assert not gateway.done()
        held.release.set()
    assert desk.active_calls == 0
    assert b'callplex_calls_refused_total{why="draining"} 1.0' in desk.telemetry.render()


async def test_a_call_that_cannot_be_filed_does_not_stay_on_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, held = desk_in(tmp_path), HeldLeg()

    async def refuse(document: Mapping[str, Any]) -> None:
        raise TypeError("str is not valid UTF-8: surrogates not allowed")

    monkeypatch.setattr(desk.records, "finish", refuse)
    async with asyncio.timeout(TIMEOUT), desk.open():
        answering = asyncio.create_task(desk.answer(held, "bank"))
        await held.listening.wait()
        held.release.set()
        with pytest.raises(TypeError, match="surrogates"):
            await answering
        assert desk.active_calls == 0


async def test_a_call_that_is_cancelled_before_it_begins_is_let_go_and_filed(tmp_path: Path) -> None:
    desk, held = desk_in(tmp_path), HeldLeg()
    held.release.set()
    async with asyncio.timeout(TIMEOUT), desk.open():
        with closing(sqlite3.connect(tmp_path / "data" / "callplex.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # so that its beginning waits
            answering = asyncio.create_task(desk.answer(held, "bank"))
            while not desk.active_calls:  # noqa: ASYNC110
                await asyncio.sleep(0)
            answering.cancel()
            await asyncio.wait([answering], timeout=0.5)
            assert held.hanging_up.is_set()
        await asyncio.wait([answering])
        assert desk.active_calls == 0
    (transcript,) = (tmp_path / "data" / "calls").glob("*/transcript.json")
    assert json.loads(transcript.read_bytes())["end_reason"] == "shutdown"


async def test_whoever_watches_does_not_hold_up_the_end(tmp_path: Path) -> None:
    desk = desk_in(tmp_path)

    async def watch() -> int:
        return len([news async for news in desk.live.watch()])

    async with asyncio.timeout(TIMEOUT):
        async with desk.open():
            watching = asyncio.create_task(watch())
            await asyncio.sleep(0)
        assert await watching == 0
        assert await watch() == 0  # who comes later, too


async def test_a_call_that_cannot_be_planned_leaves_no_recording_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_in(tmp_path)

    def refuse(*arguments: object, **named: object) -> None:
        raise KeyError("variable")

    monkeypatch.setattr(desk_module, "session_request", refuse)
    with pytest.raises(KeyError):
        await desk.answer(HeldLeg(), "bank")
    assert not (tmp_path / "data").exists()
    assert desk.active_calls == 0


async def test_a_caller_who_comes_back_from_a_transfer_is_on_record_as_such(tmp_path: Path) -> None:
    desk = desk_in(tmp_path)
    held = HeldLeg(info=CallInfo("back", "+1", "+2", "memory", "CA-held", unreached="+3: nobody answered"))
    async with desk.open(), asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(desk.answer(held, "bank"))
        await held.playing.wait()
        held.release.set()
        await answering
    with closing(sqlite3.connect(tmp_path / "data" / "callplex.sqlite3")) as database:
        rows = database.execute(
            "select data from events where call_id = 'back' and kind = 'transfer_failed'"
        ).fetchall()
    assert [json.loads(data) for (data,) in rows] == [{"tried": "+3: nobody answered"}]


async def test_another_gateway_knows_how_a_call_ended(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    one, other = desk_in(tmp_path / "one", database_url=url), desk_in(tmp_path / "other", database_url=url)
    held = HeldLeg()
    async with one.open(), other.open(), carrier_of(other) as carrier:
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(one.answer(held, "bank"))
            await held.listening.wait()
            await held.playing.wait()
            held.release.set()
            await answering
        outcome = await other.outcome("CA-held")
        assert outcome is not None
        assert (outcome.reason, outcome.fallback) == ("caller_hangup", "+15550999")
        token = await one.tokens.issue(Ticket("CA1", "bank"))
        parameters = {"persona": "bank", "token": token}
        announced = (str(carrier.client.base_url).replace("http", "ws") + "/twilio/stream", parameters)
        async with stream("CA1", announced) as socket, asyncio.timeout(TIMEOUT):
            assert await socket.recv()


async def test_a_persona_that_is_deleted_before_the_line_is_open_leaves_the_number_s_fallback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = desk_in(tmp_path)
    personas = tmp_path / "personas"
    async with carrier_of(desk) as carrier, desk.open():
        ticket = await carrier.voice("CA1")
        (personas / "shop.yaml").write_text("voice: NATF0\nrole: You work for a shop.\n")
        (personas / "routing.yaml").write_text("default:\n  persona: shop\n  fallback: '+15550777'\n")
        (personas / "bank.yaml").unlink()
        assert desk.personas.reload() == []
        async with stream("CA1", ticket) as line:
            assert await let_go(line) == "busy"
        assert await carrier.after("CA1") == [("Dial", "+15550777"), ("Hangup", None)]
    assert "is not taken: there is no persona bank any more; +15550777 is dialled instead" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
    assert b'callplex_calls_refused_total{why="persona_gone"} 1.0' in desk.telemetry.render()


WATCHED_CALL = """
import asyncio, json, sys, threading
from pathlib import Path
from dataclasses import replace
from gateway.settings import load_settings
from gateway.desk import Desk
from tests.gateway.memory_line import MemoryLeg

folder, watched, seen = Path(sys.argv[1]), threading.Event(), []
FILES = ("open", "os.", "shutil.", "glob.", "fcntl.", "sqlite3.", "subprocess.", "socket.getaddrinfo", "tempfile.")

def hook(event, arguments):
    if watched.is_set() and threading.current_thread() is threading.main_thread() and event.startswith(FILES):
        seen.append(f"{event}{arguments!r}")

def leg(call_id):
    return MemoryLeg(seconds=1.0, info=replace(MemoryLeg(1.0).info, call_id=call_id, carrier_call_id="CA" + call_id))

async def main():
    desk = Desk(load_settings(personas=folder / "personas", data_dir=folder / "data", embedded_echo=True))
    async with desk.open():
        await desk.answer(leg("first"), "bank")  # what is imported only now is read from files
        sys.addaudithook(hook)
        watched.set()
        await desk.answer(leg("second"), "bank")
        await desk.archive.count()
        watched.clear()
    print(json.dumps(seen))

asyncio.run(main())
"""


async def test_a_call_opens_no_file_where_other_calls_would_wait_for_the_disk(tmp_path: Path) -> None:
    personas = tmp_path / "personas"
    personas.mkdir()
    persona = "voice: NATF0\nrole: You work for a bank.\nrecord: true\nredact: [card]\n"
    (personas / "bank.yaml").write_text(persona)
    (personas / "routing.yaml").write_text("default:\n  persona: bank\n")
    command = [sys.executable, "-c", WATCHED_CALL, str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert json.loads(output) == []
    for file in ("call.wav", "transcript.json"):
        assert (tmp_path / "data" / "calls" / "second" / file).stat().st_size > 0


async def test_a_call_that_changed_its_worker_is_counted(tmp_path: Path) -> None:
    async with token_worker("--capacity", "9") as first, token_worker() as second:
        desk = desk_in(tmp_path, workers=f"{first.url},{second.url}", embedded_echo=False)
        leg = HeldLeg()
        async with asyncio.timeout(30), desk.open():
            answering = asyncio.create_task(desk.answer(leg, "bank"))
            await leg.playing.wait()
            first.signal(signal.SIGTERM)
            await until(lambda: any(call.worker_changes for call in desk._calls))
            leg.release.set()
            await answering
        assert b"callplex_worker_changes_total 1.0" in desk.telemetry.render()
