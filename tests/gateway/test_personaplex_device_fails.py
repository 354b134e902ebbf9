"""The device fails in mid-call: its process ends, the gateway starts another, and the call goes on or is sent on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.phone.call import CallOptions, place_call
from tests.gateway import failing_device
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.personaplex_workers import ActingCaller, gap, ready, write_persona
from tests.model.tiny_folder import make_folder

pytestmark = [pytest.mark.anyio, pytest.mark.long]

FAILING_FRAME = 25
FALLBACK = "+12065550100"
SAID = "the device has failed: CUDA error: an illegal memory access was encountered"


@contextmanager
def gateway_that_fails(tmp_path: Path, **more: str) -> Iterator[GatewayProcess]:
    settings = {
        "CALLPLEX_ENGINE": "personaplex",
        "CALLPLEX_WEIGHTS_DIR": str(make_folder(tmp_path / "weights", context=3000).path),
        "CALLPLEX_PERSONAS": str(write_persona(tmp_path / "personas", f"fallback: '{FALLBACK}'\n")),
        "CALLPLEX_SLOTS": "1",
        "CALLPLEX_DEVICE": "cpu",
        "CALLPLEX_TRANSCRIBER": "none",
        "CALLPLEX_ALLOW_UNSIGNED": "1",
        "PYTHONPATH": str(Path(failing_device.__file__).parent),
        "FAILED_ONCE": str(tmp_path / "failed"),
        "FAILING_FRAME": str(FAILING_FRAME),
    }
    with running_gateway(tmp_path / "gateway", **settings, **more) as gateway:
        yield gateway


def transcript(gateway: GatewayProcess) -> dict[str, Any]:
    (path,) = gateway.data.glob("calls/*/transcript.json")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


async def test_the_engine_ends_is_started_again_and_the_call_goes_on(tmp_path: Path) -> None:
    with gateway_that_fails(tmp_path) as gateway:
        await ready(gateway)
        before = psutil.Process(gateway.process.pid).children(recursive=True)
        caller = ActingCaller([], end=14, actions={})
        report = await place_call(CallOptions(gateway.url, caller, out=tmp_path / "heard"))
        said = gateway.log.read_text()
        assert report.ended_by == "caller", said
        assert SAID in said
        assert len(before) >= 2
        assert not any(process.is_running() for process in before)
        await ready(gateway)
        assert gateway.stop() == 0
        document = transcript(gateway)
    metrics = document["metrics"]
    assert document["end_reason"] == "caller_hangup"
    assert metrics["frames_in"] - metrics["frames_out"] <= 3
    # Half a second's pause before the start, and the start itself.
    assert 0.5 < gap(Path(report.agent_wav), after=1) < 9


async def test_where_no_engine_starts_again_the_call_is_sent_to_its_personas_fallback(tmp_path: Path) -> None:
    with gateway_that_fails(tmp_path, FAILS_FOR_GOOD="1") as gateway:
        await ready(gateway)
        report = await place_call(CallOptions(gateway.url, ActingCaller([], end=30, actions={})))
        assert (report.ended_by, report.transfer) == ("transfer", FALLBACK)
        assert gateway.get("/readyz").status_code == 503
        assert gateway.log.read_text().count(SAID) >= 2
        assert gateway.stop() == 0
        document = transcript(gateway)
    assert document["end_reason"] == "worker_lost"
    assert 0 <= document["metrics"]["caller_unheard_after"] <= report.duration
