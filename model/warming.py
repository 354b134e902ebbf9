"""What an engine does once for nobody before it takes calls, so that no call waits for what happens only once.

Owns the list: every size of pass that opening, taking over or re-priming a call needs, and the copies around them.
Kernels are compiled, loaded and chosen when their size first comes. Knows no calls.
"""

from __future__ import annotations

import torch

from model.codec_passes import CodecPasses
from model.engine import Stepper
from model.long_reads import LongReads


def warm_long_passes(stepper: Stepper) -> None:
    """Do all of that in memory that is nobody's, on a GPU; elsewhere nothing happens only once."""
    if stepper.device.type != "cuda":
        return
    with stepper.aside():
        CodecPasses(stepper).warm()
        LongReads(stepper).warm()
        _copy_once(stepper)
    stepper.join()
    torch.cuda.synchronize(stepper.device)


def _copy_once(stepper: Stepper) -> None:
    """Keep a prompt, begin with it, place its last column, go on from another memory and leave one, as calls do."""
    state, nobody, rows = stepper.state, stepper.lm_slot[-1], stepper.models.config.rows
    state.kv.load(nobody, state.kv.save(nobody, 2), 2)
    ids = torch.zeros(rows, dtype=torch.long, device=stepper.device)
    state.cache.place(nobody, 2, ids, ids, ids.bool())
    state.cache.move(nobody, 2, nobody, 2)
    state.kv.wipe(nobody)
    stepper.reset_lm(nobody)
