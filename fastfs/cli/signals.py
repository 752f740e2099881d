# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: raise in the main thread, or tell the workers to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Cancel", "Cancelled", "Interrupted", "cancelling", "raising"]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, "FrameType | None"], object]


class Interrupted(BaseException):
    """A signal asked the command to stop. The exit code is 128 + the signal's number, as a shell gives it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def code(self) -> int:
        return 128 + self.signum


class Cancelled(BaseException):
    """Raised in a worker thread, inside ``add``, which aborts. No Exception: nobody should swallow it."""


@contextlib.contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Install `handler`, except where the signal is ignored (nohup, background jobs of a plain shell)."""
    before: dict[signal.Signals, Handler | int | signal.Handlers | None] = {}
    if threading.current_thread() is threading.main_thread():
        for signum in STOPPING:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


class Cancel:
    """A flag to stop, readable as a descriptor too, so that a thread waiting in poll() wakes up."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.signum = 0
        self.since = 0.0
        self.wanted = False

    def set(self, signum: int = 0) -> None:
        self.signum = self.signum or signum
        if not self.wanted:
            self.wanted = True
            self.since = time.monotonic()
            os.write(self._writer, b"!")  # never read: every poller sees it

    def check(self) -> None:
        if self.wanted:
            raise Cancelled

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def raising(cancel: Cancel | None = None) -> contextlib.AbstractContextManager[None]:
    """A signal raises Interrupted where the main thread is, and sets `cancel` before."""

    def handler(signum: int, frame: FrameType | None) -> None:
        if cancel is not None:
            cancel.set(signum)
        raise Interrupted(signum)

    return _handling(handler)


def cancelling(cancel: Cancel, abandon: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """The first signal sets `cancel`; a second one calls `abandon` and leaves without waiting for threads."""

    def handler(signum: int, frame: FrameType | None) -> None:
        if cancel.signum:
            abandon()
            os._exit(128 + signum)
        cancel.set(signum)

    return _handling(handler)
