"""The demo's judgement, screen and receiver; the whole demo with real processes is a long test."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import wave
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
import pytest
from rich.console import Console
from standardwebhooks import Webhook

from gateway.demo import Evidence, find_recording, missing, summary
from gateway.demo_screen import STILL, Conversation, print_result
from gateway.phone.call import CallReport
from gateway.phone.metrics import Metrics, Turn
from gateway.phone.script import CALLERS, load_caller
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.webhook_receiver import WebhookReceiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def utterance(speaker: str, text: str = "words", interrupted: bool = False) -> dict[str, Any]:
    return {"speaker": speaker, "text": text, "start": 1.0, "end": 2.0, "interrupted": interrupted}


DOCUMENT: dict[str, Any] = {
    "call_id": "c",
    "end_reason": "agent_goodbye",
    "utterances": [*[utterance("caller")] * 4, utterance("agent"), utterance("agent", interrupted=True)],
}
REPORT = CallReport(
    "CA1", "http://x", "gateway", turns=[Turn(0, 1)] * 4, metrics=Metrics(answer_ms=5.0, interruption_ms=[250.0])
)
GOOD = Evidence(REPORT, DOCUMENT, 0, "/x/call.wav", (True, True), True)


def test_all_of_it_happened() -> None:
    assert missing(GOOD) == []
    assert summary(GOOD, [])["ok"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unsigned_refused": False}, "without a signature"),
        ({"report": replace(REPORT, metrics=replace(REPORT.metrics, answer_ms=None))}, "not answered"),
        ({"report": replace(REPORT, detail="The gateway dropped it.")}, "dropped it"),
        ({"report": replace(REPORT, metrics=replace(REPORT.metrics, interruption_ms=[]))}, "not interrupted"),
        ({"report": replace(REPORT, ended_by="caller")}, "goodbye"),
        ({"document": {**DOCUMENT, "end_reason": "worker_lost"}}, "worker_lost"),
        ({"document": {**DOCUMENT, "utterances": DOCUMENT["utterances"][2:]}}, "4 turns 2 were recognised"),
        ({"recording": "", "sound": (False, False)}, "no stereo recording"),
        ({"sound": (True, False)}, "lacks the sound"),
    ],
)
def test_each_thing_that_is_missing_is_one_sentence(change: dict[str, Any], words: str) -> None:
    [sentence] = missing(replace(GOOD, **change))
    assert words in sentence
    assert sentence.endswith(".")


def test_without_a_webhook_nothing_is_believed() -> None:
    sentences = missing(replace(GOOD, document={}, refused_webhooks=2))
    assert any("No verified webhook" in one and "2 refused" in one for one in sentences)
    assert len(sentences) == 4


def test_the_recorded_caller_asks_interrupts_and_says_goodbye() -> None:
    caller = load_caller(CALLERS / "demo.json")
    clips = caller.__dict__["_clips"]
    assert [clip.when for clip in clips] == ["agent_finished", "agent_finished", "agent_speaking", "agent_finished"]
    assert "Goodbye" in clips[-1].turns[0].text


def test_lines_are_whole_where_they_cannot_grow() -> None:
    out = io.StringIO()
    with Conversation(Console(file=out, width=200)) as conversation:
        live = {"number": 1, "speaker": "agent", "at": 0.1, "interrupted": False}
        conversation.show({**live, "text": "How can"}, 0.0)
        conversation.show({**live, "text": "How can I help?"}, 0.2)
        conversation.show({"number": 2, "speaker": "caller", "text": "My", "at": 2.0}, 0.3)
        conversation.show({**live, "text": "How can I", "interrupted": True}, 0.4)
        assert out.getvalue() == ""
        conversation.show({"number": 2, "speaker": "caller", "text": "My card", "at": 2.0}, 0.4 + STILL)
        assert out.getvalue() == "   0.1 s  agent   How can I  (interrupted)\n"
        conversation.show({"number": 3, "speaker": "agent", "text": "Oh", "at": 4.0}, 3.0)
        conversation.show({"number": 3, "speaker": "agent", "text": "", "at": 4.0}, 3.1)
    assert out.getvalue().splitlines()[1:] == ["   2.0 s  caller  My card"]


def test_the_result_names_figures_files_and_what_is_missing() -> None:
    out = io.StringIO()
    print_result(
        Console(file=out, width=80), REPORT.metrics, DOCUMENT, {"stereo recording": "/x/call.wav"}, ["No [a] b."]
    )
    text = out.getvalue()
    assert "250 ms" in text
    assert "/x/call.wav" in text
    assert "No [a] b." in text
    assert "All of it happened" not in text


@pytest.mark.anyio
async def test_the_receiver_believes_only_what_is_signed() -> None:
    receiver = WebhookReceiver(SECRET)
    body = json.dumps({"type": "call.ended", "data": {"call_id": "c"}})
    now = datetime.now(UTC)
    signed = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", now, body),
    }
    with receiver.listening():
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            assert (await client.post(receiver.url, content=body)).status_code == 400
            assert (await client.post(receiver.url, content=body + " ", headers=signed)).status_code == 400
            assert (await client.post(receiver.url, content=body, headers=signed)).status_code == 204
        async with asyncio.timeout(5):
            assert (await receiver.events.get())["data"] == {"call_id": "c"}
    assert receiver.refused == 2


DEMO = [sys.executable, "-m", "gateway.cli", "demo", "--json"]


@pytest.mark.long
def test_the_whole_demo(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    result = json.loads(done.stdout)
    assert result["missing"] == []
    assert done.returncode == 0
    assert (tmp_path / result["recording"]).is_file()


def test_a_demo_that_cannot_start_its_gateway_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CALLPLEX_WORKER_CAPACITY": "0"}
    done = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert "CALLPLEX_WORKER_CAPACITY" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_the_call_leaves_no_child_behind(tmp_path: Path) -> None:
    demo = subprocess.Popen(DEMO[:-1], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(120, demo.kill)
    watchdog.start()
    assert demo.stdout is not None
    try:
        said = [line for line in iter(demo.stdout.readline, "Calling it:\n") if line or pytest.fail("it ended")]
        assert "ready" in "".join(said)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) == 2
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
        assert psutil.wait_procs(children, timeout=10)[1] == []
        assert "Traceback" not in demo.stdout.read()
    finally:
        watchdog.cancel()
        demo.kill()
        demo.communicate()


@pytest.mark.parametrize("kind", ["wav", "opus"])
def test_the_gateways_own_recording_is_found_in_either_format(tmp_path: Path, kind: Literal["wav", "opus"]) -> None:
    recorder = Recorder(RecordingPlan(tmp_path / "calls" / "c1", kind))
    tone = (np.sin(np.arange(640) * 0.3) * 8_000).astype(np.int16).tobytes()
    for _ in range(50):
        recorder.write(tone, bytes(1280))
    recorder.close().result(10)
    assert find_recording(tmp_path, "c1") == (str(tmp_path / "calls" / "c1" / f"call.{kind}"), (True, False))


def test_without_it_the_phones_recording_is_named_and_without_that_none(tmp_path: Path) -> None:
    assert find_recording(tmp_path, "c1") == ("", (False, False))
    own = tmp_path / "calls" / "c1"
    own.mkdir(parents=True)
    (own / "call.opus").write_bytes(b"OggS, and then nothing of the kind")
    with wave.open(str(tmp_path / "call.wav"), "wb") as file:
        file.setparams((2, 2, 8_000, 0, "NONE", ""))
        file.writeframes(np.full(3_200, 9_000, np.int16).tobytes())
    assert find_recording(tmp_path, "c1") == (str(tmp_path / "call.wav"), (True, True))
