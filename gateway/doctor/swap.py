"""Whether what is said in calls can get onto a disk as the system makes room in its memory: only through encryption.

Reads what Linux tells of its swap areas; elsewhere there is nothing to read, and nothing is found.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from gateway.doctor.finding import Finding
from gateway.settings import Settings

SWAPS = Path("/proc/swaps")
SYS = Path("/sys")
_CRYPT = "CRYPT-"
"""How the id of a device begins that dm-crypt made, of LUKS or plain (`dmsetup info -c -o uuid`)."""


def swap(_settings: Settings) -> Iterator[Finding]:
    try:
        lines = SWAPS.read_text().splitlines()[1:]
    except OSError:
        return
    areas = [(_unescaped(name), kind) for name, kind, *_ in map(str.split, lines)]
    if not areas:
        yield Finding("swap", True, "off")
        return
    open_to_see = [name for name, kind in areas if not _keeps_to_itself(name, kind)]
    for name in open_to_see:
        detail = f"the sound and tokens of calls may be written to {name}, which does not seem to be encrypted"
        fix = f"sudo swapoff {shlex.quote(name)}    # for good in /etc/fstab; or encrypt it: man crypttab, option swap"
        yield Finding("swap", False, detail, fix, warning=True)
    if not open_to_see:
        yield Finding("swap", True, f"{', '.join(name for name, _ in areas)}: encrypted, or memory")


def _keeps_to_itself(name: str, kind: str) -> bool:
    """Whether a swap area is encrypted, or no disk at all."""
    try:
        if kind == "partition":
            return _is_closed(SYS / "class" / "block" / Path(name).resolve().name)
        device = os.stat(name).st_dev
        return _is_closed(SYS / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}")
    except OSError:
        return False


def _is_closed(device: Path) -> bool:
    """Whether a block device is dm-crypt's, lies on such devices alone, or is zram that is never written to a disk."""
    device = device.resolve(strict=True)
    if device.name.startswith("zram"):
        behind = device / "backing_dev"
        return not behind.exists() or behind.read_text().strip() == "none"
    identity = device / "dm" / "uuid"
    if identity.exists() and identity.read_text().startswith(_CRYPT):
        return True
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    return bool(below) and all(map(_is_closed, below))


def _unescaped(name: str) -> str:
    r"""The kernel writes spaces and such as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)
