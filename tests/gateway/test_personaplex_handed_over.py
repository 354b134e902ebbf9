"""A worker is stopped or killed in a call: PersonaPlex on both sides, the whole way from phone to transcript."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.phone.call import CallOptions, place_call
from gateway.phone.caller import Clip
from gateway.phone.script import CALLERS
from gateway.phone.sound import read_wav
from model import wire
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.personaplex_workers import ActingCaller, gap, personaplex, ready, softly_speaking, write_persona
from tests.gateway.token_workers import WorkerProcess
from tests.model.tiny_folder import make_folder

pytestmark = [pytest.mark.anyio, pytest.mark.long]

DISCLOSURE = "this call is recorded for training and as a record and you are a kind and wise teacher on the corner"
"""Words the tiny tokenizer can spell, said whatever the caller does; the worker is stopped within them."""
DECLINED = read_wav(CALLERS / "bank-declined.wav")[2 * 8_000 * 5 // 10 : 2 * 8_000 * 87 // 10]
"""Eight seconds about a card that was declined in Miami."""


def told(worker: WorkerProcess, name: str) -> int:
    """A number of the worker's metrics."""
    text = httpx.get(worker.url.replace("ws", "http", 1).removesuffix(wire.PATH) + "/metrics", trust_env=False).text
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"callplex_worker_{name} ")))


def longest_call(gateway: GatewayProcess) -> dict[str, Any]:
    """The transcript of the call that had the most frames."""
    documents = [json.loads(path.read_text()) for path in gateway.data.glob("calls/*/transcript.json")]
    return dict(max(documents, key=lambda one: one["metrics"]["frames_in"]))


def said(document: dict[str, Any], speaker: str) -> str:
    return " ".join(one["text"] for one in document["utterances"] if one["speaker"] == speaker)


def begins_with(text: str, words: str) -> bool:
    """Whether it does; of one word, in which a worker may have been killed, what had been said may come twice."""
    parts = words.split()
    again = (
        [*parts[:place], word[:end], *parts[place:]]
        for place, word in enumerate(parts)
        for end in range(1, len(word) + 1)
    )
    return text.startswith(words) or any(text.startswith(" ".join(one)) for one in again)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 0, id="stopped"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
    ],
)
async def test_a_call_whose_worker_goes_is_held_by_another_and_all_of_it_is_written_down(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    weights = softly_speaking(make_folder(tmp_path / "weights", context=3000))
    personas = write_persona(tmp_path / "personas", f"disclosure: {DISCLOSURE}\n")
    async with AsyncExitStack() as stack:
        # The one with more slots gets the first call.
        first, second = await asyncio.gather(
            *(stack.enter_async_context(personaplex(weights, slots, PERSONAS=str(personas))) for slots in (3, 2))
        )
        settings = {
            "CALLPLEX_WORKERS": f"{first.url},{second.url}",
            "CALLPLEX_PERSONAS": str(personas),
            "CALLPLEX_ALLOW_UNSIGNED": "1",
        }
        gateway = stack.enter_context(running_gateway(tmp_path / "gateway", **settings))
        await ready(gateway)
        stopped = asyncio.Event()

        def stop() -> None:
            first.signal(number)
            stopped.set()

        caller = ActingCaller([Clip(DECLINED, after=0.5)], end=14, actions={4.0: stop})
        call = asyncio.create_task(place_call(CallOptions(gateway.url, caller, out=tmp_path / "heard")))
        await asyncio.wait([call, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        late = await place_call(CallOptions(gateway.url, ActingCaller([], end=1, actions={})))
        report = await call
        async with asyncio.timeout(5):
            assert await first.process.wait() == status

        assert (report.ended_by, late.ended_by) == ("caller", "caller")
        assert told(second, "sessions_total") == 2
        assert told(second, "resumed_total") == 1
        assert gateway.stop() == 0
    document = longest_call(gateway)
    assert document["end_reason"] == "caller_hangup"
    assert document["metrics"]["frames_in"] - document["metrics"]["frames_out"] <= 3
    assert gap(Path(report.agent_wav)) < 0.6
    if number == signal.SIGTERM:
        assert said(document, "agent").startswith(DISCLOSURE)
    assert begins_with(said(document, "agent"), DISCLOSURE)
    heard = said(document, "caller").lower()
    # Once each: what was being said as the worker went is heard by the next, and by that alone.
    assert [heard.count(word) for word in ("card", "declined", "miami", "going on")] == [1, 1, 1, 1], heard
