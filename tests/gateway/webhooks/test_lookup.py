"""The look-up before the call: what it brings, and that it never costs more than its budget."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from gateway.persona_model import Persona
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.lookup import CallerLookup
from tests.gateway.webhooks.receiver import SECRET, Receiver, settings

pytestmark = pytest.mark.anyio

PLAIN = {"name": "Ann", "voice": "NATF0", "role": "You work for a bank."}
PERSONA = Persona.model_validate({**PLAIN, "variables": {"customer": "", "balance": "unknown"}}).identified("bank", "0")


def lookup_yaml(url: str, more: str = "") -> str:
    return f"lookup:\n  url: {url}\n  secrets: [CALLPLEX_WEBHOOK_SECRET]\n  allow: [127.0.0.1]\n{more}"


@asynccontextmanager
async def asking(folder: Path, receiver: Receiver, more: str = "") -> AsyncIterator[CallerLookup]:
    async with receiver.listening():
        lookup = CallerLookup(EndpointStore(settings(folder, lookup_yaml(receiver.url, more))))
        yield lookup
        await lookup.close()


def says(answer: object) -> Receiver:
    return Receiver(answer=lambda _: (200, {}, json.dumps(answer).encode()))


async def ask(lookup: CallerLookup) -> dict[str, str]:
    return await lookup.variables("call_1", PERSONA, "+15550199", "+15550100")


async def test_it_asks_signed_and_takes_what_the_persona_declares(tmp_path: Path) -> None:
    given = {"customer": "Ann Lee", "balance": 12.5, "password": "x", "caller_number": "y"}
    receiver = says({"variables": given})
    async with asking(tmp_path, receiver) as lookup:
        assert await ask(lookup) == {"customer": "Ann Lee", "balance": "12.5"}
        assert await ask(lookup) == {"customer": "Ann Lee", "balance": "12.5"}
        assert lookup.unanswered == 0
    assert receiver.connections == 1
    question = Webhook(SECRET).verify(receiver.got[0].body, receiver.got[0].headers)
    assert question["type"] == "call.lookup"
    assert question["data"] == {
        "call_id": "call_1",
        "persona": "bank",
        "from": "+15550199",
        "to": "+15550100",
        "variables": ["customer", "balance"],
    }
    assert receiver.ids[0] != receiver.ids[1]


async def test_without_an_answer_the_budget_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with asking(tmp_path, Receiver(hang=99)) as lookup:
        await ask(lookup)
        began = time.perf_counter()
        many = await asyncio.gather(*(ask(lookup) for _ in range(20)))
        assert time.perf_counter() - began < 0.4 + 0.3
        assert many == [{}] * 20
        assert lookup.unanswered == 21
    assert "no answer within 400 ms; the defaults are used" in caplog.text
    assert "+15550199" not in caplog.text


async def test_a_dripping_answer_keeps_to_the_budget_too(tmp_path: Path) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with asking(tmp_path, Receiver(stream=drip), "  budget_ms: 100\n") as lookup:
        began = time.perf_counter()
        assert await ask(lookup) == {}
        assert time.perf_counter() - began < 0.4


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        (Receiver([500]), "it answered 500"),
        (Receiver([302], {"location": "http://10.0.0.1/"}), "it answered 302"),
        (Receiver(raw=b"SSH-2.0\r\n"), "the connection broke"),
        (Receiver(answer=lambda _: (200, {}, b"<html>")), "its answer is not JSON"),
        (Receiver(answer=lambda _: (200, {}, b"[]")), "holds no `variables`"),
        (Receiver(answer=lambda _: (200, {}, b'{"variables": []}')), "holds no `variables`"),
        (Receiver(answer=lambda _: (200, {}, b" " * (10 << 20))), "longer than 64 KiB"),
    ],
)
async def test_an_answer_that_says_nothing_leaves_the_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, receiver: Receiver, reason: str
) -> None:
    async with asking(tmp_path, receiver, "  budget_ms: 2000\n") as lookup:
        assert await ask(lookup) == {}
        assert lookup.unanswered == 1
    assert reason in caplog.text


async def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    async with asking(tmp_path, says({"variables": {"customer": {"name": "Ann"}, "balance": None}})) as lookup:
        assert await ask(lookup) == {}


async def test_nobody_is_asked_where_there_is_nothing_to_ask(tmp_path: Path) -> None:
    receiver = says({"variables": {}})
    plain = Persona.model_validate(PLAIN)
    async with asking(tmp_path, receiver, "  personas: [bank]\n") as lookup:
        assert await lookup.variables("call_1", plain, "+15550199", "+15550100") == {}
        assert await lookup.variables("call_1", PERSONA, "", "+15550100") == {}
        assert await lookup.variables("call_1", PERSONA.identified("other", ""), "+15550199", "+1") == {}
    assert receiver.got == []
    without = CallerLookup(EndpointStore(settings(tmp_path / "none")))
    assert await ask(without) == {}


async def test_it_follows_the_file(tmp_path: Path) -> None:
    async with says({"variables": {"customer": "Ann"}}).listening() as first:
        store = EndpointStore(settings(tmp_path, lookup_yaml(first.url)))
        lookup = CallerLookup(store)
        assert await ask(lookup) == {"customer": "Ann"}
        async with says({"variables": {"customer": "Bob"}}).listening() as second:
            (tmp_path / "personas" / "webhooks.yaml").write_text(lookup_yaml(second.url, "  budget_ms: 500\n"))
            assert store.reload() == []
            assert await ask(lookup) == {"customer": "Bob"}
        await lookup.close()


async def test_a_question_under_way_is_answered_when_the_file_changes(tmp_path: Path) -> None:
    """Closing the connection that it is asked through would end the call."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await answer.wait()
        body = b'{"variables": {"customer": "Ann"}}'
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    receiver = Receiver(stream=late)
    async with receiver.listening():
        found = settings(tmp_path, lookup_yaml(receiver.url, "  budget_ms: 2000\n"))
        store = EndpointStore(found)
        lookup = CallerLookup(store)
        first = asyncio.create_task(ask(lookup))
        await asked.wait()
        (found.personas / "webhooks.yaml").write_text(lookup_yaml(receiver.url, "  budget_ms: 1900\n"))
        assert store.reload() == []
        asked.clear()
        second = asyncio.create_task(ask(lookup))
        await asked.wait()
        answer.set()
        assert [await first, await second] == [{"customer": "Ann"}] * 2
        await lookup.close()
