"""ONNX Runtime sessions as a worker wants them: one thread, no memory kept for later, quiet.

Owns the session options only. A session is shared by all calls: `run` is thread-safe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime


def open_session(model: Path | bytes) -> Any:
    """An `onnxruntime.InferenceSession` on one CPU thread, without the arena that never shrinks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
