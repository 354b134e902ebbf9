"""The recording is whole whatever happens to the process or the disk, and costs the call nothing."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from gateway.recording.disk import FLUSH_PIECES
from gateway.recording.process import WriterProcess
from gateway.recording.recorder import MAX_PENDING, Recorder
from tests.gateway.recording.sound import (
    PIECE_SECONDS,
    SAMPLES,
    content,
    decoded,
    expected,
    piece,
    pitch,
    plan,
    record,
    samples,
    seconds,
    tone,
    wait_for,
)

KINDS = ["wav", "wav.sealed", "opus", "opus.sealed"]


@pytest.fixture
def writer() -> Iterator[WriterProcess]:
    """One of the test's own, which it may stop and kill."""
    writer = WriterProcess()
    yield writer
    writer.close()


def running(writer: WriterProcess) -> psutil.Process:
    wait_for(lambda: writer.pid is not None)
    return psutil.Process(writer.pid)


@pytest.mark.parametrize("kind", ["wav", "wav.sealed"])
@pytest.mark.parametrize("pieces", [0, 1, FLUSH_PIECES, 3 * FLUSH_PIECES + 5])
@pytest.mark.parametrize("held", [False, True])
def test_caller_is_left_and_agent_right_to_the_sample(tmp_path: Path, kind: str, pieces: int, held: bool) -> None:
    recorder = Recorder(plan(tmp_path / "calls" / "one", kind, held=held))
    record(recorder, pieces)
    recorder.release(1e9)
    recorder.close().result(5)
    left, right = samples(recorder.plan.path)
    assert np.array_equal(left, expected(pieces, 0))
    assert np.array_equal(right, expected(pieces, 1))
    assert recorder.failed == ""


@pytest.mark.parametrize("kind", ["opus", "opus.sealed"])
def test_opus_is_stereo_and_as_long_as_the_call(tmp_path: Path, kind: str) -> None:
    recorder = Recorder(plan(tmp_path, kind))
    for index in range(33):
        recorder.write(tone(index, 400), tone(index, 1_000))
    recorder.close().result(5)
    assert recorder.failed == ""
    left, right = decoded(recorder.plan.path)
    assert seconds(recorder.plan.path) == pytest.approx(33 * PIECE_SECONDS, abs=0.001)
    assert pitch(left, 48_000) == pytest.approx(400, abs=2)
    assert pitch(right, 48_000) == pytest.approx(1_000, abs=2)


def test_a_side_that_is_short_is_filled_with_silence(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path))
    recorder.write(piece(0, 0), b"")
    recorder.write(b"", piece(1, 1))
    recorder.close().result(5)
    left, right = samples(recorder.plan.path)
    assert np.array_equal(left, np.concatenate([expected(1, 0), np.zeros(SAMPLES, dtype=np.int16)]))
    assert not right[:SAMPLES].any()
    assert right[SAMPLES:].any()


def test_closing_twice_and_writing_after_it_do_no_harm(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path))
    recorder.write(piece(0, 0), piece(0, 1))
    first = recorder.close()
    recorder.write(piece(1, 0), piece(1, 1))
    assert recorder.close() is first
    first.result(5)
    assert len(samples(recorder.plan.path)[0]) == SAMPLES


KILLED = """
import sys
from pathlib import Path
from gateway.recording.recorder import Recorder
from tests.gateway.recording.sound import piece, plan

recorder = Recorder(plan(Path(sys.argv[1]), sys.argv[2], held=True))
index = 0
for line in sys.stdin:
    for _ in range(int(line)):
        recorder.release((index + 1) * 0.08)
        recorder.write(piece(index, 0), piece(index, 1))
        index += 1
    print(index, flush=True)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_after_kill_9_the_file_plays_up_to_the_last_second(tmp_path: Path, kind: str) -> None:
    path = plan(tmp_path, kind).path
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    spoken = 60 * PIECE_SECONDS
    with child:
        child.stdin.write("60\n")
        child.stdin.flush()
        assert child.stdout.readline() == "60\n"
        # What is not yet with the writer is less than a second; the rest only has to reach the file.
        wait_for(lambda: path.exists() and path.stat().st_size > 60 and seconds(path) > spoken - 1.0)
        writers = psutil.Process(child.pid).children()
        assert len(writers) == 1
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(writers, timeout=10)[1], "the writer ends with the gateway"
    assert spoken - 1.0 < seconds(path) <= spoken
    assert list(tmp_path.iterdir()) == [path], "the spool is gone with its process"
    if "wav" in kind:
        left, right = samples(path)
        assert np.array_equal(left, expected(len(left) // SAMPLES, 0))
        assert np.array_equal(right, expected(len(left) // SAMPLES, 1))


ENDLESS = """
import sys
from itertools import count
from pathlib import Path
from time import sleep
from gateway.recording.recorder import Recorder
from tests.gateway.recording.sound import piece, plan

