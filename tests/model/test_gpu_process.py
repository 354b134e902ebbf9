"""The engine's process: when its callers' frames came, and its end, by a device's error or a defect."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from model import engine_wire, gpu_process
from model.conversation import Models
from model.engine_options import EngineOptions, EngineRefused, EngineState
from model.engine_start import Started
from model.engine_watch import BEAT_SECONDS
from model.engine_wire import CONTROL, Heard
from model.folder import ModelFolder
from model.pace import FRAME
from model.ring import Channel, make_channel
from model.standstill import DeviceHung
from model.wire import CallerFrame, Close, FromWorker, History, Late
from tests.model.rig import Rig, caller_pcm, is_ready, request


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """The worker's end; the process's own is where it looks for it."""
    ours, ends = make_channel(1 << 16)
    monkeypatch.setattr(gpu_process, "end_with_worker", lambda channel: None)  # it would end the tests' process
    ours.put(CONTROL, EngineOptions("weights").to_json().encode())
    monkeypatch.setattr(sys, "argv", ["gpu_process", json.dumps(asdict(ends))])
    interval = sys.getswitchinterval()
    yield ours
    sys.setswitchinterval(interval)
    ours.close()


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(options: EngineOptions) -> None:
        raise error

    monkeypatch.setattr(gpu_process, "start", start)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered\nFor debugging consider CUDA_LAUNCH_BLOCKING"),
        RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
    ],
    ids=["of its class", "before torch 2.8"],
)
def test_an_error_of_the_device_ends_the_process_with_one_sentence(
    error: Exception, channel: Channel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fails_with(error, monkeypatch)
    assert gpu_process.main() == 1
    message = channel.get()
    assert message is not None
    session, data = message
    assert session == CONTROL
    failure = EngineState.from_json(data.decode()).failure
    assert failure == "the device has failed: CUDA error: device-side assert triggered"
    assert "Traceback" not in capfd.readouterr().err


def test_a_device_that_hangs_ends_the_process_with_one_sentence(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(DeviceHung("the device hangs"), monkeypatch)
    assert gpu_process.main() == 1
    message = channel.get()
    assert message is not None
    assert EngineState.from_json(message[1].decode()).failure == "the device hangs"


def test_a_defect_of_our_own_is_not_taken_for_the_devices(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), monkeypatch)
    with pytest.raises(RuntimeError, match="size of tensor"):
        gpu_process.main()


DEFECT = """
import runpy
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from model import engine_start

def start(options):
    ThreadPoolExecutor(1).submit(Event().wait)
    raise IndexError("a defect of our own")

engine_start.start = start
runpy.run_module("model.gpu_process", run_name="__main__")
"""


def test_after_a_defect_of_our_own_the_process_ends_though_a_thread_waits_for_a_disk() -> None:
    """Its calls go on elsewhere only once it is gone."""
    ours, ends = make_channel(1 << 16)
    ours.put(CONTROL, EngineOptions("weights").to_json().encode())
    command = [sys.executable, "-c", DEFECT, json.dumps(asdict(ends))]
    done = subprocess.run(command, pass_fds=ends.descriptors, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "IndexError: a defect of our own" in done.stderr
    ends.close()
    ours.close()


def test_the_worker_hears_nothing_before_the_start_is_over(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its listener opens with the first state: after the last graph was captured, which the start does."""
    heard: list[tuple[int, bytes] | None] = []

    def start(options: EngineOptions) -> None:
        heard.append(channel.get())
        raise EngineRefused("that is all")

    monkeypatch.setattr(gpu_process, "start", start)
    assert gpu_process.main() == 1
    assert heard == [None]


OUT_OF_RANGE = """
import torch
from model.gpu_process import device_failed
try:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError as error:
    print(device_failed(error))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_real_error_of_the_device_is_known_as_one() -> None:
    """In a process of its own: no later number of it could be trusted."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_RANGE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_a_busy_thread_gives_the_interpreter_back_before_a_step_is_late(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []

    def start(options: EngineOptions) -> None:
        found.append(sys.getswitchinterval())
        raise EngineRefused("seen enough")

    monkeypatch.setattr(gpu_process, "start", start)
    assert gpu_process.main() == 1
    assert found[0] <= 1e-4


@pytest.mark.usefixtures("one_thread")
def test_an_engine_without_calls_says_every_second_that_it_works_and_sleeps_else(
    models: Models, tiny: ModelFolder
) -> None:
    ours, ends = make_channel(1 << 20)
    rig, theirs = Rig(models, tiny, slots=1), ends.channel()
    started = Started(rig.stepper, 1, {1: 0.01}, rig.prompts, rig.assets)
    loop = gpu_process.Loop(theirs, started, EngineOptions("weights"))
    # What comes shortly before it is due to speak wakes it, too, and changes nothing.
    threading.Timer(0.9 * BEAT_SECONDS, ours.put, (7, engine_wire.encode(Close()))).start()
    turns, begun = 0, time.monotonic()
    said: list[EngineState] = []
    while len(said) < 3:
        loop.turn()
        turns += 1
        while (message := ours.get()) is not None:
            said.append(EngineState.from_json(message[1].decode()))
    assert said[0] == said[1] == said[2]
    assert time.monotonic() >= begun + 2 * BEAT_SECONDS
    assert turns < 20
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("one_thread")
def test_frames_that_came_during_a_stall_of_the_loop_are_late(models: Models, tiny: ModelFolder) -> None:
    """They came one by one; the loop finds them together."""
    ours, ends = make_channel(1 << 20)
    rig = Rig(models, tiny, slots=1)
    engine = Started(rig.stepper, 1, {1: 0.01}, rig.prompts, rig.assets)
    theirs = ends.channel()
    loop = gpu_process.Loop(theirs, engine, EngineOptions("weights"))
    told: list[FromWorker] = []

    def turn() -> None:
        loop.turn()
        while (message := ours.get()) is not None:
            if message[0] != CONTROL:
                told.append(engine_wire.decode_from_engine(message[1]))

    ours.put(1, engine_wire.encode_open(request(), History()))
    while not told:
        turn()
    assert is_ready(told[0])
    now = time.monotonic()
    for index in range(4):
        heard = Heard(CallerFrame(index, caller_pcm(0, index)), now - (5 - index) * FRAME)
        ours.put(1, engine_wire.encode(heard))
    for _ in range(4):
        turn()
    assert [message.index for message in told if isinstance(message, Late)] == [0, 1, 2, 3]
    ours.close()
    theirs.close()
