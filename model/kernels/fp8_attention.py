"""Attention of one query a slot over rings in FP8, on tensor cores, in Triton: in a quarter of the instructions.

Owns one kernel, for heads of 128 on cards that convert e4m3 by themselves (capability 8.9 and later). That of
`model.kernels.attention` issues some six instructions for each byte that it reads, more than a GPU can while its memory
gives bytes; here it is one and a half. What goes in and comes out, how a window is cut and its chunks are joined,
and what is written are the same; the query and the weights are rounded to float16 on the way, which adds some 3e-4 of
the output's spread where FP8 itself adds 4e-2. `model.kernels.fp8_window` has the products.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.attention import LOG2_E, PLACES, SHORT, Chunks, Ring, join, newest, turned
from model.kernels.fp8_window import OUTPUTS, assembly
from model.kernels.overlap import begin_next, possible, wait_for_last

WIDTH = tl.constexpr(128)
"""Of a head."""
FIRST = (8, 9)
"""The first capability that converts e4m3."""
_SUMS = tl.constexpr((tl.float32,) * OUTPUTS)
_SMALLEST, _LARGEST = tl.constexpr(27 << 23), tl.constexpr(227 << 23)
"""Powers of two, 2^-100 and 2^100, as float32 has them."""


def takes(ring: Ring) -> bool:
    """Whether there is such a kernel for `ring` where it lies."""
    return ring.key_scales is not None and ring.keys.shape[-1] == WIDTH.value and _converts(ring.keys.device)


@functools.cache
def _converts(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST


def attend(
    ring: Ring, joined: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, first: Tensor, last: Tensor, cut: Chunks
) -> Tensor:
    """As `attention.attend`, of a ring that this `takes`. `cut`'s tile says how many turns are on their way at once."""
    count, _, heads, head_dim = joined.shape
    splits, tile = cut.peaks.shape[2], cut.tile
    text = assembly(tile.warps, tile.ahead)
    result = joined.new_empty((count, heads, head_dim))
    _attend[(splits, heads, count)](
        joined,
        cos,
        sin,
        *ring.arguments,
        slots,
        first,
        last,
        cut.seen,
        cut.peaks,
        cut.sums,
        cut.arrivals,
        result,
        heads,
        ring.keys.shape[2],
        tile.chunk,
        head_dim**-0.5 * LOG2_E,
        threads=32 * tile.warps,
        text=text,
        places=max(PLACES, triton.next_power_of_2(splits)),
        early=(early := count <= SHORT and possible(joined.device)),
        num_warps=tile.warps,
        launch_pdl=early,
    )
    return result


