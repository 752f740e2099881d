# SPDX-License-Identifier: Apache-2.0
"""The extension by itself: the chunk-copy loop, its helpers, and the system calls Python lacks."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import os_threads, settled

from fastfs import _native
from fastfs.publish import NO_NAMELESS

BLOCK = _native.BLOCK_SIZE
PAGE = _native.PAGE_SIZE


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


@pytest.mark.parametrize("helpers", [0, 1, 2, -1])
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 7])
def test_descriptor(size: int, helpers: int, target: int, tmp_path: Path) -> None:
    data = noise(size)
    (tmp_path / "source").write_bytes(data)
    md5, sha = hashlib.md5(), hashlib.sha512()
    with open(tmp_path / "source", "rb", buffering=0) as source:
        pump = _native.Pump(target, [md5, sha], helpers=helpers)
        more, taken = pump.read_fd(source.fileno(), 0)
        assert (more, taken, pump.finish()) == (False, size, size)
        pump.close()
    assert content(target) == data
    assert (md5.digest(), sha.digest()) == (hashlib.md5(data).digest(), hashlib.sha512(data).digest())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(st.integers(0, 3 * BLOCK), max_size=6),
    kinds=st.lists(st.sampled_from([bytes, bytearray, memoryview]), min_size=6, max_size=6),
    thin=st.booleans(),
    helpers=st.sampled_from([0, 2]),
)
def test_feed(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], kinds: list[type], thin: bool, helpers: int
) -> None:
    sha = hashlib.sha256()
    whole = b""
    fd = os.open(tmp_path_factory.mktemp("feed") / "target", os.O_RDWR | os.O_CREAT)
    try:
        pump = _native.Pump(fd, [sha], thin=thin, helpers=helpers)
        for number, (size, kind) in enumerate(zip(pieces, kinds, strict=False)):
            piece = bytes(size) if number % 2 else noise(size)
            whole += piece
            pump.feed(kind(piece))
        assert pump.finish() == len(whole)
        pump.close()
        assert content(fd) == whole
        assert sha.digest() == hashlib.sha256(whole).digest()
    finally:
        os.close(fd)


def test_source_may_change_its_buffer_afterwards(target: int) -> None:
    """What is hashed is what is written, although the hashing is still under way."""
    sha = hashlib.sha512()
    pump = _native.Pump(target, [sha], helpers=2)
    buffer = bytearray(noise(BLOCK))
    for value in range(20):
        buffer[:] = bytes([value]) * BLOCK
        pump.feed(buffer)
    pump.finish()
    assert sha.digest() == hashlib.sha512(content(target)).digest()


def test_a_kept_view_is_not_used_again(target: int) -> None:
    """A source that keeps the buffer it was to fill cannot reach another upload's bytes."""
    pump = _native.Pump(target, [])
    kept = pump.room()
    pump.close()
    del pump
    gc.collect()
    others = [_native.Pump(-1, []) for _ in range(20)]
    for other in others:
        other.room()[:4] = b"mine"
    kept[:4] = b"late"
    assert all(bytes(other.room()[:4]) == b"mine" for other in others)


def test_room_is_bounded(target: int) -> None:
    pump = _native.Pump(target, [])
    pump.feed(b"x")
    assert len(pump.room()) == BLOCK - 1
    with pytest.raises(ValueError, match="room"):
        pump.advance(BLOCK)


def test_closed(target: int) -> None:
    pump = _native.Pump(target, [])
    pump.close()
    pump.close()
    with pytest.raises(ValueError, match="closed"):
        pump.feed(b"x")


def test_failing_target_can_be_replaced(target: int, tmp_path: Path) -> None:
    """/dev/full says ENOSPC; everything but the block that failed is the caller's to bring along."""
    data = noise(5 * BLOCK)
    sha = hashlib.sha512()
    full = os.open("/dev/full", os.O_RDWR)
    pump = _native.Pump(full, [sha], helpers=2)
    with pytest.raises(OSError, match="space") as caught:
        pump.feed(data)
    assert (caught.value.errno, pump.side, pump.unwritten_at) == (errno.ENOSPC, "target", 0)
    os.close(full)
    pump.retarget(target)
    pump.feed(data, pump.size)
    assert pump.finish() == len(data)
    assert content(target) == data
    assert sha.digest() == hashlib.sha512(data).digest()


