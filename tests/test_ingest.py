# SPDX-License-Identifier: Apache-2.0
"""Many images at once, in the threads of this process.

Run as a script, this file calls one of its functions named `on_...`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import descriptors, names, our_threads, settled

import fastfs
from fastfs import Item, Outcome, Store, StoreConfig, _native, conveyor
from fastfs.ingest import items, local
from fastfs.sources import SMALL

BIG = SMALL + 7
DURABILITIES = ("none", "file", "full", "batch")


def content(seed: object, length: int) -> bytes:
    return hashlib.shake_128(repr(seed).encode()).digest(length)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a descriptor, a thread of ours or a claim behind."""
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert settled(descriptors, before) == before
    assert settled(our_threads, []) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(images: Path) -> Iterator[Store]:
    with Store(datadir=str(images), durability="none") as made:
        yield made
        assert [usage.reserved for usage in made.usage()] == [0]
        assert not [name for name in names(images) if name.startswith(".")]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    return tmp_path / "sources"


def files(directory: Path, sizes: Iterable[int]) -> list[Path]:
    paths = []
    for number, size in enumerate(sizes):
        paths.append(directory / f"{number:05d}")
        paths[-1].write_bytes(content(number, size))
    return paths


def in_order(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.position)


def error_of(outcome: Outcome) -> str:
    return type(outcome.error).__name__ if outcome.error is not None else ""


def check_stored(outcome: Outcome, data: bytes, algorithm: str = "sha512") -> None:
    assert outcome.error is None
    assert outcome.result is not None
    assert outcome.result.size == len(data)
    assert outcome.result.checksum == hashlib.md5(data).hexdigest()
    assert outcome.result.multihash == hashlib.new(algorithm, data).hexdigest()
    assert Path(outcome.result.url.removeprefix("file://")).read_bytes() == data


# What goes in


SIZES = (0, 1, 4096, SMALL - 1, SMALL, BIG, 300_001)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("directories", [1, 2])
def test_many_sizes(durability: str, directories: int, tmp_path: Path, sources: Path) -> None:
    paths = files(sources, [SIZES[n % len(SIZES)] for n in range(150)])
    options: dict[str, Any] = {"datadirs": [f"{tmp_path}/{n}" for n in range(directories)]}
    if directories == 1:
        options = {"datadir": f"{tmp_path}/0"}
    with Store(durability=durability, file_perm=0o640, **options) as store:
        outcomes = in_order(store.add_many((path.name, path) for path in paths))
        assert [outcome.image_id for outcome in outcomes] == [path.name for path in paths]
        for outcome, path in zip(outcomes, paths, strict=True):
            check_stored(outcome, path.read_bytes())
            assert store.info(path.name).mode == 0o640
        assert [usage.reserved for usage in store.usage()] == [0] * directories
        assert not [name for name in names(tmp_path / "0") if name.startswith(".")]


@pytest.mark.parametrize("options", [{"timeout": 30.0}, {"thin_provisioning": True}])
def test_options_that_packs_cannot_serve(options: dict[str, Any], tmp_path: Path, sources: Path) -> None:
    paths = files(sources, [5000, 0, BIG])
    with Store(StoreConfig(datadir=tmp_path / "images", durability="none", **options)) as store:
        for outcome in store.add_many((path.name, path) for path in paths):
            check_stored(outcome, paths[outcome.position].read_bytes())


def test_without_nameless_files(store: Store, images: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory,) = store.datadirs.all
    monkeypatch.setattr(directory, "nameless", False)
    paths = files(sources, [10, BIG, 20])
    for outcome in store.add_many([(path.name, path) for path in paths]):
        check_stored(outcome, paths[outcome.position].read_bytes())
    assert len(names(images)) == 3


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        return self._file.read(n)


