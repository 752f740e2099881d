# SPDX-License-Identifier: Apache-2.0
"""Many images at once on executors of any kind: threads, processes, a Dask cluster, and what goes wrong there."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from leftovers import descriptors, names, our_threads, settled

import fastfs
from fastfs import Item, Outcome, Store, StoreConfig, conveyor, sidecar
from fastfs.ingest import remote
from fastfs.sources import SMALL

BIG = SMALL + 7


def content(seed: object, length: int) -> bytes:
    return hashlib.shake_128(repr(seed).encode()).digest(length)


def files(directory: Path, sizes: Iterable[int]) -> list[Path]:
    directory.mkdir(exist_ok=True)
    paths = []
    for number, size in enumerate(sizes):
        paths.append(directory / f"{number:05d}")
        paths[-1].write_bytes(content(number, size))
    return paths


def in_order(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.position)


def check_stored(outcome: Outcome, data: bytes) -> None:
    assert outcome.error is None
    assert outcome.result is not None
    assert outcome.result[1:4] == (len(data), hashlib.md5(data).hexdigest(), hashlib.sha512(data).hexdigest())
    assert Path(outcome.result.url.removeprefix("file://")).read_bytes() == data


def errors_of(outcomes: Iterable[Outcome]) -> list[str]:
    return [type(outcome.error).__name__ if outcome.error else "" for outcome in outcomes]


class Postal(Executor):
    """Does its work at once, on this thread, on what comes out of pickle; keeps a book."""

    def __init__(self) -> None:
        self.tasks: list[tuple[Any, ...]] = []
        self.before: Callable[[], object] = lambda: None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        function, arguments = pickle.loads(pickle.dumps((fn, args)))
        self.tasks.append(arguments)
        self.before()
        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        except BaseException as error:
            future.set_exception(error)
        return future

    @property
    def item_names(self) -> list[str]:
        return sorted(item.image_id for _, _, items in self.tasks for item in items)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    resource_tracker.ensure_running()  # has a pipe of this process from the first pool to its end
    gc.collect()
    before = len(descriptors())
    yield
    gc.collect()
    assert settled(lambda: len(descriptors()) <= before, True)
    assert settled(our_threads, []) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(images: Path) -> Iterator[Store]:
    with Store(datadir=str(images), durability="none") as made:
        yield made
        assert [usage.reserved for usage in made.usage()] == [0]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(8)))  # both are there, so that their descriptors are
        yield pool


# Threads of somebody else


def test_an_executor_of_threads(store: Store, tmp_path: Path) -> None:
    """Any source will do, and the executor can be used again."""
    paths = files(tmp_path / "sources", [100, BIG] * 10)
    with ThreadPoolExecutor(3) as pool:
        for turn in ("a", "b"):
            items: list[Any] = [(f"{turn}-{path.name}", path.open("rb")) for path in paths]
            for outcome in store.add_many(items, executor=pool):
                check_stored(outcome, paths[outcome.position].read_bytes())
            for _, source in items:
                source.close()


def test_closing_half_way_waits_for_an_executor_of_threads(store: Store) -> None:
    running = threading.Semaphore(0)
    go_on = threading.Event()

    class Slow:
        def read(self, n: int) -> bytes:
            running.release()
            assert go_on.wait(30)
            return b""

    with ThreadPoolExecutor(3) as pool:
        items: list[Any] = [
            ("quick", iter([b"x"])),
            ("slow", Slow()),
            ("slower", Slow()),
            *((str(n), Slow()) for n in range(9)),
        ]
        outcomes = store.add_many(items, executor=pool, jobs=3)
        assert next(outcomes).image_id == "quick"
        for _ in range(2):
            assert running.acquire(timeout=30)
        threading.Timer(0.1, go_on.set).start()
        outcomes.close()
        assert go_on.is_set(), "it waits for what runs"
        assert pool.submit(abs, -1).result() == 1
    stored = names(Path(store.datadirs.all[0].path))
    assert {"quick", "slow", "slower"} <= set(stored)
    assert len(stored) <= 5


def test_an_executor_that_is_shut_down(store: Store, images: Path) -> None:
    """Outcomes of what was begun, then the executor's own error."""
    pool = ThreadPoolExecutor(1)
    told: list[Outcome] = []

    def consume() -> None:
        for outcome in store.add_many(((str(n), content(n, BIG)) for n in range(100)), executor=pool, jobs=4):
            told.append(outcome)
            pool.shutdown(wait=False, cancel_futures=True)

    with pytest.raises(RuntimeError, match="after shutdown"):
        consume()
    pool.shutdown()
    stored = {str(outcome.image_id) for outcome in told if outcome.error is None}
    assert stored == set(names(images))
    assert {type(outcome.error) for outcome in told} <= {type(None), CancelledError}
    assert len(told) < 100


