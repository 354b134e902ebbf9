"""Where the engine's tests run: `CALLPLEX_TEST_DEVICE=cuda` runs the same ones on a GPU.

Those that look into tensors on the host, or compare bits with another device's, stay on the CPU.
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("CALLPLEX_TEST_DEVICE", "cpu")
