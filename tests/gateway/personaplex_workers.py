"""Real worker processes with PersonaPlex on tiny weights, and a caller who speaks to a gateway in front of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file, save_file

from gateway.phone.caller import Clip, ScriptedCaller
from gateway.phone.metrics import sound_spans
from gateway.phone.sound import read_wav
from model.folder import ModelFolder
from tests.gateway.gateway_process import GatewayProcess, environment
from tests.gateway.token_workers import ROOT, WorkerProcess
from tests.model.tiny_folder import VOICE

PERSONA = f"""\
name: Teacher
voice: {VOICE}
role: You are a kind teacher.
record: false
"""
ROUTING = "default: {persona: teacher}\n"

_LAST = 14
"""The layer of the codec's decoder that sound comes out of."""
_SOFT = 0.1


@asynccontextmanager
async def personaplex(weights: Path, slots: int, **settings: str) -> AsyncIterator[WorkerProcess]:
    """`callplex worker` on a CPU; `settings` by their names in the environment, without prefix."""
    settings = {
        "ENGINE": "personaplex",
        "WEIGHTS_DIR": str(weights),
        "WORKER_LISTEN": "127.0.0.1:0",
        "SLOTS": str(slots),
        "DEVICE": "cpu",
        **settings,
    }
    variables = environment(weights / "data", **{f"CALLPLEX_{name}": value for name, value in settings.items()})
    command = (sys.executable, "-m", "gateway.cli", "worker")
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=variables, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield WorkerProcess(process, json.loads(line)["listening"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def softly_speaking(folder: ModelFolder) -> Path:
    """The tiny model speaks in noise without a pause; at full strength a caller is taken for its echo, and left out."""
    codec = load_file(folder.mimi)
    for name in (f"decoder.model.{_LAST}.conv.conv.{kind}" for kind in ("weight", "bias")):
        codec[name] = codec[name] * _SOFT
    save_file(codec, folder.mimi)
    return folder.path


def write_persona(folder: Path, more: str = "") -> Path:
    """A folder of personas with the one who answers every number; `more`: lines of its YAML."""
    folder.mkdir()
    (folder / "teacher.yaml").write_text(PERSONA + more)
    (folder / "routing.yaml").write_text(ROUTING)
    return folder


async def ready(gateway: GatewayProcess) -> None:
    """Wait until the gateway would take a call."""
    async with asyncio.timeout(60):
        while gateway.get("/readyz").status_code != 200:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)


class ActingCaller(ScriptedCaller):
    """Says clips, does things at certain seconds, and hangs up at `end`: a tiny model never falls silent."""

    def __init__(self, clips: Sequence[Clip], end: float, actions: Mapping[float, Callable[[], object]]) -> None:
        super().__init__(clips)
        self._ticks_left = round(end * 50)
        self._actions = {round(at * 50): action for at, action in actions.items()}
        self._tick = 0

    @property
    def hung_up(self) -> bool:
        return self._ticks_left <= 0

    def step(self, heard: bytes) -> bytes:
        if action := self._actions.pop(self._tick, None):
            action()
        self._tick += 1
        self._ticks_left -= 1
        return super().step(heard)


def gap(agent_wav: Path, after: float = 0.0) -> float:
    """Longest silence that the caller heard once the agent had begun, in seconds; one below 0.3 s counts as none."""
    spans = [span for span in sound_spans(read_wav(agent_wav)) if span.end > after]
    return max((later.start - earlier.end for earlier, later in pairwise(spans)), default=0.0)
