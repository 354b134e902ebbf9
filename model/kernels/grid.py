"""What the programs of one launch need to work together, in Triton: a barrier, numbers with tags, and hints of reads.

Owns what the barrier's counter and the words that carry a number mean. All programs must be on the device at once: a
launch that waits here asks for a cooperative grid, which the driver refuses where it does not fit. In the interpreter,
where programs run one after another, there is one program and nothing to wait for.
"""

from __future__ import annotations

import triton
import triton.language as tl

LINE = tl.constexpr(128)
"""Bytes that the second-level cache takes at once."""


@triton.jit
def sign_of(counter):
    """The sign that `arrive` and `wait` begin with. `counter` is one int32 that begins at 0, and need never be reset.

    Its low 31 bits must be 0 between launches, else the sign turns before all have arrived. So they are: each time
    that all meet adds 2^31 to it. A launch that was broken off leaves a counter that is good for nothing.
    """
    return tl.load(counter, volatile=True)


@triton.jit
def arrive(counter):
    """Tell that this program's part is stored.

    All but the first program add 1, the first what is left to 2^31: the sign turns when the last has arrived.
    """
    programs = tl.num_programs(0)
    if programs > 1:
        share = tl.where(tl.program_id(0) == 0, 0x7FFFFFFF - (programs - 2), 1)
        tl.debug_barrier()  # all threads have stored
        tl.atomic_add(counter, share, sem="release", scope="gpu")


@triton.jit
def wait(counter, sign):
    """Until all programs have arrived: what they stored can be read then. Returns the sign for the next time."""
    if tl.num_programs(0) > 1:
        while (tl.atomic_add(counter, 0, sem="acquire", scope="gpu") ^ sign) >= 0:
            pass
        tl.debug_barrier()  # no thread reads before the one that looked
    return ~sign


@triton.jit
def meet(counter, sign):
    """`arrive` and `wait`."""
    arrive(counter)
    return wait(counter, sign)


@triton.jit
def publish(mail, value, tag, mask):
    """Give others a number and its `tag`, an int32, in one word: who sees the tag has the number.

    Of one word that is so in whatever order a GPU shows what was stored; nothing else is known to be visible then.
    Words are of 32 bits, half of them a bfloat16 and half the tag's last 16; or of 64, with a float32.
    """
    if mail.dtype.element_ty == tl.int32:
        bits = value.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        word = (tag << 16) | bits
    else:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        word = (tag.to(tl.int64) << 32) | bits
    tl.atomic_xchg(mail, word, mask=mask, sem="relaxed")


@triton.jit
def late(words, tag):
    """1 for each of `words` that has another tag yet, else 0."""
    other = (words ^ (tag << 16)) >> 16 if words.dtype == tl.int32 else (words >> 32).to(tl.int32) ^ tag
    return (other != 0).to(tl.int32)


@triton.jit
def number(words):
    """The numbers in `words`, in float32."""
    bits = words << 16 if words.dtype == tl.int32 else words.to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def empty(mail, tag):
    """A word with this `tag` that nobody waits for: 0."""
    return tag.to(mail.dtype.element_ty) << (mail.dtype.element_ty.primitive_bitwidth // 2)


@triton.jit
def prefetch(address, size, lines: tl.constexpr):
    """Ask for `size` bytes from `address`, a number, to be brought to the second-level cache: each program its share.

    Not for the interpreter, which knows no assembly.
    """
    part: tl.constexpr = lines * LINE
    place = tl.arange(0, lines) * LINE
    for start in range(tl.program_id(0) * part, size, tl.num_programs(0) * part):
        line = address + tl.minimum(start + place, size - 1).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1
        )
