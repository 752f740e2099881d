"""Real file systems to break: tmpfs, and ext4, xfs and btrfs on loop devices, all in a mount namespace of one's own.

Needs root.  Whatever is mounted vanishes with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import shim

CLONE_NEWNS = 0x00020000

#: How to make each, and how large it must at least be.
MAKERS: dict[str, tuple[list[str], int]] = {
    "ext4": (
        ["mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"],
        48 << 20,
    ),
    "xfs": (["mkfs.xfs", "-q", "-f", "-K"], 304 << 20),
    "btrfs": (["mkfs.btrfs", "-q", "-f", "-K", "-m", "single"], 128 << 20),
}


def missing(*filesystems: str) -> str:
    """What keeps such file systems from being made here; "" if nothing does."""
    if os.geteuid() != 0:
        return "only root can mount"
    if not os.path.exists("/dev/loop-control") and filesystems:
        return "there are no loop devices"
    for name in filesystems:
        if name in MAKERS and shutil.which(MAKERS[name][0][0]) is None:
            return f"{MAKERS[name][0][0]} is not installed"
        if name == "fuse" and not os.path.exists("/dev/fuse"):
            return "there is no /dev/fuse"
    return ""


def own_namespace() -> None:
    """From here on this process's mounts are its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    run("mount", "--make-rprivate", "/")


def run(*command: str | os.PathLike[str]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(done.returncode, f"{' '.join(words)}: {done.stdout.strip()}")
    return done.stdout.strip()


def isolated(function: Callable[[Path], object], scratch: Path, namespace: bool = True) -> None:
    """``function(scratch)`` in a forked child with mounts, limits and a uid of its own; what it raises comes out.

    :raises AssertionError: with the child's traceback.
    """
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(near)
            if namespace:
                own_namespace()
            function(scratch)
            code = 0
        except BaseException:
            os.write(far, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(code)
    os.close(far)
    with open(near, "rb") as file:
        told = file.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if status:
        raise AssertionError(told or f"the child ended with {status}")


@contextlib.contextmanager
def loop(image: Path) -> Iterator[str]:
    """A block device on a file."""
    device = run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str, at: Path, kind: str, options: str = "") -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run("mount", "-t", kind, *(["-o", options] if options else []), device, at)
    try:
        yield at
    finally:
        unmount(at)


def unmount(at: Path) -> None:
    for _ in range(100):
        try:
            run("umount", at)
            return
        except OSError as error:
            if "busy" not in str(error):
                raise
            time.sleep(0.02)
    run("umount", "--lazy", at)


@contextlib.contextmanager
def tmpfs(at: Path, size: str = "64m", inodes: int = 1000) -> Iterator[Path]:
    with mounted("none", at, "tmpfs", f"size={size},nr_inodes={inodes}"):
        yield at


@contextlib.contextmanager
def made(kind: str, scratch: Path, size: int = 0, options: str = "") -> Iterator[Path]:
    """A fresh file system in a file."""
    command, least = MAKERS[kind]
    image = scratch / f"{kind}.img"
    with open(image, "wb") as file:
        file.truncate(max(size, least))
    run(*command, image)
    try:
        with loop(image) as device, mounted(device, scratch / kind, kind, options) as place:
            yield place
    finally:
        image.unlink()


class Disk:
    """The disk of disk.c.  `trouble`: what it does instead of obeying."""

    OBEY, HANG, DIE, FAIL_FLUSHES, FAIL_A_FLUSH = range(5)

    def __init__(self, scratch: Path, size: int) -> None:
        self.top = scratch / "fuse"
        self.top.mkdir(exist_ok=True)
        self.log = scratch / "log"
        self._control = scratch / "control"
        self._control.write_bytes(bytes(4096))
        command = [program("disk"), str(self.top), str(size), str(self.log), str(self._control)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise OSError("the disk did not start")
        self.connection = os.stat(self.top).st_dev

    @property
    def path(self) -> Path:
        return self.top / "disk"

    def trouble(self, what: int) -> None:
        with open(self._control, "r+b") as file:
            file.write(bytes([what]))

    def mark(self, text: str) -> None:
        """Write something down in the log: it is there when this returns."""
        with open(self.top / "mark", "ab", buffering=0) as file:
            file.write(text.encode())

    def close(self) -> None:
        self.trouble(self.OBEY)
        unmount(self.top)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def program(name: str) -> str:
    """A C program beside this file, compiled."""
    source, target = shim.HERE / f"{name}.c", shim.BUILD / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        shim.BUILD.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}")
        run(*shim.cc(), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-o", scratch, source)
        scratch.rename(target)
    return str(target)
