"""The engine's own process: `python -m model.gpu_process`, started by the worker and gone with it.

Owns the loop that turns messages into steps, and the process's end: with the worker's process, or with an error that no
call can be continued after. A thread beside a busy event loop would wake milliseconds late for the interpreter's lock;
a process does not.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
import time

import torch

from model.calls import Calls
from model.engine_options import EngineOptions, EngineRefused, EngineState
from model.engine_start import Started, start
from model.engine_watch import BEAT_SECONDS
from model.engine_wire import CONTROL, Heard, decode_to_engine, encode
from model.folder import FolderInvalid
from model.load import WeightsError
from model.ring import Channel, Ends, PeerGone, RingFull
from model.scheduler import Scheduler
from model.standstill import DeviceHung
from model.tokenizer import TokenizerError
from model.wire import FromWorker, Play, Say

log = logging.getLogger(__name__)

STATE_SECONDS = 0.25
"""Between two reports of the engine's state where it has changed. Where not, one a BEAT_SECONDS says that we work."""
SWITCH_SECONDS = 5e-5
"""After so long another thread gives the interpreter's lock back. A step lets go of it in some twenty calls into torch.
Beside a busy thread, as one that reads YAML is, each may wait for Python's 5 ms: twenty took 26 ms in the median and
183 at p99, where they take 0.1 alone. With this it is 0.6 and 2.3; with less no better, for timers are no finer."""
_DEVICE_ERRORS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "Triton Error [CUDA]")


def main() -> int:
    """The process: the channel's ends are its argument, its options the first message. Status 1 after a failure."""
    channel = Ends(**json.loads(sys.argv[1])).channel()
    message = channel.get()
    if message is None:
        raise RuntimeError("the engine's options are not in its channel")
    options = EngineOptions.from_json(message[1].decode())
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        threading.Thread(target=end_with_worker, args=(channel,), name="worker-watch", daemon=True).start()
        engine = start(options)
        outlive_signals()
        Loop(channel, engine, options).run()
    except PeerGone:
        return 0
    except (EngineRefused, FolderInvalid, WeightsError, TokenizerError) as error:
        _report(channel, str(error))
    except torch.OutOfMemoryError:
        _report(channel, "the device's memory does not suffice; start it with fewer --slots")
    except RuntimeError as error:
        if not device_failed(error):
            raise
        # The device's memory means nothing after this: the process must end, its calls go on elsewhere.
        _report(channel, f"the device has failed: {str(error).strip().splitlines()[0]}")
    except DeviceHung as error:
        _report(channel, str(error))
    except RingFull:
        log.critical("the worker's process takes nothing any more; the engine ends")
    return 1


def end_with_worker(channel: Channel) -> None:
    """Runs in a thread: while this process loads it hears nothing, and the next engine needs its memory."""
    channel.wait_until_gone()
    os._exit(0)


def outlive_signals() -> None:
    """Go on when the terminal or a service manager tells all of the worker's processes to stop.

    Calls are handed over by the worker's process first; this one ends with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def device_failed(error: RuntimeError) -> bool:
    """Whether the error is the device's or its libraries', after which no number in its memory can be trusted.

    Torch has a class for the device's own from 2.8 on; before, and for the libraries', the text alone tells.
    """
    own = getattr(torch, "AcceleratorError", None)
    return (own is not None and isinstance(error, own)) or any(sign in str(error) for sign in _DEVICE_ERRORS)


def _report(channel: Channel, failure: str) -> None:
    with contextlib.suppress(PeerGone):
        channel.put(CONTROL, EngineState(failure=failure).to_json().encode())


class Loop:
    """Takes messages, lets the calls work, says how it is; sleeps while there is nothing to do."""

    def __init__(self, channel: Channel, engine: Started, options: EngineOptions) -> None:
        self._channel = channel
        self._costs = engine.costs
        self._scheduler = Scheduler(engine.slots, costs=engine.costs)
        self._prompts = engine.prompts
        self._calls = Calls(
            engine.stepper,
            self._scheduler,
            engine.prompts,
            engine.assets,
            self._tell,
            time.monotonic,
            options.context,
            engine.costs.get(1, 0.0),
        )
        self._state = EngineState()
        self._state_at = self._said_at = 0.0

    def run(self) -> None:
        """For ever. Raises PeerGone when the worker's process ends, RingFull when it hangs."""
        # What is alive now stays so: the collector need not walk it while calls wait.
        gc.collect()
        gc.freeze()
        while True:
            self.turn()

    def turn(self) -> None:
        """Take what has come since the last; then one step, or part of other work, or sleep."""
        self._channel.hush()
        while (message := self._channel.get()) is not None:
            self._take(*message)
        self._say_how_it_is()
        if not self._calls.work():
            self._sleep()

    def _sleep(self) -> None:
        """Until a message comes, a frame is due, or it is time to say how it is."""
        report = self._said_at + BEAT_SECONDS
        if self._scheduler.active or self._state.refusal or self._now() != self._state:
            report = min(report, self._state_at + STATE_SECONDS)
        wake = self._calls.wake_at()
        wake = report if wake is None else min(wake, report)
        select.select([self._channel.ears], [], [], max(0.0, wake - time.monotonic()))

    def _take(self, session: int, data: bytes) -> None:
        message = decode_to_engine(data)
        if isinstance(message, tuple):
            self._calls.open(session, *message)
        elif isinstance(message, Heard):
            self._calls.frame(session, message.frame.index, message.frame.pcm, message.came)
        elif isinstance(message, Say):
            self._calls.say(session, message.text)
        elif isinstance(message, Play):
            self._calls.play(session, message.clip)
        else:
            self._calls.close(session)

    def _tell(self, session: int, message: FromWorker) -> None:
        self._channel.put(session, encode(message))

    def _now(self) -> EngineState:
        scheduler, calls = self._scheduler, self._calls
        return EngineState(
            capacity=scheduler.capacity,
            refusal=calls.refusal or scheduler.refusal(time.monotonic()),
            steps=calls.steps,
            frames=scheduler.frames,
            late_frames=scheduler.late,
            lost_frames=scheduler.lost,
            late_calls=tuple(scheduler.late_calls.counts),
            late_calls_frames=scheduler.late_calls.total,
            cuts=calls.cuts,
            unprompted_frames=calls.unprompted,
            faults=calls.faults,
            prompt_hits=self._prompts.hits,
            prompt_misses=self._prompts.misses,
            prompt_evictions=self._prompts.evictions,
            step_seconds={str(count): round(seconds, 6) for count, seconds in self._costs.items()},
        )

    def _say_how_it_is(self) -> None:
        now = time.monotonic()
        beat = now >= self._said_at + BEAT_SECONDS
        if not beat and now < self._state_at + STATE_SECONDS:
            return
        self._state_at = now
        state = self._now()
        if beat or state != self._state:
            self._state, self._said_at = state, now
            self._channel.put(CONTROL, state.to_json().encode())


if __name__ == "__main__":
    try:
        status = main()
    except Exception:  # a defect of our own; its calls go on elsewhere once this process is gone, threads and all
        log.exception("a defect ends the engine")
        status = 1
    logging.shutdown()
    # Nothing is left to be put in order, and what CUDA and its compilers would do on the way out takes seconds.
    os._exit(status)
