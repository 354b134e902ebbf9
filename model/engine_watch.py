"""Whether the engine's process still works, from what it says: a driver that hangs ends nothing and raises nothing.

Owns how long it may say nothing. Pure: time comes in. Knows no process and no channel.

The engine tells its state every BEAT_SECONDS at least, between two parts of its work. While it does not

    quiet    no call is taken: whoever asks goes elsewhere at once. Those it holds have been moved by their gateways,
             which wait 0.24 s. It is over as soon as anything is heard
    hung     it is to be killed, and its worker started anew

Counted is only the time that we were awake to listen: a machine that was suspended, or a process that was stopped or
could not come to its event loop, has not heard an engine that may have been as still as itself.
"""

from __future__ import annotations

BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.5
"""Between two looks. Of a longer time between them twice this is counted, so that after a standstill of both processes,
however long, an engine that works is not even quiet."""
HUNG_SECONDS = 10.0
"""What an engine does between two reports takes far less: a step, or waiting for a pass, some 0.1 s on a GPU, all the
kernels that a start lacked 4 s; with tiny models on a busy core a pass of 16 calls under 0.1 s. Its start, which takes
longer, is not watched. With one of 11 s, calls that CALLPLEX_RESUME_WITHIN lets wait for 25 s are still there when the
next engine is ready."""
PART_STEPS = 256
"""An engine far from real time, as a large model on a CPU, may take longer, but no longer than so many steps of one
call: the longest part of other work reads 256 columns of a call, each for much less than a step costs, which reads all
weights for one column; or of eight calls together, for less still."""
QUIET_PART = 0.3
"""Of the time until it is hung, after which it is quiet: three reports did not come."""


class EngineWatch:
    """Of one engine, from when it is ready."""

    def __init__(self, step: float = 0.0) -> None:
        """`step`: seconds that a step of one call takes, as measured."""
        self.patience = max(HUNG_SECONDS, PART_STEPS * step)
        """Seconds until it is hung."""
        self.silent = 0.0
        """Seconds since it was heard, as far as we listened."""
        self._looked: float | None = None

    def heard(self) -> None:
        """It said something, whatever that was."""
        self.silent = 0.0

    def look(self, now: float) -> None:
        """We are awake, and have heard all that had come by `now`."""
        if self._looked is not None:
            self.silent += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now

    @property
    def quiet(self) -> bool:
        return self.silent >= QUIET_PART * self.patience

    @property
    def hung(self) -> bool:
        return self.silent >= self.patience
