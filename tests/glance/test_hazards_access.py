# SPDX-License-Identifier: Apache-2.0
"""Hazards of reading, deleting and time limits: C1 to C14, D1, E1 to E10; see test_hazards.py."""

from __future__ import annotations

import errno
import gc
import io
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from glance_store import exceptions
from support import MIB, Reader, descriptors, names, together

import fastfs.store
from fastfs.datadirs import DataDirs
from fastfs.glance.driver import TimeoutExecutor

HUNDRED = bytes(range(100))

LIMITS = pytest.mark.skipif(
    not hasattr(exceptions, "TimeoutError"), reason="glance_store before 5.4 has no time limits"
)


@pytest.fixture
def hundred(make: Any, where: Any) -> tuple[Any, Any]:
    """A store and the location of an image of 100 bytes in it."""
    store = make(chunk_size=30)
    return store, where(store, store.add("a", io.BytesIO(HUNDRED), 100, "sha256")[0])


def hanging(monkeypatch: pytest.MonkeyPatch, released: threading.Event, target: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(target, name)

    def later(*arguments: Any) -> Any:
        assert released.wait(60)
        return original(*arguments)

    monkeypatch.setattr(target, name, later)


def impatient(executor: TimeoutExecutor) -> None:
    """From now on everything hangs.  What does not has a long limit, or it would fail on a busy machine."""
    executor.guard.timeout = 1


def patient(executor: TimeoutExecutor) -> None:
    """Nothing hangs any more: wait until that is so."""
    executor.guard.timeout = 60
    ends = time.monotonic() + 60
    while executor.guard._pool.active:
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.mark.parametrize("begun", [False, True])
def test_c1_dropped_iterator_lets_go(hundred: Any, make: Any, begun: bool) -> None:
    store, location = hundred
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(50):
                image, _ = store.get(location)
                pieces = iter(image)
                if begun:
                    next(pieces)
                del image, pieces
        assert descriptors(make.images) == []
        assert [warning for warning in told if warning.category is ResourceWarning] == []  # not by the collector
    finally:
        gc.enable()


def test_c2_second_iteration(hundred: Any) -> None:
    store, location = hundred
    image, _ = store.get(location)
    assert b"".join(image) == HUNDRED
    with pytest.raises(ValueError, match="again"):
        list(image)


@pytest.mark.parametrize(("offset", "length", "expected"), [(90, None, 10), (40, 30, 30), (0, None, 100), (10, 90, 90)])
def test_c3_size_is_what_comes(hundred: Any, offset: int, length: int | None, expected: int) -> None:
    store, location = hundred
    image, size = store.get(location, offset=offset, chunk_size=length)
    assert size == expected
    assert b"".join(image) == HUNDRED[offset : offset + expected]


def test_c4_range_beyond_the_end(hundred: Any) -> None:
    image, size = hundred[0].get(hundred[1], offset=90, chunk_size=50)
    assert (size, b"".join(image)) == (10, HUNDRED[90:])


def test_c5_offset_past_the_end(hundred: Any) -> None:
    image, size = hundred[0].get(hundred[1], offset=1000)
    assert (size, list(image)) == (0, [])


def test_c6_range_of_nothing(hundred: Any) -> None:
    image, size = hundred[0].get(hundred[1], offset=0, chunk_size=0)
    assert (size, list(image)) == (0, [])


def test_c7_negative_range(hundred: Any) -> None:
    with pytest.raises(exceptions.Invalid):
        hundred[0].get(hundred[1], offset=0, chunk_size=-1)


def test_c8_negative_offset_opens_nothing(hundred: Any, make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(exceptions.Invalid):
            hundred[0].get(hundred[1], offset=-1)
        gc.collect()
    assert descriptors(make.images) == []


def test_c9_size_and_data_are_of_one_file(hundred: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, location = hundred
    path, getsize = location.store_location.path, os.path.getsize

    def deleted_meanwhile(name: str) -> int:
        size = getsize(name)
        os.remove(name)
        return size

    with monkeypatch.context() as race:
        race.setattr(os.path, "getsize", deleted_meanwhile)
        assert b"".join(store.get(location)[0]) == HUNDRED
    assert getsize(path) == 100  # the driver has not asked for the size by itself
    image, size = store.get(location)
    store.delete(location)
    assert (size, b"".join(image)) == (100, HUNDRED)
    with pytest.raises(exceptions.NotFound):
        store.get(location)


def test_c10_unreadable_image(hundred: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directories: DataDirs, path: str) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(DataDirs, "open_file", fail)
    with pytest.raises(exceptions.Forbidden):
        hundred[0].get(hundred[1])


def test_c11_directory_is_no_image(make: Any, where: Any) -> None:
    store = make()
    (make.images / "d").mkdir()
    for method in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.NotFound):
            method(where(store, f"file://{make.images}/d"))


@pytest.mark.parametrize("path", ["outside", "images/../outside", "images/link", "images-more/x", "images"])
def test_c12_nothing_outside_is_read_or_deleted(make: Any, where: Any, path: str) -> None:
    store = make()
    outside = make.directory / "outside"
    outside.write_bytes(b"secret")
    (make.images / "link").symlink_to(outside)
    (make.directory / "images-more").mkdir()
    (make.directory / "images-more" / "x").write_bytes(b"secret")
    for method in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.NotFound):
            method(where(store, f"file://{make.directory}/{path}"))
    assert outside.read_bytes() == b"secret"


@LIMITS
def test_c13_opening_and_reading_are_under_the_timeout(make: Any, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(timeout=60)
    location = where(store, store.add("a", io.BytesIO(HUNDRED), 100, "sha256")[0])
    image, _ = store.get(location)
    released = threading.Event()
    for target, name in ((os, "pread"), (DataDirs, "open_file"), (DataDirs, "holding"), (DataDirs, "stat")):
        hanging(monkeypatch, released, target, name)
    impatient(store.timeout_executor)
    calls: list[Callable[[], object]] = [
        lambda: list(image),
        lambda: store.get(location),
        lambda: store.get_size(location),
        lambda: store.add("b", Reader(HUNDRED), 100, "sha256"),
    ]

    def timed_out(number: int) -> bool:
        with pytest.raises(exceptions.TimeoutError):
            calls[number]()
        return not released.is_set()

    assert all(together(len(calls), timed_out))
    released.set()
    patient(store.timeout_executor)


def test_c14_file_that_shrinks_is_an_error(make: Any, where: Any) -> None:
    store = make()
    location = where(store, store.add("a", Reader(bytes(MIB)), MIB, "sha256")[0])
    image, _ = store.get(location)
    os.truncate(make.images / "a", 100_000)
    with pytest.raises(OSError, match="truncated"):
        list(image)
    assert image.fp is None


@pytest.mark.parametrize(
    ("number", "forbidden"),
    [(errno.EIO, False), (errno.EBUSY, False), (errno.ESTALE, False), (errno.EACCES, True), (errno.EPERM, True)],
)
def test_d1_broken_storage_is_no_question_of_rights(
    hundred: Any, monkeypatch: pytest.MonkeyPatch, number: int, forbidden: bool
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(exceptions.Forbidden if forbidden else OSError) as caught:
        hundred[0].delete(hundred[1])
    assert forbidden or getattr(caught.value, "errno", None) == number


@LIMITS
def test_e1_delete_that_timed_out_does_not_happen(make: Any, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(timeout=60)
    location = where(store, store.add("a", io.BytesIO(b"x"), 1, "sha256")[0])
    released = threading.Event()
    hanging(monkeypatch, released, fastfs.store, "stat_regular")
    impatient(store.timeout_executor)
    with pytest.raises(exceptions.TimeoutError):
        store.delete(location)
    released.set()
    patient(store.timeout_executor)
    assert names(make.images) == ["a"]


@LIMITS
def test_e2_hung_threads_count(caplog: pytest.LogCaptureFixture) -> None:
    executor = TimeoutExecutor(1, 2, 75)
    release = threading.Event()
    try:
        for _ in range(2):
            with pytest.raises(exceptions.TimeoutError):
                executor.execute(release.wait)
        assert "2 of 2 (100%" in caplog.text
        with pytest.raises(exceptions.TimeoutError):
            executor.execute(int)
    finally:
        release.set()
    patient(executor)
    assert executor.execute(int, "7") == 7


def test_e2b_queued_calls_are_no_usage(caplog: pytest.LogCaptureFixture) -> None:
    executor = TimeoutExecutor(10, 16, 75)

    def many(number: int) -> None:
        for _ in range(50):
            executor.execute(time.sleep, 0.0005)

    list(together(24, many))
    shares = [int(record.getMessage().split("(")[1].split("%")[0]) for record in caplog.records]
    assert len(shares) < 24 * 50 / 4  # upstream: every queued call
    assert max(shares, default=0) <= 100
    executor.shutdown()


def test_e3_many_threads() -> None:
    executor = TimeoutExecutor(10, 8, 100)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        results = list(together(24, lambda number: [executor.execute(int, text) for text in map(str, range(200))]))
    finally:
        sys.setswitchinterval(interval)
    assert results == [list(range(200))] * 24
    executor.shutdown()


@pytest.mark.parametrize("timeout", [0, 5])
def test_e4_etimedout_of_the_system_is_not_ours(
    make: Any, where: Any, monkeypatch: pytest.MonkeyPatch, timeout: int
) -> None:
    store = make(timeout=timeout)
    location = where(store, store.add("a", io.BytesIO(b"x"), 1, "sha256")[0])

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ETIMEDOUT)) as caught:
        store.delete(location)
    assert caught.value.errno == errno.ETIMEDOUT


def test_e5_store_that_was_never_configured(make: Any, where: Any) -> None:
    store = make(datadir=make.images, configure=False)
    url = store.add("a", io.BytesIO(b"x"), 1, "sha256")[0]
    other = make(datadir=make.images, configure=False)
    assert other.get_size(where(other, url)) == 1


@LIMITS
def test_e6_queued_delete_is_not_carried_out_late(make: Any, where: Any) -> None:
    store = make(timeout=60, thread_pool_size=1)
    location = where(store, store.add("a", io.BytesIO(b"x"), 1, "sha256")[0])
    release = threading.Event()
    impatient(store.timeout_executor)
    with pytest.raises(exceptions.TimeoutError):
        store.timeout_executor.execute(release.wait)
    with pytest.raises(exceptions.TimeoutError):
        store.delete(location)
    release.set()
    patient(store.timeout_executor)
    assert names(make.images) == ["a"]
    store.delete(location)


HUNG = """
import time
from fastfs.glance.driver import TimeoutExecutor, errors
try:
    TimeoutExecutor(0.1, 1, 100).execute(time.sleep, 60)
except errors.TimedOut:
    print("timed out")
"""


def test_e7_hung_operation_does_not_keep_the_process_alive() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "timed out\n"


FORKED = """
import io, os, sys
sys.path[:0] = sys.argv[2:]
from conftest import Maker
from pathlib import Path
from support import Reader
make = Maker(Path(sys.argv[1]))
store = make("fast", datadirs=[f"{sys.argv[1]}/a:1", f"{sys.argv[1]}/b:2"], timeout=5)
from glance_store.location import Location
def where(url):
    return Location("file", store.get_store_location_class(), store.conf, uri=url, backend="fast")
store.get_size(where(store.add("before", Reader(bytes(1 << 20)), 1 << 20, "sha256")[0]))
pids = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            url = store.add(f"in-{number}", Reader(bytes(1 << 20)), 1 << 20, "sha256")[0]
            assert store.get_size(where(url)) == len(b"".join(store.get(where(url))[0])) == 1 << 20
            store.delete(where(url))
            os._exit(0)
        finally:
            os._exit(1)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
store.get_size(where(store.add("after", io.BytesIO(b"x"), 1, "sha256")[0]))
print("done")
"""


def test_e10_store_goes_on_after_fork(tmp_path: Path) -> None:
    arguments = [str(tmp_path), str(Path(__file__).parent)]
    command = [sys.executable, "-W", "ignore", "-c", FORKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr
