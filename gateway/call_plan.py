"""What is decided before a call begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.wire import SessionRequest


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What is decided before a call: who answers, and within which limits."""

    persona: str
    persona_version: str
    request: SessionRequest
    transfers: Mapping[str, str] = field(default_factory=dict)
    """The only numbers a call may be transferred to, by the names the agent uses."""
    fallback: str = ""
    max_seconds: float = 900.0
    max_silence_seconds: float = 60.0
    """When neither side said a word for this long, the call is over."""
    masks_keypad: bool = False
    """Keys the caller presses leave a mark, but not which they were."""
    consent: str = ""
    """Said first; before it was heard nothing is recorded or written down. Empty: nothing has to be."""
    no_media_seconds: float = 10.0
    engine_silence_seconds: float = 2.0
    """An engine that owes this much sound is lost."""
    farewell: str = "I am sorry, I have to end the call here. Goodbye."
    """Said before a call that reached one of its limits is ended."""
