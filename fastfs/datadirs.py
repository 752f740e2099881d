# SPDX-License-Identifier: Apache-2.0
"""Data directories: made, checked, chosen by priority and free space."""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import psutil

from fastfs import _native
from fastfs.exceptions import (
    BadStoreConfiguration,
    FastfsError,
    NotFound,
    StorageFull,
    StorageWriteDenied,
    from_oserror,
)
from fastfs.permissions import open_up_directory

LOG = logging.getLogger(__name__)

_SLASHES = re.compile("/+")

# Errors of lstat(2) that leave no doubt: nothing can be found, or could be stored, under that name.
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class DataDir:
    """One directory that holds images.

    No descriptor of it is kept between operations, so that its file system can be unmounted.
    """

    def __init__(self, path: str, priority: int) -> None:
        self.path = path
        self.priority = priority
        self.prefix = _SLASHES.sub("/", path + "/")
        self.encoded = os.fsencode(path)
        self.identity = (0, 0)
        self.mountpoint: str | None = None
        #: Does the file system have nameless files (O_TMPFILE)?  None: not known yet.
        self.nameless: bool | None = None if os.path.isdir("/proc/self/fd") else False
        #: Do its files have user attributes?  None: not known yet.
        self.attributes: bool | None = None

    def __repr__(self) -> str:
        return f"DataDir({self.path!r}, {self.priority})"

    def prepare(self, file_perm: int, mount_guard: bool) -> None:
        """Make the directory if it is missing, check that it can be written, open it up for readers.

        :raises BadStoreConfiguration: it is none, cannot be made or written, or is not on a mounted file system.
        """
        try:
            os.makedirs(self.path, exist_ok=True)
        except FileExistsError:
            raise self._bad("not a directory", "name another path", errno.ENOTDIR) from None
        except OSError as error:
            reason = f"cannot be created, {os.strerror(error.errno or 0)}"
            raise self._bad(reason, "create it, or correct the path", error.errno) from error
        if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise self._bad("not writable", f"give uid {os.geteuid()} the right to", errno.EACCES)
        self.identify()
        if mount_guard:
            self.mountpoint = mountpoint_of(self.path)
            if self.mountpoint == "/":
                raise self._bad(
                    "on the root file system although mount_guard is set",
                    "mount its file system, or switch mount_guard off",
                )
        if file_perm:
            open_up_directory(self.path, file_perm)

    def identify(self) -> None:
        """Find the directory, which must exist.

        :raises BadStoreConfiguration: it does not, or is none.
        """
        try:
            info = os.stat(self.path)
        except OSError as error:
            raise self._bad(os.strerror(error.errno or 0), "correct the path", error.errno) from error
        if not stat.S_ISDIR(info.st_mode):
            raise self._bad("not a directory", "name another path", errno.ENOTDIR)
        self.identity = (info.st_dev, info.st_ino)

    def _bad(self, reason: str, remedy: str, number: int | None = None) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"data directory {self.path}: {reason}; {remedy}", path=self.path, errno=number)

    def mounted(self) -> bool:
        """With a mount guard: is the file system there that was there at the start?"""
        if self.mountpoint is None:
            return True
        try:
            return is_mountpoint(self.mountpoint)
        except OSError:
            return False

    def file(self, name: str) -> str:
        """The path of an image, as locations tell it."""
        return f"{self.path}/{name}"

    def open(self, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the directory."""
        return os.open(self.path, flags | os.O_DIRECTORY | os.O_CLOEXEC)

    def free(self) -> int:
        """Bytes that an unprivileged user can still store here."""
        return int(psutil.disk_usage(self.path).free)

    def holds(self, name: str) -> bool:
        """Is there anything of that name?  A dangling link counts.

        :raises OSError: it cannot be told.
        """
        try:
            os.lstat(self.file(name))
        except OSError as error:
            if error.errno in _NOT_THERE:
                return False
            raise
        return True


# Claims of the whole process: several stores may share a file system.  A claim counts those made before it,
# so that of two that come at once and do not both fit exactly one is refused.
_claims: dict[int, Claim] = {}
_claims_lock = threading.Lock()
_claim_numbers = itertools.count(1)
# What excludes the threads of this process where the file system has no locks.
_publishers: dict[tuple[int, int], threading.Lock] = {}


class Meter(Protocol):
    @property
    def size(self) -> int: ...


class Claim:
    """Space that one upload will still need on a file system; counts from its making to its `release`.

    :param among: is given the claim before it counts, so that it can be released whatever happens.
    """

    __slots__ = ("device", "meter", "number", "size", "used")

    def __init__(self, device: int, size: int, among: list[Claim] | None = None) -> None:
        self.device = device
        self.size = size
        self.number = next(_claim_numbers)
        #: Bytes that are allocated already, so that the free space does not count them any more.
        self.used = 0
        #: Tells how many bytes are written, of which the same is true.
        self.meter: Meter | None = None
        if among is not None:
            among.append(self)
        with _claims_lock:
            _claims[self.number] = self

    @property
    def outstanding(self) -> int:
        written = self.meter.size if self.meter is not None else 0
        return max(0, self.size - max(self.used, written))

    def release(self) -> None:
        """May be repeated."""
        with _claims_lock:
            _claims.pop(self.number, None)


def reserved_on(device: int, before: int | None = None) -> int:
    """Bytes that uploads of this process will still take from a file system."""
    with _claims_lock:
        return sum(
            claim.outstanding
            for claim in _claims.values()
            if claim.device == device and (before is None or claim.number < before)
        )


class DataDirs:
    """All data directories of a store, the highest priority first.

    :raises BadStoreConfiguration: see `DataDir.prepare`; or one directory is listed with two priorities.
    """

    def __init__(
        self, directories: tuple[tuple[str, int], ...], file_perm: int, mount_guard: bool, read_only: bool = False
    ) -> None:
        self.all: list[DataDir] = []
        for path, priority in directories:
            new = DataDir(path, priority)
            if read_only:
                new.identify()
            else:
                new.prepare(file_perm, mount_guard)
            for old in self.all:
                if old.identity != new.identity:
                    continue
                if old.priority != new.priority:
                    raise BadStoreConfiguration(
                        f"datadirs: {old.path} and {new.path} are the same directory with the priorities "
                        f"{old.priority} and {new.priority}; keep one of them",
                        path=new.path,
                    )
                LOG.warning("datadirs: %s and %s are the same directory; it is used once", old.path, new.path)
                break
            else:
                self.all.append(new)
        self.all.sort(key=lambda directory: -directory.priority)
        self.single = self.all[0] if len(self.all) == 1 else None
        # In an order on which whoever uses the same directories agrees, whatever the priorities.
        self._agreed = sorted(self.all, key=lambda directory: directory.identity)

    @property
    def where(self) -> str:
        """The paths of all, for messages."""
        return ", ".join(directory.path for directory in self.all)

    def choose(self, size: int | None, without: frozenset[DataDir] = frozenset()) -> tuple[DataDir, Claim]:
        """The directory for an image of `size` bytes (None: unknown), and a claim on its space.

        The highest priority that has room; among equals the one with the most free space.  What other uploads
        of this process have claimed counts as taken.  The caller must release the claim.

        :raises StorageFull: no directory has room.
        :raises StorageWriteDenied: none is usable.
        :raises StorageError: of none the free space can be told.
        """
        claims: list[Claim] = []
        try:
            return self._choose(size, without, claims)
        except BaseException:
            for claim in claims:
                claim.release()
            raise

    def _choose(self, size: int | None, without: frozenset[DataDir], claims: list[Claim]) -> tuple[DataDir, Claim]:
        need = size or 0
        unusable: list[str] = []
        full: list[str] = []
        failed: FastfsError | None = None
        spare: list[tuple[int, DataDir, Claim]] = []
        for _, group in itertools.groupby(self.all, key=lambda directory: directory.priority):
            fitting: list[tuple[int, DataDir, Claim]] = []
            for directory in group:
                if directory in without:
                    full.append(f"{directory.path} is full")
                    continue
                if not directory.mounted():
                    unusable.append(f"{directory.mountpoint} is not mounted (mount_guard)")
                    continue
                claim = Claim(directory.identity[0], need, claims)
                try:
                    free = directory.free() - reserved_on(claim.device, claim.number)
                except OSError as error:
                    claim.release()
                    unusable.append(f"{directory.path}: {os.strerror(error.errno or 0)}")
                    failed = failed or from_oserror(error, "write", path=directory.path)
                    continue
                if free >= need and (size is not None or free > 0):
                    fitting.append((free, directory, claim))
                elif size is None:
                    spare.append((free, directory, claim))
                else:
                    claim.release()
                    full.append(f"{directory.path} has {max(0, free)} bytes left")
            if fitting:
                return self._pick(fitting, spare)
        # Of unknown size, with no room anywhere: it may be empty.
        if spare:
            return self._pick(spare, [])
        reasons = "; ".join(full + unusable)
        if failed is not None and not full:
            raise failed
        if unusable and not full:
            raise StorageWriteDenied(f"no data directory can be used: {reasons}", path=self.all[0].path)
        wanted = "an image of unknown size" if size is None else f"{size} bytes"
        raise StorageFull(f"no data directory has room for {wanted}: {reasons}", path=self.all[0].path)

    @staticmethod
    def _pick(
        candidates: list[tuple[int, DataDir, Claim]], others: list[tuple[int, DataDir, Claim]]
    ) -> tuple[DataDir, Claim]:
        """The candidate with the most room; the claims of all others are released."""
        best = max(candidates, key=lambda item: item[0])
        for item in candidates + others:
            if item is not best:
                item[2].release()
        return best[1], best[2]

    def holding(self, name: str, target: DataDir | None = None) -> DataDir | None:
        """The directory in which something has this name.

        :param target: where the name is going to be given, if that is known: what does that tells by itself, so an
            error there does not matter here.
        :raises FastfsError: of another directory it cannot be told; storing the image might make a second one.
        """
        target = target or self.single
        failed: FastfsError | None = None
        for directory in self.all:
            try:
                if directory.holds(name):
                    return directory
            except OSError as error:
                if directory is not target and failed is None:
                    failed = _unknown(error, directory, name)
        if failed is not None:
            raise failed
        return None

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Where there are several directories: one publisher at a time looks whether another one has the name.

        Held while a file gets its name, over no data.  The lock is on the first of the directories that is there, which
        every process that uses them finds; where the file system has no locks, only the threads of this process
        exclude each other.
        """
        if self.single is not None:
            yield
            return
        with _claims_lock:
            lock = _publishers.setdefault(self._agreed[0].identity, threading.Lock())
        with lock:
            yield from self._publishing_alone()

    def _publishing_alone(self) -> Iterator[None]:
        fd = self._open_agreed()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                LOG.debug("no lock on the data directories: %s", error)
            yield
        finally:
            close_quietly(fd)

    def _open_agreed(self) -> int:
        missing = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        for directory in self._agreed:
            try:
                return directory.open()
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise from_oserror(error, "write", path=directory.path) from error
                missing = error
        raise missing

    def locate(self, path: str) -> tuple[DataDir, str]:
        """The directory that `path` lies below, and the rest of the path.

        :raises NotFound: it lies below none.
        """
        plain = _SLASHES.sub("/", path)
        try:
            os.fsencode(plain)
        except UnicodeEncodeError:
            raise _nowhere(path) from None
        for directory in self.all:
            if plain.startswith(directory.prefix) and len(plain) > len(directory.prefix):
                return directory, plain[len(directory.prefix) :]
        # Another way to the same directory: a link, "..", a bind mount.
        parent, _, name = plain.rpartition("/")
        if name and "\0" not in plain:
            try:
                info = os.stat(parent or "/")
            except OSError:
                pass
            else:
                for directory in self.all:
                    if directory.identity == (info.st_dev, info.st_ino):
                        return directory, name
        raise _nowhere(path)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that `path` lies in, and its name there.

        Nothing on the way from the data directory is a link or ``..``: step by step, what openat2(2) does with
        RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, on every kernel.

        :raises OSError: ENOENT, ENOTDIR, ELOOP, ...
        """
        directory, rest = self.locate(path)
        *steps, name = rest.split("/")
        if "\0" in rest or name in ("", ".", "..") or ".." in steps:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        here = directory.open()
        try:
            for step in steps:
                below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                here, done = below, here
                close_quietly(done)
            yield here, name
        finally:
            close_quietly(here)

    def open_file(self, path: str) -> tuple[int, int]:
        """Open a regular file for reading; never waits for a FIFO or a device.

        :return: (descriptor, size in bytes)
        :raises OSError: ENOENT also where there is something else than a regular file.
        """
        # Nearly always a name in a data directory, written as `add` returns it: 2 us instead of 10.
        for directory in self.all:
            if path.startswith(directory.prefix):
                if path.find("/", len(directory.prefix)) < 0 and path.isascii() and "\0" not in path:
                    return _native.open_regular(path)
                break
        with self.parent(path) as (top, name):
            try:
                fd = os.open(name, _READ, dir_fd=top)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket, a device without a driver
                    raise _nothing() from error
                raise
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise _nothing()
        except BaseException:
            close_quietly(fd)
            raise
        return fd, info.st_size

    def stat(self, path: str) -> os.stat_result:
        """As `os.stat`, for a regular file only.

        :raises OSError: ENOENT also where there is something else.
        """
        with self.parent(path) as (top, name):
            return stat_regular(top, name)


_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY


def stat_regular(top: int, name: str) -> os.stat_result:
    """Status of the regular file `name` in the directory `top`; ENOENT where it is something else."""
    info = os.stat(name, dir_fd=top, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode):
        raise _nothing()
    return info


def close_quietly(fd: int) -> None:
    """Close what was only read or is to go: its close can tell nothing that matters, and must not hide what does."""
    with suppress(OSError):
        os.close(fd)


def _unknown(error: OSError, directory: DataDir, name: str) -> FastfsError:
    """It cannot be told whether an image is in a directory."""
    reason = os.strerror(error.errno or 0)
    return type(from_oserror(error, "write"))(
        f"cannot tell whether image {name} is stored in {directory.path} already: {reason}; "
        "see to that directory, or take it out of datadirs",
        path=directory.file(name),
        image_id=name,
        errno=error.errno,
    )


def _nowhere(path: str) -> NotFound:
    return NotFound(f"no image found at {path!r}: not below a data directory", path=path)


def _nothing() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _mount_id(path: str) -> int:
    """The kernel's number of the mount that `path` is on: proc(5), fdinfo."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            return next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def is_mountpoint(path: str) -> bool:
    """Is something mounted on `path`?  Bind mounts count."""
    return os.path.realpath(path) == "/" or _mount_id(path) != _mount_id(os.path.join(path, ".."))


def mountpoint_of(path: str) -> str:
    """The nearest mountpoint at or above `path`."""
    path = os.path.realpath(path)
    while path != "/" and not is_mountpoint(path):
        path = os.path.dirname(path)
    return path