# As other processes see it, but here


def test_what_is_sent(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path / "sources", [100, BIG, 200, 2 * BIG])
    monkeypatch.chdir(tmp_path)
    executor = Postal()
    items: list[Any] = [
        ("path", paths[0]),
        ("relative", os.path.join("sources", paths[1].name)),
        ("bytes", content(2, 200)),
        ("bytearray", bytearray(content(2, 200))),
        ("function", functools.partial(open, paths[3], "rb")),
    ]
    outcomes = in_order(store.add_many(items, executor=executor))
    for outcome, path in zip(outcomes, [paths[0], paths[1], paths[2], paths[2], paths[3]], strict=True):
        check_stored(outcome, path.read_bytes())
    assert executor.item_names == ["bytearray", "bytes", "function", "path", "relative"]
    assert all(isinstance(config, StoreConfig) for _, config, _ in executor.tasks)


def test_what_cannot_be_sent(store: Store, images: Path) -> None:
    executor = Postal()
    items: list[Any] = [
        ("file", io.BytesIO(b"x")),
        ("iterator", iter([b"x"])),
        ("lambda", lambda: io.BytesIO(b"x")),
        ("good", b"x"),
        ("x/y", b"x"),
        (7, b"seven"),
    ]
    outcomes = in_order(store.add_many(items, executor=executor))
    assert errors_of(outcomes) == ["BadSource", "BadSource", "BadSource", "", "InvalidImageId", ""]
    assert names(images) == ["7", "good"]


def test_duplicates_are_found_here(store: Store, images: Path) -> None:
    store.add("old", b"old")
    executor = Postal()
    items: list[Any] = [("old", b"new"), ("twice", b"x"), ("twice", b"x"), ("old", b"old")]
    outcomes = in_order(store.add_many(items, executor=executor))
    assert errors_of(outcomes) == ["Duplicate", "", "Duplicate", "Duplicate"]
    assert names(images) == ["old", "twice"]
    assert executor.item_names == ["twice"]


def test_a_task_that_runs_twice(store: Store, images: Path) -> None:
    """A cluster repeats the task of a worker that died: the answer is the same, and the bytes are its own."""

    class Twice(Postal):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            super().submit(fn, *args, **kwargs)
            return super().submit(fn, *args, **kwargs)

    items = [(str(n), content(n, size)) for n, size in enumerate([0, 100, BIG, 2 * BIG])]
    outcomes = in_order(store.add_many(items, executor=Twice()))
    for outcome, (_, data) in zip(outcomes, items, strict=True):
        check_stored(outcome, data)
        assert not outcome.skipped
    assert len(names(images)) == 4


def test_somebody_else_is_faster_with_other_bytes(store: Store, images: Path) -> None:
    executor = Postal()
    executor.before = lambda: store.add("image", b"somebody else's")
    outcomes = list(store.add_many([("image", b"ours")], executor=executor))
    assert errors_of(outcomes) == ["Duplicate"]
    assert (images / "image").read_bytes() == b"somebody else's"


def test_resume_elsewhere(store: Store) -> None:
    store.add("same", b"same")
    store.add("other", b"other")
    items = [("same", b"same"), ("other", b"OTHER"), ("new", b"new"), ("new", b"new")]
    outcomes = in_order(store.add_many(items, executor=Postal(), resume=True))
    assert errors_of(outcomes) == ["", "Duplicate", "", ""]
    assert [outcome.skipped for outcome in outcomes[:2]] == [True, False]


def test_progress_is_told_here(store: Store) -> None:
    told: list[tuple[str, int]] = []
    me = threading.get_ident()

    def progress(name: str, done: int) -> None:
        assert threading.get_ident() == me
        told.append((name, done))

    list(store.add_many([("a", b"xyz"), ("x/y", b""), ("b", b"")], executor=Postal(), progress=progress))
    assert sorted(told) == [("a", 3), ("b", 0)]