def source_kinds(directory: Path, number: int, data: bytes) -> dict[str, Callable[[], Any]]:
    path = directory / f"source-{number}"

    def made() -> Path:
        path.write_bytes(data)
        return path

    return {
        "path": made,
        "str": lambda: str(made()),
        "open": lambda: open(made(), "rb"),
        "unbuffered": lambda: open(made(), "rb", buffering=0),
        "bytes": lambda: data,
        "bytearray": lambda: bytearray(data),
        "BytesIO": lambda: io.BytesIO(data),
        "read": lambda: OnlyRead(data),
        "iterator": lambda: iter([data[:5], data[5:]]),
        "function": lambda: partial(open, made(), "rb"),
        "function of read": lambda: lambda: OnlyRead(data),
    }


@pytest.mark.parametrize("size", [0, 4096, BIG])
def test_every_kind_of_source(size: int, store: Store, sources: Path) -> None:
    data = [content(n, size) for n in range(11)]
    made = [list(source_kinds(sources, n, data[n]).items())[n] for n in range(11)]
    given_sources = [(kind, make()) for kind, make in made]
    for outcome in store.add_many(given_sources):
        check_stored(outcome, data[outcome.position])
    for kind, source in given_sources:
        if kind in ("open", "unbuffered", "BytesIO"):
            assert not source.closed, "it is the caller's"
            assert source.tell() == size, kind
            source.close()


def test_what_a_function_opens_is_closed(store: Store) -> None:
    opened: list[io.BytesIO] = []

    def opener() -> io.BytesIO:
        opened.append(io.BytesIO(content(0, BIG)))
        return opened[-1]

    (outcome,) = store.add_many([("image", opener)])
    check_stored(outcome, content(0, BIG))
    assert [file.closed for file in opened] == [True]


