# SPDX-License-Identifier: Apache-2.0
"""Looking at a mapped file of which a page is gone: no SIGBUS, and nobody believes what was seen."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import descriptors

from fastfs import Store, _native, record
from fastfs.scrub import cache, check
from fastfs.scrub.cache import Guest
from fastfs.scrub.finding import Status
from fastfs.scrub.mapped import LEAST, Mapped

PAGE = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 * LEAST))
    return path


def test_a_file_that_becomes_shorter(file: Path) -> None:
    whole = file.read_bytes()
    with open(file, "rb") as opened:
        mapped = Mapped(opened.fileno(), len(whole))
        view = mapped.view(PAGE, LEAST)
        assert view is not None
        with view:
            assert view == whole[PAGE : PAGE + LEAST]
            assert mapped.intact
            os.truncate(file, 2 * PAGE)
            assert view[:PAGE] == whole[PAGE : 2 * PAGE]
            assert bytes(view[PAGE:]) == bytes(LEAST - PAGE)
            assert not mapped.intact
        assert mapped.view(0, LEAST) is None, "it is to be read from now on"
        mapped.close()
        mapped.close()
        assert not mapped.intact


def test_a_file_that_is_shorter_already(file: Path) -> None:
    with open(file, "rb") as opened:
        os.truncate(file, 0)
        mapped = Mapped(opened.fileno(), 4 * LEAST)
        assert mapped.view(0, LEAST) is None
        mapped.close()


def test_the_last_page_of_a_file_that_becomes_shorter(file: Path) -> None:
    """Zeroes, and no fault."""
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\0")
        opened.flush()
        mapped = Mapped(opened.fileno(), size)
        view = mapped.view(0, size)
        assert view is not None
        with view:
            assert mapped.intact
            opened.truncate(size - 1)
            assert view[-1] == 0
            assert not mapped.intact
        mapped.close()


def test_an_interrupt_that_keeps_a_view(file: Path) -> None:
    with open(file, "rb") as opened:
        mapped = Mapped(opened.fileno(), file.stat().st_size)
        view = mapped.view(0, LEAST)
        assert view is not None
        mapped.close()
        assert not mapped.intact
        view.release()


def test_who_may_not_know_what_is_cached(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whom neither owns a file nor may write it mincore(2) says that all of it is."""
    for may in (True, False):
        monkeypatch.setattr(os, "geteuid", lambda may=may: file.stat().st_uid + (not may))
        monkeypatch.setattr(os, "access", lambda *_: False)
        with open(file, "rb") as opened:
            guest = Guest(opened.fileno(), file.stat().st_size)
            guest.reading(0)
            assert guest.resident() is may
            guest.done()


