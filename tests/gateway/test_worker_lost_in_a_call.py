"""A phone call whose worker is lost, from the caller's socket to the transcript: a whole gateway, two real workers."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import signal
from typing import Any

import httpx
import pytest

from gateway.audio import QUIET, decode_ulaw, level
from gateway.bench.child import Gateway, running_gateway
from gateway.bench.line import Line
from gateway.bench.load import LoadOrder, place_call
from tests.gateway.token_workers import WorkerProcess, busy, token_worker
from tests.token_model import HEARD_EVERY, WORD_EVERY

pytestmark = pytest.mark.anyio

NUMBER = "+15550100000"


async def speak(line: Line, frames: int) -> None:
    """The caller's next 20 ms frames, in time."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for number in range(frames):
        line.send_media(loop.time())
        await asyncio.sleep(max(0.0, begin + 0.02 * (number + 1) - loop.time()))


def gap(line: Line) -> float:
    """Longest silence that the caller heard once the agent had begun to speak, in seconds."""
    longest, heard_until = 0.0, 0.0
    for at, body in line.received:
        message = json.loads(body)
        pcm = decode_ulaw(base64.b64decode(message["media"]["payload"])) if message["event"] == "media" else b""
        if pcm and level(pcm) >= QUIET:
            if heard_until:
                longest = max(longest, at - heard_until)
            heard_until = max(at, heard_until) + len(pcm) / 2 / 8_000
    return longest


async def transcript(gateway: Gateway) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while not (found := list(gateway.data.glob("calls/*/transcript.json"))):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
    document: dict[str, Any] = json.loads(found[0].read_text())
    return document


def words(document: dict[str, Any], speaker: str) -> list[str]:
    said = " ".join(one["text"] for one in document["utterances"] if one["speaker"] == speaker)
    return said.split()


async def lose(worker: WorkerProcess, number: signal.Signals) -> tuple[Line, dict[str, Any]]:
    """A call of four seconds whose worker gets the signal after two; there is another."""
    async with token_worker() as other:
        urls = {"CALLPLEX_WORKERS": f"{worker.url},{other.url}", "CALLPLEX_ALLOW_UNSIGNED": "1"}
        with running_gateway(urls, core=None) as gateway:
            async with httpx.AsyncClient(timeout=20) as client:
                line = await place_call(client, LoadOrder(gateway.url, "", NUMBER, 1, 1.0, 0), 1)
            await speak(line, 100)
            await busy(worker)
            worker.signal(number)
            await speak(line, 100)
            await busy(other)
            await line.stop()
            return line, await transcript(gateway)


@pytest.mark.parametrize(
    ("number", "longest"),
    [
        pytest.param(signal.SIGKILL, 0.6, id="killed"),
        pytest.param(signal.SIGSTOP, 0.9, id="hung", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 0.6, id="stopped", marks=pytest.mark.long),
    ],
)
async def test_the_caller_hears_a_short_silence_and_the_transcript_has_every_word(
    number: signal.Signals, longest: float
) -> None:
    async with token_worker("--capacity", "9") as worker:
        line, document = await lose(worker, number)
    assert document["end_reason"] == "caller_hangup"
    metrics = document["metrics"]
    assert metrics["frames_in"] - metrics["frames_out"] <= 2
    assert gap(line) < longest

    last = metrics["frames_in"]
    caller = words(document, "caller")
    assert caller == [f"c{start}" for start in range(0, last, HEARD_EVERY)]
    agent = [int(word.removeprefix("a")) for word in words(document, "agent")]
    assert agent[0] == 0
    assert agent[-1] > last - 2 * WORD_EVERY
    steps = [later - earlier for earlier, later in itertools.pairwise(agent)]
    assert set(steps) <= {WORD_EVERY, 2 * WORD_EVERY, 3 * WORD_EVERY}
    assert sum(step > WORD_EVERY for step in steps) <= 1  # words that fell into the silence
