# SPDX-License-Identifier: Apache-2.0
"""A copy of an image outside of the store, which appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

from fastfs import _native
from fastfs.config import Durability
from fastfs.datadirs import DataDir
from fastfs.exceptions import Duplicate, FastfsError, Invalid, StorageError, from_oserror
from fastfs.publish import Draft
from fastfs.reader import ChunkedFile
from fastfs.timeouts import checkpoint, direct
from fastfs.verified import VerifiedFile

# Bytes between two looks at progress, signals and time limits: some 3 ms.
STEP = 16 * 1024 * 1024
# Bytes that are checked and written at once.
CHECKED = 1024 * 1024
_ZEROES = bytes(CHECKED)


class Replacement(Draft):
    """A draft that takes the place of a file: only one that has a name can."""

    def open(self, hidden: bool = True) -> None:
        super().open(hidden=True)

    def link(self) -> None:
        self.replace()


class Copy:
    """Copies one image; use it once, then call `release` whatever happened.

    :param reader: of a whole image; closed by `release`.
    :param path: of the file to be made, absolute.
    """

    #: The copy was left behind; its thread releases everything.
    handed_over = False

    def __init__(
        self,
        reader: ChunkedFile,
        path: str,
        durability: Durability,
        replace: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.reader = reader
        self.path = path
        self.progress = progress
        self.replace = replace
        folder, name = os.path.split(path)
        self.draft = (Replacement if replace else Draft)(DataDir(folder, 0), name, 0, durability)
        #: The caller is told that it is there: it stays.
        self.acknowledged = False
        self._busy_since = 0

    @property
    def what(self) -> str:
        return f"copy {self.path}"

    def busy_since(self) -> int:
        """``time.monotonic_ns()`` when the step began that is under way; 0: none is."""
        return self._busy_since

    def check(self) -> None:
        """Say no before copying.  What counts is what happens when the copy is done."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            raise Invalid(f"{self.path} is no regular file and is not replaced; name another path", path=self.path)
        if not self.replace:
            raise self._exists()

    def run(self) -> None:
        """Copy and publish.  Raises `OSError` as the system gives it."""
        size = self.reader.length
        self._busy_since = time.monotonic_ns()
        self.draft.open()
        if isinstance(self.reader, VerifiedFile):
            self._copy_checked(self.reader, size)
        elif not self._cloned(size):
            info = os.fstat(self.reader.fileno())
            if info.st_blocks * 512 >= info.st_size:
                self.draft.reserve(size)
            self._copy(size)
        self._tick(size)
        self.draft.seal(size)
        self.draft.link()
        self.draft.sync_name()

    def _cloned(self, size: int) -> bool:
        """Share all blocks, where that can be."""
        if not self.draft.clone(self.reader.fileno(), 0):
            return False
        found = os.fstat(self.draft.fd).st_size
        if found < size:
            raise self._shrunk()
        if found > size:  # it has grown meanwhile
            os.ftruncate(self.draft.fd, size)
        return True

    def _copy(self, size: int) -> None:
        source, target = self.reader.fileno(), self.draft.fd
        shared = _native.is_remote(target)
        at = 0
        while found := _native.extent(source, at, size):
            at, end = found
            while at < end:
                self._tick(at)
                moved, number, ours = _native.copy(source, at, target, at, end - at, STEP, shared)
                at += moved
                if number == errno.ENODATA and ours:
                    raise self._shrunk()
                if number:
                    error = OSError(number, os.strerror(number))
                    raise from_oserror(error, "read", path=self.reader.path) if ours else error
        if os.fstat(source).st_size < size:  # what is not there looks like a hole
            raise self._shrunk()
        os.ftruncate(target, size)

    def _copy_checked(self, reader: VerifiedFile, size: int) -> None:
        """Copy what was compared with the record; zeroes become holes."""
        reader.call = direct  # the whole copy has a time limit
        at = 0
        while piece := reader.read(CHECKED):
            self._tick(at)
            if piece != _ZEROES[: len(piece)]:
                done = 0
                while done < len(piece):
                    done += os.pwrite(self.draft.fd, memoryview(piece)[done:], at + done)
            at += len(piece)
        os.ftruncate(self.draft.fd, size)

    def _tick(self, done: int) -> None:
        checkpoint()
        self._busy_since = 0
        if self.progress is not None:
            self.progress(done)
        self._busy_since = time.monotonic_ns()

    def _shrunk(self) -> StorageError:
        path = self.reader.path
        return StorageError(f"{path} became shorter while it was copied", path=path, errno=errno.EIO)

    def _exists(self) -> Duplicate:
        return Duplicate(f"{self.path} exists; replace=True takes its place", path=self.path)

    def translated(self, error: OSError) -> FastfsError:
        """What an error of the target is to the caller."""
        if error.errno == errno.EEXIST:
            return self._exists()
        return from_oserror(error, "write", path=self.path)

    def release(self) -> None:
        """Close everything; unless it is published, nothing of the copy stays.  May be repeated."""
        self.reader.close()
        self.draft.release(keep=self.acknowledged)
