"""`callplex bench gateway`: how many calls a gateway carries, how fast, and at what cost.

Owns the order of a measurement: gateway up, calls up, window, figures; and the search for the most
calls. The gateway runs alone on one core, what makes the calls runs on the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from gateway.bench.child import Gateway, GatewayFailed, Recorded, Usage, running_gateway
from gateway.bench.load import CallsUp, LoadOrder, Window, run_load
from gateway.bench.measure import Measured, merged
from gateway.bench.report import Load, Resources, as_json, as_text, load_report

STARTS_PER_SECOND = 25.0
_SETTLE_SECONDS = 2.0
_FINEST_STEP = 0.05
"""The search for the most calls ends when it is known to a twentieth."""
_CALLS_PER_PROCESS = 600
_NUMBER = "+15550100000"

Say = Callable[[str], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured."""

    url: str
    auth_token: str
    gateway: Gateway | None
    """None: a gateway elsewhere, of which only the latencies can be measured."""


def bench_gateway(
    calls: int,
    seconds: float,
    *,
    json_output: bool = False,
    find_max: bool = False,
    worker_process: bool = False,
    recorded: Recorded = "wav",
    sealed: bool = False,
    words: bool = False,
    url: str = "",
    auth_token: str = "",
) -> int:
    """Measure `calls` calls for `seconds`, or look for the most, starting there. Returns the exit status.

    `worker_process`: the echo engine in a worker of its own instead of in the gateway's process.
    `recorded`: how calls are, `sealed`: under a data key. `words`: both sides talk, and it is written down.
    `url`: a running gateway instead of one of ours, with `auth_token` as its Twilio token.
    """
    say = _silent if json_output else _say
    try:
        with _target(worker_process, recorded, sealed, words, url, auth_token) as target:
            measure_calls(target, 1, 1.0)
            if find_max:
                most, loads = find_most(lambda n: _told(measure_calls(target, n, seconds), say), calls)
            else:
                most, loads = None, [_told(measure_calls(target, calls, seconds), say)]
    except GatewayFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if most is not None:
        say(f"The most calls with added latency under 20 ms at p99: {most}")
    if json_output:
        sys.stdout.write(json.dumps(as_json(loads, most)) + "\n")
    return 0 if (most or 0) > 0 or any(not load.failed_calls for load in loads) else 1


def find_most(measure: Callable[[int], Load], begin: int) -> tuple[int, list[Load]]:
    """The largest number of calls that holds: doubled until it fails, then halved in between."""
    loads: list[Load] = []

    def holds(calls: int) -> bool:
        loads.append(measure(calls))
        return loads[-1].holds

    low, high = 0, begin
    while holds(high):
        low, high = high, 2 * high
    while high - low > max(1, _FINEST_STEP * high):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, loads


def measure_calls(target: Target, calls: int, seconds: float) -> Load:
    """Place the calls, wait until all are up and settled, measure, hang up. Raises GatewayFailed."""
    idle = target.gateway.usage() if target.gateway else _NOTHING
    cores = os.sched_getaffinity(0)
    with _load_processes(target, calls) as pipes:
        ups = [_receive(pipe, CallsUp) for pipe in pipes]
        failures = [why for up in ups for why in up.failures]
        if not any(up.up for up in ups):
            raise GatewayFailed(f"No call came up: {failures[0]}.")
        if target.gateway:
            target.gateway.free_writer(cores)
        start = time.monotonic() + _SETTLE_SECONDS
        window = Window(start, start + seconds)
        for pipe in pipes:
            pipe.send(window)
        _sleep_until(window.start)
        before = target.gateway.usage() if target.gateway else _NOTHING
        _sleep_until(window.end)
        after = target.gateway.usage() if target.gateway else _NOTHING
        measured = merged([_receive(pipe, Measured) for pipe in pipes])
    if target.gateway:
        failures += target.gateway.lost_recordings()
    if not len(measured.round_trips):
        raise GatewayFailed("Calls came up, but nothing that was said came back: is it the echo engine?")
    used = Resources(
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        worker_cpu_seconds=after.child_cpu_seconds - before.child_cpu_seconds,
        rss_bytes=after.rss_bytes,
        worker_rss_bytes=after.child_rss_bytes,
        rss_idle_bytes=idle.rss_bytes,
    )
    return load_report(measured, calls, failures, seconds, used)


_NOTHING = Usage(0.0, 0, 0.0, 0)


@contextlib.contextmanager
def _target(
    worker_process: bool, recorded: Recorded, sealed: bool, words: bool, url: str, auth_token: str
) -> Iterator[Target]:
    if url:
        yield Target(url, auth_token, None)
        return
    token = secrets.token_hex(16)
    environment = {
        "CALLPLEX_TWILIO_AUTH_TOKEN": token,
        "CALLPLEX_MAX_CALLS": "100000",
        "CALLPLEX_WORKER_CAPACITY": "4096",
    }
    if words:
        environment["CALLPLEX_EMBEDDED_ECHO_WORDS"] = "1"
    if sealed:
        environment["CALLPLEX_DATA_KEY"] = b64encode(secrets.token_bytes(32)).decode()
    environment |= {"CALLPLEX_ENGINE": "echo"} if worker_process else {"CALLPLEX_EMBEDDED_ECHO": "1"}
    cores = sorted(os.sched_getaffinity(0))
    gateway_core = cores[0] if len(cores) > 1 else None
    with running_gateway(environment, gateway_core, recorded) as gateway:
        for child in gateway.children():
            child.cpu_affinity(cores[1:] or cores)
        yield Target(gateway.url, token, gateway)


@contextlib.contextmanager
def _load_processes(target: Target, calls: int) -> Iterator[list[Connection]]:
    """Processes that place the calls between them, off the gateway's core."""
    context = get_context("spawn")
    count = -(-calls // _CALLS_PER_PROCESS)
    before = os.sched_getaffinity(0)
    if target.gateway and len(before) > 1:
        os.sched_setaffinity(0, before - {min(before)})
    processes, pipes = [], []
    try:
        for index in range(count):
            share = calls // count + (index < calls % count)
            order = LoadOrder(target.url, target.auth_token, _NUMBER, share, STARTS_PER_SECOND / count, index)
            ours, theirs = context.Pipe()
            process = context.Process(target=run_load, args=(order, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        os.sched_setaffinity(0, before)


def _receive(pipe: Connection, kind: type[_T]) -> _T:
    try:
        message = pipe.recv()
    except EOFError:
        raise GatewayFailed("A process that makes calls ended early; what it said is above.") from None
    if not isinstance(message, kind):
        raise TypeError(f"expected {kind.__name__}")
    return message


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


def _told(load: Load, say: Say) -> Load:
    say(as_text(load))
    return load


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _silent(text: str) -> None:
    return
