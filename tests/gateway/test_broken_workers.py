"""Workers that say what cannot be: the session leaves them, and nothing of it is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from model.wire import TOKENS_BYTES, AgentFrame, Columns, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import freezing
from tests.gateway.token_workers import Caller
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

AT = 12
"""The answer in place of which the worker says something else."""


class LyingEngine(TokenEngine):
    def __init__(self, lie: Callable[[AgentFrame], Output]) -> None:
        super().__init__()
        self._lie = lie

    async def open(self, request: SessionRequest) -> TokenSession:
        lie = self._lie

        class Lying(TokenSession):
            async def outputs(self) -> AsyncIterator[Output]:
                async for output in super().outputs():
                    told = isinstance(output, AgentFrame) and output.index == AT
                    yield lie(output) if told and isinstance(output, AgentFrame) else output

        return Lying(TokenModel())


def at(index: int) -> Callable[[AgentFrame], Output]:
    return lambda frame: AgentFrame(index, frame.pcm, frame.tokens)


def columns(index: int, count: int) -> Callable[[AgentFrame], Output]:
    return lambda _: Columns(index, bytes(TOKENS_BYTES * count))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        pytest.param(at(60_000), "it answered frame 60000 where 12 of 13 was due", id="far-ahead"),
        pytest.param(at(2**32 - 1), "it answered frame 4294967295 where 12 of 13 was due", id="farther-ahead"),
        pytest.param(at(13), "it answered frame 13 where 12 of 13 was due", id="not-sent-yet"),
        pytest.param(at(11), "it answered frame 11 where 12 of 13 was due", id="again"),
        pytest.param(columns(60_000, 1), "frame 60000 has not been sent, only 13 have", id="columns"),
        pytest.param(columns(10, 4), "frame 13 has not been sent, only 13 have", id="beyond"),
    ],
)
def test_a_worker_that_answers_what_cannot_be_is_left(lie: Callable[[AgentFrame], Output], words: str) -> None:
    async def scenario() -> Caller:
        async with freezing(8, 4, engines=[LyingEngine(lie)]) as (_, pool, calls):
            caller = await Caller().call(calls, 40)
            assert pool.workers[0].suspect
            return caller

    caller = virtual_time.run(scenario())
    caller.check()
    (change,) = caller.changes
    assert "broke the protocol: " in change.reason
    assert words in change.reason
    assert change.worker == "worker-of-4"
    assert AT in caller.missed
    assert len(caller.missed) <= 3
