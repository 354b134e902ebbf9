"""What the PersonaPlex engine is told to run with, and what it says of itself once it does.

Owns the two as data that travels between the worker's processes as JSON. Standard library only: the process that holds
the callers' sockets never loads torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Context = Literal["reprime", "sliding"]
KVDtype = Literal["auto", "float32", "bf16", "fp8"]
WeightsDtype = Literal["auto", "fp8"]
NAME = "personaplex"


class EngineRefused(Exception):
    """The engine cannot run as it is told to; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine process's settings. Folders as strings."""

    weights: str
    recordings: str = "personas/voices"
    """Folder of voices.yaml."""
    personas: str = "personas"
    """Folder below which clips are found, in `clips/NAME.clip`."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    slots: int = 0
    """Calls at once; 0: as many as memory and the measured step allow."""
    context: Context = "reprime"
    kv_dtype: KVDtype = "auto"
    weights_dtype: WeightsDtype = "auto"
    """How the language model's matrices are kept: as they are stored, or in 8 bits, of unproven quality."""
    warm: tuple[tuple[str, str], ...] = ()
    """Voice and prompt of personas whose first caller should not wait either."""
    log_level: str = "INFO"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineOptions:
        data: dict[str, Any] = json.loads(text)
        data["warm"] = tuple((voice, prompt) for voice, prompt in data["warm"])
        return cls(**data)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine says of itself, again and again."""

    capacity: int = 0
    refusal: str = ""
    """Why no call is taken now; empty if calls are."""
    failure: str = ""
    """Why there is no engine; empty if there is one."""
    steps: int = 0
    frames: int = 0
    late_frames: int = 0
    """Answered more than 80 ms after they came."""
    lost_frames: int = 0
    """Of callers; taken for silence."""
    cuts: int = 0
    """Times a call was re-primed."""
    unprompted_frames: int = 0
    """Answered while a part of the prompt had slid out of the window: re-priming came too late."""
    faults: int = 0
    """Slots closed for numbers that are none."""
    prompt_hits: int = 0
    prompt_misses: int = 0
    prompt_evictions: int = 0
    late_calls: tuple[int, ...] = ()
    """Calls that are over, by how many of their frames were late: as `scheduler.LATE_CALLS` divides them."""
    late_calls_frames: int = 0
    """Late frames of those calls together."""
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Of a step, as measured at the start, by number of slots."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineState:
        data: dict[str, Any] = json.loads(text)
        data["late_calls"] = tuple(data["late_calls"])
        return cls(**data)

    def counters(self) -> dict[str, int]:
        """The numbers that only grow, by name."""
        skipped = ("capacity", "refusal", "failure", "step_seconds", "late_calls", "late_calls_frames")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in skipped}
