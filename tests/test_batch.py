# SPDX-License-Identifier: Apache-2.0
"""Durability "batch": many small objects acknowledged by one syncfs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import names, settled

import fastfs
from fastfs import Outcome, Store, _native
from fastfs.datadirs import DataDir
from fastfs.ingest import groupsync
from fastfs.ingest.groupsync import GroupSync
from fastfs.sources import SMALL

BIG = SMALL + 7


def content(seed: object, length: int) -> bytes:
    return hashlib.shake_128(repr(seed).encode()).digest(length)


def in_order(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.position)


def error_of(outcome: Outcome) -> str:
    return type(outcome.error).__name__ if outcome.error is not None else ""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


class Watched:
    """Counts what the batch path does, in order; can let a sync fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Iterable[int] = ()) -> None:
        self.calls: list[str] = []
        self.fail = set(fail)
        self.syncs = 0
        self.lock = threading.Lock()
        for name in ("draft_objects", "link_objects"):
            monkeypatch.setattr(f"fastfs._native.{name}", self._watching(name, getattr(_native, name)))
        monkeypatch.setattr("fastfs._native.sync_filesystem", self.sync_filesystem)

    def _watching(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            return real(*args)

        return call

    def sync_filesystem(self, fd: int) -> None:
        with self.lock:
            self.syncs += 1
            number = self.syncs
        self.calls.append("sync")
        if number in self.fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def batch(images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Wherever the tests run, its file system counts as one that can."""
    with Store(datadir=str(images), durability="batch") as made:
        fd = made.datadirs.all[0].open()
        monkeypatch.setitem(groupsync.TRUSTED, _native.filesystem_kind(fd), "this one")
        os.close(fd)
        yield made


def test_data_then_names_then_the_answer(batch: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync between data and names, one between names and answers, for any number of objects."""
    watched = Watched(monkeypatch)
    outcomes = list(batch.add_many([(str(n), content(n, 1000)) for n in range(10)], jobs=1))
    assert all(outcome.error is None for outcome in outcomes)
    packs = watched.calls.count("draft_objects")
    assert watched.calls == ["draft_objects", "sync", "link_objects", "sync"] * packs
    assert packs < 10


def test_a_failing_sync_of_the_data(batch: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object of the group gets its name."""
    Watched(monkeypatch, fail=[1])
    outcomes = in_order(batch.add_many([(str(n), content(n, 1000)) for n in range(200)], jobs=1))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed
    assert {type(outcome.error) for outcome in failed} == {fastfs.StorageError}
    assert {outcome.error.errno for outcome in failed} == {errno.EIO}  # type: ignore[union-attr]
    stored = {str(outcome.image_id) for outcome in outcomes if outcome.error is None}
    assert set(names(images)) == stored


def test_a_failing_sync_of_the_names(batch: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are taken away again; one that was somebody else's stays."""
    batch.add("1", b"old")
    Watched(monkeypatch, fail=[2])
    outcomes = in_order(batch.add_many([(str(n), content(n, 1000)) for n in range(3)], jobs=1))
    assert names(images) == sorted({"1"} | {str(outcome.image_id) for outcome in outcomes if outcome.error is None})
    assert error_of(outcomes[0]) == "StorageError"
    assert error_of(outcomes[1]) == "Duplicate"
    assert (images / "1").read_bytes() == b"old"


def test_a_single_add_is_full(batch: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No syncfs: the file, its record and the directory, at once."""
    watched = Watched(monkeypatch)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    batch.add("large", content(0, BIG))
    assert (len(synced), watched.syncs) == (3, 0)


@pytest.mark.parametrize("why", ["file system", "kernel"])
def test_where_a_sync_of_all_promises_too_little(
    why: str, batch: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object is synced then, as with "full"."""
    if why == "kernel":
        monkeypatch.setattr(groupsync, "_kernel", lambda: (5, 7))
    else:
        monkeypatch.setattr(groupsync, "TRUSTED", {})
    watched = Watched(monkeypatch)
    asked: list[bool] = []
    draft = _native.draft_objects

    def drafting(top: int, pieces: Any, mode: int, sync: bool) -> list[int]:
        asked.append(sync)
        return draft(top, pieces, mode, sync)

    monkeypatch.setattr("fastfs._native.draft_objects", drafting)
    assert all(outcome.error is None for outcome in batch.add_many([(str(n), b"x") for n in range(5)]))
    assert watched.syncs == 0
    assert asked
    assert all(asked)
    assert len(names(images)) == 5


@pytest.mark.parametrize(("durability", "each", "names_synced"), [("none", 0, 0), ("file", 1, 0), ("full", 1, 1)])
def test_the_other_durabilities_of_packs(
    durability: str, each: bool, names_synced: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    asked: list[bool] = []
    synced: list[str] = []
    draft = _native.draft_objects

    def drafting(top: int, pieces: Any, mode: int, sync: bool) -> list[int]:
        asked.append(sync)
        return draft(top, pieces, mode, sync)

    monkeypatch.setattr("fastfs._native.draft_objects", drafting)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with Store(datadir=str(images), durability=durability) as store:
        assert all(outcome.error is None for outcome in store.add_many([(str(n), b"x") for n in range(50)], jobs=1))
    assert set(asked) == {bool(each)}
    assert synced == [str(images)] * (len(asked) * names_synced)
    assert watched.syncs == 0


def test_every_object_is_synced_by_the_native_step(tmp_path: Path) -> None:
    """As the kernel sees it: an fsync for each of them."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    code = (
        "import os, sys\n"
        "from fastfs import _native\n"
        "top = os.open(sys.argv[1], os.O_RDONLY)\n"
        "_native.close_objects(_native.draft_objects(top, [b'x'] * 7, -1, sys.argv[2] == '1'))\n"
    )
    for wanted in (0, 7):
        command = [
            "strace",
            "-f",
            "-c",
            "-e",
            "trace=fsync",
            sys.executable,
            "-c",
            code,
            str(tmp_path),
            str(wanted // 7),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "ptrace" in done.stderr:
            pytest.skip("strace is not allowed here")
        assert done.returncode == 0, done.stderr
        counts = [int(line.split()[3]) for line in done.stderr.splitlines() if line.endswith(" fsync")]
        assert counts == ([wanted] if wanted else [])


def test_the_kernel_is_known() -> None:
    assert groupsync._kernel() >= (2, 6)


@pytest.fixture
def sync(images: Path) -> Iterator[GroupSync]:
    images.mkdir()
    made = GroupSync(DataDir(str(images), 0))
    yield made
    made.close()
    made.close()


def test_those_who_wait_share_a_sync(sync: GroupSync, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is under way all others gather for the next one."""
    calls = []
    waiting = 0

    class Counting(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal waiting
            waiting += 1
            return super().wait(timeout)

    def slow(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            assert settled(lambda: waiting, 7) == 7

    monkeypatch.setattr("fastfs._native.sync_filesystem", slow)
    monkeypatch.setattr(sync, "_changed", Counting())
    threads = [threading.Thread(target=sync.wait, args=(0,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(calls) == 2


def test_a_sync_under_way_does_not_count(sync: GroupSync, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have begun before the last write."""
    inside, go_on, calls = threading.Event(), threading.Event(), []

    def first_hangs(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            inside.set()
            assert go_on.wait(30)

    monkeypatch.setattr("fastfs._native.sync_filesystem", first_hangs)
    one, two = threading.Thread(target=sync.wait, args=(0,)), threading.Thread(target=sync.wait, args=(0,))
    one.start()
    assert inside.wait(30)
    two.start()
    time.sleep(0.05)
    go_on.set()
    one.join(30)
    two.join(30)
    assert len(calls) == 2


def test_an_error_counts_against_all_who_had_begun(sync: GroupSync, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once: to whoever syncs next, whose data it may not have been."""
    errors = [OSError(errno.EIO, "no"), None, None]

    def telling(fd: int) -> None:
        if (error := errors.pop(0)) is not None:
            raise error

    monkeypatch.setattr("fastfs._native.sync_filesystem", telling)
    before = sync.failures
    with pytest.raises(OSError, match="no"):
        sync.wait(before)
    with pytest.raises(OSError, match="no"):
        sync.wait(before)  # another one who had begun, although this sync itself is fine
    sync.wait(sync.failures)  # and somebody who begins now


def test_an_interrupted_sync_does_not_count(sync: GroupSync, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[BaseException | None] = [KeyboardInterrupt(), None]
    calls = []

    def interrupted(fd: int) -> None:
        calls.append(fd)
        if (error := outcomes.pop(0)) is not None:
            raise error

    monkeypatch.setattr("fastfs._native.sync_filesystem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync.wait(0)
    sync.wait(0)
    assert len(calls) == 2


def test_syncfs_itself(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        _native.sync_filesystem(fd)
        assert _native.filesystem_kind(fd) > 0
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.sync_filesystem(-1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.filesystem_kind(-1)