recorder = Recorder(plan(Path(sys.argv[1]), sys.argv[2]))
for index in count():
    recorder.write(piece(index, 0), piece(index, 1))
    while recorder.backlog:
        sleep(0.001)
"""


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("wav", 50_000),
        ("wav", 333_333),
        ("wav.sealed", 123_457),
        ("wav.sealed", 200_001),
        ("opus", 12_345),
        ("opus.sealed", 9_001),
        ("opus.sealed", 16_300),
    ],
)
def test_a_kill_in_the_midst_of_writing_leaves_a_file_that_plays(tmp_path: Path, kind: str, size: int) -> None:
    """Of the gateway, and of the process that writes."""
    path = plan(tmp_path, kind).path
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path), kind], stderr=subprocess.DEVNULL) as child:
        wait_for(lambda: path.exists() and path.stat().st_size > size)
        (writer,) = psutil.Process(child.pid).children()
        writer.kill()
        child.kill()
    if "wav" in kind:
        left, right = samples(path)
        assert 4 * len(left) > size - 4 * SAMPLES * (FLUSH_PIECES + 1)
        assert np.array_equal(left, -right)
        assert np.array_equal(left, expected(len(left) // SAMPLES, 0))
    else:
        # At most what 0.1 s take is not of use: the page that was being written.
        most_a_second = 48_000 / 8
        assert len(content(path)) > 0.9 * size
        assert seconds(path) > size / most_a_second - 1.0


def test_an_unwritable_folder_fails_the_recording_and_not_the_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "calls").write_text("a file where the folder should be")
    recorder = Recorder(plan(tmp_path / "calls"))
    record(recorder, 50)
    recorder.close().result(5)
    assert "stopped" in recorder.failed
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the call goes on" in caplog.text


FULL = """
import resource, sys
from pathlib import Path
from gateway.recording.recorder import Recorder
from tests.gateway.recording.sound import plan, record, wait_for

limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
recorder = Recorder(plan(Path(sys.argv[1]), sys.argv[2], held="held" in sys.argv))
for _ in range(3):
    record(recorder, 100)
    wait_for(lambda: not recorder.backlog)