class Stubborn(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("cannot be unpickled")


def opening_fails() -> Any:
    raise Stubborn(1, 2)


def test_errors_that_cannot_travel(store: Store) -> None:
    (outcome,) = store.add_many([("image", opening_fails)], executor=Postal())
    assert isinstance(outcome.error, fastfs.StorageError)
    assert "Stubborn: cannot be unpickled" in str(outcome.error)


def test_a_task_that_breaks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Postal):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(OSError("the worker is gone"))
            return future

    outcomes = list(store.add_many([("a", b"x"), ("b", content(0, BIG))], executor=Broken()))
    assert errors_of(outcomes) == ["OSError", "OSError"]
    assert errors_of(store.add_many([("a", b"x"), ("b", content(0, BIG))], executor=Postal())) == ["", ""]


def test_bundles(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several large images a task, so that a worker's lanes are full; fewer at the end, so that all end together."""
    monkeypatch.setattr(conveyor, "PATIENCE", 60)  # as much is read before the first bundle on any machine
    (path,) = files(tmp_path / "sources", [BIG])
    executor = Postal()
    items = [Item(str(n), path, BIG) for n in range(300)]
    assert errors_of(store.add_many(items, executor=executor, jobs=2)) == [""] * 300
    sizes = [len(items) for _, _, items in executor.tasks]
    assert max(sizes) == remote.BUNDLE
    assert sizes[-1] == 1


def test_small_ones_are_bundled_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyor, "PATIENCE", 60)
    executor = Postal()
    assert errors_of(store.add_many([(str(n), b"x") for n in range(2000)], executor=executor, jobs=2)) == [""] * 2000
    assert len(executor.tasks) < 40


