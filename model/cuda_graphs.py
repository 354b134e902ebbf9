"""CUDA graphs of a step: one for each batch size, replayed instead of launched kernel by kernel.

Owns capture and nothing else. On any other device the step runs as it is written, so that both ways share one
function. What a graph reads and writes are static tensors: whoever owns them copies in before and out after.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

HIGH_PRIORITY, LOW_PRIORITY = -1, 0
"""Of the stream that steps run on, and of the one for other work (CUDA C++ Programming Guide, "Stream Priorities")."""


class Graph:
    """Work captured once, to be replayed. Only for a CUDA device."""

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        pool: _POOL_HANDLE | None = None,
        aside: torch.cuda.Stream | None = None,
    ) -> None:
        """`pool`: memory shared with graphs that never run at the same time; `aside`: the stream that captures.

        Nothing else may use the device.
        """
        aside = aside or stream(device, HIGH_PRIORITY)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            # Once: here libraries choose their kernels and workspaces, and Triton compiles.
            work()
        aside.synchronize()
        # A tensor that the collector frees during a capture would be waited for, which a capture forbids.
        gc.collect()
        self._graph = _kept_graph()
        with torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            work()
        torch.cuda.current_stream(device).wait_stream(aside)
        self.nodes = _count_nodes(self._graph)
        """Launches and copies in it, None where this torch does not tell."""

    def replay(self) -> None:
        """The work once, on the current stream."""
        self._graph.replay()


class StepGraphs:
    """`run(batch)`, captured for each of `batches` where the device has graphs."""

    def __init__(self, run: Callable[[int], None], batches: Sequence[int], device: torch.device) -> None:
        self._run = run
        self._graphs: dict[int, Graph] = {}
        if device.type == "cuda" and batches:
            # One stream for all: cuBLAS keeps a workspace for each that it has seen, 32 MB on Hopper, for ever.
            pool, aside = torch.cuda.graph_pool_handle(), stream(device, HIGH_PRIORITY)
            # The largest first: the smaller ones then fit into the memory that it took.
            for batch in sorted(batches, reverse=True):
                self._graphs[batch] = Graph(lambda: self._run(batch), device, pool, aside)  # noqa: B023

    def __call__(self, batch: int) -> None:
        """One step of `batch` rows, on the current stream."""
        graph = self._graphs.get(batch)
        if graph is None:
            self._run(batch)
        else:
            graph.replay()

    def nodes(self, batch: int) -> int | None:
        """Launches and copies in the step of `batch`, None where that is not known or nothing was captured."""
        graph = self._graphs.get(batch)
        return None if graph is None else graph.nodes


def stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """A stream of its own for a kind of work."""
    made: torch.cuda.Stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return made


def _kept_graph() -> torch.cuda.CUDAGraph:
    """A graph whose nodes can be counted after its capture, where this torch has such graphs."""
    try:
        return torch.cuda.CUDAGraph(keep_graph=True)
    except TypeError:
        return torch.cuda.CUDAGraph()


def _count_nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """cuGraphGetNodes (CUDA Driver API, Graph Management) with no list to fill gives the number."""
    if not hasattr(graph, "raw_cuda_graph"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_size_t(0)
        failed: int = driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    except (OSError, AttributeError, RuntimeError):
        return None
    return None if failed else count.value
