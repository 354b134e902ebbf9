"""How far a conversation has come: all that a reply changes, so that it can be taken back.

Owns what is remembered from turn to turn. Decides nothing.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace

from model.rehearsal.memory import Memory
from model.rehearsal.script import ScriptPlace
from model.rehearsal.slots import Slots
from model.wire import Answer, Question


@dataclass(slots=True)
class Course:
    """One conversation at one moment."""

    place: ScriptPlace
    slots: Slots
    memory: Memory = field(default_factory=Memory)
    asking: Question | None = None
    """What the agent has asked for and not been told."""
    pending: list[Answer] = field(default_factory=list)
    """Answers that wait until what they need is known."""
    served: int = 0
    """Answers given so far."""
    from_script: bool = False
    """Whether the last reply was an answer of the script."""
    aside: bool = False
    """Whether the reply is only about hearing each other, so that "repeat that" means the one before."""
    read_back: str = ""
    """The question whose number was read back last, which the caller may now correct."""
    unclear: int = 0
    unknown: int = 0
    silences: int = 0
    """So many times in a row the caller was not understood, asked what is not known, or said nothing."""
    holding: bool = False
    """The caller has asked for a moment."""

    def copy(self) -> Course:
        """The same, unmoved by what happens from now on."""
        return replace(
            self,
            place=copy(self.place),
            slots=self.slots.copy(),
            memory=self.memory.copy(),
            pending=list(self.pending),
        )
