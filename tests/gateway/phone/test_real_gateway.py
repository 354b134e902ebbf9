"""The phone, its command and the real gateway with its echo engine, as processes over loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.phone.metrics import sound_spans
from gateway.phone.script import CALLERS
from gateway.phone.sound import write_wav

TOKEN = "fedcba9876543210fedcba9876543210"
PERSONAS = Path(__file__).parents[3] / "personas"
READY = re.compile(r"ready on (\S+);")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gateway")
    settings = {
        "LISTEN": "127.0.0.1:0",
        "ADMIN_LISTEN": "127.0.0.1:0",
        "EMBEDDED_ECHO": "true",
        "TWILIO_AUTH_TOKEN": TOKEN,
        "PERSONAS": str(PERSONAS),
        "DATA_DIR": str(folder / "data"),
    }
    environment = {**os.environ, **{f"CALLPLEX_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "gateway.cli", "serve"]
    server = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    # A gateway that never gets ready must not hang the tests.
    watchdog = threading.Timer(60, server.kill)
    watchdog.start()
    try:
        said = ""
        for line in server.stderr:
            said += line
            if found := READY.search(line):
                break
        else:
            pytest.fail(f"the gateway did not start: {said}")
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield f"http://{found[1]}"
    finally:
        watchdog.cancel()
        server.terminate()
        server.wait(20)
        server.stderr.close()


def phone(url: str, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CALLPLEX_TWILIO_AUTH_TOKEN": token}
    command = [sys.executable, "-m", "gateway.cli", "call", "--url", url, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def short_caller(tmp_path: Path) -> Path:
    """Says the end of a recording, then waits for its echo."""
    clip = {"wav": str(CALLERS / "bank-hours.wav"), "from": 11.4, "to": 12.8, "text": "Great, thanks, bye."}
    script = {"quiet": 0.6, "linger": 2, "clips": [{**clip, "when": "at_once", "after": 0.2}]}
    path = tmp_path / "caller.json"
    path.write_text(json.dumps(script))
    return path


def test_the_echo_comes_back_whole_and_soon(gateway: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = phone(gateway, "--wav", str(short_caller(tmp_path)), "--out", str(out), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["ended_by"] == "caller"
    assert report["turns"][0]["text"] == "Great, thanks, bye."
    assert report["metrics"]["frames_received"] >= report["metrics"]["frames_sent"] - 40
    sides = np.frombuffer(read_both(out / "call.wav"), np.int16).reshape(-1, 2)
    spoken, heard = (sound_spans(np.ascontiguousarray(sides[:, side]).tobytes()) for side in (0, 1))
    assert 0.02 <= heard[0].start - spoken[0].start < 1.0
    assert abs((heard[-1].end - heard[0].start) - (spoken[-1].end - spoken[0].start)) < 0.4


def read_both(path: Path) -> bytes:
    """The samples of a stereo file, interleaved."""
    with wave.open(str(path)) as file:
        assert file.getnchannels() == 2
        samples: bytes = file.readframes(file.getnframes())
    return samples


def test_the_screen_shows_what_happened(gateway: str, tmp_path: Path) -> None:
    done = phone(gateway, "--wav", str(short_caller(tmp_path)))
    assert done.returncode == 0
    for words in ("/twilio/voice", "Connect ws://", "Great, thanks, bye.", "time to answer", "frames sent"):
        assert words in done.stdout


@pytest.mark.parametrize("json_output", [False, True])
def test_a_wrong_token_is_one_sentence(gateway: str, tmp_path: Path, json_output: bool) -> None:
    done = phone(gateway, "--wav", str(short_caller(tmp_path)), *["--json"] * json_output, token="wrong")
    assert done.returncode == 1
    said = json.loads(done.stdout)["error"] if json_output else done.stderr
    assert "CALLPLEX_TWILIO_AUTH_TOKEN" in said
    assert "Traceback" not in done.stderr


def test_wrong_use_and_unreadable_sound(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    assert phone(nowhere).returncode == 2
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    for path in (tmp_path / "x.wav", tmp_path / "none.wav"):
        done = phone(nowhere, "--wav", str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert path.name in done.stderr.replace("\n", "")
    write_wav(tmp_path / "x.wav", b"\0\0" * 800)
    done = phone(nowhere, "--wav", str(tmp_path / "x.wav"))
    assert done.returncode == 1
    assert "callplex serve" in done.stderr
