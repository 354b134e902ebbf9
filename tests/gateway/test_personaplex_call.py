"""A telephone call to the duplex model: phone, gateway, worker and engine as processes, with tiny weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gateway.phone.script import CALLERS
from tests.gateway.gateway_process import running_gateway
from tests.model.tiny_folder import VOICE, make_folder

NUMBER = "+12065550198"
"""The teacher's: a persona with a greeting and no fallback."""


def test_a_call_is_answered_by_the_duplex_model_and_leaves_its_transcript(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "weights", context=3000)
    shutil.copyfile(folder.voices / f"{VOICE}.pt", folder.voices / "NATF3.pt")
    # A tiny model never falls silent: the caller hangs up when it has been answered at all.
    caller = tmp_path / "caller.json"
    clip = {"wav": str(CALLERS / "bank-hours.wav"), "from": 11.4, "to": 12.8, "text": "Great, thanks, bye."}
    caller.write_text(json.dumps({"quiet": 0, "linger": 3, "clips": [{**clip, "when": "at_once", "after": 0.2}]}))
    settings = {
        "ENGINE": "personaplex",
        "WEIGHTS_DIR": str(folder.path),
        "SLOTS": "1",
        "DEVICE": "cpu",
        "TRANSCRIBER": "none",
        "ALLOW_UNSIGNED": "true",
    }
    with running_gateway(tmp_path / "gateway", **{f"CALLPLEX_{name}": value for name, value in settings.items()}) as up:
        command = [sys.executable, "-m", "gateway.cli", "call", "--wav", str(caller), "--to", NUMBER, "--url", up.url]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("CALLPLEX_")}
        done = subprocess.run([*command, "--json"], env=plain, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr + up.log.read_text()
        assert up.stop() == 0
        (written,) = up.data.glob("calls/*/transcript.json")
        transcript = json.loads(written.read_text())
    assert transcript["engine"] == "personaplex"
    metrics = transcript["metrics"]
    assert metrics["frames_out"] >= metrics["frames_in"] - 3 > 10
    assert any(utterance["speaker"] == "agent" for utterance in transcript["utterances"])
