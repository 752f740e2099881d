"""The preload library sees every I/O call there is, and does what it is told."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shim

from fastfs import _native

# Functions of libc that touch files; what of these the extension uses must be wrapped.
IO = re.compile(
    r"^(_?_?x?(open|creat|read|write|pread|pwrite|preadv|pwritev|readv|writev|sync|fsync|fdatasync|syncfs|msync|fallocate|"
    r"posix_fallocate|f?truncate|link|symlink|rename|unlink|rmdir|mkdir|mknod|f?l?chmod|f?l?chown|f?l?stat|f?stat(v?fs|x|at)|"
    r"access|faccess|sendfile|copy_file_range|splice|tee|vmsplice|ioctl|f?l?(set|get|list|remove)xattr|opendir|readdir|"
    r"lseek|flock|lockf|dup|close|readlink|utime|io_uring|aio_|sync_file_range|fopen|f?datasync|fcntl|syscall)\w*)$"
)
#: Never on files of the store.
APART = {"closelog", "fclose", "fcloseall", "fopen"}  # fopen: /proc and the control group, ext/cores.c
#: The one system call that libc has no function for.  It only looks at the page cache, and may fail without harm.
RAW = {"fsops.c": ["NR_CACHESTAT"]}


def undefined(library: str) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], stdout=subprocess.PIPE, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()}


def defined(library: Path) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--defined-only", library], stdout=subprocess.PIPE, text=True, check=True)
    return {line.split()[-1] for line in listing.stdout.splitlines()}


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")
def test_the_extension_calls_nothing_that_is_not_seen() -> None:
    used = {name for name in undefined(_native.__file__) if IO.match(name)} - APART
    assert "fsync" in used
    assert used - {"syscall"} <= defined(shim.shared_object()), "wrap these in preload.c"
    sources = (shim.HERE.parent.parent / "ext").glob("**/*.[ch]")
    raw = {path.name: re.findall(r"\bsyscall\((\w+)", path.read_text()) for path in sources}
    assert {name: calls for name, calls in raw.items() if calls} == RAW


def test_plan_has_the_layout_that_c_has() -> None:
    assert ctypes.sizeof(shim.Plan) == 24


SCRIPT = """
import os, signal, sys
from shim import *
shim = Shim()
shim.watch(sys.argv[1])
path, plan = sys.argv[1] + "/f", eval(sys.argv[2])
if plan.mask:
    plan.mask = shim.mask(["write", "fsync"])
child = os.fork()
if child == 0:
    shim.arm(plan)
    said = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for step in (lambda: os.write(fd, b"12345678"), lambda: os.fsync(fd), lambda: os.write(fd, b"abc")):
        try:
            said.append(step())
        except OSError as error:
            said.append(error.strerror)
    os.write(1, repr(said).encode())
    os._exit(0)
status = os.waitpid(child, 0)[1]
print("", os.WTERMSIG(status), [str(call) for call in shim.calls()], open(path, "rb").read())
"""


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("Plan()", "[8, None, 3] 0 ['open(f)', 'write(#1)', 'fsync(#1)', 'write(#1)'] b'12345678abc'"),
        ("Plan(at=2, when=When.SHORT)", "[4, None, 3] 0 * b'1234abc'"),
        ("Plan(at=2, when=When.ERROR, error=28)", "['No space left on device', None, 3] 0 * b'abc'"),
        ("Plan(at=2, when=When.ERROR, error=4)", "[8, None, 3] 0 * b'12345678abc'"),
        ("Plan(at=2, when=When.ERROR, error=5, mask=1)", "[*, *, *] 0 * b''"),
        ("Plan(at=3, when=When.LIE, error=5)", "[8, 'Input/output error', 3] 0 * b'12345678abc'"),
        ("Plan(at=2, when=When.KILL_BEFORE)", " 9 * b''"),
        ("Plan(at=2, when=When.KILL_HALF)", " 9 * b'1234'"),
        ("Plan(at=2, when=When.KILL_AFTER)", " 9 * b'12345678'"),
    ],
)
def test_faults(plan: str, expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), plan],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**shim.environment(), "PYTHONPATH": str(shim.HERE)},
    )
    pattern = ".*".join(re.escape(part) for part in expected.split("*"))
    assert re.fullmatch(pattern, done.stdout.strip("\n")), done.stdout
