"""What is said of the device that something is measured on."""

from __future__ import annotations

import torch

from model.bench.device import about_device, driver_number


def test_the_drivers_number_is_found_in_what_either_of_its_modules_says() -> None:
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC 12\n"
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (dvs-builder)\n"
    assert driver_number(closed) == "550.54.15"
    assert driver_number(opened) == "580.159.03"
    assert driver_number("") is None


def test_versions_of_what_a_cpu_does_not_use_are_not_told() -> None:
    about = about_device(torch.device("cpu"))
    assert {"date", "commit", "python", "torch", "device_name"} <= about.keys()
    assert not {"triton", "driver"} & about.keys()
