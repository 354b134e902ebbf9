"""What a codec's convolutions carry, in Triton: out of the slots' rows before a step, and back after it.

Owns three kernels that move floats: `begin` puts a slot's carried inputs, and its new sound, into a step's workspace;
`finish` takes the successors out of it and lets the slot's time go on; `double` is the depthwise transposed convolution
between the codes' rate and the transformer's. Where each float lies comes in as a table. Slots may be named more than
once where nobody needs their contents: each program writes whole floats of one row, in any order.

b is the slots of a step, N the floats carried, W a workspace's width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def begin(rows: Tensor, slots: Tensor, places: Tensor, workspace: Tensor, sound: Tensor | None, sound_at: int) -> None:
    """Copy `rows [S, N]` of `slots [b]` to `places [N]` of `workspace [b, W]`, `sound [b, n]` to `sound_at` and on."""
    carried, samples = places.shape[0], 0 if sound is None else sound.shape[1]
    _begin[(slots.shape[0], triton.cdiv(carried + samples, _BLOCK))](
        rows,
        slots,
        places,
        workspace,
        workspace if sound is None else sound,
        rows.stride(0),
        workspace.stride(0),
        0 if sound is None else sound.stride(0),
        carried,
        samples,
        sound_at,
        block=_BLOCK,
        num_warps=4,
    )


def finish(rows: Tensor, slots: Tensor, places: Tensor, workspace: Tensor, offsets: Tensor, step: int) -> None:
    """Copy `places [N]` of `workspace [b, W]` to `rows [S, N]` of `slots [b]`, and add `step` to their `offsets [S]`.

    A place below 0 stands for 1.
    """
    carried = places.shape[0]
    _finish[(slots.shape[0], triton.cdiv(carried, _BLOCK))](
        rows,
        slots,
        places,
        workspace,
        offsets,
        rows.stride(0),
        workspace.stride(0),
        carried,
        step,
        block=_BLOCK,
        num_warps=4,
    )


def double(x: Tensor, weight: Tensor, rows: Tensor, slots: Tensor, result: Tensor) -> None:
    """Each of `x [b, n, C]` to two positions, `result [b, 2 n C]`, with `weight [C, 4]`.

    `rows [S, C]` of `slots [b]` are the ones before the first; the last ones take their place.
    """
    count, length, channels = x.shape
    _double[(count, triton.cdiv(channels, _BLOCK), length)](
        x, weight, rows, slots, result, rows.stride(0), channels, length, block=_BLOCK, num_warps=4
    )


@triton.jit
def _begin(
    rows,
    slots,
    places,
    workspace,
    sound,
    rows_stride,
    workspace_stride,
    sound_stride,
    carried,
    samples,
    sound_at,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    old, sample = place < carried, place - carried
    new = (sample >= 0) & (sample < samples)
    value = tl.load(rows + slot * rows_stride + place, mask=old, other=0.0)
    value += tl.load(sound + row * sound_stride + sample, mask=new, other=0.0)
    target = tl.where(old, tl.load(places + place, mask=old, other=0), sound_at + sample)
    tl.store(workspace + row * workspace_stride + target, value, mask=old | new)


@triton.jit(do_not_specialize=["step"])
def _finish(
    rows,
    slots,
    places,
    workspace,
    offsets,
    rows_stride,
    workspace_stride,
    carried,
    step,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    there = place < carried
    source = tl.load(places + place, mask=there, other=0)
    value = tl.load(workspace + row * workspace_stride + source, mask=there & (source >= 0), other=1.0)
    tl.store(rows + slot * rows_stride + place, value, mask=there)
    if tl.program_id(1) == 0:
        tl.store(offsets + slot, tl.load(offsets + slot) + step)


@triton.jit(do_not_specialize=["length"])
def _double(x, weight, rows, slots, result, rows_stride, channels, length, block: tl.constexpr):
    row, time = tl.program_id(0).to(tl.int64), tl.program_id(2)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    there = channel < channels
    source = x + (row * length + time) * channels + channel
    now = tl.load(source, mask=there, other=0.0)
    before = tl.load(source - channels, mask=there & (time > 0), other=0.0)
    if time == 0:  # alone with what is carried: another program might overwrite it too early
        carried = rows + tl.load(slots + row).to(tl.int64) * rows_stride + channel
        before = tl.load(carried, mask=there, other=0.0)
        tl.store(carried, tl.load(source + (length - 1) * channels, mask=there, other=0.0), mask=there)
    target = result + (row * length + time) * 2 * channels + channel
    for turn in tl.static_range(2):
        fresh = tl.load(weight + channel * 4 + turn, mask=there, other=0.0)
        late = tl.load(weight + channel * 4 + 2 + turn, mask=there, other=0.0)
        tl.store(target + turn * channels, now * fresh + before * late, mask=there)
