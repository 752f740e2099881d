# SPDX-License-Identifier: Apache-2.0
"""Many small objects stored together: each step is taken for all of them at once.

The guarantees are those of one upload: nothing is visible before it is whole (and, where that is asked for, on the
disk), nothing is replaced, and what fails leaves nothing.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastfs import _native
from fastfs.config import NAME_DURABLE, Durability
from fastfs.datadirs import DataDir, DataDirs, close_quietly
from fastfs.exceptions import Duplicate, FastfsError, from_oserror
from fastfs.ingest.groupsync import GroupSync
from fastfs.publish import NO_NAMELESS, sync_directory
from fastfs.sidecar import RECORD_ATTRIBUTE, set_attribute

LOG = logging.getLogger(__name__)

# Another directory may have room, fewer descriptors may do, and where there are no nameless files hidden ones will.
_ELSEWHERE = NO_NAMELESS | {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


@dataclass
class SmallObject:
    """One of them.

    :param data: bytes-like, not copied.
    """

    name: str
    data: Any
    #: Its record, kept in a user attribute; None: it gets none.
    record: bytes | None = None
    fd: int = -1
    linked: bool = False
    #: Why it is not stored.
    error: BaseException | None = None
    #: It may yet be stored by itself, as a large one is.
    elsewhere: bool = False


class Pack:
    """Stores a number of objects in one directory; use it once.

    :param sync: with durability "batch": what its objects share; None: each is synced by itself.
    """

    def __init__(
        self,
        directories: DataDirs,
        directory: DataDir,
        mode: int,
        durability: Durability,
        sync: GroupSync | None,
    ) -> None:
        self.directories = directories
        self.directory = directory
        self.mode = mode or -1
        self.durability = durability
        self.sync = sync if durability == "batch" else None

    def store(self, objects: Sequence[SmallObject]) -> None:
        """Store them; `SmallObject.error` tells of each that is not stored.

        :raises OSError: the directory cannot be opened; none is stored.
        """
        since = self.sync.failures if self.sync is not None else 0
        top = self.directory.open()
        try:
            self._draft(top, objects)
            whole = [one for one in objects if one.fd >= 0]
            try:
                if self.sync is not None and whole:
                    self.sync.wait(since)
                self._link(top, whole)
                linked = [one for one in whole if one.linked]
                if linked and self.sync is not None:
                    self.sync.wait(since)
                elif linked and self.durability in NAME_DURABLE:
                    sync_directory(top)
            except OSError as error:
                for one in whole:
                    self._give_up(top, one, error)
        except BaseException:
            for one in objects:
                self._retract(top, one)
            raise
        finally:
            self._close(top, [one for one in objects if one.fd >= 0])
            close_quietly(top)  # it was only looked into, and what is stored is there

    def _draft(self, top: int, objects: Sequence[SmallObject]) -> None:
        pieces = [one.data for one in objects]
        each = self.durability != "none" and self.sync is None
        recorded = any(one.record is not None for one in objects)
        drafts = _native.draft_objects(top, pieces, self.mode, each and not recorded)
        for one, fd in zip(objects, drafts, strict=True):
            if fd >= 0:
                one.fd = fd
            else:
                one.elsewhere = -fd in _ELSEWHERE
                one.error = self._translated(one, OSError(-fd, os.strerror(-fd)))
        if recorded:
            for one in objects:
                if one.fd >= 0:
                    self._attach(one, each)

    def _attach(self, one: SmallObject, sync: bool) -> None:
        """Put its record to an object, before it is synced."""
        try:
            if one.record is not None:
                set_attribute(self.directory, one.fd, RECORD_ATTRIBUTE, one.record)
            if sync:
                os.fsync(one.fd)
        except OSError as error:
            one.error = self._translated(one, error)
            fd, one.fd = one.fd, -1
            os.close(fd)

    def _link(self, top: int, whole: list[SmallObject]) -> None:
        with self.directories.publishing():
            if self.directories.single is None:
                for one in whole:
                    try:
                        other = self.directories.holding(one.name, self.directory)
                        if other is not None:
                            one.error = Duplicate.of(one.name, other.file(one.name))
                    except FastfsError as error:
                        one.error = error
                whole = [one for one in whole if one.error is None]
            names = [os.fsencode(one.name) for one in whole]
            for one, result in zip(whole, _native.link_objects(top, [one.fd for one in whole], names), strict=True):
                one.linked = result == 0
                if result:
                    one.error = self._translated(one, OSError(-result, os.strerror(-result)))

    def _close(self, top: int, drafted: list[SmallObject]) -> None:
        for one, result in zip(drafted, _native.close_objects([one.fd for one in drafted]), strict=True):
            one.fd = -1
            if result and one.linked:
                one.error = self._translated(one, OSError(-result, os.strerror(-result)))
                self._unlink(top, one)

    def _give_up(self, top: int, one: SmallObject, error: OSError) -> None:
        one.error = one.error or self._translated(one, error)
        self._retract(top, one)

    def _retract(self, top: int, one: SmallObject) -> None:
        """Take the name away again if it still is this object's."""
        if not one.linked:
            return
        one.linked = False
        try:
            ours, there = os.fstat(one.fd), os.stat(one.name, dir_fd=top, follow_symlinks=False)
        except OSError:
            return  # it is gone already
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            self._unlink(top, one)

    def _unlink(self, top: int, one: SmallObject) -> None:
        try:
            os.unlink(one.name, dir_fd=top)
        except OSError as error:
            LOG.error("%s was not acknowledged and cannot be removed: %s", self.directory.file(one.name), error)

    def _translated(self, one: SmallObject, error: OSError) -> BaseException:
        return from_oserror(error, "write", path=self.directory.file(one.name), image_id=one.name)
