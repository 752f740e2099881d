"""A store beside a model of it: whatever is done in whatever order, by threads, processes and the dying, both agree."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sweep import memory_directory

import fastfs
from fastfs import Store, datadirs, publish, sidecar

NAMES = st.sampled_from(["a", "b", "c"])
SIZES = st.sampled_from([0, 1, 4096, 65_536, 65_537, 300_001])
SEEDS = st.integers(0, 3)
KINDS = st.sampled_from(["bytes", "iterator", "pipe", "file"])


@lru_cache
def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def pieces(data: bytes, in_the_middle: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    """In two pieces, between which something happens."""
    yield data[: len(data) // 2]
    in_the_middle()
    yield data[len(data) // 2 :]


@contextlib.contextmanager
def delivery(kind: str, data: bytes) -> Iterator[Any]:
    if kind == "bytes":
        yield data
    elif kind == "iterator":
        yield pieces(data)
    elif kind == "file":
        with tempfile.TemporaryFile(dir=memory_directory()) as file:
            file.write(data)
            file.seek(0)
            yield file
    else:
        near, far = os.pipe()
        thread = threading.Thread(target=feed, args=(far, data))
        thread.start()
        with open(near, "rb") as file:
            yield file
        thread.join()


def feed(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(fd, "wb") as file:
        file.write(data)


def in_child(function: Callable[[], object]) -> int:
    """Run it in a forked process; the status that waitpid tells."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except fastfs.Duplicate:
            code = 17
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Model(RuleBasedStateMachine):
    """`images` is what must be there."""

    hidden = False

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fastfs-model-", dir=memory_directory()))
        self.images: dict[str, bytes] = {}
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.start()

    def start(self) -> None:
        self.store = Store(datadir=str(self.directory), durability="none")
        if self.hidden:
            self.store.datadirs.all[0].nameless = False

    def url(self, name: str) -> str:
        return f"file://{self.directory}/{name}"

    @rule(name=NAMES, size=SIZES, seed=SEEDS, kind=KINDS, declared=st.booleans())
    def add(self, name: str, size: int, seed: int, kind: str, declared: bool) -> None:
        data = content(size, seed)
        with delivery(kind, data) as file:
            if name in self.images:
                with pytest.raises(fastfs.Duplicate):
                    self.store.add(name, file, size if declared else None)
                return
            self.store.add(name, file, size if declared else None)
        self.images[name] = data

    @rule(name=NAMES, size=SIZES, kind=KINDS, wrong=st.sampled_from([-1, 1]))
    def add_with_a_lie(self, name: str, size: int, kind: str, wrong: int) -> None:
        if size + wrong <= 0:
            return
        with delivery(kind, content(size, 0)) as file, pytest.raises((fastfs.SizeMismatch, fastfs.Duplicate)):
            self.store.add(name, file, size + wrong)

    @rule(name=NAMES, size=SIZES)
    def add_from_what_raises(self, name: str, size: int) -> None:
        def fail() -> None:
            raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, fastfs.Duplicate)):
            self.store.add(name, pieces(content(size, 0), fail))

    @rule(name=NAMES, size=SIZES, seed=SEEDS)
    def crash(self, name: str, size: int, seed: int) -> None:
        """A process dies in the middle of its upload."""
        status = in_child(lambda: self.store.add(name, pieces(content(size, seed), kill_self)))
        assert os.WIFSIGNALED(status) or (name in self.images and os.waitstatus_to_exitcode(status) == 17)

    @rule(name=NAMES, size=SIZES, seed=SEEDS)
    def add_in_another_process(self, name: str, size: int, seed: int) -> None:
        """With this store, which is of use again after a fork; or a Duplicate."""
        data = content(size, seed)
        status = os.waitstatus_to_exitcode(in_child(lambda: self.store.add(name, data)))
        assert status == (17 if name in self.images else 0)
        self.images.setdefault(name, data)

    @rule(name=NAMES, other=NAMES, size=SIZES, seed=SEEDS)
    def fork_in_the_middle(self, name: str, other: str, size: int, seed: int) -> None:
        """While an upload is under way the process forks, and the child stores something else."""
        data = content(size, seed)
        statuses: list[int] = []

        def fork() -> None:
            statuses.append(in_child(lambda: self.store.add(other, data)))

        if name in self.images:
            return
        expected = 17 if other in self.images else 0
        try:
            self.store.add(name, pieces(data, fork))
            self.images[name] = data
        except fastfs.Duplicate:
            assert other == name
        assert os.waitstatus_to_exitcode(statuses[0]) == expected
        self.images.setdefault(other, data)

    @rule(name=NAMES, size=SIZES, seeds=st.lists(SEEDS, min_size=2, max_size=4))
    def add_at_once(self, name: str, size: int, seeds: list[int]) -> None:
        """By several threads: one wins, or none where it is there already."""
        winners: list[bytes] = []

        def racer(data: bytes) -> None:
            with contextlib.suppress(fastfs.Duplicate):
                self.store.add(name, pieces(data))
                winners.append(data)

        threads = [threading.Thread(target=racer, args=(content(size, seed),)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == (name not in self.images)
        if winners:
            self.images[name] = winners[0]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.images:
            self.store.delete(self.url(name))
            del self.images[name]
        else:
            with pytest.raises(fastfs.NotFound):
                self.store.delete(self.url(name))

    @rule(name=NAMES, offset=st.integers(0, 400_000), length=st.none() | st.integers(0, 400_000))
    def get(self, name: str, offset: int, length: int | None) -> None:
        if name not in self.images:
            with pytest.raises(fastfs.NotFound):
                self.store.get(self.url(name), offset, length)
            return
        reader, size = self.store.get(self.url(name), offset, length)
        expected = self.images[name][offset:][:length]
        assert b"".join(reader) == expected
        assert size == len(expected)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.start()

    def records(self) -> set[str]:
        return {sidecar.sidecar_name(name) for name in self.images}

    @rule()
    def sweep(self) -> None:
        self.store.sweep()
        there = {path.name for path in self.directory.iterdir()}
        assert all(name in self.images or name in self.records() for name in there)
        assert {finding.status.value for finding in self.store.scrub(restart=True)} <= {"clean", "no-record"}

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "images"):
            return
        there = {path.name: path.read_bytes() for path in self.directory.iterdir() if path.name[0] != "."}
        assert there == self.images
        assert {image.image_id: image.size for image in self.store.images()} == {
            name: len(data) for name, data in self.images.items()
        }
        hidden = [path.name for path in self.directory.iterdir() if path.name[0] == "."]
        # A dead writer may have left the record of an image that never came.
        hidden = [name for name in hidden if not sidecar.is_sidecar_name(name)]
        assert all(publish.is_hidden_name(name) for name in hidden)
        assert self.hidden or not hidden
        assert len(os.listdir("/proc/self/fd")) == self.descriptors
        assert len(datadirs._claims) == 0

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.sweep()
            self.store.close()
            for path in self.directory.iterdir():
                path.unlink()
            self.directory.rmdir()


class HiddenModel(Model):
    """On a file system without nameless files."""

    hidden = True


EXAMPLES = int(os.environ.get("FASTFS_MODEL_EXAMPLES", "60"))
SETTINGS = settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = Model.TestCase
TestModel.settings = SETTINGS
TestHiddenModel = HiddenModel.TestCase
TestHiddenModel.settings = SETTINGS


SHUTDOWN = """
import sys, threading, time
from fastfs import Store

store = Store(datadir=sys.argv[1], timeout=float(sys.argv[2]))
begun = threading.Event()

def pieces():
    while True:
        yield b"x" * 300_000
        begun.set()
        time.sleep(0.001)

threading.Thread(target=lambda: store.add("image", pieces()), daemon=True).start()
begun.wait()
reader, _ = store.get(store.add("other", b"y" * 100_000).url)
next(reader)
if sys.argv[3] == "raise":
    raise SystemExit(7)
"""


@pytest.mark.parametrize("how", ["end", "raise"])
@pytest.mark.parametrize("timeout", ["0", "60"])
def test_the_interpreter_ends_in_the_middle(how: str, timeout: str, tmp_path: Path) -> None:
    """While a daemon thread stores an image: nothing of it is there, and the end comes without a crash."""
    command = [sys.executable, "-X", "faulthandler", "-c", SHUTDOWN, str(tmp_path), timeout, how]
    for _ in range(5):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == (7 if how == "raise" else 0), done.stderr
        assert "Fatal" not in done.stderr
        with Store(datadir=str(tmp_path)) as store:
            store.sweep()
            assert {path.name for path in tmp_path.iterdir()} <= {"other", ".fastfs-other.rec"}
            store.delete(store.find("other"))


GROWTH = """
import gc, os, resource, sys
from fastfs import Store

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

store = Store(datadir=sys.argv[1], durability="none")
data = os.urandom(300_000)

def work(number):
    for kind in range(number):
        url = store.add("image", data[:4096] if kind % 10 else iter([data])).url
        reader, _ = store.get(url)
        assert sum(map(len, reader)) > 0
        store.delete(url)

work(1000)
gc.collect()
before, descriptors = resident(), len(os.listdir("/proc/self/fd"))
work(10_000)
gc.collect()
print(resident() - before, len(os.listdir("/proc/self/fd")) - descriptors)
"""


def test_nothing_grows(tmp_path: Path) -> None:
    """Over 10,000 adds, gets and deletes."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    grown, descriptors = map(int, done.stdout.split())
    assert descriptors == 0
    assert grown < 2 * 1024 * 1024, "200 bytes for each would be found"
