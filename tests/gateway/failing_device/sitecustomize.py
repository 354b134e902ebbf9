"""On PYTHONPATH, a device that fails once: Python imports this by itself in every process it starts.

In the engine's process alone, the step of the FAILING_FRAME-th caller frame raises what torch raises when a CUDA device
has failed, and leaves the file FAILED_ONCE. With it the next engine is a good one, unless FAILS_FOR_GOOD is set: then
none ever starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if "model.gpu_process" in sys.orig_argv and "FAILED_ONCE" in os.environ:
    import torch

    from model.engine import Stepper, StepResult

    _failed, _whole = Path(os.environ["FAILED_ONCE"]), Stepper.step
    _left, _for_good = int(os.environ["FAILING_FRAME"]), "FAILS_FOR_GOOD" in os.environ

    def _step(self: Stepper, slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        global _left
        # The steps with which an engine measures itself have no caller.
        _left -= sum(map(bool, pcm))
        if (_left <= 0 and not _failed.exists()) or (_for_good and _failed.exists()):
            _failed.touch()
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nSearch for it in ...")
        return _whole(self, slots, pcm)

    Stepper.step = _step  # type: ignore[method-assign]
