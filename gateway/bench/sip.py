"""`callplex bench sip`: real SIP calls with RTP from another process, against a gateway that echoes.

Owns the course of a measurement and its report. The gateway is `bench.gateway`'s child, alone on one core; everything
is on: jitter buffer, both resamplers, recording, records.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from gateway.bench.child import Gateway, GatewayFailed, running_gateway
from gateway.bench.load import CallsUp, Window
from gateway.bench.ports import free_ports
from gateway.bench.sip_load import SipMeasured, SipOrder, run_sip_load

STARTS_PER_SECOND = 50.0
SPACING_LIMIT_MS = 3.0
"""Two packets in sequence leave at 20 ms, give or take this, at p99."""
_SETTLE_SECONDS = 3.0
_CALLS_PER_PROCESS = 300
_NUMBER = "+15550100"


@dataclass(frozen=True, slots=True)
class SipLoad:
    """One measurement of N calls over a window; percentages of one core."""

    calls: int
    failed_calls: int
    first_failure: str
    seconds: float
    cpu_percent: float
    cpu_percent_per_call: float
    spacing_off_ms_p50: float
    """Milliseconds by which the time between two of our packets was not 20, when the kernel took them."""
    spacing_off_ms_p99: float
    spacing_off_ms_max: float
    packets_per_second: float
    """Received from the gateway, all calls together."""
    missing: int
    rss_mb: float
    bench_late_ms_p99: float

    @property
    def holds(self) -> bool:
        """Whether the gateway carries these calls as it must."""
        return self.failed_calls == 0 and self.spacing_off_ms_p99 <= SPACING_LIMIT_MS


def bench_sip(*, calls: int, seconds: float, json_output: bool) -> int:
    """Measure and print; returns the exit status, 1 when nothing could be measured."""
    try:
        load = measure_sip_calls(calls, seconds)
    except GatewayFailed as error:
        if json_output:
            sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        else:
            sys.stderr.write(f"callplex: {error}\n")
        return 1
    text = json.dumps(asdict(load) | {"holds": load.holds}) if json_output else as_text(load)
    sys.stdout.write(text + "\n")
    return 0


def measure_sip_calls(calls: int, seconds: float) -> SipLoad:
    """Start a gateway, place the calls, wait until they are settled, measure, hang up. Raises GatewayFailed."""
    (port,) = free_ports(1)
    environment = {
        "CALLPLEX_EMBEDDED_ECHO": "1",
        "CALLPLEX_MAX_CALLS": "100000",
        "CALLPLEX_SIP_LISTEN": f"udp:127.0.0.1:{port}",
        "CALLPLEX_SIP_MAX_CALLS_PER_PEER": "100000",
        "CALLPLEX_SIP_REQUESTS_PER_SECOND": "1000000",
    }
    cores = sorted(os.sched_getaffinity(0))
    with running_gateway(environment, cores[0] if len(cores) > 1 else None) as gateway:
        return _measure(gateway, f"sip:{_NUMBER}@127.0.0.1:{port}", calls, seconds)


def _measure(gateway: Gateway, target: str, calls: int, seconds: float) -> SipLoad:
    with _load_processes(target, calls) as pipes:
        ups = [_receive(pipe) for pipe in pipes]
        failures = [why for up in ups if isinstance(up, CallsUp) for why in up.failures]
        if not any(isinstance(up, CallsUp) and up.up for up in ups):
            raise GatewayFailed(f"No call came up: {failures[0] if failures else 'nothing was answered'}.")
        # Off the gateway's core, as we are: what writes recordings would take it away in the middle of a tick.
        gateway.free_writer(os.sched_getaffinity(0))
        start = time.monotonic() + _SETTLE_SECONDS
        for pipe in pipes:
            pipe.send(Window(start, start + seconds))
        time.sleep(max(0.0, start - time.monotonic()))
        before = gateway.usage()
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        after = gateway.usage()
        parts = [part for pipe in pipes if isinstance(part := _receive(pipe), SipMeasured)]
    if not any(part.received for part in parts):
        raise GatewayFailed("Calls came up, but no sound came back.")
    cpu = 100 * (after.cpu_seconds - before.cpu_seconds) / seconds
    return _report(parts, calls, failures, seconds, cpu, after.rss_bytes)


def _report(
    parts: list[SipMeasured], calls: int, failures: list[str], seconds: float, cpu: float, rss_bytes: int
) -> SipLoad:
    up = sum(part.calls for part in parts)
    off = [_milliseconds(np.concatenate([part.off_beat for part in parts]), at) for at in (50, 99, 100)]
    return SipLoad(
        calls=calls,
        failed_calls=calls - up + sum(part.silent for part in parts),
        first_failure=failures[0] if failures else "",
        seconds=seconds,
        cpu_percent=round(cpu, 1),
        cpu_percent_per_call=round(cpu / max(1, up), 3),
        spacing_off_ms_p50=off[0],
        spacing_off_ms_p99=off[1],
        spacing_off_ms_max=off[2],
        packets_per_second=round(sum(part.received for part in parts) / seconds, 1),
        missing=sum(part.missing for part in parts),
        rss_mb=round(rss_bytes / 1e6, 1),
        bench_late_ms_p99=_milliseconds(np.concatenate([part.lateness for part in parts]), 99),
    )


def _milliseconds(seconds: NDArray[np.float64], percentile: float) -> float:
    return round(1000 * float(np.percentile(seconds, percentile)), 2) if len(seconds) else 0.0


def as_text(load: SipLoad) -> str:
    """One measurement in a few lines."""
    lines = [
        f"{load.calls} SIP calls for {load.seconds:g} s"
        + (f", {load.failed_calls} failed" if load.failed_calls else ""),
        f"  gateway          {load.cpu_percent:.0f} % of a core ({load.cpu_percent_per_call:.2f} % a call), "
        f"{load.rss_mb:.0f} MB",
        f"  packet spacing   off 20 ms by {load.spacing_off_ms_p50:.2f} ms median, {load.spacing_off_ms_p99:.2f} p99, "
        f"{load.spacing_off_ms_max:.1f} max",
        f"  packets          {load.packets_per_second:.0f} a second came back, {load.missing} are missing",
    ]
    if load.first_failure:
        lines.append(f"  first failure    {load.first_failure}")
    if load.bench_late_ms_p99 > 5:
        lines.append(f"  the bench itself sent late: {load.bench_late_ms_p99:.1f} ms p99")
    return "\n".join(lines)


@contextmanager
def _load_processes(target: str, calls: int) -> Iterator[list[Connection]]:
    """Processes that place the calls between them, off the gateway's core."""
    context = get_context("spawn")
    count = -(-calls // _CALLS_PER_PROCESS)
    before = os.sched_getaffinity(0)
    if len(before) > 1:
        os.sched_setaffinity(0, before - {min(before)})
    processes, pipes = [], []
    try:
        for index in range(count):
            share = calls // count + (index < calls % count)
            order = SipOrder(target, share, STARTS_PER_SECOND / count, index)
            ours, theirs = context.Pipe()
            process = context.Process(target=run_sip_load, args=(order, theirs), daemon=True)
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


def _receive(pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise GatewayFailed("A process that makes calls ended early; what it said is above.") from None