def test_work_is_placed_by_data_directory(tmp_path: Path) -> None:
    """Each directory's executor gets the images that are to lie there, and they lie there."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    executors = {first: Postal(), second: Postal()}
    with Store(datadirs=[f"{first}:1", f"{second}:2"], durability="none") as store:
        wanted = iter([first, second] * 50)
        choose = store.datadirs.choose

        def alternately(size: int | None, without: Any = frozenset()) -> Any:
            _, claim = choose(size, without)
            path = next(wanted)
            return next(one for one in store.datadirs.all if one.path == path), claim

        store.datadirs.choose = alternately  # type: ignore[method-assign]
        items = [(str(n), content(n, BIG)) for n in range(20)]
        outcomes = list(store.add_many(items, executor=executors))
        assert errors_of(outcomes) == [""] * 20
        assert [usage.reserved for usage in store.usage()] == [0, 0]
    for path, executor in executors.items():
        assert names(Path(path)) == executor.item_names
        assert executor.item_names


def test_an_executor_for_each_data_directory(tmp_path: Path) -> None:
    with (
        Store(datadirs=[str(tmp_path / "a"), str(tmp_path / "b")]) as store,
        pytest.raises(fastfs.Invalid, match=f"{tmp_path}/b"),
    ):
        store.add_many([], executor={str(tmp_path / "a"): Postal()})


# Processes


@pytest.mark.parametrize("durability", ["none", "batch"])
def test_processes(durability: str, images: Path, tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    paths = files(tmp_path / "sources", [[100, 0, BIG, 5000, 300_000][n % 5] for n in range(200)])
    with Store(datadirs=[f"{images}/a", f"{images}/b"], durability=durability) as store:
        outcomes = in_order(store.add_many(((path.name, path) for path in paths), executor=processes))
        for outcome, path in zip(outcomes, paths, strict=True):
            check_stored(outcome, path.read_bytes())
        again = list(store.add_many(((path.name, path) for path in paths), executor=processes, resume=True))
        assert errors_of(again) == [""] * 200
        assert all(outcome.skipped for outcome in again)
        assert [usage.reserved for usage in store.usage()] == [0, 0]


def test_errors_of_processes(store: Store, tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    items: list[Any] = [
        ("missing", tmp_path / "missing"),
        Item("wrong", b"xx", 3),
        Item("nonsense", b"xx", None, "nonsense"),
        ("good", b"x"),
    ]
    outcomes = in_order(store.add_many(items, executor=processes))
    assert errors_of(outcomes) == ["FileNotFoundError", "SizeMismatch", "UnknownHashingAlgo", ""]


def die() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed(store: Store, images: Path, tmp_path: Path) -> None:
    """Its images have that as their outcome, what is left of them is swept, and they can be stored afterwards."""
    # Paths, not bytes: a pool whose worker dies while more than a pipe holds is sent to it hangs for ever before Python
    # 3.11.5 (python/cpython#94777).
    items: list[Any] = [(f"{n:03d}", path) for n, path in enumerate(files(tmp_path / "sources", [BIG] * 40))]
    told: list[Outcome] = []
    deadly = [*items, ("deadly", die)]
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
        contextlib.suppress(BrokenProcessPool),
    ):
        # What was not begun then is not tried: the error comes out of the iterator.
        told.extend(store.add_many(deadly, executor=pool, jobs=3))
    # A worker that dies between the record of an image and the image leaves the record, which comes first.
    left = [name for name in names(images) if name.startswith(".")]
    assert all(sidecar.is_sidecar_name(name) for name in left)
    assert store.sweep() == [str(images / name) for name in left]
    stored = names(images)
    assert not [name for name in stored if name.startswith(".")]
    for outcome in told:
        if outcome.error is None:
            check_stored(outcome, content(int(str(outcome.image_id)), BIG))
        else:
            assert isinstance(outcome.error, BrokenProcessPool)
    for name in stored:
        assert (images / name).read_bytes() == content(int(name), BIG)
    assert errors_of(store.add_many(items, resume=True)) == [""] * 40
    assert names(images) == [name for name, _ in items]


def test_a_pool_that_is_broken_already(store: Store, images: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert isinstance(pool.submit(die).exception(), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            list(store.add_many([("a", b"x")], executor=pool))
    assert names(images) == []


def test_closing_half_way_with_processes(store: Store, images: Path, processes: ProcessPoolExecutor) -> None:
    taken = 0

    def items() -> Iterator[tuple[str, bytes]]:
        nonlocal taken
        for taken in range(100_000):
            yield str(taken), content(taken, BIG)

    with contextlib.closing(store.add_many(items(), executor=processes)) as outcomes:
        told = {str(next(outcomes).image_id) for _ in range(5)}
    before = names(images)
    time.sleep(0.2)
    assert names(images) == before, "nothing goes on afterwards"
    assert told <= set(before)
    assert taken < 100_000 - 1
    assert all((images / name).read_bytes() == content(int(name), BIG) for name in before)


# A cluster

CLUSTER: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}


@pytest.mark.slow
def test_dask(images: Path, tmp_path: Path) -> None:
    """A real scheduler and two real worker processes; one of them is killed on the way."""
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    paths = files(tmp_path / "sources", [[100, 0, BIG, 5000, 300_000][n % 5] for n in range(400)])
    with Store(datadirs=[f"{images}/a", f"{images}/b"], durability="batch") as store:
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            items = ((path.name, path) for path in paths)
            outcomes: list[Outcome] = []
            for outcome in store.add_many(items, executor=client.get_executor(), jobs=4):
                outcomes.append(outcome)
                if len(outcomes) == 20:
                    victim = min(client.run(os.getpid).values())
                    os.kill(victim, signal.SIGKILL)
            assert sorted(outcome.position for outcome in outcomes) == list(range(400))
            for outcome in outcomes:
                check_stored(outcome, paths[outcome.position].read_bytes())
            again = store.add_many(((path.name, path) for path in paths), executor=client.get_executor(), resume=True)
            assert all(outcome.skipped for outcome in again)
        found = [name for directory in ("a", "b") for name in names(images / directory)]
        assert sorted(found) == [path.name for path in paths]


@pytest.mark.slow
def test_dask_that_goes_away(images: Path) -> None:
    """The cluster is closed in the middle: each image is stored whole or not at all, and resuming ends the work."""
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    items = [(f"{n:03d}", content(n, BIG)) for n in range(300)]
    with Store(datadir=str(images), durability="none") as store:
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
            contextlib.closing(store.add_many(items, executor=client.get_executor(), jobs=2)) as outcomes,
        ):
            told = [next(outcomes) for _ in range(10)]
        assert errors_of(told) == [""] * 10
        rest = list(store.add_many(items, resume=True))
        assert errors_of(rest) == [""] * 300
        assert sum(outcome.skipped for outcome in rest) >= 10
    assert names(images) == [name for name, _ in items]
