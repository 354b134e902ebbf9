"""Consent on a real call: the gateway, the rehearsal engine and the phone as processes, over loopback."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gateway.phone.call import CallOptions, place_call
from gateway.phone.caller import Clip, ScriptedCaller, Voice
from gateway.phone.metrics import Turn
from gateway.phone.script import CALLERS
from gateway.phone.sound import read_wav
from tests.gateway.gateway_process import REPOSITORY, GatewayProcess, running_gateway

pytestmark = pytest.mark.long

LINE = "This call is recorded. If you do not agree, please hang up."
HOURS = read_wav(CALLERS / "bank-hours.wav")[2 * 8_000 * 6 // 10 : 2 * 8_000 * 43 // 10]
"""Asks at what time the branch closes on Saturday."""
LAST = read_wav(CALLERS / "bank-hours.wav")[2 * 8_000 * 112 // 10 : 2 * 8_000 * 13]
"""Says thanks and goodbye."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("consent")
    personas = folder / "personas"
    personas.mkdir()
    bank = (REPOSITORY / "personas" / "bank" / "first-neuron-bank.yaml").read_text()
    kept = [line for line in bank.splitlines() if not line.startswith(("record:", "redact:"))]
    kept += ["record: true", "recording:", f"  consent: {LINE}"]
    (personas / "bank.yaml").write_text("\n".join(kept) + "\n")
    (personas / "routing.yaml").write_text("default:\n  persona: bank\n")
    with running_gateway(folder, CALLPLEX_ENGINE="rehearsal", CALLPLEX_PERSONAS=str(personas)) as running:
        yield running


def called(gateway: GatewayProcess, voice: Voice) -> dict[str, Any]:
    """Place the call; returns its record, read as an operator would."""
    asyncio.run(place_call(CallOptions(gateway.url, voice)))
    newest = gateway.get_admin("/api/calls").json()["calls"][0]
    record: dict[str, Any] = gateway.get_admin(f"/api/calls/{newest['call_id']}").json()
    return record


def consent_of(record: dict[str, Any]) -> dict[str, Any]:
    (event,) = [one["data"] for one in record["events"] if one["kind"] == "consent"]
    found: dict[str, Any] = event
    return found


def begins(gateway: GatewayProcess, record: dict[str, Any]) -> float:
    """Seconds at which the recording has its first sound."""
    with wave.open(str(gateway.data / "calls" / record["call_id"] / "call.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
    return float(np.argmax(np.abs(sound).max(axis=1) > 0)) / 8_000


def test_a_caller_who_waits_is_recorded_once_the_line_was_heard(gateway: GatewayProcess) -> None:
    voice = ScriptedCaller([Clip(HOURS, "agent_finished", 1.2), Clip(LAST, "agent_finished", 1.2)])
    record = called(gateway, voice)
    consent = consent_of(record)
    assert consent["heard"]
    assert consent["line"] == LINE
    assert record["recorded"]
    assert begins(gateway, record) >= consent["at"] - 0.01
    said = [(one["speaker"], one["text"].lower()) for one in record["utterances"]]
    assert any(speaker == "caller" and "saturday" in text for speaker, text in said)
    assert not any("please hang up" in text for _, text in said), "the line itself came before anything was kept"
    assert all(0 < one["confidence"] <= 1 for one in record["utterances"] if one["speaker"] == "caller")
    # The agent goes on speaking while the last word is played.
    assert min(one["start"] for one in record["utterances"]) >= consent["at"] - 0.5


def test_a_caller_who_talks_over_the_line_hears_it_again_and_is_recorded_only_then(gateway: GatewayProcess) -> None:
    voice = ScriptedCaller(
        [
            Clip(HOURS, "agent_speaking", 1.5, (Turn(0.0, 3.7, "Hello"),)),
            Clip(HOURS, "agent_finished", 4.0, (Turn(0.0, 3.7, "Hello"),)),
            Clip(LAST, "agent_finished", 4.0, (Turn(0.0, 1.8, "Great"),)),
        ],
        quiet=5.0,
    )
    record = called(gateway, voice)
    consent = consent_of(record)
    assert consent["heard"]
    assert begins(gateway, record) >= consent["at"] - 0.01, gateway.log.read_text()
    over_the_line, *later = [turn.start for turn in voice.turns]
    assert over_the_line < consent["at"]
    heard = [one for one in record["utterances"] if one["speaker"] == "caller"]
    assert 1 <= len(heard) <= len(later)
    assert all(one["start"] >= consent["at"] for one in heard)
