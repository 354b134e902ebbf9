"""`callplex bench rehearsal`: how the rehearsal engine feels to callers who speak to it at once, and what it costs.

Owns who calls whom, and the figures. The recorded callers wait until the agent has finished, as people do,
or interrupt it; everything is measured from the sound at the caller's end of the socket. Knows nothing of
how the engine works.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

from gateway.bench.child import Gateway, GatewayFailed, Usage, running_gateway
from gateway.phone.call import CallFailed, CallOptions, CallReport, place_call
from gateway.phone.caller import Clip, ScriptedCaller, Voice, When
from gateway.phone.metrics import FRAME_SECONDS, Turn
from gateway.phone.script import CALLERS, known_turns
from gateway.phone.sound import RATE, read_wav

PERSONAS = Path(__file__).parents[2] / "personas"
BANK, CLINIC, PHARMACY = "+12065550110", "+15035550110", "+15035550111"
CAST: Sequence[tuple[str, str]] = (
    ("bank-declined", BANK),
    ("clinic-appointment", CLINIC),
    ("bank-barge-in", BANK),
    ("clinic-refill", PHARMACY),
    ("bank-hours", BANK),
)
"""Recording and number called."""
INTERRUPTIONS = {("bank-declined", 2): 4.5, ("bank-barge-in", 1): 1.8}
"""Turns that are said over the agent, so many seconds after it began; all others wait for its end."""
_PHASES = 8
"""Each call interrupts 20 ms later than the one before it; after 160 ms, two frames and five windows of the engine's,
it begins anew. Where a word falls in them moves the silence, and without this each recording's would fall alike."""
_WAIT_SECONDS = 1.2
"""From the agent's last sound to the caller's recording, which begins with about 0.3 s of silence."""
_QUIET_SECONDS = 4.0
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What `calls` callers at once, `placed` in all, have heard. Milliseconds; megabytes are 10**6 bytes."""

    calls: int
    placed: int
    failed: int
    first_failure: str
    turns: int
    unanswered: int
    response_median_ms: float
    response_worst_ms: float
    interruptions: int
    interruption_median_ms: float
    interruption_worst_ms: float
    frames: int
    """Of 20 ms, heard by the callers."""
    frames_lost: int
    """Silence where the agent's sound came too late, at the caller's end."""
    underruns: int
    deadline_misses: int
    """Ticks of a call's clock in the gateway that came over 20 ms late."""
    worker_rss_mb: float
    """The most of any moment."""
    worker_cpu_percent: float
    """Of one core, on average over the calls."""
    gateway_cpu_percent: float