@triton.jit
def _attend(
    joined,
    cos,
    sin,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    firsts,
    lasts,
    seen,
    peaks,
    sums,
    arrivals,
    result,
    heads,
    capacity,
    chunk,
    scale,
    threads: tl.constexpr,
    text: tl.constexpr,
    places: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        begin_next()
        wait_for_last()
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, last = tl.load(firsts + row).to(tl.int32), tl.load(lasts + row).to(tl.int32)
    slot = tl.load(slots + row).to(tl.int64)
    component = tl.arange(0, WIDTH)
    pair = row * (WIDTH // 2) + component // 2
    turn, shift = tl.load(cos + pair), tl.load(sin + pair)
    source = joined + (row * 3 * heads + head).to(tl.int64) * WIDTH
    begin = first + split * chunk
    if begin > last:
        return

    used = (last - first) // chunk + 1
    base = (slot * heads + head) * capacity
    place = (row * heads + head).to(tl.int64)
    many = place * tl.num_programs(0)
    target = seen + (many + split) * WIDTH
    rings = (keys + base * WIDTH, values + base * WIDTH, key_scales + base, value_scales + base)
    # The newest is not read back.
    window = (begin % capacity, tl.minimum(last - begin, chunk), capacity)
    lane, loaded = _begun(rings, window, threads, text)
    asked = turned(source, turn, shift, component) * scale
    top, total, view = _window(asked, target, component, lane, loaded, threads, text)
    if split == used - 1:
        top, total, view = newest(
            top,
            total,
            view,
            asked,
            source,
            turn,
            shift,
            keys,
            values,
            key_scales,
            value_scales,
            base + last % capacity,
            heads * WIDTH,
            component,
            WIDTH,
            True,
        )

    tl.store(peaks + many + split, top)
    tl.store(sums + many + split, total)
    tl.store(target + component, view)
    tl.debug_barrier()  # every thread's part is written before one of them counts it
    if tl.atomic_add(arrivals + place, 1, sem="acq_rel") == used - 1:
        tl.store(arrivals + place, 0)
        view = join(seen, peaks, sums, many, used, component, WIDTH, places)
        tl.store(result + place * WIDTH + component, view.to(result.dtype.element_ty))


@triton.jit
def _begun(rings, window, threads: tl.constexpr, text: tl.constexpr):
    """Ask for the first turns, before the query is known. Returns the places, one of each a thread, and what comes."""
    start, count, capacity = window
    thread = tl.arange(0, threads)
    g, t = thread % 32 // 4, thread % 4
    same, far = thread * 0, thread.to(tl.int64) * 0
    lane = (
        rings[0].to(tl.int64) + t * 16,
        rings[1].to(tl.int64) + g * 16,
        rings[2].to(tl.int64) + far,
        rings[3].to(tl.int64) + far,
        start + thread // 32 * 16,
        start + tl.maximum(count, 1) - 1 + same,
        count + same,
        capacity + same,
        g % 4 * 4 + g // 4 * 2,
        t * 4,
    )
    ahead: tl.constexpr = text[4]
    kinds: tl.constexpr = (tl.int32,) * (32 * ahead) + (tl.float32,) * (4 * ahead)
    return lane, tl.inline_asm_elementwise(text[0], text[1], lane, kinds, is_pure=False, pack=1)


@triton.jit
def _window(asked, scratch, component, lane, loaded, threads: tl.constexpr, text: tl.constexpr):
    """The softmax over a chunk's cells: its peak, the sum of its weights, and the values so weighed.

    The query goes to all threads through `scratch [128]`, as float16, its largest number between 1 and 2 by a power of
    two.
    """
    bits = tl.max(tl.abs(asked), axis=0).to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, _SMALLEST), _LARGEST)
    power, inverse = bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)
    tl.store(scratch.to(tl.pointer_type(tl.float16)) + component, (asked * inverse).to(tl.float16))
    tl.debug_barrier()  # all of it is there
    thread = tl.arange(0, threads)
    t = thread % 4
    more = (scratch.to(tl.int64) + t * 32, t * 4, power + (thread * 0).to(tl.float32))
    u = tl.inline_asm_elementwise(text[2], text[3], loaded + lane + more, _SUMS, is_pure=False, pack=1)
    peak = u[0]
    top = tl.max(peak, axis=0)
    # The weight of each position, and each component's sum, is in the four threads of one g.
    share = tl.exp2(peak - top) * 0.25
    sums = tl.reshape(_comb(u, share), [threads // 32, 8, 4, 16])
    return top, tl.sum(u[1] * share, axis=0), tl.reshape(tl.sum(tl.sum(sums, axis=2), axis=0), [WIDTH])


@triton.jit
def _comb(u, share):
    """A thread's 16 sums, which are outputs from the third on, as `[threads, 16]`."""
    a = tl.join(tl.join(u[2] * share, u[10] * share), tl.join(u[6] * share, u[14] * share))
    b = tl.join(tl.join(u[4] * share, u[12] * share), tl.join(u[8] * share, u[16] * share))
    c = tl.join(tl.join(u[3] * share, u[11] * share), tl.join(u[7] * share, u[15] * share))
    d = tl.join(tl.join(u[5] * share, u[13] * share), tl.join(u[9] * share, u[17] * share))
    return tl.join(tl.join(a, b), tl.join(c, d))