recorder.release(1e9)
recorder.close().result(5)
print(recorder.failed)
"""


@pytest.mark.parametrize(("kind", "limit"), [("wav", 100_000), ("wav.sealed", 100_000), ("opus.sealed", 9_000)])
def test_a_disk_that_fills_up_leaves_what_was_recorded(tmp_path: Path, kind: str, limit: int) -> None:
    """The limit on file size makes the kernel take a part of a write and refuse the rest, as a full disk does."""
    path = plan(tmp_path, kind).path
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), kind, str(limit)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "file too large" in done.stdout
    assert done.stderr.count("the call goes on") == 1
    assert 0.5 * limit < path.stat().st_size <= limit
    assert seconds(path) > 2.0
    if "wav" in kind:
        left, _ = samples(path)
        assert np.array_equal(left, expected(300, 0).reshape(3, -1)[:, : 100 * SAMPLES].reshape(-1)[: len(left)])


def test_a_spool_on_a_full_disk_leaves_nothing_that_was_not_released(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "wav", "100000", "held"], capture_output=True, text=True, timeout=30
    )
    assert "file too large" in done.stdout
    assert len(samples(plan(tmp_path).path)[0]) == 0
    assert list(tmp_path.iterdir()) == [plan(tmp_path).path]


def test_a_disk_that_hangs_costs_bounded_memory_and_no_time(tmp_path: Path, writer: WriterProcess) -> None:
    recorder = Recorder(plan(tmp_path), writer)
    process = running(writer)
    process.suspend()
    # What the socket between the processes holds comes on top.
    limit = (MAX_PENDING + 1 + 32) * FLUSH_PIECES
    accepted = 0
    while not recorder.failed and accepted <= limit:
        recorder.write(piece(accepted, 0), piece(accepted, 1))
        accepted += 1
    assert "too slow" in recorder.failed
    process.resume()
    recorder.close().result(5)
    left, _ = samples(recorder.plan.path)
    assert len(left) >= MAX_PENDING * FLUSH_PIECES * SAMPLES
    assert np.array_equal(left, expected(len(left) // SAMPLES, 0))


# The process that writes.


def test_a_writer_that_dies_fails_its_recordings_and_the_next_are_whole(
    tmp_path: Path, writer: WriterProcess, caplog: pytest.LogCaptureFixture
) -> None:
    recorders = [Recorder(plan(tmp_path / name, kind), writer) for name, kind in (("a", "wav"), ("b", "wav.sealed"))]
    for recorder in recorders:
        record(recorder, 4 * FLUSH_PIECES)
    paths = [recorder.plan.path for recorder in recorders]
    wait_for(lambda: all(path.exists() and path.stat().st_size > 50_000 for path in paths))
    running(writer).kill()
    for recorder in recorders:
        recorder.close().result(5)
        assert "has ended" in recorder.failed
        assert recorder.kept == recorder.plan.path
        left, _ = samples(recorder.plan.path)
        assert len(left) >= 2 * FLUSH_PIECES * SAMPLES
        assert np.array_equal(left, expected(len(left) // SAMPLES, 0))
    assert len(caplog.records) == 2
    after = Recorder(plan(tmp_path / "c"), writer)
    record(after, 40)
    after.close().result(5)
    assert after.failed == ""
    assert np.array_equal(samples(after.plan.path)[1], expected(40, 1))


def test_signals_for_the_gateway_do_not_end_the_writer(tmp_path: Path, writer: WriterProcess) -> None:
    recorder = Recorder(plan(tmp_path), writer)
    wait_for(recorder.plan.path.exists)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        running(writer).send_signal(stop)
    record(recorder, 40)
    recorder.close().result(5)
    assert recorder.failed == ""


def test_a_writer_that_does_not_start_fails_the_recording_and_not_the_call(tmp_path: Path) -> None:
    recorder = Recorder(plan(tmp_path), WriterProcess([str(tmp_path / "nothing")]))
    record(recorder, 40)
    recorder.close().result(5)
    assert "has ended" in recorder.failed
    assert recorder.kept is None


LEAVING = """
import sys
from pathlib import Path
from gateway.recording.recorder import Recorder
from tests.gateway.recording.sound import plan, record

recorder = Recorder(plan(Path(sys.argv[1])))
record(recorder, 100)
recorder.close()
"""


def test_what_was_handed_over_is_written_when_the_gateway_leaves(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(samples(plan(tmp_path).path)[0], expected(100, 0))


def test_no_process_is_started_for_a_call_without_consent(tmp_path: Path, writer: WriterProcess) -> None:
    recorder = Recorder(plan(tmp_path, after_consent=True), writer)
    record(recorder, 50)
    recorder.close().result(5)
    assert writer.pid is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_media_path_pays_microseconds(tmp_path: Path, kind: str) -> None:
    """Median of a call to `write`, the one in eight that hands over included: far under its 80 ms."""
    recorder = Recorder(plan(tmp_path, kind, held=True))
    caller, agent = piece(0, 0), piece(0, 1)
    costs = []
    for _ in range(MAX_PENDING * FLUSH_PIECES):
        before = time.perf_counter()
        recorder.write(caller, agent)
        costs.append(time.perf_counter() - before)
    recorder.close().result(5)
    assert sorted(costs)[len(costs) // 2] < 100e-6


# What is held back.


# Consent.
