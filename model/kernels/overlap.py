"""Launches that begin before the one before them has ended, in Triton: programmatic dependent launch.

Owns where there is such a thing (capability 9.0 and later) and its two signs. Such a kernel says `begin_next` at once
and `wait_for_last` before it touches anything that another launch writes, or anything that another may still read; what
never changes, weights, it may ask for before. Each waits for the one before, so that in the end all are in order.
CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

FIRST = (9, 0)
"""The first capability that has it."""


@functools.cache
def possible(device: torch.device) -> bool:
    """Whether launches on `device` can be asked to overlap."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST


@triton.jit
def begin_next():
    """The launch after this one may begin, as far as there is room, once all programs have said so."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last():
    """Until the launch before this one has ended, and what it wrote can be read."""
    tl.extra.cuda.gdc_wait()
