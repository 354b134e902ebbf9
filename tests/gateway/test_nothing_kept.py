"""What a call needs to go on elsewhere is in the gateway's memory only: a gateway that is killed leaves none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gateway.audio import decode_ulaw, encode_ulaw
from gateway.phone.call import CallOptions, place_call
from gateway.phone.caller import Clip, ScriptedCaller
from model.wire import AgentFrame, CallerFrame, SessionRequest
from tests.gateway.gateway_process import running_gateway
from tests.gateway.personaplex_workers import ready, write_persona
from tests.model.worker_connections import serving
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

pytestmark = pytest.mark.anyio

FRAMES = 40
PIECE = 32
"""Bytes: 64 in a row, from wherever in what is looked for, hold a whole piece of it."""


class KnownModel(TokenModel):
    """Remembers the caller's sound at 24 kHz and the columns of the session."""

    def __init__(self) -> None:
        super().__init__()
        self.pcm, self.columns, self.enough = list[bytes](), list[bytes](), asyncio.Event()


class KnownSession(TokenSession):
    def __init__(self, model: KnownModel) -> None:
        super().__init__(model)
        self._known = model

    def push(self, frame: CallerFrame) -> None:
        already = len(self._pending)
        super().push(frame)
        self._known.pcm.append(frame.pcm)
        said = list(self._pending)[already:]
        self._known.columns += [output.tokens for output in said if isinstance(output, AgentFrame)]
        if len(self._known.pcm) == FRAMES:
            self._known.enough.set()


class KnownEngine(TokenEngine):
    """For one call."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KnownModel()

    async def open(self, request: SessionRequest) -> TokenSession:
        return KnownSession(self.model)


def pieces(known: Iterable[bytes]) -> set[bytes]:
    """All that would be recognised: not silence, which any file may hold."""
    cut = (one[at : at + PIECE] for one in known for at in range(0, len(one) - PIECE + 1, PIECE))
    return {piece for piece in cut if len(set(piece)) > PIECE // 4}


def holding(folder: Path, wanted: set[bytes]) -> set[str]:
    """Names of the files below `folder` in which any of it lies, at whatever place."""
    read = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name for name, data in read.items() if any(data[at : at + PIECE] in wanted for at in range(len(data)))}


async def test_a_killed_gateway_leaves_neither_sound_nor_tokens_of_a_call_that_is_not_recorded(tmp_path: Path) -> None:
    engine, folder = KnownEngine(), tmp_path / "gateway"
    line = np.random.default_rng(5).integers(-9_000, 9_000, 8_000 * 60).astype(np.int16).tobytes()
    spoken = encode_ulaw(line)
    async with serving(engine, capacity=4) as worker:
        settings = {
            "CALLPLEX_WORKERS": worker.url,
            "CALLPLEX_PERSONAS": str(write_persona(tmp_path / "personas")),
            "CALLPLEX_ALLOW_UNSIGNED": "1",
            "CALLPLEX_LOG_LEVEL": "debug",
            "TMPDIR": str(folder),
        }
        with running_gateway(folder, **settings) as gateway:
            await ready(gateway)
            call = asyncio.create_task(place_call(CallOptions(gateway.url, ScriptedCaller([Clip(line)]))))
            async with asyncio.timeout(60):
                await asyncio.wait(
                    [call, asyncio.create_task(engine.model.enough.wait())], return_when=asyncio.FIRST_COMPLETED
                )
            assert engine.model.enough.is_set(), gateway.log.read_text()
            gateway.process.kill()
            gateway.process.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    assert gateway.has_answered()
    heard = [engine.model.pcm, [b"".join(engine.model.columns)], [decode_ulaw(spoken)], [spoken]]
    wanted = [pieces(known) for known in heard]
    assert all(len(each) > FRAMES for each in wanted)
    assert holding(folder, set().union(*wanted)) == set()

    for known in heard:
        (folder / "data" / "planted").write_bytes(b"odd" + known[-1][101:165] + b"odd")
        assert holding(folder, pieces(known)) == {"planted"}, "it would have been found"
