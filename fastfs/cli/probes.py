# SPDX-License-Identifier: Apache-2.0
"""What a directory's filesystem can do: found out by trying, on a hidden file that is gone afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["datadir_report", "mount_of"]

FICLONE = 0x40049409
KEEP_SIZE = 1
BLOCK = 64 << 10


def datadir_report(path: str, priority: int) -> dict[str, Any]:
    """Room, owner, mount and abilities of one data directory. 'problem' is there if it cannot be used."""
    report: dict[str, Any] = {"path": path, "priority": priority}
    try:
        found = os.stat(path)
        room = os.statvfs(path)
    except FileNotFoundError:
        return {**report, "problem": "does not exist; 'fastfs ingest' creates it"}
    except OSError as exc:
        return {**report, "problem": exc.strerror}
    if not stat.S_ISDIR(found.st_mode):
        return {**report, "problem": "is not a directory"}
    report.update(mount_of(path))
    report.update(
        total=room.f_frsize * room.f_blocks,
        free=room.f_frsize * room.f_bavail,
        inodes_free=room.f_favail,
        owner=f"{found.st_uid}:{found.st_gid}",
        mode=f"{stat.S_IMODE(found.st_mode):04o}",
    )
    try:
        with _trial(path) as fd:
            report["can"] = _abilities(path, fd)
    except OSError as exc:
        report["problem"] = f"cannot write: {exc.strerror}"
    return report


def mount_of(path: str) -> dict[str, str]:
    """Type, device and options of the mount that holds `path`: the deepest, and of those the last mounted."""
    real = os.path.realpath(path)
    best: dict[str, str] = {}
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        for line in lines:
            left, _, right = line.partition(" - ")
            fields, kind = left.split(), right.split()
            point = fields[4].encode("latin-1", "surrogateescape").decode("unicode_escape", "surrogateescape")
            inside = point in ("/", real) or real.startswith(point + "/")
            if inside and len(point) >= len(best.get("mountpoint", "")):
                best = {"type": kind[0], "device": kind[1], "mountpoint": point, "options": fields[5]}
    return best


@contextlib.contextmanager
def _trial(folder: str) -> Iterator[int]:
    """A small file with data in it, under a hidden name only for as long as it takes to unlink it."""
    name = os.path.join(folder, f".doctor-{secrets.token_hex(6)}")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(name)
        os.write(fd, b"x" * BLOCK)
        yield fd
    finally:
        os.close(fd)


def _abilities(folder: str, fd: int) -> dict[str, bool]:
    return {
        "O_TMPFILE": _works(lambda: os.close(_unnamed(folder))),
        "reserve (fallocate)": _works(lambda: _fallocate(fd)),
        "share blocks (reflink)": _works(lambda: _reflink(folder, fd)),
        "holes": _holes(fd),
        "xattr": _works(lambda: os.setxattr(fd, "user.fastfs.doctor", b"x")),
    }


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _unnamed(folder: str) -> int:
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _fallocate(fd: int) -> None:
    """The system call itself: posix_fallocate() writes zeroes where the filesystem cannot reserve."""
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if function(fd, KEEP_SIZE, 0, 4 * BLOCK) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _reflink(folder: str, fd: int) -> None:
    with _trial(folder) as other:
        fcntl.ioctl(other, FICLONE, fd)


def _holes(fd: int) -> bool:
    """Does a gap show up as one?"""
    os.ftruncate(fd, 64 * BLOCK)
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < 64 * BLOCK
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return False
        raise
