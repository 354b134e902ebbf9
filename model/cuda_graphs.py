"""CUDA graphs of a step: one for each batch size, replayed instead of launched kernel by kernel.

Owns capture and nothing else. On any other device the step runs as it is written, so that both ways share one
function. What a graph reads and writes are static tensors: whoever owns them copies in before and out after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

HIGH_PRIORITY, LOW_PRIORITY = -1, 0
"""Of the stream that steps run on, and of the one for other work (CUDA C++ Programming Guide, "Stream Priorities")."""
_WARM_UPS = 3
"""Runs before a capture: libraries choose their kernels and workspaces in the first."""


class StepGraphs:
    """`run(batch)`, captured for each of `batches` where the device has graphs."""

    def __init__(self, run: Callable[[int], None], batches: Sequence[int], device: torch.device) -> None:
        self._run = run
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if device.type == "cuda":
            self._capture(sorted(batches, reverse=True), device)

    def __call__(self, batch: int) -> None:
        """One step of `batch` rows, on the current stream."""
        graph = self._graphs.get(batch)
        if graph is None:
            self._run(batch)
        else:
            graph.replay()

    def _capture(self, batches: Sequence[int], device: torch.device) -> None:
        """The largest first: the smaller ones then fit into the memory that it took."""
        pool = torch.cuda.graph_pool_handle()
        aside = stream(device, HIGH_PRIORITY)
        aside.wait_stream(torch.cuda.current_stream(device))
        for batch in batches:
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    self._run(batch)
            aside.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=aside):
                self._run(batch)
            self._graphs[batch] = graph
        torch.cuda.current_stream(device).wait_stream(aside)


def stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """A stream of its own for a kind of work."""
    made: torch.cuda.Stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return made
