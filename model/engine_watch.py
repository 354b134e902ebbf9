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
QUIET_SECONDS = 3.0
"""Three reports did not come. What an engine does between two takes far less: a step, or waiting for a pass, some 0.1 s
on a GPU; with tiny models on a busy core a pass of 16 calls under 0.1 s."""
HUNG_SECONDS = 10.0
"""All the kernels that a start lacked took 4 s to compile; in the midst of calls none should be lacking. The start
itself, which takes longer, is not watched. With one of 11 s, calls that CALLPLEX_RESUME_WITHIN lets wait for 25 s are
still there when the next engine is ready."""
QUIET_STEPS = 16
"""An engine far from real time may take longer, as one on a CPU that others use: with small models a pass costs no more
than a few steps of one call. With a large one it may cost more; such an engine does not open a call in time either."""
HUNG_STEPS = 256
"""No work between two reports takes longer than so many steps of one call. At most it reads 256 columns of a call, each
for much less than a step costs, which reads all weights for one column; or of eight calls together, for less still."""


class EngineWatch:
    """Of one engine, from when it is ready."""

    def __init__(self, step: float = 0.0) -> None:
        """`step`: seconds that a step of one call takes, as measured."""
        self.quiet_after = max(QUIET_SECONDS, QUIET_STEPS * step)
        self.hung_after = max(HUNG_SECONDS, HUNG_STEPS * step)
        """Seconds of silence."""
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
        return self.silent >= self.quiet_after

    @property
    def hung(self) -> bool:
        return self.silent >= self.hung_after
