"""The process that writes recordings: `python -m gateway.recording.writer DESCRIPTOR`, started by the gateway.

Reads orders from a socket and does them one after another, so that muting, sealing, encoding and the disk take
nothing from the process that carries the calls. Keys, and sound that may not be kept yet, are in its memory only.

It ends when the gateway does, however that ends, once what the gateway had still sent is written; signals meant for the
gateway, from a terminal or a service manager, are not for it, because calls are still being ended and filed then.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import socket
import sys

from gateway.recording.disk import Disk, interleave
from gateway.recording.opus import OpusMissing
from gateway.recording.orders import Answer, Append, Begin, Closed, End, Failed, Late, Mute, Opened, Order

_BUFFER = 1 << 16


class Writer:
    """All recordings of one gateway."""

    def __init__(self, gateway: socket.socket) -> None:
        self._gateway = gateway
        self._disks: dict[int, Disk] = {}
        self._failed: set[int] = set()

    def run(self) -> None:
        """Until the gateway is gone."""
        with self._gateway.makefile("rb", _BUFFER) as orders:
            try:
                while True:
                    self._obey(pickle.load(orders))
            except (EOFError, ConnectionError, pickle.UnpicklingError):
                pass  # the gateway ended, perhaps in the midst of an order
        for number in list(self._disks):
            self._close(number, whole=False)

    def _obey(self, order: Order) -> None:
        try:
            match order:
                case Begin():
                    self._begin(order)
                case Append():
                    self._append(order)
                case End():
                    self._end(order)
        except OpusMissing as error:
            self._fail(order.number, str(error))
        except OSError as error:
            self._fail(order.number, (error.strerror or str(error)).lower())
        if isinstance(order, End):
            self._close(order.number, order.whole and order.number not in self._failed)
            self._failed.discard(order.number)
            self._answer(Closed(order.number))

    def _begin(self, order: Begin) -> None:
        disk = self._disks[order.number] = Disk(order.plan)
        try:
            disk.open(order.silence)
        finally:
            if disk.opened:
                self._answer(Opened(order.number))

    def _append(self, order: Append) -> None:
        if order.number in self._failed:
            return
        disk = self._disks[order.number]
        self._mute(order.number, disk, order.mutes)
        disk.take(interleave(b"".join(order.caller), b"".join(order.agent)))
        disk.move(order.released)

    def _end(self, order: End) -> None:
        if order.number in self._failed or not order.whole:
            return
        disk = self._disks[order.number]
        self._mute(order.number, disk, order.mutes)
        disk.move(order.released)

    def _mute(self, number: int, disk: Disk, mutes: list[Mute]) -> None:
        for mute in disk.mute(mutes):
            self._answer(Late(number, mute))

    def _close(self, number: int, whole: bool) -> None:
        try:
            self._disks.pop(number).close(whole)
        except OSError as error:
            self._fail(number, (error.strerror or str(error)).lower())

    def _fail(self, number: int, why: str) -> None:
        self._failed.add(number)
        self._answer(Failed(number, why))

    def _answer(self, answer: Answer) -> None:
        # Once it is gone, what it had sent is still written.
        with contextlib.suppress(ConnectionError):
            self._gateway.sendall(pickle.dumps(answer))


def main(descriptor: int) -> None:
    """Write what is ordered over the socket of that number until its other end is closed."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as gateway:
        Writer(gateway).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