def test_how_far_all_is_cached(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the first window of which a page is missing, or to where somebody asks."""
    monkeypatch.setattr(cache, "WINDOW", LEAST)
    size = file.stat().st_size
    missing = {2 * LEAST}

    def resident(fd: int, offset: int, length: int) -> bytearray:
        return bytearray([offset not in missing] * -(-length // cache.PAGE))

    monkeypatch.setattr(_native, "resident", resident)
    with open(file, "rb") as opened:
        guest = Guest(opened.fileno(), size)
        guest.reading(0)
        assert [guest.resident_to(most) for most in (1, LEAST + 1, size)] == [1, LEAST + 1, 2 * LEAST]
        guest.reading(2 * LEAST)
        assert guest.resident_to(size) == 0
        guest.reading(3 * LEAST)
        assert guest.resident_to(size) == size
        guest.done()


def test_a_scrub_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of the truncation, and of nothing else."""
    with Store(datadir=str(tmp_path / "images"), durability="none") as store:
        for name in ("a", "b"):
            store.add(name, os.urandom(12 * LEAST + 1))
        seen = []

        class Shrinking(Mapped):
            def view(self, offset: int, length: int) -> memoryview | None:
                found = super().view(offset, length)
                seen.append(found is not None)
                os.truncate(tmp_path / "images" / "b", 3 * LEAST)
                return found

        monkeypatch.setattr(check, "Mapped", Shrinking)
        first = {finding.image_id: finding.status for finding in store.scrub(images=["b"], jobs=1)}
        assert any(seen)
        assert first["b"] in (Status.UNREADABLE, Status.BUSY, Status.TRUNCATED), first
        found = {finding.image_id: finding.status for finding in store.scrub(jobs=1, restart=True)}
        assert found == {"a": Status.CLEAN, "b": Status.TRUNCATED}


def test_bad_blocks_are_not_hashed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 24
    hashed = []
    block_digests = record.block_digests

    def counted(data: memoryview, size: int) -> bytes:
        hashed.append(len(data) // size)
        return block_digests(data, size)

    with Store(datadir=str(tmp_path / "images"), durability="none") as store:
        store.add("a", os.urandom(count * LEAST))
        (tmp_path / "images" / "a").write_bytes(os.urandom(count * LEAST))
        monkeypatch.setattr(record, "block_digests", counted)
        (finding,) = store.scrub(jobs=1)
    assert finding.bad_blocks == count
    assert hashed[0] > 1
    assert sum(hashed) < hashed[0] + count


def test_deep_scrubs_of_what_is_cut_short_meanwhile(tmp_path: Path) -> None:
    """Side by side they look at images where they lie, too."""
    images = tmp_path / "images"
    with Store(datadir=str(images), durability="none") as store:
        data = os.urandom(9 * LEAST + 5)
        for number in range(8):
            store.add(str(number), data)
        _native.limit_cores(2)
        try:
            for turn in range(8):
                victim = images / str(turn)
                cutting = threading.Timer(turn / 1000, os.truncate, (victim, turn * LEAST))
                cutting.start()
                found = {finding.image_id: finding.status for finding in store.scrub(mode="deep", jobs=8, restart=True)}
                cutting.join()
                assert found.pop(str(turn)) in (Status.CLEAN, Status.UNREADABLE, Status.TRUNCATED)
                assert set(found.values()) == {Status.CLEAN}
                victim.write_bytes(data)
        finally:
            _native.limit_cores(0)


def test_there_can_be_too_many(file: Path) -> None:
    with open(file, "rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        guards = [_native.BusGuard(memory) for _ in range(256)]
        with pytest.raises(OSError, match="temporarily unavailable") as caught:
            _native.BusGuard(memory)
        assert caught.value.errno == errno.EAGAIN
        with pytest.raises(BufferError):
            memory.close()
        del guards
        _native.BusGuard(memory).close()
        memory.close()


def test_a_thread_that_blocks_it(file: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    try:
        with open(file, "rb") as opened:
            mapped = Mapped(opened.fileno(), 4 * LEAST)
            assert mapped.view(0, LEAST) is None
            mapped.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


SCRIPT = """
import faulthandler, mmap, os, signal, sys
from fastfs import _native

def mapping():
    with open(sys.argv[1], "w+b") as file:
        file.truncate(1 << 20)
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        file.truncate(0)
    return memory

"""
ENDS = {
    "no guard at all": ("mapping()[5]", -signal.SIGBUS, ""),
    "a guard": ("m = mapping(); g = _native.BusGuard(m); print(m[5], g.spoilt)", 0, "0 True"),
    "after it": ("m = mapping(); g = _native.BusGuard(m); m[5]; g.close(); mapping()[5]", -signal.SIGBUS, ""),
    "another mapping": ("m = mapping(); g = _native.BusGuard(m); mapping()[5]", -signal.SIGBUS, ""),
    "one that was sent": ("g = _native.BusGuard(mapping()); os.kill(os.getpid(), signal.SIGBUS)", -signal.SIGBUS, ""),
    "one that was sent and is ignored": (
        "signal.signal(signal.SIGBUS, signal.SIG_IGN); g = _native.BusGuard(mapping());"
        "os.kill(os.getpid(), signal.SIGBUS); print('alive')",
        0,
        "alive",
    ),
    "a handler before": (
        "faulthandler.enable(); g = _native.BusGuard(mapping()); mapping()[5]",
        -signal.SIGBUS,
        "Bus error",
    ),
    "a handler after": (
        "g = _native.BusGuard(mapping()); faulthandler.enable(); mapping()[5]",
        -signal.SIGBUS,
        "Bus error",
    ),
    "a handler in its place": (
        "g = _native.BusGuard(mapping()); faulthandler.enable()\n"
        "try: _native.BusGuard(mapping())\n"
        "except BlockingIOError: print('read it')",
        0,
        "read it",
    ),
    "a handler that gives the place back": (
        "g = _native.BusGuard(mapping()); faulthandler.enable(); faulthandler.disable(); m = mapping();"
        "h = _native.BusGuard(m); print(m[5])",
        0,
        "0",
    ),
    "handlers that go on to one another": (
        "faulthandler.enable(); g = _native.BusGuard(mapping()); faulthandler.disable(); faulthandler.enable();"
        "mapping()[5]",
        -signal.SIGBUS,
        "Bus error",
    ),
    "a guard of the parent": (
        "m = mapping(); g = _native.BusGuard(m); pid = os.fork();"
        "pid and sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]));"
        "n = mapping(); h = _native.BusGuard(n); told = g.spoilt; g.close(); print(told, n[5], h.spoilt)",
        0,
        "True 0 True",
    ),
    "a forked child": (
        "g = _native.BusGuard(mapping()); pid = os.fork();"
        "pid and sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]));"
        "m = mapping(); h = _native.BusGuard(m); m[5]; print(h.spoilt)",
        0,
        "True",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_it_ends(end: str, tmp_path: Path) -> None:
    script, code, words = ENDS[end]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + script, tmp_path / "file"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, (done.returncode, done.stderr)
    assert words in done.stdout + done.stderr
