"""The preload library (preload.c) from Python: build it, run a script under it, plan faults, read its log."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "faults"

STORE, SOURCE = 1, 2


class When(IntEnum):
    """What happens at the call."""

    NEVER = 0
    ERROR = 1
    SHORT = 2
    KILL_BEFORE = 3
    KILL_AFTER = 4
    KILL_HALF = 5
    HANG = 6
    #: It is done, and an error is told (the lost answer of an NFS server).
    LIE = 7


class Option(IntFlag):
    """What the watched file system seems to be."""

    NO_TMPFILE = 1
    NO_NOREPLACE = 2
    NO_LOCKS = 4
    AS_EXT4 = 8


class Plan(ctypes.Structure):
    """`at`: the number of the call; `mask`: bits of the functions that go on failing (see `Shim.mask`)."""

    _fields_ = (
        ("at", ctypes.c_int64),
        ("mask", ctypes.c_uint64),
        ("when", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )


class _Record(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("fd", ctypes.c_int32),
        ("object", ctypes.c_int32),
        ("length", ctypes.c_int64),
        ("result", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("hit", ctypes.c_int32),
        ("isdir", ctypes.c_int32),
        ("name", ctypes.c_char * 72),
    )


class Call(NamedTuple):
    """One call of the log."""

    number: int
    function: str
    #: STORE or SOURCE.
    kind: int
    fd: int
    #: The open file: the same for duplicates of a descriptor; 0: by path.
    object: int
    #: Bytes asked for, where a call may do less than it is told to.
    length: int
    result: int
    error: int
    flags: int
    hit: bool
    isdir: bool
    #: The last part of the path, where there is one.
    name: str

    def __str__(self) -> str:
        what = f"{self.function}({self.name or f'#{self.object}'})"
        return what if not self.error else f"{what}: {errno.errorcode.get(self.error, self.error)}"


def cc(default: str = "cc") -> list[str]:
    """The C compiler, with the arguments that CC may have."""
    return shlex.split(os.environ.get("CC", default))


def shared_object(name: str = "preload") -> Path:
    """The path of a library to be preloaded, built if it is not yet."""
    source = HERE / f"{name}.c"
    path = BUILD / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        command = [*cc(), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-shared"]
        subprocess.run([*command, "-fPIC", "-o", scratch, source, "-ldl"], check=True)
        scratch.rename(path)
    return path


def environment() -> dict[str, str]:
    """The environment of a process that runs under the library."""
    others = os.environ.get("LD_PRELOAD", "")
    return {**os.environ, "LD_PRELOAD": f"{shared_object()}:{others}".rstrip(":"), "FAULTS_LOADED": "1"}


def reexec() -> None:
    """Start this script again under the library, unless it is there already."""
    if os.environ.get("FAULTS_LOADED") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())


class Shim:
    """The library, in a process that runs under it."""

    def __init__(self) -> None:
        self.c = ctypes.CDLL(None)
        try:
            self.c.faults_name.restype = ctypes.c_char_p
        except AttributeError:
            raise RuntimeError("this process does not run under the preload library") from None
        self.c.faults_records.restype = ctypes.POINTER(_Record)
        self.c.faults_record_size.restype = ctypes.c_size_t
        for name in ("faults_count", "faults_hits"):
            getattr(self.c, name).restype = ctypes.c_int64
        assert self.c.faults_record_size() == ctypes.sizeof(_Record)

    @cached_property
    def functions(self) -> list[str]:
        names: list[str] = []
        while (name := self.c.faults_name(len(names))) is not None:
            names.append(name.decode())
        return names

    def mask(self, functions: Sequence[str]) -> int:
        """Bits of functions, for `Plan.mask`."""
        return sum(1 << self.functions.index(name) for name in functions)

    def renew(self) -> None:
        """In a forked worker: have a log of one's own."""
        self.c.faults_renew()

    def watch(self, root: str, kind: int = STORE) -> None:
        """Count calls on what is below `root`."""
        assert self.c.faults_root(os.fsencode(root), kind) == 0, "too many roots"

    def watch_fd(self, fd: int, kind: int = SOURCE) -> None:
        self.c.faults_watch(fd, kind)

    def forget(self) -> None:
        self.c.faults_reset()

    def option(self, options: int) -> None:
        self.c.faults_options(options)

    def arm(self, plan: Plan | None = None) -> None:
        self.c.faults_arm(ctypes.byref(plan or Plan()))

    def mark(self) -> None:
        """A moment that counts as a call: something is acknowledged."""
        self.c.faults_mark()

    def disarm(self) -> None:
        self.c.faults_disarm()

    def release(self) -> None:
        """End all hanging calls."""
        self.c.faults_release()

    @property
    def hanging(self) -> int:
        return int(self.c.faults_hanging())

    @property
    def count(self) -> int:
        """Calls since `arm`, of the child that made them or of this process."""
        return int(self.c.faults_count())

    @property
    def hits(self) -> int:
        return int(self.c.faults_hits())

    def calls(self) -> list[Call]:
        """The log since `arm`."""
        records, count = self.c.faults_records(), self.count
        assert count < 8192, "the log is full"
        found = []
        for number in range(count):
            r = records[number]
            found.append(
                Call(
                    number + 1,
                    self.functions[r.function],
                    r.kind,
                    r.fd,
                    r.object,
                    r.length,
                    r.result,
                    r.error,
                    r.flags,
                    bool(r.hit),
                    bool(r.isdir),
                    r.name.decode(errors="replace"),
                )
            )
        return found


def die(message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    os._exit(99)