ITEM = st.tuples(
    st.sampled_from(["a", "b", "c", "d", "e", "", "x/y", ".hidden", "n" * 256]),
    st.sampled_from([0, 1, 100, SMALL, BIG]),
    st.sampled_from(["path", "str", "bytes", "bytearray", "BytesIO", "read", "iterator", "function"]),
    st.sampled_from([None, 0, "right", "wrong"]),
    st.sampled_from(["sha512", "sha256", "md5", "nonsense"]),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    entries=st.lists(ITEM, max_size=25),
    jobs=st.sampled_from([1, 2, 7, None]),
    durability=st.sampled_from(DURABILITIES),
    directories=st.sampled_from([1, 2]),
    lazy=st.booleans(),
)
def test_any_items(
    entries: list[tuple[str, int, str, Any, str]],
    jobs: int | None,
    durability: str,
    directories: int,
    lazy: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each item has one outcome; of those of one id that have no fault of their own exactly one is stored."""
    base = tmp_path_factory.mktemp("any")
    items, faults, data = [], [], []
    for number, (image_id, size, kind, declared, algorithm) in enumerate(entries):
        data.append(content(number, size))
        told = {"right": size, "wrong": size + 1}.get(declared, declared)
        items.append(Item(image_id, source_kinds(base, number, data[-1])[kind](), told, algorithm))
        wrong_id = not image_id or "/" in image_id or image_id.startswith(".") or len(image_id) > 255
        faults.append(
            {
                "InvalidImageId": wrong_id,
                "UnknownHashingAlgo": algorithm == "nonsense",
                "SizeMismatch": declared == "wrong",
            }
        )
    datadirs = [f"{base}/store{n}" for n in range(directories)]
    with Store(datadirs=datadirs, durability=durability) as store:
        outcomes = in_order(store.add_many(iter(items) if lazy else items, jobs=jobs))
        assert [outcome.position for outcome in outcomes] == list(range(len(items)))
        winners: dict[str, list[int]] = {}
        for outcome, item, fault, told in zip(outcomes, items, faults, data, strict=True):
            own = [name for name, there in fault.items() if there]
            if outcome.error is None:
                assert not own
                check_stored(outcome, told, item.algorithm)
                winners.setdefault(str(item.image_id), []).append(outcome.position)
            else:
                assert error_of(outcome) in [*own, "Duplicate"], outcome.error
        sound = {item.image_id for item, fault in zip(items, faults, strict=True) if not any(fault.values())}
        assert winners.keys() == sound
        assert all(len(positions) == 1 for positions in winners.values())
    found = [name for directory in datadirs for name in names(Path(directory))]
    assert sorted(found) == sorted(winners)


def test_an_empty_list(store: Store) -> None:
    assert list(store.add_many([])) == []


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "2"])
def test_jobs_are_checked_at_once(jobs: Any, store: Store) -> None:
    with pytest.raises(fastfs.Invalid, match="jobs"):
        store.add_many([], jobs=jobs)


@pytest.mark.parametrize("entry", ["image", ("image",), ("a", b"", None, "md5", 1), None, ["a", b"x"]])
def test_an_entry_that_is_no_item(entry: Any, store: Store, images: Path) -> None:
    """What came before it is stored, what comes after it is not looked at."""
    outcomes = store.add_many([("first", b"x"), entry, ("never", b"y")])
    assert next(outcomes).image_id == "first"
    with pytest.raises(fastfs.Invalid, match="item 1"):
        next(outcomes)
    assert names(images) == ["first"]


def test_read_only(store: Store, images: Path) -> None:
    with Store(datadir=str(images), read_only=True) as other:
        (outcome,) = other.add_many([("image", b"x")])
    assert error_of(outcome) == "StorageWriteDenied"


def test_metadata_is_told(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_text(f'{{"id": "x", "mountpoint": "{tmp_path}"}}')
    with Store(datadir=str(tmp_path / "s"), metadata_file=str(tmp_path / "metadata"), durability="none") as store:
        for outcome in store.add_many([("small", b"x"), ("large", content(0, BIG))]):
            assert outcome.result is not None
            assert outcome.result.metadata == {"id": "x", "mountpoint": str(tmp_path)}


# One failure does not stop the rest


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self, n: int) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(5, "no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_source_that_raises(error: BaseException, store: Store, images: Path) -> None:
    items: list[Any] = [
        ("a", b"a"),
        ("broken", Broken(error)),
        ("b", content("b", BIG)),
        ("late", lambda: raising(error)),
    ]
    outcomes = in_order(store.add_many(items))
    assert [outcome.error for outcome in outcomes] == [None, error, None, error]
    assert names(images) == ["a", "b"]


def raising(error: BaseException) -> Any:
    raise error


def test_paths_that_cannot_be_read(store: Store, images: Path, sources: Path) -> None:
    (sources / "directory").mkdir()
    items: list[Any] = [
        ("missing", sources / "missing"),
        ("directory", sources / "directory"),
        ("nul", "a\0b"),
        ("odd", 42),
        ("good", files(sources, [100])[0]),
    ]
    found = {str(outcome.image_id): outcome.error for outcome in store.add_many(items)}
    assert isinstance(found["missing"], FileNotFoundError)
    assert found["missing"].filename == str(sources / "missing")
    assert isinstance(found["directory"], IsADirectoryError)
    assert isinstance(found["nul"], ValueError)
    assert isinstance(found["odd"], fastfs.BadSource)
    assert found["good"] is None
    assert names(images) == ["good"]


def test_small_files_that_are_something_else_by_now(
    store: Store, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a file and its reading it can become longer, shorter, or vanish."""
    paths = files(sources, [100, 100, 100, 100])
    weighed = items.weighed

    def and_then(entry: Any) -> Any:
        piece = weighed(entry)
        if entry.position == 0:
            paths[0].write_bytes(content("grown", BIG))
        if entry.position == 1:
            paths[1].write_bytes(b"")
        if entry.position == 2:
            paths[2].unlink()
        return piece

    monkeypatch.setattr(local, "weighed", and_then)
    outcomes = in_order(store.add_many([(path.name, path) for path in paths]))
    check_stored(outcomes[0], content("grown", BIG))
    check_stored(outcomes[1], b"")
    assert isinstance(outcomes[2].error, FileNotFoundError)
    check_stored(outcomes[3], content(3, 100))


def test_a_file_that_grows_while_it_is_read(store: Store, images: Path, sources: Path) -> None:
    (path,) = files(sources, [40 * 1024 * 1024])

    def grow(image_id: str, done: int) -> None:
        if done:
            with open(path, "ab") as file:
                file.write(b"more")

    (outcome,) = store.add_many([("image", path)], progress=grow)
    assert error_of(outcome) == "SizeMismatch"
    assert names(images) == []


def test_progress(store: Store, sources: Path) -> None:
    paths = files(sources, [0, 100, 20 * 1024 * 1024])
    told: dict[str, list[int]] = {}
    list(
        store.add_many(
            [(path.name, path) for path in paths], progress=lambda name, n: told.setdefault(name, []).append(n)
        )
    )
    assert [told[path.name][0] for path in paths] == [0, 0, 0]
    assert [told[path.name][-1] for path in paths] == [0, 100, 20 * 1024 * 1024]


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_progress_that_raises(error: BaseException, store: Store, images: Path, sources: Path) -> None:
    paths = files(sources, [100, BIG, 100, BIG])

    def progress(name: str, done: int) -> None:
        if name in (paths[0].name, paths[1].name):
            raise error

    outcomes = in_order(store.add_many([(path.name, path) for path in paths], progress=progress))
    assert [outcome.error for outcome in outcomes] == [error, error, None, None]
    assert names(images) == [paths[2].name, paths[3].name]


def test_items_that_raise(store: Store, images: Path, sources: Path) -> None:
    """What came before is stored and told, then the error comes."""
    paths = files(sources, [10, BIG, 10, BIG])

    def items() -> Iterator[tuple[str, Path]]:
        yield from ((path.name, path) for path in paths)
        raise LookupError("no more")

    told: list[Outcome] = []
    with pytest.raises(LookupError, match="no more"):
        told.extend(store.add_many(items()))
    assert len(told) == 4
    assert [outcome.error for outcome in told] == [None] * 4
    assert len(names(images)) == 4


def test_duplicates(store: Store, images: Path) -> None:
    store.add("old small", b"old")
    store.add("old large", b"old")
    items: list[Any] = [("old small", b"new"), ("old large", content(0, BIG)), ("new", b"new")]
    outcomes = in_order(store.add_many(items))
    assert [error_of(outcome) for outcome in outcomes] == ["Duplicate", "Duplicate", ""]
    assert isinstance(outcomes[0].error, fastfs.Duplicate)
    assert outcomes[0].error.image_id == "old small"
    assert outcomes[0].error.path == str(images / "old small")
    assert (images / "old small").read_bytes() == b"old"


def test_a_duplicate_in_another_directory(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path / "b"), durability="none") as other:
        other.add("image", b"old")
    with Store(datadirs=[f"{tmp_path}/a:2", f"{tmp_path}/b:1"], durability="none") as store:
        outcomes = in_order(store.add_many([("image", b"new"), ("other", b"x"), ("large", content(0, BIG))]))
        assert [error_of(outcome) for outcome in outcomes] == ["Duplicate", "", ""]
        assert names(tmp_path / "a") == ["large", "other"]


