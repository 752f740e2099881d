# SPDX-License-Identifier: Apache-2.0
"""Read a file without filling the page cache of a host that has better use for it.

What was in the cache before stays; what only our reading brought there goes again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from functools import cached_property

from fastfs import _native

PAGE = mmap.PAGESIZE
# The kernel reads ahead, so a window is looked at before the one in front of it is read.  Large ones leave less
# of folios that lie across their borders.
WINDOW = 32 << 20


class Guest:
    """Reads one file, front to back, through `reading` and `done`.

    :param fd: the file, not owned.
    :param size: its length.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        #: For windows that are being read or come next: a byte a page, odd if it was there before; None: all were.
        self._before: dict[int, bytearray | None] = {}
        self._window = -1

    def reading(self, offset: int) -> None:
        """The next read begins at `offset` and ends within the window of that, `window_end`."""
        window = offset // WINDOW
        if window == self._window:
            return
        for old in [number for number in self._before if number < window]:
            self._drop(old)
        self._window = window
        self._look(window)
        self._look(window + 1)

    @staticmethod
    def window_end(offset: int) -> int:
        return (offset // WINDOW + 1) * WINDOW

    def resident(self) -> bool:
        """All of the window that is being read is known to have been in the cache when it was begun."""
        return self._was_there(self._window)

    def resident_to(self, most: int) -> int:
        """The end of the windows, from the one that is being read on, that are `resident`; 0: none is.

        :param most: an offset, no more than that.
        """
        if not self.resident():
            return 0
        window = self._window + 1
        while window * WINDOW < most and self._was_there(window):
            window += 1
        self._look(window)
        return min(most, window * WINDOW)

    def _was_there(self, window: int) -> bool:
        self._look(window)
        pages = self._before.get(window)
        return pages is not None and 0 not in pages and self._told

    @cached_property
    def _told(self) -> bool:
        # mincore(2) tells owners and those who may write; to others every page is there.
        return os.fstat(self._fd).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{self._fd}", os.W_OK)

    def done(self) -> None:
        """Nothing more is read."""
        for window in sorted(self._before):
            self._drop(window)

    def _look(self, window: int) -> None:
        begin = window * WINDOW
        if window in self._before or begin >= self._size:
            return
        pages: bytearray | None = None
        # Where it cannot be told, nothing is dropped: better to use memory than to take it from others.
        with contextlib.suppress(OSError):
            pages = _native.resident(self._fd, begin, min(WINDOW, self._size - begin))
        self._before[window] = pages

    def _drop(self, window: int) -> None:
        pages = self._before.pop(window)
        if pages is None:
            return
        count = -(-min(WINDOW, self._size - window * WINDOW) // PAGE)
        at = 0
        while at < count:
            begin = pages.find(0, at, count)
            if begin < 0:
                return
            end = pages.find(1, begin, count)
            end = count if end < 0 else end
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, window * WINDOW + begin * PAGE, (end - begin) * PAGE, os.POSIX_FADV_DONTNEED)
            at = end
