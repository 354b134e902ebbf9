"""The gateway's end of the process that writes recordings: starts it, hands it orders, hears its answers.

Owns the process and the socket to it. It starts with the first recording, and with the first after it died; what it was
writing then is lost to it, and the file plays up to there. Orders go out at once while the socket takes them; what it
does not take waits here, in order, and a thread sends it. Nothing here ever blocks who hands an order over.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

from gateway.recording.orders import Answer, Closed, Order

log = logging.getLogger(__name__)

WRITER = "gateway.recording.writer"
COMMAND = (sys.executable, "-m", WRITER)
NICE = 5
_EXIT_SECONDS = 10.0

Hear = Callable[[Answer | None], None]
"""Gets each answer about one recording, in a thread of ours; None: the process is gone, and nothing follows."""


class WriterProcess:
    """Writes recordings in a process of its own."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """`command`: what is started; the number of its socket is added."""
        self._command = command
        self._link: _Link | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    @property
    def pid(self) -> int | None:
        """Of the process; None until it runs."""
        return self._link.pid if self._link is not None else None

    def channel(self, hear: Hear) -> Channel:
        """A new recording's way to the process, which is started if need be; does not wait for it."""
        with self._lock:
            number = next(self._numbers)
            if self._link is not None and (channel := self._link.channel(number, hear)) is not None:
                return channel
            if self._link is None:
                # Python does not wait for daemon threads; what was handed over must be written all the same.
                atexit.register(self.close)
            self._link = _Link(self._command)
            return self._link.start(number, hear)

    def close(self) -> None:
        """Let the process write what was handed over, and end; waits at most ten seconds for each."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.finish(_EXIT_SECONDS)


class Channel:
    """One recording's orders."""

    def __init__(self, number: int, link: _Link) -> None:
        self.number = number
        self.waiting = 0
        """Orders that the process has not taken yet."""
        self._link = link

    def send(self, order: Order) -> None:
        """Hand over an order with this channel's number. To a process that is gone it goes nowhere."""
        self._link.send(self, order)


class _Link:
    """One process, from its start to its end."""

    def __init__(self, command: Sequence[str]) -> None:
        self.pid: int | None = None
        self._socket, theirs = socket.socketpair()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Channel, bytes | memoryview]] = deque()
        self._hearing: dict[int, Hear] = {}
        """Who hears of a recording, by its number, until it is closed."""
        self._gone = False
        self._threads = [
            threading.Thread(target=self._live, args=(command, theirs), name="recording-answers", daemon=True),
            threading.Thread(target=self._send_waiting, name="recording-orders", daemon=True),
        ]

    def start(self, number: int, hear: Hear) -> Channel:
        """Start the process for a first recording, which hears if that fails."""
        self._hearing[number] = hear
        for thread in self._threads:
            thread.start()
        return Channel(number, self)

    def channel(self, number: int, hear: Hear) -> Channel | None:
        """None: the process is gone."""
        with self._changed:
            if self._gone:
                return None
            self._hearing[number] = hear
            return Channel(number, self)

    def send(self, channel: Channel, order: Order) -> None:
        data: bytes | memoryview = pickle.dumps(order, pickle.HIGHEST_PROTOCOL)
        with self._changed:
            if self._gone:
                return
            if not self._queue:
                try:
                    sent = self._socket.send(data, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    sent = 0
                except OSError:  # it is gone, as the other thread is about to hear
                    return
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            self._queue.append((channel, data))
            channel.waiting += 1
            self._changed.notify_all()

    def finish(self, timeout: float) -> None:
        """Blocks until all orders are done and the process has ended, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or not self._queue, timeout)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        for thread in self._threads:
            thread.join(timeout)

    def _send_waiting(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._gone or self._queue)
                if self._gone:
                    return
                channel, data = self._queue[0]
            try:
                self._socket.sendall(data)
            except OSError:
                return
            with self._changed:
                if not self._gone:
                    self._queue.popleft()
                    channel.waiting -= 1
                    self._changed.notify_all()
            del channel, data  # not kept until the disk is slow again

    def _live(self, command: Sequence[str], theirs: socket.socket) -> None:
        try:
            with theirs:
                process = _start(command, theirs)
        except OSError as error:
            log.error("recordings cannot be written, %s does not start: %s", command[0], error.strerror)
            self._end()
            return
        self.pid = process.pid
        with self._socket.makefile("rb") as answers, contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self._hear(pickle.load(answers))
        self._end()
        process.wait()

    def _hear(self, answer: Answer) -> None:
        with self._changed:
            hear = self._hearing[answer.number]
            if isinstance(answer, Closed):
                del self._hearing[answer.number]
        hear(answer)

    def _end(self) -> None:
        with self._changed:
            self._gone = True
            left = list(self._hearing.values())
            self._hearing.clear()
            self._queue.clear()
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for hear in left:
            hear(None)


def _start(command: Sequence[str], theirs: socket.socket) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    number = theirs.fileno()
    process = subprocess.Popen([*command, str(number)], stdin=quiet, stdout=quiet, pass_fds=[number])
    # Calls go first, whatever priority the gateway was given: encoding hundreds of them may come late.
    with contextlib.suppress(OSError, AttributeError):  # Linux only, where a process may be batch work
        os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
    return process
