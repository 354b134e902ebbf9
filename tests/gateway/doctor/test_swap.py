"""Swap areas as Linux tells of them, in a folder that stands for what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.doctor import swap as swap_module
from gateway.doctor.examine import examine
from gateway.doctor.finding import Finding
from tests.gateway.doctor.examined import of, settings

HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


class Machine:
    """Its block devices, and which of them it swaps to."""

    def __init__(self, root: Path) -> None:
        self.sys, self.swaps, self.dev = root / "sys", root / "swaps", root / "dev"
        self.dev.mkdir(parents=True)
        for folder in ("class/block", "dev/block", "devices"):
            (self.sys / folder).mkdir(parents=True)
        self.swaps.write_text(HEADER)

    def device(self, name: str, *below: str, **files: str) -> None:
        """A block device; files by their names, `__` for a slash; `below`: the devices that it lies on."""
        folder = self.sys / "devices" / name
        (folder / "slaves").mkdir(parents=True)
        for file, text in files.items():
            path = folder / file.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        for other in below:
            (folder / "slaves" / other).symlink_to(self.sys / "devices" / other)
        (self.sys / "class" / "block" / name).symlink_to(folder)

    def swaps_to(self, path: Path, kind: str = "partition") -> None:
        name = str(path).replace(" ", r"\040")
        self.swaps.write_text(self.swaps.read_text() + f"{name} {kind}\t2097148\t0\t-2\n")

    def swaps_to_file_on(self, device: str, path: Path) -> None:
        path.touch()
        number = os.stat(path).st_dev
        (self.sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(
            self.sys / "devices" / device
        )
        self.swaps_to(path, "file")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "machine")
    monkeypatch.setattr(swap_module, "SWAPS", machine.swaps)
    monkeypatch.setattr(swap_module, "SYS", machine.sys)
    return machine


def found() -> list[Finding]:
    return [finding for finding in examine(settings) if finding.name == "swap"]


def test_without_swap_nothing_is_wrong(machine: Machine) -> None:
    assert found() == [Finding("swap", True, "off")]


def test_where_the_system_does_not_tell_nothing_is_found(machine: Machine) -> None:
    machine.swaps.unlink()
    assert found() == []


def test_encrypted_areas_and_memory_are_right(machine: Machine) -> None:
    machine.device("vda2")
    machine.device("dm-0", "vda2", dm__uuid="CRYPT-PLAIN-swap")
    machine.device("dm-1", "dm-0", dm__uuid="LVM-abc")
    machine.device("zram0", backing_dev="none")
    (machine.dev / "swap").symlink_to(machine.dev / "dm-0")
    for name in ("swap", "dm-1", "zram0"):
        machine.swaps_to(machine.dev / name)
    machine.swaps_to_file_on("dm-1", machine.dev / "file")
    assert of(examine(settings), "swap").ok


def test_areas_in_the_clear_are_named_each_with_a_command(machine: Machine) -> None:
    machine.device("vda1")
    machine.device("vda2")
    machine.device("dm-0", "vda2", dm__uuid="CRYPT-LUKS2-abc")
    machine.device("dm-1", "dm-0", "vda1", dm__uuid="LVM-half-of-it")
    machine.device("zram0", backing_dev="/dev/vda1")
    for name in ("vda2", "dm-0", "dm-1", "zram0", "nobody-knows"):
        machine.swaps_to(machine.dev / name)
    machine.swaps_to_file_on("vda1", machine.dev / "swap file")
    machine.swaps_to(machine.dev / "out-of-sight", "file")
    notes = found()
    named = ["vda2", "dm-1", "zram0", "nobody-knows", "swap file", "out-of-sight"]
    assert [note.detail.partition(" to ")[2].partition(",")[0] for note in notes] == [
        str(machine.dev / name) for name in named
    ]
    assert all(note.warning and not note.ok for note in notes)
    assert notes[0].fix.startswith(f"sudo swapoff {machine.dev}/vda2    # ")
    assert f"swapoff '{machine.dev}/swap file' " in notes[4].fix
