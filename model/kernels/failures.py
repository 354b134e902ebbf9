"""What a kernel fails with that does not compile, or does not fit a card. Knows no kernel."""

from __future__ import annotations

from triton.compiler.errors import CompilationError
from triton.runtime.errors import InterpreterError, OutOfResources, PTXASError

FAILURES: tuple[type[Exception], ...] = (CompilationError, InterpreterError, OutOfResources, PTXASError, RuntimeError)
"""RuntimeError is what the compiler's passes raise ("PassManager::run failed")."""
