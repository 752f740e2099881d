# SPDX-License-Identifier: Apache-2.0
"""The threads of time limits: none is left by a store that is closed; those that hang are not waited for."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import descriptors, our_threads, settled

import fastfs
from fastfs import ChunkedFile, Store, publish, timeouts
from fastfs.timeouts import Guard

BIG = b"0123456789abcdef" * 65536


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert settled(our_threads, []) == []
    assert settled(descriptors, before) == before


@pytest.fixture
def slow_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that have nothing to do any more are on the processor late, as on a busy machine."""
    run = timeouts._Worker.run

    def late(worker: timeouts._Worker) -> None:
        run(worker)
        threading.Event().wait(0.2)

    monkeypatch.setattr(timeouts._Worker, "run", late)


@pytest.fixture
def unstartable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def switch() -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)

    return switch


@pytest.mark.usefixtures("slow_to_end")
def test_close_waits_for_idle_threads(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path), timeout=30) as store:
        store.add("image", iter([BIG]))
        assert our_threads() != []
    assert our_threads() == []
    store.delete(store.find("image"))  # it is of use again
    store.close()
    assert our_threads() == []


@pytest.mark.usefixtures("slow_to_end")
def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(fastfs.BadStoreConfiguration):
        Store(datadir=str(tmp_path / "file"), timeout=30)
    assert our_threads() == []


class Hang:
    """An operation whose time counts from when it hangs, however late its thread is."""

    def __init__(self) -> None:
        self.begun = 0

    def since(self) -> int:
        return self.begun

    def __call__(self, gate: threading.Event) -> bool:
        self.begun = time.monotonic_ns()
        return gate.wait(60)


def test_what_hangs_is_not_waited_for() -> None:
    guard, gate, ended, hang = Guard(0.05, 4, 100), threading.Event(), [], Hang()
    with pytest.raises(fastfs.TimeoutError):
        guard.call("hanging", lambda: ended.append(hang(gate)), busy_since=hang.since)
    guard.timeout = 60
    assert guard.call("quick", int, "7") == 7
    guard.close()
    assert ended == []
    assert len(our_threads()) == 1
    gate.set()
    assert settled(our_threads, []) == []


def test_what_works_for_others_is_not_waited_for() -> None:
    """One thread closes, another one's operation goes on and comes to its end."""
    guard, begun, gate, answers = Guard(60, 4, 100), threading.Event(), threading.Event(), []

    def work() -> str:
        begun.set()
        gate.wait(60)
        return "done"

    other = threading.Thread(target=lambda: answers.append(guard.call("working", work)))
    other.start()
    assert begun.wait(60)
    guard.close()
    assert answers == []
    gate.set()
    other.join()
    assert answers == ["done"]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("how", ["close", "to the end"])
def test_a_close_that_hangs(
    verify: bool, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """FUSE is told of each close.  Nothing depends on it: nobody waits for it longer than the time limit."""
    go_on, close = threading.Event(), ChunkedFile.close

    def hang(reader: ChunkedFile) -> None:
        go_on.wait(60)
        close(reader)

    monkeypatch.setattr(ChunkedFile, "close", hang, raising=False)
    with Store(datadir=str(tmp_path), timeout=0.2) as store:
        reader, size = store.get(store.add("image", iter([BIG])).url, verify=verify)
        begun = time.monotonic()
        if how == "close":
            reader.close()
        else:
            assert sum(map(len, reader)) == size
        assert time.monotonic() - begun < 30
        assert "timed out" in caplog.text
        go_on.set()
        assert settled(lambda: reader.closed, True)


def test_of_use_after_close_while_something_hangs() -> None:
    """What the hanging thread is told when it wakes up must not end one that was started later."""
    guard, gate, hang = Guard(0.05, 2, 100), threading.Event(), Hang()
    with pytest.raises(fastfs.TimeoutError):
        guard.call("hanging", hang, gate, busy_since=hang.since)
    guard.close()
    guard.timeout = 60
    for text in ("1", "2", "3"):
        assert guard.call("quick", int, text) == int(text)
    gate.set()
    guard.close()


def test_an_error_of_the_clean_up(caplog: pytest.LogCaptureFixture) -> None:
    """The thread and its place are of use again."""
    guard, gate, hang = Guard(0.05, 1, 100), threading.Event(), Hang()

    def undo(result: object) -> None:
        raise OSError("cannot close")

    with pytest.raises(fastfs.TimeoutError):
        guard.call("hanging", hang, gate, busy_since=hang.since, undo=undo)
    gate.set()
    guard.timeout = 60
    assert guard.call("quick", int, "7") == 7
    assert "too late: cannot close" in caplog.text
    guard.close()


def test_an_operation_may_close_its_guard() -> None:
    guard = Guard(60, 2, 100)
    guard.call("closing", guard.close)
    assert settled(our_threads, []) == []


def test_close_after_fork() -> None:
    """Another thread may have held the lock at that moment; there are no threads to end either."""
    guard = Guard(60, 2, 100)
    guard.call("quick", int, "7")
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        with guard._pool.lock:
            held.set()
            gate.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    child = os.fork()
    if not child:
        guard.close()
        os._exit(7)
    gate.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    guard.close()


def test_no_thread_to_be_had(tmp_path: Path, unstartable: Callable[[], None]) -> None:
    """It is told, and the place of the operation is free again."""
    guard = Guard(60, 1, 100)
    with Store(datadir=str(tmp_path), guard=guard) as store:
        store.close()
        unstartable()
        for _ in range(3):
            with pytest.raises(fastfs.StorageError, match="can't start new thread; raise the limit") as caught:
                guard.call("storing", int, "7", path="/x")
            assert caught.value.path == "/x"
        assert guard._pool.active == 0


def test_no_thread_to_be_had_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unstartable: Callable[[], None]
) -> None:
    """The upload fails, and its end releases what it holds on the calling thread."""
    monkeypatch.setattr(publish, "has_nameless", lambda directory: False)
    store = Store(datadir=str(tmp_path), timeout=30)
    store.datadirs.all[0].nameless = False

    def pieces() -> Iterator[Any]:
        yield BIG
        store.close()
        unstartable()
        yield BIG

    with pytest.raises(fastfs.StorageError, match="can't start new thread"):
        store.add("image", pieces())
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    store.close()


