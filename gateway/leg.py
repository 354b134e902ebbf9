"""A phone line as the call sees it, whatever carries it: Twilio, SIP, a browser, a test.

Owns the interface only. A leg hides the carrier's protocol, its codec and its pacing; the call
hides the engine. Neither knows the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


class LegError(Exception):
    """The peer broke its protocol; the message says how. The call ends, no other is touched."""


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Who calls whom over what, known when the media path is open."""

    call_id: str
    """Ours: names the call's folder and its records."""
    from_number: str
    to_number: str
    carrier: str
    """`twilio`, `sip`, `test` ..."""
    carrier_call_id: str = ""
    direction: Literal["inbound", "outbound"] = "inbound"
    parameters: Mapping[str, str] = field(default_factory=dict)
    rate: int = 8_000
    """Samples per second of the leg's PCM, both ways."""
    unreached: str = ""
    """The caller was to be connected to somebody and is back with the agent: who was tried, and why it failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended, for the carrier that asks what comes next."""

    reason: str
    """The call's end reason: `caller_hangup`, `agent_goodbye`, `transfer`, `worker_lost`, `busy` ..."""
    target: str = ""
    """Number or address to connect the caller to, when the reason is `transfer`."""
    fallback: str = ""
    """Number of the persona's fallback, for a caller the agent could not serve; may be empty."""


class CallLeg(Protocol):
    info: CallInfo

    @property
    def on_hold(self) -> bool:
        """While true, missing media is expected and does not end the call."""

    @property
    def lost(self) -> int:
        """20 ms of the agent's sound that came too late for the line, which was silent instead, or were left out.

        Pauses left out to catch up are none.
        """

    on_digit: Callable[[str], None] | None
    """Called with each key the caller presses, if somebody wants to know."""

    def answer(self) -> None:
        """The agent is there: pick the phone up, where the carrier has not done so already."""

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        """Until hang-up, give `heard` the caller's sound as it arrives: int16 at `info.rate`, 20 ms each.

        Raises LegError when the peer breaks its protocol. `heard` is called from wherever the line's
        bytes are read, so that no task has to wake for each 20 ms; it must be quick and never raises.
        """

    async def play(self, pcm: bytes) -> Sequence[int]:
        """The agent's next sound: int16 at `info.rate`, 80 ms. The leg paces it. Never raises on a
        line that is already down: `listen` says so.

        Returns of which frames the caller misses sound, as far as that became known since the last: how many frames
        before this one each was played. It was left out as too much waited, or its turn came while the call was held.
        """

    async def flush(self) -> None:
        """Drop what is queued but not yet heard (barge-in)."""

    async def drain(self, timeout: float) -> bool:
        """Wait until all that was played so far has been heard, `timeout` seconds at most; what follows need not be.

        False: it is not known to have been heard in that time, was flushed, or its turn came while the call was held.
        What was left out as too much waited is not waited for: `play` tells of it.
        """

    async def transfer(self, target: str) -> None:
        """Hand the caller to a number or address when the call ends."""

    async def hangup(self, reason: str) -> None:
        """End our side with the call's end reason. Safe to call twice."""