def test_a_dangling_link_is_a_duplicate(store: Store, images: Path) -> None:
    os.symlink("nowhere", images / "image")
    (outcome,) = store.add_many([("image", b"x")], resume=True)
    assert error_of(outcome) == "Duplicate" or isinstance(outcome.error, fastfs.NotFound)
    assert os.readlink(images / "image") == "nowhere"
    assert names(images) == ["image"]


class Full:
    """Lets some native calls fail as a full disk would."""

    def __init__(self, number: int, which: set[int]) -> None:
        self.number = number
        self.which = which
        self.real = _native.draft_objects

    def __call__(self, top: int, pieces: Any, mode: int, sync: bool) -> list[int]:
        found = self.real(top, pieces, mode, sync)
        for n in self.which & set(range(len(found))):
            os.close(found[n])
            found[n] = -self.number
        return found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EOPNOTSUPP])
def test_what_fails_in_a_pack_and_may_do_by_itself(number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfs._native.draft_objects", Full(number, {0, 3}))
    items = [(str(n), content(n, 100)) for n in range(40)]
    for outcome in store.add_many(items, jobs=1):
        check_stored(outcome, items[outcome.position][1])


def test_what_fails_in_a_pack_for_good(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfs._native.draft_objects", Full(errno.EIO, {0}))
    outcomes = in_order(store.add_many([(str(n), content(n, 100)) for n in range(40)], jobs=1))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed
    assert {type(outcome.error) for outcome in failed} == {fastfs.StorageError}
    assert len(names(images)) == 40 - len(failed)


def test_memory_that_runs_out_in_a_pack(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> list[int]:
        raise MemoryError

    monkeypatch.setattr("fastfs._native.link_objects", none_left)
    outcomes = list(store.add_many([(str(n), content(n, 100)) for n in range(5)]))
    assert [error_of(outcome) for outcome in outcomes] == ["MemoryError"] * 5
    assert names(images) == []


@pytest.mark.parametrize("how", ["none", "batch"])
def test_a_pack_is_taken_back_whatever_happens_after_the_names(
    how: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _native.link_objects

    def linked_and_then(*args: Any) -> list[int]:
        real(*args)
        raise MemoryError

    monkeypatch.setattr("fastfs._native.link_objects", linked_and_then)
    with Store(datadir=str(images), durability=how) as store:
        outcomes = list(store.add_many([(str(n), content(n, 100)) for n in range(5)]))
        assert [error_of(outcome) for outcome in outcomes] == ["MemoryError"] * 5
    # Which names were given is not known then; what was not told of as given stays: nobody else's is touched.
    assert set(names(images)) <= {str(n) for n in range(5)}


def on_full(base: Path) -> None:
    """A file system of 1 MiB: what fits is stored, the rest is StorageFull, and no byte is lost to remains."""
    with Store(datadir=str(base / "small"), durability="none") as store:
        items = [(str(n), content(n, size)) for n, size in enumerate([60_000] * 30 + [300_000] * 3)]
        outcomes = in_order(store.add_many(items))
        stored = [outcome for outcome in outcomes if outcome.error is None]
        assert {type(outcome.error) for outcome in outcomes if outcome.error is not None} == {fastfs.StorageFull}
        assert stored
        for outcome in stored:
            check_stored(outcome, items[outcome.position][1])
        assert len(names(base / "small")) == len(stored)
        assert store.usage()[0].reserved == 0
        for image in list(store.images()):
            store.delete(image.url)
        assert store.usage()[0].free > 1_000_000


def on_first_full(base: Path) -> None:
    """What the first directory has no room for goes to the next."""
    with Store(datadirs=[f"{base}/small:2", f"{base}/large:1"], durability="batch") as store:
        items = [(str(n), content(n, 60_000)) for n in range(60)]
        for outcome in store.add_many(items):
            check_stored(outcome, items[outcome.position][1])
    assert len(names(base / "small")) + len(names(base / "large")) == 60
    assert len(names(base / "small")) >= 5


@pytest.mark.parametrize("function", [on_full, on_first_full])
def test_full_file_systems(function: Callable[[Path], None], tmp_path: Path) -> None:
    from test_contract import MOUNT, can_mount, namespaces

    if not can_mount():
        pytest.skip("no mount namespace to be had here")
    command = [sys.executable, __file__, function.__name__, str(tmp_path)]
    done = subprocess.run(
        [*namespaces(), "sh", "-c", MOUNT, "sh", str(tmp_path), *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("most", [24, 150])
@pytest.mark.parametrize("durability", ["none", "full"])
def test_few_descriptors(durability: str, most: int, tmp_path: Path) -> None:
    """Where there are too few for all packs at once, or for one, everything is stored, one by one if need be."""
    code = (
        "import resource, sys\n"
        "from fastfs import Store\n"
        "store = Store(datadir=sys.argv[1], durability=sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)\n"
        "outcomes = list(store.add_many(((str(n), b'x' * 4096) for n in range(300)), jobs=4))\n"
        "errors = [outcome.error for outcome in outcomes if outcome.error is not None]\n"
        "assert not errors, errors[0]\n"
        "assert len(outcomes) == 300\n"
    )
    args = [sys.executable, "-c", code, str(tmp_path), durability, str(most)]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(names(tmp_path)) == 300


# Ending early


def test_closing_half_way(store: Store, images: Path) -> None:
    """What has not begun is not stored; what was told of is; what is there is whole."""
    taken = 0

    def items() -> Iterator[tuple[str, bytes]]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken), content(taken, 100 if taken % 3 else BIG)

    told = set()
    with contextlib.closing(store.add_many(items(), jobs=3)) as outcomes:
        for outcome in outcomes:
            told.add(outcome.image_id)
            if len(told) == 20:
                break
    assert our_threads() == []
    assert told <= set(names(images))
    assert taken < 20 + conveyor.AHEAD + conveyor.PACK
    before = names(images)
    for name in before:
        assert (images / name).read_bytes() == content(int(name), 100 if int(name) % 3 else BIG)
    assert len(before) < taken


def test_a_consumer_that_raises(store: Store) -> None:
    def consume() -> None:
        for _ in store.add_many((str(n), content(n, BIG)) for n in range(200)):
            raise LookupError

    with pytest.raises(LookupError):
        consume()
    gc.collect()
    assert our_threads() == []


def test_an_iterator_that_is_not_used(store: Store, images: Path) -> None:
    outcomes = store.add_many([("image", b"x")])
    del outcomes
    assert names(images) == []


INTERRUPTED = """
import os, signal, sys, threading, time
from fastfs import Store

def items():
    n = 0
    while True:
        yield str(n), (b"%d " % n) * (2000 if n % 2 else 40000)
        n += 1

store = Store(datadir=sys.argv[1], durability=sys.argv[2])
told = []
try:
    for outcome in store.add_many(items(), jobs=4):
        assert outcome.error is None, outcome.error
        told.append(outcome.image_id)
        if len(told) == 50:
            print("go", flush=True)
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print(",".join(told), left, len(os.listdir("/proc/self/fd")), flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("durability", ["none", "batch"])
def test_ctrl_c(durability: str, images: Path) -> None:
    args = [sys.executable, "-c", INTERRUPTED, str(images), durability]
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == "go\n"
        time.sleep(0.05)
        done.send_signal(signal.SIGINT)
        out, err = done.communicate(timeout=60)
    assert done.returncode == 7, err
    told, left, count = out.strip().split(" ")
    assert left == "[]"
    assert int(count) <= 5
    stored = names(images)
    assert set(told.split(",")) <= set(stored)
    for name in stored:
        n = int(name)
        assert (images / name).read_bytes() == (b"%d " % n) * (2000 if n % 2 else 40000)


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Bounds


def test_only_so_many_are_looked_at_ahead(store: Store, sources: Path) -> None:
    (path,) = files(sources, [1])
    taken = 0

    def items() -> Iterator[tuple[str, Path]]:
        nonlocal taken
        for n in range(5000):
            taken += 1
            yield str(n), path

    told = 0
    for _ in store.add_many(items()):
        told += 1
        assert taken - told <= conveyor.AHEAD + 4 * conveyor.PACK
    assert told == 5000


def test_memory_that_waits_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyor, "AHEAD_BYTES", 10 * BIG)
    alive = most = 0

    class Data(bytearray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def items() -> Iterator[tuple[str, Data]]:
        nonlocal alive, most
        for n in range(100):
            alive += 1
            most = max(most, alive)
            yield str(n), Data(content(n, BIG))

    assert sum(outcome.error is None for outcome in store.add_many(items(), jobs=4)) == 100
    assert most <= 10 + 4
    gc.collect()
    assert alive == 0


def test_open_files_that_wait_are_bounded(store: Store, sources: Path) -> None:
    paths = files(sources, [BIG] * 60)
    before, most = len(descriptors()), 0

    def items() -> Iterator[tuple[str, Any]]:
        nonlocal most
        for path in paths:
            most = max(most, len(descriptors()))
            yield path.name, Owned(path)

    assert sum(outcome.error is None for outcome in store.add_many(items(), jobs=2)) == 60
    assert most - before <= 2 * 2 + 2 * 3 + 2


class Owned:
    """Closed when it is dropped."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def read(self, n: int) -> bytes:
        return os.read(self.fd, n)

    def __del__(self) -> None:
        os.close(self.fd)


def test_a_slow_iterable_keeps_nobody_waiting(store: Store, images: Path) -> None:
    """Workers begin before all is read, and outcomes come although there are more items to come."""
    go_on = threading.Event()

    def items() -> Iterator[tuple[str, bytes]]:
        yield "first", content(0, BIG)
        deadline = time.monotonic() + 30
        while not (images / "first").exists():  # nobody else will store it if this iterable keeps the workers idle
            assert time.monotonic() < deadline
            time.sleep(0.001)
            yield f"filler-{time.monotonic_ns()}", b""
        while not go_on.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.001)
            yield f"more-{time.monotonic_ns()}", b""
        yield "last", b"x"

    told = []
    for outcome in store.add_many(items(), jobs=2):
        told.append(outcome.image_id)
        go_on.set()
    assert {"first", "last"} <= set(told)


# Resuming


def test_resume(store: Store, images: Path, sources: Path) -> None:
    paths = files(sources, [100, 200, BIG, 2 * BIG, 0, 300_000])
    items = [(path.name, path) for path in paths]
    assert all(outcome.error is None for outcome in store.add_many(items[:4]))
    (images / paths[1].name).write_bytes(content("other", 200))
    (images / paths[3].name).write_bytes(content("other", 3 * BIG))
    outcomes = in_order(store.add_many(items, resume=True))
    assert [outcome.skipped for outcome in outcomes] == [True, False, True, False, False, False]
    assert [error_of(outcome) for outcome in outcomes] == ["", "Duplicate", "", "Duplicate", "", ""]
    assert "other bytes" in str(outcomes[1].error)
    for n in (0, 2, 4, 5):
        check_stored(outcomes[n], paths[n].read_bytes())
    assert (images / paths[1].name).read_bytes() == content("other", 200)


def test_resume_with_hashlib_only(tmp_path: Path) -> None:
    """Where that is asked for (FIPS) nothing else hashes, not even to compare."""
    data = content("fips", 3_000_000)
    with Store(datadir=str(tmp_path / "images"), durability="none", hash_engine="hashlib") as store:
        before = _native.engine_counters()["streams"]
        for source in (data, io.BytesIO(data)):
            (outcome,) = store.add_many([("image", source)], resume=True)
            assert outcome.error is None
        assert outcome.skipped
        assert _native.engine_counters()["streams"] == before


@pytest.mark.parametrize("kind", ["path", "bytes", "BytesIO", "read", "iterator", "function", "open"])
@pytest.mark.parametrize("size", [50, BIG])
def test_resume_of_any_source(kind: str, size: int, store: Store, sources: Path) -> None:
    same, other = content("same", size), content("other", size)
    store.add("same", same)
    store.add("other", other)
    for number, (name, expected) in enumerate([("same", ""), ("other", "Duplicate"), ("new", "")]):
        source = source_kinds(sources, number, same)[kind]()
        (outcome,) = store.add_many([(name, source)], resume=True)
        assert (error_of(outcome), outcome.skipped) == (expected, name == "same")
        if not expected:
            check_stored(outcome, same)
        if kind == "open":
            source.close()


@pytest.mark.parametrize("declared", [50, 70])
def test_resume_with_a_size_that_does_not_hold(declared: int, store: Store) -> None:
    store.add("image", content(0, 60))
    (outcome,) = store.add_many([("image", OnlyRead(content(0, 60)), declared)], resume=True)
    assert outcome.error is not None
    assert (store.info("image").size, outcome.skipped) == (60, False)


@pytest.mark.parametrize("size", [100, BIG])
@pytest.mark.parametrize("same", [True, False])
def test_resume_when_somebody_was_faster(
    size: int, same: bool, store: Store, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image appears between our look and our link."""
    (path,) = files(sources, [size])
    data = path.read_bytes() if same else content("other", size)
    find, calls = Store.find, []

    def find_late(self: Store, image_id: object) -> str:
        calls.append(image_id)
        if len(calls) == 1 and size == BIG:
            monkeypatch.setattr(Store, "find", find)
            with Store(self.config) as other:
                result = other.add(image_id, data)
            raise fastfs.NotFound(f"not yet {result.url}")
        return find(self, image_id)

    if size != BIG:
        store.add("image", data)
    monkeypatch.setattr(Store, "find", find_late)
    (outcome,) = store.add_many([("image", path)], resume=True)
    assert (error_of(outcome), outcome.skipped) == (("", True) if same else ("Duplicate", False))


def test_what_is_skipped_is_on_the_disk(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stored it may have been stopped before it was synced."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    for size, durability in [(10, "full"), (BIG, "batch"), (BIG + 1, "file"), (BIG + 2, "none")]:
        with Store(datadir=str(images), durability=durability) as store:
            store.add(str(size), content(0, size))
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                (outcome,) = store.add_many([(str(size), content(0, size))], resume=True)
            assert outcome.skipped
            expected = {"none": [], "file": [f"{images}/{size}"]}.get(durability, [f"{images}/{size}", str(images)])
            assert [path for path in synced if not path.endswith("(deleted)")] == expected
            synced.clear()


# The native steps


def test_read_files(tmp_path: Path) -> None:
    paths = files(tmp_path, [0, 1, 100, 5000])
    os.mkfifo(tmp_path / "fifo")
    everything = [
        *map(os.fsencode, paths),
        os.fsencode(tmp_path / "fifo"),
        b"/nowhere",
        os.fsencode(tmp_path),
        b"/proc/self/stat",
    ]
    buffer = bytearray(3000)
    lengths = _native.read_files(everything, buffer, 2000)
    assert lengths[:4] == [0, 1, 100, -errno.EFBIG]
    assert lengths[4:7] == [-errno.EFBIG, -errno.ENOENT, -errno.EFBIG]
    assert lengths[7] > 50
    assert bytes(buffer[:101]) == content(1, 1) + content(2, 100)
    assert buffer[101:].startswith(str(os.getpid()).encode())
    assert _native.read_files([os.fsencode(paths[2])] * 2, bytearray(150), 100) == [100, -errno.EFBIG]
    assert _native.read_files([os.fsencode(paths[2])], bytearray(100), 100) == [100]
    assert _native.read_files([], bytearray(), 100) == []
    with pytest.raises(BufferError):
        _native.read_files([], b"constant", 1)
    with pytest.raises(TypeError):
        _native.read_files(["text"], bytearray(9), 1)  # type: ignore[list-item]


def test_native_steps_of_a_pack(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        for mode, sync in [(-1, False), (0o604, True)]:
            fds = _native.draft_objects(top, [b"one", bytearray(b"two"), memoryview(b"three")], mode, sync)
            assert names(tmp_path) == []
            assert _native.link_objects(top, fds, [b"1", b"2", b"1"]) == [0, 0, -errno.EEXIST]
            assert _native.close_objects(fds) == [0, 0, 0]
            assert _native.close_objects([-1]) == [-errno.EBADF]
            assert (tmp_path / "2").read_bytes() == b"two"
            expected = 0o666 & ~umask() if mode < 0 else mode
            assert (tmp_path / "1").stat().st_mode & 0o777 == expected
            for name in ("1", "2"):
                (tmp_path / name).unlink()
        with pytest.raises(TypeError):
            _native.draft_objects(top, [b"x", "text"], -1, False)  # type: ignore[list-item]
        assert _native.draft_objects(-1, [b"x"], -1, True) == [-errno.EBADF]
        assert _native.draft_objects(top, [], -1, True) == []
    finally:
        os.close(top)


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_what_an_upload_still_needs_is_known_while_it_goes_on(images: Path) -> None:
    """Not only when a native call returns: others are told otherwise that there is no space for them."""
    half = bytes(1 << 20)
    far, near = os.pipe()
    with Store(datadir=str(images), durability="none", thin_provisioning=True) as store, open(far, "rb", 0) as source:
        thread = threading.Thread(target=store.add, args=("image", source, 2 * len(half)))
        thread.start()
        with open(near, "wb", 0) as sender:
            for part in range(2):
                assert settled(lambda: store.usage()[0].reserved, (2 - part) * len(half)) == (2 - part) * len(half)
                done = 0
                while done < len(half):
                    done += sender.write(half[done:]) or 0
        thread.join()
        assert store.usage()[0].reserved == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
