"""Torch on one thread, as for the engine's own tests."""

from __future__ import annotations

from tests.model.conftest import one_thread

__all__ = ["one_thread"]
