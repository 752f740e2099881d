# SPDX-License-Identifier: Apache-2.0
"""Look at what is in the page cache where it lies: copying it takes twice as long as xxh3 takes to hash it."""

from __future__ import annotations

import contextlib
import mmap
import os

from fastfs import _native
from fastfs.scrub.cache import WINDOW

# Below that a mapping costs more than it saves.
LEAST = 1 << 20


class Mapped:
    """Windows of a file as memory, one at a time.

    What can be seen there is the file as long as `intact`: a page that is gone (the file was truncated, the disk cannot
    read it) shows zeroes, see `fastfs._native.BusGuard`.  Then read, which gives the error.

    :param fd: the file, not owned.
    :param size: its length.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._begin = -1
        self._memory: mmap.mmap | None = None
        self._guard: _native.BusGuard | None = None

    def view(self, offset: int, length: int) -> memoryview | None:
        """Bytes of the window that `offset` is in; None: read them.  Release it before the next call."""
        begin = offset // WINDOW * WINDOW
        end = min(begin + WINDOW, self._size)
        if end - begin < LEAST or offset + length > end:
            return None
        if begin != self._begin:
            self.close()
            self._begin = begin
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is shorter than that already
                self._memory = mmap.mmap(self._fd, end - begin, mmap.MAP_SHARED, mmap.PROT_READ, offset=begin)
                self._guard = _native.BusGuard(self._memory)
        if self._memory is None or not self.intact:
            return None
        with memoryview(self._memory) as whole:
            return whole[offset - begin : offset - begin + length]

    @property
    def intact(self) -> bool:
        """What was seen in the window was the file."""
        # Behind the end of a file that was truncated within its last page there are zeroes, and no fault.
        return self._guard is not None and not self._guard.spoilt and os.fstat(self._fd).st_size >= self._size

    def close(self) -> None:
        """May be repeated."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        memory, self._memory = self._memory, None
        if memory is not None:
            with contextlib.suppress(BufferError):  # the traceback of an interrupt has a view still: it goes with that
                memory.close()
        self._begin = -1
