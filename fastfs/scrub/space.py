# SPDX-License-Identifier: Apache-2.0
"""What images take: logical bytes, allocated ones, and those that several files share."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import struct
from collections.abc import Callable, Iterator

from fastfs import _native
from fastfs.datadirs import DataDir, close_quietly
from fastfs.scrub.quarantine import FOLDER, IMAGE
from fastfs.sidecar import is_sidecar_name

# linux/fiemap.h: start, length, flags, extents mapped, room for extents, reserved; then extents: logical, physical,
# length, two reserved, flags, three reserved.
_FIEMAP = 0xC020660B
_HEAD = struct.Struct("<QQLLLL")
_EXTENT = struct.Struct("<QQQQQLLLL")
_ROOM = 512
_LAST, _UNKNOWN, _DELALLOC, _INLINE, _SHARED = 0x1, 0x2, 0x4, 0x200, 0x2000

# File systems whose files can share blocks: xfs, btrfs, ocfs2, bcachefs; statfs(2).  Others need not be asked.
_SHARING = frozenset({0x58465342, 0x9123683E, 0x7461636F, 0xCA451A4E})


@dataclasses.dataclass(frozen=True)
class Space:
    """The space of one data directory, in bytes."""

    datadir: str
    images: int = 0
    #: The lengths of the images, as `ls` tells them.
    logical: int = 0
    #: What the file system has allocated to them: less, by their holes.
    allocated: int = 0
    #: Of that: what an image has in common with another file (clones), counted with each.
    shared: int = 0
    #: What they take in all, shared blocks counted once.
    disk: int = 0
    #: What records take.
    records: int = 0
    #: Images in quarantine, and what they take.
    quarantined: int = 0
    quarantine: int = 0


def space_of(directory: DataDir) -> Space:
    """Look at every image.

    :raises OSError: the directory cannot be read.
    """
    top = directory.open()
    try:
        sharing = _native.filesystem_kind(top) in _SHARING
        images = logical = allocated = shared = records = 0
        runs: list[tuple[int, int]] = []
        with os.scandir(top) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    hidden = entry.name.startswith(".")
                    if not entry.is_file(follow_symlinks=False) or (hidden and not is_sidecar_name(entry.name)):
                        continue
                    info = entry.stat(follow_symlinks=False)
                    if hidden:
                        records += info.st_blocks * 512
                        continue
                    images += 1
                    logical += info.st_size
                    allocated += info.st_blocks * 512
                    if sharing:
                        common = list(_shared_extents(top, entry.name))
                        shared += sum(length for _, length in common)
                        runs += common
        quarantined, quarantine = _quarantined(top)
        disk = allocated - shared + _union(runs)
    finally:
        close_quietly(top)
    return Space(directory.path, images, logical, allocated, shared, disk, records, quarantined, quarantine)


def _shared_extents(top: int, name: str) -> Iterator[tuple[int, int]]:
    """Where on the disk, and how long, are the extents that a file shares?  None where it may not be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        return
    try:
        yield from extents(lambda request: fcntl.ioctl(fd, _FIEMAP, request))
    except OSError:
        return  # a file system that cannot tell
    finally:
        close_quietly(fd)


def extents(ask: Callable[[bytearray], object]) -> Iterator[tuple[int, int]]:
    """Shared extents as (physical offset, length).

    :param ask: the ioctl, which fills the request.
    """
    start = 0
    while True:
        request = bytearray(_HEAD.pack(start, 2**64 - 1 - start, 0, 0, _ROOM, 0)) + bytes(_ROOM * _EXTENT.size)
        ask(request)
        found = _HEAD.unpack_from(request)[3]
        flags = _LAST
        for number in range(found):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                request, _HEAD.size + number * _EXTENT.size
            )
            start = logical + length
            if flags & _SHARED and not flags & (_UNKNOWN | _DELALLOC | _INLINE):
                yield physical, length
        if not found or flags & _LAST:
            return


def _union(runs: list[tuple[int, int]]) -> int:
    """Bytes that are in at least one of them."""
    total = end = 0
    for begin, length in sorted(runs):
        total += max(0, begin + length - max(begin, end))
        end = max(end, begin + length)
    return total


def _quarantined(top: int) -> tuple[int, int]:
    count = taken = 0
    with contextlib.suppress(OSError):
        folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    taken += os.stat(f"{name}/{IMAGE}", dir_fd=folder, follow_symlinks=False).st_blocks * 512
                    count += 1
        finally:
            close_quietly(folder)
    return count, taken
