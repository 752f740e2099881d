# SPDX-License-Identifier: Apache-2.0
"""What is to be stored, as a source: files as they are, streams behind a reader that can be interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from fastfs.cli.plan import STDIN, Item
from fastfs.cli.signals import Cancel

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Stream", "source_of"]

PIPE_SIZE = 1 << 20  # the system's default limit; 64 KiB, the default size, makes 16 times the reads


class Stream(io.RawIOBase):
    """A pipe, FIFO, terminal or socket: waits for data *or* the wish to stop, which a bare read() misses.

    It has no fileno() on purpose, so that the store reads through it.

    :param owned: close the descriptor with it.
    """

    def __init__(self, fd: int, cancel: Cancel, owned: bool) -> None:
        super().__init__()
        self._fd = fd
        self._owned = owned
        self._cancel = cancel
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(cancel.fileno(), select.POLLIN)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self._owned and not self.closed:
            os.close(self._fd)
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        while True:
            self._poll.poll()
            self._cancel.check()
            try:
                return os.readv(self._fd, [buffer])
            except BlockingIOError:
                continue


def source_of(item: Item, cancel: Cancel) -> Any:
    """A path, stdin, or a function that opens the stream when its turn comes."""
    if item.source == STDIN:
        return _stdin(cancel)
    return item.source if item.size is not None else partial(_open_stream, item.source, cancel)


def _open_stream(path: str, cancel: Cancel) -> Stream:
    # O_NONBLOCK: opening a FIFO must not wait for a writer, where no signal would reach this thread
    return Stream(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), cancel, owned=True)


def _stdin(cancel: Cancel) -> Any:
    stdin = sys.stdin.buffer
    try:
        fd = stdin.fileno()
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # not a real file: a test, or an embedding program
        return stdin
    return stdin if regular else Stream(fd, cancel, owned=False)
