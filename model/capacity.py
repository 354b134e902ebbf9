"""How many calls a device holds: by its memory before anything is loaded, by its speed once a step was measured.

Owns both judgements and the sentences that refuse. Standard library only; sizes come in as configurations, memory in
bytes, time in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.config import LMConfig, MimiConfig
from model.engine_options import EngineRefused
from model.pace import FRAME, pace

MOST_SLOTS = 256
"""More were never asked of one device; memory and speed end it before."""
FP8_PART = 0.5302
"""Of the stored weights' bytes, where they are kept in 8 bits: embeddings and heads are not, scales come on top."""
READS_FP8 = (8, 9)
"""The compute capability from which Triton reads e4m3: Ada and Hopper."""
SPARES = 1
"""LM slots for re-priming; one is refilled in much less time than a call takes to need it again."""
PROMPT_PART = 0.04
"""Of the device's free memory, for prompts: so much they may take."""
PROMPT_LEAST = 1 << 30
"""Bytes of it that calls leave to prompts, where a number of slots was asked for."""
WORKSPACE = {"cuda": 3 << 30, "cpu": 128 << 20}
"""Bytes for libraries, activations and captured graphs, and for the codec's weights as its step reads them. On an H200
an engine of 151 slots took up to 3.7 GB more than its tensors, of which prompts 1.1 at most (deploy/benchmarks.md)."""
SPEED_PART = 0.8
"""Part of the time that steps may take, where the engine chooses the number of slots."""
GB = 1e9


def kv_item(kv_dtype: str, head_dim: int) -> float:
    """Bytes of a number among keys and values: `float32`, `bf16`, or `fp8` with four bytes for each head's scale."""
    return {"float32": 4.0, "bf16": 2.0, "fp8": 1.0 + 4 / head_dim}[kv_dtype]


def weights_bytes(lm: int, mimi: int, weights_dtype: str) -> int:
    """Of the networks on the device, from the bytes of their files."""
    return int((FP8_PART if weights_dtype == "fp8" else 1.0) * lm) + mimi


def unwalked_bytes(lm: LMConfig, item: int, weights_dtype: str) -> int:
    """Of these, `item` bytes a number where they are not FP8, what no conversation walks and is let go of once loaded:
    `LM.keep_steps`."""
    main, depth = lm.transformer.dim, lm.depformer
    matrices = depth.layers * (4 * depth.dim**2 + 3 * depth.dim * depth.hidden) + main * depth.dim
    outputs = depth.layers * (5 * depth.dim + 2 * depth.hidden) + depth.dim
    heads = item * depth.dim * (2 * lm.card + 1)
    step = heads + (matrices + 4 * outputs if weights_dtype == "fp8" else item * matrices)
    return max(0, depth.steps - lm.codebooks) * step


def slot_bytes(lm: LMConfig, mimi: MimiConfig, kv_item: float) -> int:
    """Memory of one call, in bytes: keys and values of the language model at `kv_item` bytes a number, and the codec's
    in float32."""
    main, codec = lm.transformer, mimi.transformer
    attention = main.layers * 2 * main.dim * main.context * kv_item
    both_sides = 2 * codec.layers * 2 * codec.dim * (codec.context + codec.step) * 4
    convolutions = 2 * 16 * mimi.seanet.filters * 2 ** len(mimi.seanet.ratios) * 4 * sum(mimi.seanet.ratios)
    return int(attention + both_sides + convolutions)


def fixed_bytes(weights: int, device: str, prompts: int = 0) -> int:
    """Memory of an engine on a `cuda` or `cpu` device whatever its slots, with `prompts` bytes to keep prompts in."""
    return weights + WORKSPACE[device] + prompts


def engine_bytes(slots: int, fixed: int, slot: int) -> int:
    """Memory of an engine for so many calls: beside their slots it has the spares, and nobody's for padding rows."""
    return fixed + (slots + SPARES + 1) * slot


def fitting_slots(memory: int, fixed: int, slot: int) -> int:
    """How many calls' slots `memory` bytes hold; below 1 if none."""
    return (memory - fixed) // slot - SPARES - 1


def set_aside(asked: int, free: int) -> int:
    """Bytes of `free` that are for prompts before slots are counted: all they may take, if no number was `asked`."""
    most = int(PROMPT_PART * free)
    return min(PROMPT_LEAST, most) if asked else most


def prompt_bytes(slots: int, free: int, fixed: int, slot: int) -> int:
    """What prompts may take beside so many slots, where `fixed` has no room for them."""
    return min(int(PROMPT_PART * free), free - engine_bytes(slots, fixed, slot))


def check_asked(slots: int) -> None:
    """Raises EngineRefused for more slots than one device is ever asked for, before anything is loaded."""
    if slots > MOST_SLOTS:
        raise EngineRefused(
            f"{slots} slots are more than the {MOST_SLOTS} of one device; start it with --slots {MOST_SLOTS}, and more"
            " workers on other devices"
        )


def slots_by_memory(asked: int, free: int, fixed: int, slot: int) -> int:
    """Slots of an engine that fits into `free` bytes: `asked` or, if that is 0, as many as do.

    Raises EngineRefused if not one fits, or not those asked for.
    """
    fitting = fitting_slots(free, fixed, slot)
    if fitting < 1:
        raise EngineRefused(
            f"one call needs {engine_bytes(1, fixed, slot) / GB:.1f} GB with the model's weights, and {free / GB:.1f}"
            " GB are free"
        )
    if asked > fitting:
        raise EngineRefused(
            f"{asked} slots need {engine_bytes(asked, fixed, slot) / GB:.1f} GB and {free / GB:.1f} GB are free;"
            f" start it with --slots {fitting}"
        )
    return asked or min(fitting, MOST_SLOTS)


def slots_by_speed(asked: int, costs: Mapping[int, float]) -> int:
    """Slots whose frames are answered in time at whatever phases they come, from what steps of so many slots took.

    What is asked for may take all of the device's time; else some is left. Raises EngineRefused if not one slot fits,
    or not those asked for.
    """
    limit = 1.0 if asked else SPEED_PART
    paces = {count: pace(count, costs) for count in costs}
    fitting = max((count for count, one in paces.items() if one.answer <= FRAME and one.busy <= limit), default=0)
    if not fitting:
        count, seconds = min(costs.items())
        raise EngineRefused(
            f"a step of {count} call{'s' * (count > 1)} takes {1000 * seconds:.0f} ms on this device and a frame is"
            f" {1000 * FRAME:.0f} ms: it is too slow for the model"
        )
    if asked and max(costs) > fitting:
        most = paces[max(costs)]
        raise EngineRefused(
            f"a step of {max(costs)} slots takes {1000 * costs[max(costs)]:.0f} ms on this device: so many calls would"
            f" take {100 * most.busy:.0f} % of its time, and an answer up to {1000 * most.answer:.0f} ms of a frame's"
            f" {1000 * FRAME:.0f}; start it with --slots {fitting}"
        )
    return fitting


def batch_sizes(slots: int) -> list[int]:
    """Sizes that a step is captured for: powers of two, halfway between the larger ones, and all slots."""
    sizes = {1 << power for power in range(slots.bit_length()) if 1 << power <= slots}
    sizes |= {3 << power for power in range(3, slots.bit_length()) if 3 << power <= slots}
    return sorted(sizes | {slots})
