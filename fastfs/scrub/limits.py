# SPDX-License-Identifier: Apache-2.0
"""How fast, how long and how politely to read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Literal

import psutil

Priority = Literal["normal", "low", "idle"]

# Sleeping longer than this would delay an end that is asked for.
NAP = 0.1
# So many seconds of unused rate may be made up for.
BURST = 0.25


class Stopped(Exception):
    """The time is up, or nobody wants to go on."""


class Limits:
    """Bytes a second and a time to end; one object for all threads that share them.

    :param rate: bytes a second; None: no limit.
    :param until: when to end, in seconds of `time.monotonic`; None: never.
    """

    def __init__(self, rate: float | None = None, until: float | None = None) -> None:
        self.rate = rate
        self.until = until
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._free = time.monotonic()  # when all that was taken is paid for

    def stop(self) -> None:
        """Have all that is under way end soon."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set() or (self.until is not None and time.monotonic() >= self.until)

    def check(self) -> None:
        """:raises Stopped: it is time to end."""
        if self.stopped:
            raise Stopped

    def take(self, count: int) -> None:
        """Before reading `count` bytes: wait until they are allowed.

        :raises Stopped: it is time to end.
        """
        self.check()
        if not self.rate:
            return
        with self._lock:
            begin = max(self._free, time.monotonic() - BURST)
            self._free = begin + count / self.rate
        self.nap(begin - time.monotonic())

    def nap(self, seconds: float) -> None:
        """Sleep.

        :raises Stopped: it is time to end.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, NAP))
            self.check()


@contextlib.contextmanager
def io_priority(priority: Priority) -> Iterator[None]:
    """The calling thread's claim on the disk, for a while; "idle" has it wait for everybody else.

    Of use with the I/O scheduler bfq only; ionice(1) tells more.
    """
    if priority == "normal":
        yield
        return
    thread = psutil.Process(threading.get_native_id())
    try:
        before = thread.ionice()
        if priority == "idle":
            thread.ionice(psutil.IOPRIO_CLASS_IDLE)
        else:
            thread.ionice(psutil.IOPRIO_CLASS_BE, 7)
    except (psutil.Error, OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error, OSError):
            thread.ionice(before.ioclass, before.value if before.ioclass != psutil.IOPRIO_CLASS_NONE else None)
