# SPDX-License-Identifier: Apache-2.0
"""Several writers acknowledged by one syncfs(2).

An fsync of a 4 KiB object costs about 0.5 ms on a disk; one sync of the whole file system costs little more and
does for all that was written before it began.  Whoever needs one while another is under way waits for the next,
together with all who come meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading

from fastfs import _native
from fastfs.datadirs import DataDir

# File systems whose syncfs(2) is known to put data and names on the disk and to tell errors: statfs(2).  FUSE does
# not pass it on to its server; overlayfs does not tell the errors of the file system below it.
TRUSTED = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x01021994: "tmpfs",
}

# From here on syncfs(2) tells of errors that happened while data was being written back.
TELLS_ERRORS = (5, 8)


def _kernel() -> tuple[int, ...]:
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


class GroupSync:
    """Syncs of one file system.

    One descriptor is open from before the first write to the end, and all syncs go through it one at a time: so each
    error since then is told to one of them, and counts against everybody who began to write before it was told.
    """

    def __init__(self, directory: DataDir) -> None:
        self._fd = directory.open()
        self._changed = threading.Condition()
        self._begun = self._done = 0
        self._running = False
        self._error: OSError | None = None
        #: Syncs that failed.
        self.failures = 0

    @classmethod
    def of(cls, directory: DataDir) -> GroupSync | None:
        """None: this file system or this kernel does not promise enough; sync each object."""
        if _kernel() < TELLS_ERRORS:
            return None
        made = cls(directory)
        try:
            trusted = _native.filesystem_kind(made._fd) in TRUSTED
        except BaseException:
            made.close()
            raise
        if trusted:
            return made
        made.close()
        return None

    def close(self) -> None:
        """To be called when nobody waits any more.  May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # It was never written to, and every outcome is told.
            with contextlib.suppress(OSError):
                os.close(fd)

    def wait(self, since: int) -> None:
        """Return when all that the caller has written is on the disk.

        :param since: `failures` as it was before the caller began to write.
        :raises OSError: writing back failed, perhaps somebody else's data.  It is not tried again: the kernel may
            have dropped what it could not write.
        """
        with self._changed:
            ticket = self._begun + 1  # the one under way may have begun before our last write
            while self._done < ticket:
                if self._running:
                    self._changed.wait()
                else:
                    self._sync()
            if self.failures != since:
                error = self._error
                assert error is not None
                raise OSError(error.errno, error.strerror)

    def _sync(self) -> None:
        """One sync, by this thread; called and left with the lock held."""
        self._running = True
        self._begun += 1
        self._changed.release()
        error: OSError | None = None
        finished = False
        try:
            _native.sync_filesystem(self._fd)
            finished = True
        except OSError as failure:
            error, finished = failure, True
        finally:
            self._changed.acquire()
            self._running = False
            if finished:
                self._done = self._begun
            if error is not None:
                self.failures += 1
                self._error = error
            self._changed.notify_all()