def bench_rehearsal(calls: int, *, rounds: int = 0, json_output: bool = False) -> int:
    """Place `calls` calls at once, `rounds` times over, and print the figures. Returns the exit status.

    Rounds 0: as many as it takes for every recorded caller to have called.
    """
    try:
        found = measure_rehearsal(calls, rounds or -(-len(CAST) // calls))
    except GatewayFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write((json.dumps(asdict(found)) if json_output else as_text(found)) + "\n")
    return 1 if found.failed or not found.turns else 0


def measure_rehearsal(calls: int, rounds: int) -> Rehearsed:
    """Start a gateway with the rehearsal engine, place the calls, stop it. Raises GatewayFailed."""
    token = secrets.token_hex(16)
    environment = {
        "CALLPLEX_TWILIO_AUTH_TOKEN": token,
        "CALLPLEX_ENGINE": "rehearsal",
        "CALLPLEX_WORKER_CAPACITY": str(calls),
        "CALLPLEX_PERSONAS": str(PERSONAS),
    }
    with running_gateway(environment, None) as gateway:
        start, before = time.monotonic(), gateway.usage()
        results, peak = asyncio.run(_place(gateway, token, calls, rounds))
        after, seconds = gateway.usage(), time.monotonic() - start
        misses = _deadline_misses(gateway.data)
    reports = [result for result in results if isinstance(result, CallReport)]
    refused = [str(result) for result in results if isinstance(result, CallFailed)]
    return figures(calls, reports, refused, misses, _used(before, after, peak, seconds))


def as_text(found: Rehearsed) -> str:
    """The figures in a few lines."""
    lines = [
        f"{found.placed} calls, {found.calls} at once, {found.turns} turns of callers",
        f"  last word to first    {found.response_median_ms:.0f} ms median, {found.response_worst_ms:.0f} worst"
        + (f", {found.unanswered} unanswered" if found.unanswered else ""),
        f"  interruption to silence  {found.interruption_median_ms:.0f} ms median, "
        f"{found.interruption_worst_ms:.0f} worst of {found.interruptions}",
        f"  frames of 20 ms       {found.frames_lost} of {found.frames} lost, {found.underruns} underruns, "
        f"{found.deadline_misses} late ticks in the gateway",
        f"  worker                {found.worker_cpu_percent:.0f} % of a core, {found.worker_rss_mb:.0f} MB at most",
        f"  gateway               {found.gateway_cpu_percent:.0f} % of a core",
    ]
    if found.failed:
        lines.append(f"  {found.failed} calls failed, the first: {found.first_failure}")
    return "\n".join(lines)


def caller(name: str, call: int = 0) -> ScriptedCaller:
    """A recorded caller who says each turn when its moment has come; the `call`-th from 0."""
    path = CALLERS / f"{name}.wav"
    pcm = read_wav(path)
    # Half a frame less, so that no rounding decides in which frame it begins.
    later = (call % _PHASES - 0.5) * FRAME_SECONDS
    clips = [_clip((name, place), pcm, turn, later) for place, turn in enumerate(known_turns(path))]
    return ScriptedCaller(clips, _QUIET_SECONDS)


def _clip(which: tuple[str, int], recording: bytes, turn: Turn, later: float) -> Clip:
    pcm = recording[2 * round(turn.start * RATE) : 2 * round(turn.end * RATE)]
    over = INTERRUPTIONS.get(which)
    when: When = "agent_finished" if over is None else "agent_speaking"
    said = Turn(0.0, turn.end - turn.start, turn.text)
    return Clip(pcm, when, _WAIT_SECONDS if over is None else over + later, (said,))


async def _place(gateway: Gateway, token: str, calls: int, rounds: int) -> tuple[list[CallReport | CallFailed], int]:
    """All calls, and the most bytes the worker held meanwhile."""
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, gateway.usage().child_rss_bytes)
            await asyncio.sleep(_SAMPLE_SECONDS)

    watching = asyncio.create_task(watch())
    results: list[CallReport | CallFailed] = []
    try:
        for cast in _rounds(calls, rounds):
            voices = [(caller(name, len(results) + place), number) for place, (name, number) in enumerate(cast)]
            results += await asyncio.gather(*(_call(gateway, token, voice, number) for voice, number in voices))
    finally:
        watching.cancel()
    return results, peak


def _rounds(calls: int, rounds: int) -> Iterator[list[tuple[str, str]]]:
    everyone = cycle(CAST)
    for _ in range(rounds):
        yield list(islice(everyone, calls))


async def _call(gateway: Gateway, token: str, voice: Voice, number: str) -> CallReport | CallFailed:
    try:
        return await place_call(CallOptions(gateway.url, voice, to_number=number, auth_token=token))
    except CallFailed as failure:
        return failure


def _deadline_misses(data: Path) -> int:
    documents = (json.loads(path.read_text()) for path in data.glob("calls/*/transcript.json"))
    return sum(document["metrics"]["deadline_misses"] for document in documents)


def _used(before: Usage, after: Usage, peak: int, seconds: float) -> tuple[float, float, float]:
    """Worker's megabytes, worker's and gateway's per cent of a core."""
    worker = after.child_cpu_seconds - before.child_cpu_seconds
    own = after.cpu_seconds - before.cpu_seconds
    return round(peak / 1e6, 1), round(100 * worker / seconds, 1), round(100 * own / seconds, 1)


def figures(
    calls: int,
    reports: Sequence[CallReport],
    refused: Sequence[str],
    misses: int,
    used: tuple[float, float, float],
) -> Rehearsed:
    """Put together what came of all calls; `refused` are those that never began, `used` is as in `_used`."""
    responses = [value for report in reports for value in report.metrics.response_ms]
    answered = [value for value in responses if value is not None]
    cut = [value for report in reports for value in report.metrics.interruption_ms]
    failures = [*refused, *(report.detail for report in reports if report.detail)]
    return Rehearsed(
        calls=calls,
        placed=len(reports) + len(refused),
        failed=len(failures),
        first_failure=failures[0] if failures else "",
        turns=len(responses),
        unanswered=len(responses) - len(answered),
        response_median_ms=_median(answered),
        response_worst_ms=max(answered, default=0.0),
        interruptions=len(cut),
        interruption_median_ms=_median(cut),
        interruption_worst_ms=max(cut, default=0.0),
        frames=sum(report.metrics.frames_received for report in reports),
        frames_lost=sum(report.metrics.frames_lost for report in reports),
        underruns=sum(report.metrics.underruns for report in reports),
        deadline_misses=misses,
        worker_rss_mb=used[0],
        worker_cpu_percent=used[1],
        gateway_cpu_percent=used[2],
    )


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1) if values else 0.0