def test_failing_source_is_told_apart(target: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    pump = _native.Pump(target, [])
    with pytest.raises(IsADirectoryError):
        pump.read_fd(fd)
    assert pump.side == "source"
    os.close(fd)


def test_failing_digest_is_told_apart(target: int) -> None:
    class Broken:
        def update(self, data: memoryview) -> None:
            raise RuntimeError("no")

    pump = _native.Pump(target, [Broken()])
    with pytest.raises(OSError, match="error"):
        pump.feed(bytes(20 * BLOCK))
    assert pump.side == "digest"
    pump.close()


def test_cancelled_pump_writes_no_more(target: int) -> None:
    pump = _native.Pump(target, [])
    pump.cancel()
    with pytest.raises(OSError, match="canceled"):
        pump.feed(bytes(2 * BLOCK))
    assert content(target) == b""


def test_helpers_end(target: int) -> None:
    before = os_threads()
    for _ in range(5):
        pump = _native.Pump(target, [hashlib.md5(), hashlib.sha512()], helpers=2)
        pump.feed(bytes(8 * BLOCK))
        assert settled(lambda: len(os_threads() - before), 2) == 2
        del pump
    assert settled(lambda: os_threads() - before, set()) == set()


def test_not_in_a_forked_child(target: int) -> None:
    pump = _native.Pump(target, [hashlib.md5()], helpers=1)
    pump.feed(bytes(8 * BLOCK))
    child = os.fork()
    if child == 0:
        try:
            pump.feed(b"x")
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert pump.finish() == 8 * BLOCK


def test_wait_for_a_slow_descriptor(target: int) -> None:
    near, far = os.pipe()
    os.set_blocking(near, False)
    pump = _native.Pump(target, [])
    with pytest.raises(TimeoutError):
        pump.read_fd(near, wait_ms=20)
    assert pump.side == "source"

    def send() -> None:
        os.write(far, b"late")
        os.close(far)

    timer = threading.Timer(0.05, send)
    timer.start()
    assert pump.read_fd(near) == (False, 4)
    timer.join()
    os.close(near)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4095, 4096, 100_000])
def test_is_zero(size: int) -> None:
    assert _native.is_zero(bytes(size))
    for place in {0, size // 2, size - 1} if size else set():
        dirty = bytearray(size)
        dirty[place] = 1
        assert not _native.is_zero(dirty), place


def test_holes(target: int) -> None:
    """Whole pages of zeroes become holes, wherever they lie; a page with one other byte does not."""
    data = bytearray(64 * PAGE)
    data[10 * PAGE + 5] = 1
    data[40 * PAGE : 41 * PAGE] = b"x" * PAGE
    pump = _native.Pump(target, [], thin=True)
    pump.feed(data)
    pump.finish()
    os.fsync(target)
    assert content(target) == data
    assert os.fstat(target).st_blocks * 512 <= 2 * PAGE


def test_sparse_source_is_not_read(target: int, tmp_path: Path) -> None:
    size = 64 * BLOCK
    with open(tmp_path / "source", "wb") as source:
        source.truncate(size)
        source.seek(20 * BLOCK + 3)
        source.write(b"data")
    with open(tmp_path / "source", "rb", buffering=0) as file:
        sha = hashlib.sha256()
        pump = _native.Pump(target, [sha], thin=True)
        before = int(Path("/proc/self/io").read_text().split()[1])  # rchar: bytes that reading calls gave
        while pump.read_fd(file.fileno(), pump.size, sparse=True)[0]:
            pass
        read = int(Path("/proc/self/io").read_text().split()[1]) - before
        assert pump.finish() == size
    data = (tmp_path / "source").read_bytes()
    assert content(target) == data
    assert sha.digest() == hashlib.sha256(data).digest()
    assert read < 2 * BLOCK


def test_store_object(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path)
    try:
        _native.store_object(directory, "image", b"data", 0o640, True, True)
    except OSError as error:
        if error.errno in NO_NAMELESS:
            pytest.skip(f"{tmp_path} is on a file system without O_TMPFILE")
        raise
    assert (tmp_path / "image").read_bytes() == b"data"
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileExistsError):
        _native.store_object(directory, "image", b"other", -1, False, False)
    assert (tmp_path / "image").read_bytes() == b"data"
    with pytest.raises(OSError, match="too long"):
        _native.store_object(directory, "x" * 5000, b"", -1, False, False)
    assert os.listdir(tmp_path) == ["image"]


def test_rename_does_not_replace(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    top = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        _native.rename_noreplace(top, b"a", b"b")
    _native.rename_noreplace(top, b"a", b"c")
    os.close(top)
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_a_pump_in_a_cycle_is_collected_while_helpers_hash() -> None:
    """As that of an exception whose traceback refers to it."""
    program = """
import gc, hashlib, time
from fastfs import _native

class Slow:
    def __init__(self):
        self.inner = hashlib.md5()
    def update(self, data):
        time.sleep(0.02)
        self.inner.update(data)

for helpers in (1, 1, 1, -1):
    hashers = [Slow()] if helpers == 1 else [_native.EngineDigest("md5"), _native.EngineDigest("sha512")]
    pump = _native.Pump(-1, hashers, helpers=helpers)
    for _ in range(6):
        pump.feed(bytes(_native.BLOCK_SIZE))
    cycle = [pump, hashers]
    cycle.append(cycle)
    del pump, hashers, cycle
    gc.collect()
print("collected")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "collected\n"), done.stderr
