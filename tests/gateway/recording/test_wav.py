"""The recording is whole whatever happens to the process or the disk, and costs the call nothing."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gateway.recording.wav import FLUSH_PIECES, MAX_PENDING, Recording, interleave

SAMPLES = 640


def piece(index: int, side: int) -> bytes:
    """80 ms that can be recognised: a ramp that goes on from piece to piece, negated for the agent."""
    ramp = (np.arange(SAMPLES) + index * SAMPLES) % 20_000
    return (ramp * (1 if side == 0 else -1)).astype("<i2").tobytes()


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        data = file.readframes(file.getnframes())
        assert len(data) == 4 * file.getnframes()
    stereo = np.frombuffer(data, dtype="<i2").reshape(-1, 2)
    return stereo[:, 0], stereo[:, 1]


def expected(pieces: int, side: int) -> np.ndarray:
    return np.frombuffer(b"".join(piece(index, side) for index in range(pieces)), dtype="<i2")


@pytest.mark.parametrize("pieces", [0, 1, FLUSH_PIECES, 3 * FLUSH_PIECES + 5])
def test_caller_is_left_and_agent_right_to_the_sample(tmp_path: Path, pieces: int) -> None:
    recording = Recording(tmp_path / "calls" / "one" / "call.wav")
    for index in range(pieces):
        recording.write(piece(index, 0), piece(index, 1))
    recording.close().result(5)
    left, right = read(recording.path)
    assert np.array_equal(left, expected(pieces, 0))
    assert np.array_equal(right, expected(pieces, 1))
    assert recording.failed == ""


def test_a_side_that_is_short_is_filled_with_silence(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "call.wav")
    recording.write(piece(0, 0), b"")
    recording.write(b"", piece(1, 1))
    recording.close().result(5)
    left, right = read(recording.path)
    assert np.array_equal(left, np.concatenate([expected(1, 0), np.zeros(SAMPLES, dtype=np.int16)]))
    assert not right[:SAMPLES].any()
    assert right[SAMPLES:].any()


def test_closing_twice_and_writing_after_it_do_no_harm(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "call.wav")
    recording.write(piece(0, 0), piece(0, 1))
    first = recording.close()
    recording.write(piece(1, 0), piece(1, 1))
    assert recording.close() is first
    first.result(5)
    assert len(read(recording.path)[0]) == SAMPLES


KILLED = """
import sys
from pathlib import Path
from gateway.recording.wav import Recording
from tests.gateway.recording.test_wav import piece

recording = Recording(Path(sys.argv[1]))
index = 0
for line in sys.stdin:
    for _ in range(int(line)):
        recording.write(piece(index, 0), piece(index, 1))
        index += 1
    print(index, flush=True)
"""


def test_after_kill_9_the_file_plays_up_to_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write("60\n")
        child.stdin.flush()
        assert child.stdout.readline() == "60\n"
        # What is not yet with the writer is less than a second; the rest only has to reach the file.
        wait_for(lambda: size_in_header(path) > (60 - FLUSH_PIECES) * 4 * SAMPLES)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    left, right = read(path)
    assert 60 - FLUSH_PIECES <= len(left) // SAMPLES <= 60
    assert np.array_equal(left, expected(len(left) // SAMPLES, 0))
    assert np.array_equal(right, expected(len(left) // SAMPLES, 1))


ENDLESS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from gateway.recording.wav import Recording
from tests.gateway.recording.test_wav import piece

writer = ThreadPoolExecutor(1)
recording = Recording(Path(sys.argv[1]), writer=writer)
for index in count():
    recording.write(piece(index, 0), piece(index, 1))
    writer.submit(int).result()
"""


@pytest.mark.parametrize("size", [50_000, 123_457, 200_001, 333_333])
def test_a_kill_in_the_midst_of_writing_leaves_a_file_that_plays(tmp_path: Path, size: int) -> None:
    path = tmp_path / "call.wav"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)]) as child:
        wait_for(lambda: path.exists() and path.stat().st_size > size)
        child.send_signal(signal.SIGKILL)
    left, right = read(path)
    assert 4 * len(left) > size - 4 * SAMPLES * FLUSH_PIECES
    assert np.array_equal(left, -right)
    assert np.array_equal(left, expected(len(left) // SAMPLES, 0))


def size_in_header(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[40:44] if path.exists() else b"", "little")


def wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Another process's file is what is awaited, so there is nothing to be woken by."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.001)


def test_an_unwritable_folder_fails_the_recording_and_not_the_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "calls").write_text("a file where the folder should be")
    recording = Recording(tmp_path / "calls" / "call.wav")
    for index in range(50):
        recording.write(piece(index, 0), piece(index, 1))
    recording.close().result(5)
    assert "stopped" in recording.failed
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the call goes on" in caplog.text


FULL = """
import resource, signal, sys
from pathlib import Path
from gateway.recording.wav import Recording
from tests.gateway.recording.test_wav import piece

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
recording = Recording(Path(sys.argv[1]))
for index in range(100):
    recording.write(piece(index, 0), piece(index, 1))
recording.close().result(5)
print(recording.failed)
"""


def test_a_disk_that_fills_up_leaves_what_was_recorded(tmp_path: Path) -> None:
    """The limit on file size makes the kernel take a part of a write and refuse the rest, as a full disk does."""
    path = tmp_path / "call.wav"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "file too large" in done.stdout
    assert done.stderr.count("the call goes on") == 1
    left, _ = read(path)
    assert SAMPLES <= len(left) <= 100_000 // 4
    assert np.array_equal(left, expected(len(left) // SAMPLES, 0))


def test_a_disk_that_hangs_costs_bounded_memory_and_no_time(tmp_path: Path) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(1) as writer:
        writer.submit(release.wait, 30)
        recording = Recording(tmp_path / "call.wav", writer=writer)
        limit = (MAX_PENDING + 1) * FLUSH_PIECES
        accepted = 0
        while not recording.failed and accepted <= limit:
            recording.write(piece(accepted, 0), piece(accepted, 1))
            accepted += 1
        assert "too slow" in recording.failed
        release.set()
        recording.close().result(5)


def test_a_writer_that_is_gone_fails_the_recording_quietly(tmp_path: Path) -> None:
    writer = ThreadPoolExecutor(1)
    writer.shutdown()
    recording = Recording(tmp_path / "call.wav", writer=writer)
    recording.write(piece(0, 0), piece(0, 1))
    recording.close().result(5)
    assert "shutting down" in recording.failed


def test_the_media_path_pays_microseconds(tmp_path: Path) -> None:
    """Median of a call to `write`, the one in thirteen that hands over included: far under its 80 ms."""
    recording = Recording(tmp_path / "call.wav")
    caller, agent = piece(0, 0), piece(0, 1)
    costs = []
    for _ in range(MAX_PENDING * FLUSH_PIECES):
        before = time.perf_counter()
        recording.write(caller, agent)
        costs.append(time.perf_counter() - before)
    recording.close().result(5)
    assert sorted(costs)[len(costs) // 2] < 100e-6


def test_interleaving() -> None:
    left, right = np.array([1, 2], "<i2").tobytes(), np.array([-1, -2], "<i2").tobytes()
    assert np.frombuffer(interleave(left, right), "<i2").tolist() == [1, -1, 2, -2]
