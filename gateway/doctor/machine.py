"""What the gateway takes of its machine: ports, descriptors, a disk."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator

import httpx

from gateway.descriptors import A_CALL, most_descriptors
from gateway.doctor.addresses import is_loopback
from gateway.doctor.finding import Finding
from gateway.settings import Settings, split_address

DISK_NEEDED = 200 << 20
DISK_WANTED = 2 << 30
"""Bytes free; a recorded call takes 115 MB an hour."""


def listeners(settings: Settings) -> Iterator[Finding]:
    yield _listener("listen", settings.listen, "CALLPLEX_LISTEN", ("/readyz", '"calls"'))
    if not is_loopback(split_address(settings.admin_listen)[0]):
        detail = f"{settings.admin_listen} is reachable from outside, and the admin listener has no login"
        yield Finding("admin_listen", False, detail, "export CALLPLEX_ADMIN_LISTEN=127.0.0.1:8081")
        return
    sign = ("/metrics", "callplex_calls_active")
    yield _listener("admin_listen", settings.admin_listen, "CALLPLEX_ADMIN_LISTEN", sign)


def _listener(name: str, address: str, variable: str, sign: tuple[str, str]) -> Finding:
    """Whether we could listen there. `sign`: a path, and what our own answer to it contains."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            free = "127.0.0.1:8080" if name == "listen" else "127.0.0.1:8081"
            reason = error.strerror or str(error)
            return Finding(name, False, f"cannot listen on {address}: {reason}", f"export {variable}={free}")
        if _answers(host, port, *sign):
            return Finding(name, True, f"callplex is already running on {address}")
        fix = f"ss -ltnp 'sport = :{port}'    # stop what it shows, or: export {variable}={host}:{port + 100}"
        return Finding(name, False, f"{address} is in use by another program", fix)
    return Finding(name, True, f"{address} is free")


def _answers(host: str, port: int, path: str, content: str) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reach}]:{port}{path}" if ":" in reach else f"http://{reach}:{port}{path}"
    try:
        return content in httpx.get(url, timeout=2.0, trust_env=False).text
    except httpx.HTTPError:
        return False


def descriptors(settings: Settings) -> Iterator[Finding]:
    """Whether as many files and sockets may be open as CALLPLEX_MAX_CALLS calls need; `serve` raises the soft limit."""
    most, needed = most_descriptors(), A_CALL * settings.max_calls
    if most < needed:
        detail = f"only {most} files may be open, {settings.max_calls} calls need {needed}"
        fix = (
            f"export CALLPLEX_MAX_CALLS={most // A_CALL}    # or LimitNOFILE={2 * needed} where the service is started"
        )
        yield Finding("descriptors", False, detail, fix, warning=True)
    else:
        yield Finding("descriptors", True, f"{most} files may be open")


def data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield Finding("data_dir", False, f"{existing} is not a folder", f"mv {existing} {existing}.old")
    elif not os.access(existing, os.W_OK | os.X_OK):
        fix = f"sudo install -d -o $(id -un) {folder}"
        yield Finding("data_dir", False, f"{existing} cannot be written; calls would leave no records", fix)
    else:
        free = shutil.disk_usage(existing).free
        text = f"{folder}, {free / (1 << 30):.1f} GiB free"
        fix = f"du -sh {folder}/calls/* | sort -h | tail    # what is large; or: export CALLPLEX_DATA_DIR=/other/disk"
        if free < DISK_NEEDED:
            yield Finding("data_dir", False, f"{text}: too little for recordings", fix)
        elif free < DISK_WANTED:
            yield Finding("data_dir", False, f"{text}: room for few recordings", fix, warning=True)
        else:
            yield Finding("data_dir", True, text)
