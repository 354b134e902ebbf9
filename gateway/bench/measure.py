"""From what calls sent and received to latencies, losses and underruns.

Owns the definitions, which `deploy/benchmarks.md` repeats for readers. Pure: times come in.

Round trip of 80 ms of sound: from the moment the caller had spoken its first sample (20 ms before the
carrier's message with that frame was due) to the moment the message that brings it back has come in.
A gateway cannot do better than DESIGNED_SECONDS: 80 ms until a frame is whole, 40 ms that the de-jitter
buffer holds, and the filters' delay, which the track's place in the sound contains. What is over
that is added latency: waiting for the call's clock, queueing, computing, sockets.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from gateway.audio import CARRIER_FRAME_SAMPLES, ENGINE_RATE, LINE_FRAME_SAMPLES, LINE_RATE, RATIO, TAPS
from gateway.bench.tracks import TRACK_FRAMES, VOICED_FRAMES, find_frames

FRAME_SECONDS = CARRIER_FRAME_SAMPLES / LINE_RATE
GATHER_SECONDS = 0.08
JITTER_SECONDS = 0.04
FILTER_SECONDS = (TAPS - RATIO) / ENGINE_RATE
"""Up 73 engine samples; down 71, since a line sample is made when its third engine sample is there."""
DESIGNED_SECONDS = GATHER_SECONDS + JITTER_SECONDS + FILTER_SECONDS

Floats = NDArray[np.float64]


@dataclass(slots=True)
class LineLog:
    """What one call sent and received."""

    sent_at: array[float]
    """When each 20 ms message was due, seconds."""
    received: list[tuple[float, bytes]]
    """When each message of the gateway came, and its JSON."""


@dataclass(slots=True)
class Measured:
    """What a load process saw in the window; several are added up by `merged`."""

    calls: int
    round_trips: Floats
    """Seconds, one for each message of sound that came back."""
    over_best: Floats
    """Seconds over the shortest round trip of the same call: what varies."""
    sent: int
    """20 ms frames sent that were not silent."""
    lost: int
    """20 ms frames sent that never came back."""
    underruns: int
    """Times a caller's playout ran dry, which holds nothing but what it was sent."""
    silent: int
    """Calls of which nothing came back."""
    lateness: Floats
    """Seconds by which the bench itself was late to send."""


def measure(logs: Sequence[LineLog], lateness: Sequence[tuple[float, float]], start: float, end: float) -> Measured:
    """Everything about the frames that were sent from `start` to `end`."""
    round_trips: list[Floats] = []
    over_best: list[Floats] = []
    sent = lost = underruns = silent = 0
    for log in logs:
        trips, call_sent, call_lost, call_underruns = _measure_call(log, start, end)
        sent += call_sent
        lost += call_lost
        underruns += call_underruns
        if len(trips):
            round_trips.append(trips)
            over_best.append(trips - trips.min())
        else:
            silent += 1
    late = np.array([by for when, by in lateness if start <= when <= end])
    empty = np.empty(0)
    return Measured(
        calls=len(logs),
        round_trips=np.concatenate(round_trips) if round_trips else empty,
        over_best=np.concatenate(over_best) if over_best else empty,
        sent=sent,
        lost=lost,
        underruns=underruns,
        silent=silent,
        lateness=late,
    )


def merged(parts: Sequence[Measured]) -> Measured:
    """The sum of what several load processes saw."""
    return Measured(
        calls=sum(part.calls for part in parts),
        round_trips=np.concatenate([part.round_trips for part in parts]),
        over_best=np.concatenate([part.over_best for part in parts]),
        sent=sum(part.sent for part in parts),
        lost=sum(part.lost for part in parts),
        underruns=sum(part.underruns for part in parts),
        silent=sum(part.silent for part in parts),
        lateness=np.concatenate([part.lateness for part in parts]),
    )


def _measure_call(log: LineLog, start: float, end: float) -> tuple[Floats, int, int, int]:
    """Round trips, frames sent, frames lost, underruns of one call in the window."""
    due = np.frombuffer(log.sent_at, np.float64) if len(log.sent_at) else np.empty(0)
    voiced = np.arange(len(due)) % TRACK_FRAMES < VOICED_FRAMES
    in_window = (due >= start) & (due <= end) & voiced
    sent = int(in_window.sum())
    arrivals, sizes, sound = _sound(log.received)
    if not sent or not len(sound):
        return np.empty(0), sent, sent, 0
    heard = find_frames(sound)
    ends = np.cumsum(sizes)
    message = np.searchsorted(ends, heard.starts, side="right").clip(max=len(ends) - 1)
    numbers = _unwrapped(heard.frames, arrivals[message], due)
    known = (numbers >= 0) & (numbers < len(due))
    numbers, message, starts = numbers[known], message[known], heard.starts[known]
    lost = sent - len(np.intersect1d(np.flatnonzero(in_window), numbers))
    _, first = np.unique(message, return_index=True)
    numbers, message, starts = numbers[first], message[first], starts[first]
    # A message is 80 ms to its end; the first has the silence in hand before them, one of a pause may be cut short.
    spoken = due[numbers] - FRAME_SECONDS - (starts - (ends[message] - LINE_FRAME_SAMPLES)) / LINE_RATE
    trips = (arrivals[message] - spoken)[in_window[numbers]]
    return trips, sent, lost, _underruns(arrivals, sizes, start, end)


def _sound(received: Sequence[tuple[float, bytes]]) -> tuple[Floats, Floats, bytes]:
    """Arrival and length in samples of each media message, and all their sound."""
    arrivals, payloads = [], []
    for when, body in received:
        message = orjson.loads(body)
        if message.get("event") == "media":
            try:
                payloads.append(base64.b64decode(message["media"]["payload"], validate=True))
            except (KeyError, TypeError, binascii.Error):
                continue
            arrivals.append(when)
    sizes = np.array([len(payload) for payload in payloads], np.float64)
    return np.array(arrivals, np.float64), sizes, b"".join(payloads)


def _unwrapped(frames: NDArray[np.int64], arrivals: Floats, due: Floats) -> NDArray[np.int64]:
    """Numbers of frames since the call began: the newest that had been sent when it came back."""
    newest = np.searchsorted(due, arrivals, side="right") - 1
    unwrapped: NDArray[np.int64] = newest - (newest - frames) % TRACK_FRAMES
    return unwrapped


def _underruns(arrivals: Floats, sizes: Floats, start: float, end: float) -> int:
    """How often a playout that has only what it was sent runs dry, counted within the window."""
    count = 0
    heard_until = -np.inf
    for when, size in zip(arrivals, sizes, strict=True):
        if when > heard_until:
            count += bool(start <= when <= end and heard_until > -np.inf)
            heard_until = when
        heard_until += size / LINE_RATE
    return count
