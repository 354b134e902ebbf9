"""Work beside the steps that gets no further: a disk that does not answer, a device that never ends what it was given.

Owns how long that is borne. Steps go on meanwhile and so do the engine's reports, by which others see only whether the
process works. Pure: time comes in. Knows no thread and no device, only signs: each is something of which the work that
is being done can be told from the next, or None while there is none.

    refusal  no call is taken, for it could not be prepared, until the work goes on
    hung     the device's: calls cannot get their prompts back, and none can be opened; the engine has to end

As in `model.engine_watch`, only the time is counted that we were awake to look.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.engine_watch import EngineWatch

DEVICE = "device"
_REASONS = {
    DEVICE: "the device does not end the work that it was given beside its steps",
    "voices": "voices and prompts are not ready: the disk that they are on does not answer, or the device is busy",
    "clips": "clips cannot be read: the disk that they are on does not answer",
}


class DeviceHung(Exception):
    """The device has to be given up; the message says why."""


class Standstill:
    """Of one engine."""

    def __init__(self, step: float = 0.0) -> None:
        """`step`: seconds that a step of one call takes, as measured."""
        self._watches = {name: EngineWatch(step) for name in _REASONS}
        self._signs: dict[str, object] = dict.fromkeys(_REASONS)

    def look(self, now: float, signs: Mapping[str, object]) -> None:
        """The signs as they are at `now`, by the names of `_REASONS`. Raises DeviceHung."""
        for name, watch in self._watches.items():
            before, self._signs[name] = self._signs[name], signs[name]
            watch.look(now)
            if before is None or signs[name] is not before:
                watch.heard()
        device = self._watches[DEVICE]
        if device.hung:
            raise DeviceHung(f"{_REASONS[DEVICE]}, for {device.hung_after:.0f} s; the engine ends")

    @property
    def refusal(self) -> str:
        """Why no call is taken; empty if calls are."""
        return next((_REASONS[name] for name, watch in self._watches.items() if watch.quiet), "")

    @property
    def device_refusal(self) -> str:
        """Why not even a call is taken that has its prompt here and lost its engine elsewhere; empty if it is."""
        return _REASONS[DEVICE] if self._watches[DEVICE].quiet else ""
