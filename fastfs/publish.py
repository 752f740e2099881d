# SPDX-License-Identifier: Apache-2.0
"""A file that appears whole or not at all.

A `Draft` has no name that anybody looks for until it is complete: a nameless file (O_TMPFILE, open(2)) where
the file system has them, which the kernel itself removes when the writer dies; elsewhere a hidden file,
locked by its writer, that `sweep` removes when the lock is gone.  Publishing never replaces what exists.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
import time

from fastfs import _native
from fastfs.config import NAME_DURABLE, Durability
from fastfs.datadirs import DataDir, close_quietly
from fastfs.permissions import current_umask
from fastfs.timeouts import checkpoint

LOG = logging.getLogger(__name__)

PREFIX, SUFFIX = ".fastfs-", ".part"

# How old a hidden file must be, in seconds, where locks cannot tell whether its writer lives.
LOCKLESS_GRACE = 24 * 3600.0

# What a file system without nameless files answers: EOPNOTSUPP; EISDIR from kernels that do not know the
# flag; EINVAL and ENOENT from some FUSE and network file systems.
NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Draft:
    """An image that is being written.

    The steps, in order: `open`, `reserve`, writing to `fd`, `seal`, `link`, `sync_name`.  Each raises `OSError` as the
    system gives it.  At the end, and after any failure, `release`.
    """

    def __init__(self, directory: DataDir, name: str, mode: int, durability: Durability) -> None:
        self.directory = directory
        self.name = name
        self.mode = mode
        self.durability = durability
        self.fd = -1
        self.hidden: str | None = None
        #: Bytes that are allocated beforehand.
        self.reserved = 0
        self._top = -1
        #: It has its name, or may have.
        self._linked = False

    def open(self, hidden: bool = False) -> None:
        """Make the file.  It is not readable by anybody else before its mode is set.

        :param hidden: with a hidden name in any case, as `replace` needs it.
        """
        self._top = self.directory.open()
        if hidden:
            while self.fd < 0:
                self._open_hidden()
            return
        if self.directory.nameless is not False:
            try:
                # Nobody can open what has no name, so the umask's (or a default ACL's) mode may be set now.
                self.fd = os.open(
                    ".",
                    os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC,
                    0o600 if self.mode else 0o666,
                    dir_fd=self._top,
                )
                self.directory.nameless = True
                return
            except OSError as error:
                if error.errno not in NO_NAMELESS:
                    raise
        while self.fd < 0:
            self._open_hidden()
        self.directory.nameless = False

    def _open_hidden(self) -> None:
        name = f"{PREFIX}{secrets.token_hex(12)}{SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._top)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            swept = os.fstat(fd).st_nlink == 0  # a sweep was faster than our lock
        except BaseException:
            try:
                os.unlink(name, dir_fd=self._top)
            finally:
                close_quietly(fd)
            raise
        if swept:
            close_quietly(fd)
        else:
            self.fd, self.hidden = fd, name

    def clone(self, source: int, offset: int) -> bool:
        """Share the blocks of a file from `offset` to its end, where the file system can; False: copy them."""
        try:
            _native.clone_range(source, offset, 0, self.fd, 0)
            return True
        except OSError:
            os.ftruncate(self.fd, 0)
            return False

    def reserve(self, size: int) -> None:
        """Have `size` bytes allocated, where the file system does that well.

        :raises OSError: ENOSPC, EDQUOT or EFBIG: there is no room.
        """
        self.reserved = size if _native.reserve(self.fd, size) else 0

    def trim(self, size: int) -> None:
        """Give back what was reserved beyond `size` bytes, all that was written; the file is not changed any more."""
        if self.reserved > size:
            _native.trim(self.fd, size)
            self.reserved = size

    def seal(self, size: int) -> None:
        """Everything is written: set the mode, give back what was reserved too much, sync the file.

        An error of fsync is final: a repeated call may succeed although the data is lost.
        """
        self.trim(size)
        found = os.fstat(self.fd).st_size
        if found != size:
            raise OSError(errno.EIO, f"the file has {found} bytes, {size} were written")
        if self.mode:
            os.fchmod(self.fd, self.mode)
        elif self.hidden is not None:
            os.fchmod(self.fd, 0o666 & ~current_umask())
        if self.durability != "none":
            os.fsync(self.fd)
        # NFS and FUSE tell some errors only at close; a duplicate's close tells them, too (0.4 us).
        os.close(os.dup(self.fd))

    def link(self) -> None:
        """Give the file its name.

        :raises FileExistsError: something has that name; it was not touched.
        """
        checkpoint()
        target = os.fsencode(self.name)
        self._linked = True  # an error may be told of what was done: a network's answer may be lost
        if self.hidden is None:
            _native.link_fd(self.fd, self._top, target)
            return
        try:
            _native.rename_noreplace(self._top, os.fsencode(self.hidden), target)
        except (FileExistsError, FileNotFoundError):  # what a repeated call meets
            if not self._has_name():
                raise

    def replace(self) -> None:
        """Give the file, which has a hidden name, its own, whatever had that before."""
        checkpoint()
        assert self.hidden is not None
        self._linked = True  # as in `link`
        try:
            os.replace(self.hidden, self.name, src_dir_fd=self._top, dst_dir_fd=self._top)
        except FileNotFoundError:
            if not self._has_name():
                raise
        self.hidden = None

    @property
    def directory_fd(self) -> int:
        """The descriptor of the directory, from `open` to `release`."""
        return self._top

    def sync_name(self) -> None:
        """The last step after `link`: put the name on the disk."""
        if self.durability in NAME_DURABLE:
            sync_directory(self._top)

    def release(self, keep: bool) -> None:
        """Close everything; unless `keep`, nothing of the image stays.  Never raises, may be repeated."""
        if self._top < 0:
            return
        if not keep:
            self._remove()
        for fd in (self.fd, self._top):
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError as error:
                    LOG.warning("closing %s: %s", self.directory.file(self.name), error)
        self.fd = self._top = -1

    def _has_name(self) -> bool:
        ours = os.fstat(self.fd)
        try:
            there = os.stat(self.name, dir_fd=self._top, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(ours, there)

    def _remove(self) -> None:
        for remove in (self._remove_name, self._remove_hidden):
            try:
                remove()
            except FileNotFoundError:
                pass
            except OSError as error:
                LOG.error("unfinished data stays in %s until the next sweep: %s", self.directory.path, error)

    def _remove_name(self) -> None:
        if self._linked and self._has_name():
            os.unlink(self.name, dir_fd=self._top)

    def _remove_hidden(self) -> None:
        if self.hidden is not None:
            os.unlink(self.hidden, dir_fd=self._top)


def has_nameless(directory: DataDir) -> bool:
    """Does the file system have nameless files?  Asks it once."""
    if directory.nameless is None:
        try:
            os.close(os.open(directory.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
            directory.nameless = True
        except OSError as error:
            directory.nameless = None if error.errno not in NO_NAMELESS else False
    return bool(directory.nameless)


def sync_directory(fd: int) -> None:
    """Put the names in a directory on the disk; a file system that cannot be told to (EINVAL) needs no telling."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def sweep(directory: DataDir, grace: float = LOCKLESS_GRACE) -> list[str]:
    """Remove hidden files whose writer is gone.  Returns their paths.

    Only regular files of our own name pattern whose lock can be had.  Where there are no locks: those not
    written to for `grace` seconds.
    """
    removed = []
    top = directory.open()
    try:
        with os.scandir(top) as entries:
            names = [entry.name for entry in entries if is_hidden_name(entry.name)]
        for name in names:
            try:
                if _sweep_one(top, name, grace):
                    removed.append(directory.file(name))
                    LOG.info("removed unfinished data %s", removed[-1])
            except FileNotFoundError:
                continue
            except OSError as error:
                LOG.warning("cannot sweep %s: %s", directory.file(name), error)
    finally:
        os.close(top)
    return removed


def is_hidden_name(name: str) -> bool:
    """Is this the name of one of our hidden files?"""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def take_over(fd: int, grace: float) -> bool:
    """Is it a regular file whose writer is gone?  Then its lock is ours until `fd` is closed.

    :param grace: where there are no locks: seconds without a write that tell.
    """
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in NO_LOCKS and time.time() - info.st_mtime >= grace
    return True


def _sweep_one(top: int, name: str, grace: float) -> bool:
    fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    try:
        if not take_over(fd, grace):
            return False
        # Our lock is held over this, so a writer that has just made the file will see that it is gone.
        os.unlink(name, dir_fd=top)
        return True
    finally:
        close_quietly(fd)