def test_a_guard_that_outlives_the_modules_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the interpreter `__del__` may come when the names of its module are gone."""
    guard = Guard(5, 2, 75)
    assert guard.call("asking", lambda: 1) == 1
    with monkeypatch.context() as patched:
        patched.setattr(timeouts, "SimpleQueue", None)
        guard.__del__(lambda: True)
    guard.close()


class Held:
    """Something to be released, which takes a moment."""

    what = "what is held"

    def __init__(self) -> None:
        self.handed_over = False
        self.within = 0
        self.most = 0
        self.times = 0

    def release(self) -> None:
        self.within += 1
        self.most = max(self.most, self.within)
        time.sleep(0.3)
        self.within -= 1
        self.times += 1


def test_released_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory to wait with, when another thread is at it already."""
    guard, held = Guard(30, 2, 80), Held()

    def wait(*_: object) -> bool:
        assert settled(lambda: held.within, 1) == 1
        raise MemoryError

    monkeypatch.setattr(guard, "_wait", wait)
    guard.release(held)
    guard.close()
    assert settled(lambda: held.times >= 1, True)
    assert held.most == 1


def test_released_although_all_threads_hang() -> None:
    guard, held, gate = Guard(0.1, 1, 100), Held(), threading.Event()
    with pytest.raises(fastfs.TimeoutError):
        guard.call("hanging", gate.wait, 30)
    guard.release(held)
    assert settled(lambda: held.times, 1) == 1
    gate.set()
    guard.close()


def test_a_result_in_the_moment_of_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(30, 1, 80)
    late: list[str] = []

    def wait(task: Any, _: object) -> bool:
        assert task.done.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(guard, "_wait", wait)
    with pytest.raises(KeyboardInterrupt):
        guard.call("opening", lambda: "descriptor", undo=late.append)
    guard.close()
    assert late == ["descriptor"]


@pytest.mark.parametrize("late", [False, True])
def test_what_failed_keeps_nothing(late: bool) -> None:
    """Neither the error nor the thread has what the operation was given, once the error is gone."""

    class Given:
        """Stands for a large buffer."""

    gate = threading.Event()

    def fail(given: Given) -> None:
        assert gate.wait(30)
        raise ValueError(str(given))

    guard, given = Guard(0.1 if late else 30, 2, 80), Given()
    there = weakref.ref(given)
    gc.collect()
    gc.disable()
    try:
        if not late:
            gate.set()
        with contextlib.suppress(ValueError, fastfs.TimeoutError):
            guard.call("failing", fail, given)
        del given
        gate.set()
        assert settled(lambda: there() is None, True)
    finally:
        gc.enable()
        guard.close()


def test_a_warning_that_fails() -> None:
    """The operation goes on, and knows that nobody waits for it."""

    def report(*_: object) -> None:
        raise MemoryError

    guard, held, gate = Guard(30, 1, 80, report), Held(), threading.Event()
    with pytest.raises(MemoryError):
        guard.call("hanging", gate.wait, 30, owner=held)
    assert held.handed_over
    gate.set()
    assert settled(lambda: held.times, 1) == 1
    guard.close()


def test_the_interpreter_ends_with_a_listing_open(tmp_path: Path) -> None:
    """Threads run no more then: nobody waits for one."""
    with Store(datadir=str(tmp_path), durability="none") as store:
        for number in range(3):
            store.add(str(number), b"x")
    code = (
        "import sys, time, fastfs\n"
        "store = fastfs.Store(datadir=sys.argv[1], timeout=300)\n"
        "listing = store.images()\n"
        "next(listing)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")


def test_verified_get_without_a_thread_to_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no record, and all threads hang by now: the descriptor is closed all the same."""
    with Store(datadir=str(tmp_path), timeout=60, records="none") as store:
        url = store.add("image", BIG).url
        before = descriptors()
        real, calls = store._guard.call, []

        def call(what: str, *arguments: Any, **options: Any) -> Any:
            calls.append(what)
            if len(calls) > 1:
                raise fastfs.TimeoutError("earlier operations still hang")
            return real(what, *arguments, **options)

        monkeypatch.setattr(store._guard, "call", call)
        with pytest.raises(fastfs.Unverifiable):
            store.get(url, verify=True)
        assert len(calls) == 2
        assert settled(descriptors, before) == before
