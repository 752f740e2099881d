"""Directories and moments fit to measure in.

ext4 does not hand out inodes freed within the last minute, and looks for others one by one: after the
unlinking of thousands, every file created in that block group costs up to a millisecond instead of 10 us,
whoever comes next. So each case gets a directory in another block group, and one that is slow is left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

SLOW_US = 100.0
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS; see ioctl_iflags(2)
_TOPDIR = 0x00020000  # FS_TOPDIR_FL, `chattr +T`: the allocator spreads what is made in here


def scatter(directory: Path) -> None:
    """Have the directories made in this one lie far from each other, where the filesystem knows how."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GETFLAGS, bytes(struct.calcsize("l"))))
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("l", flags | _TOPDIR))
    except OSError:
        pass  # tmpfs and others: they have no block groups either
    finally:
        os.close(fd)


def create_cost_us(directory: Path, files: int = 50) -> float:
    """What one empty file costs here right now."""
    probe = Path(tempfile.mkdtemp(prefix="probe-", dir=directory))
    start = time.perf_counter()
    for n in range(files):
        os.close(os.open(probe / str(n), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    took = time.perf_counter() - start
    shutil.rmtree(probe)
    return took / files * 1e6


def fresh_directory(parent: Path, name: str, patience: float = 0) -> tuple[Path, float]:
    """A new directory where creating files is fast, and how fast; looks for `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        cost = create_cost_us(directory)
        if cost < SLOW_US or time.monotonic() >= until:
            return directory, cost
        time.sleep(0.2)  # and leave this one where it is: the next one shall lie elsewhere


def busy_seconds() -> float:
    """CPU time that all of this machine has used, what its host took away included."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, stat.readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def await_quiet(seconds: float) -> None:
    """Returns when others use less than a tenth of a CPU, or after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = busy_seconds()
        time.sleep(0.3)
        if busy_seconds() - before < 0.03:
            return


def filesystem_of(path: Path) -> str:
    best, kind = "", "?"
    with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, point, this, *_ = line.split()
            if len(point) > len(best) and path.resolve().is_relative_to(point):
                best, kind = point, this
    return kind
