# SPDX-License-Identifier: Apache-2.0
"""What glance_store and Glance expect of the driver beyond glance_store's own tests."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from glance_store import exceptions
from support import MIB, Reader, failing, names

from fastfs.glance import driver, upstream

DATA = bytes(range(256)) * (MIB // 64)  # 4 MiB


def test_names_of_the_module() -> None:
    for name in driver.__all__:
        assert hasattr(driver, name)
    original = upstream.original
    assert driver.Store.OPTIONS is original.Store.OPTIONS
    assert driver.MULTI_FILESYSTEM_METADATA_SCHEMA is original.MULTI_FILESYSTEM_METADATA_SCHEMA
    assert driver.Store._CAPABILITIES == original.Store._CAPABILITIES == 0b1001111
    for name in vars(original.Store):
        assert hasattr(driver.Store, name), name
    assert driver.Store.__module__ == driver.StoreLocation.__module__ == driver.__name__
    assert driver.LOG.name == "glance_store._drivers.filesystem"


@pytest.mark.parametrize("backend", [None, "fast"])
@pytest.mark.parametrize("timeout", [0, 30])
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, len(DATA)])
def test_round_trip(make: Any, where: Any, backend: str | None, timeout: int, size: int) -> None:
    store = make(backend, datadir=make.images, timeout=timeout)
    data = DATA[:size]
    url, count, checksum, multihash, metadata = store.add("a", Reader(data), size, "sha512")
    assert url == f"file://{make.images}/a"
    assert (count, checksum) == (size, hashlib.md5(data).hexdigest())
    assert multihash == hashlib.sha512(data).hexdigest()
    assert metadata == ({"store": backend} if backend else {})
    image, length = store.get(where(store, url))
    pieces = list(image)
    assert (length, b"".join(pieces)) == (size, data)
    assert {type(piece) for piece in pieces} <= {bytes}
    assert [len(piece) for piece in pieces[:-1]] == [65536] * (len(pieces) - 1)
    assert store.get_size(where(store, url)) == size
    store.delete(where(store, url))
    assert names(make.images) == []


def test_reads_are_large_and_never_cross_the_declared_size(make: Any) -> None:
    source = Reader(DATA + b"next")
    with pytest.raises(exceptions.Invalid, match="Size exceeds: expected"):
        make(chunk_size=3).add("a", source, len(DATA), "sha256")
    assert source.asked == [MIB] * 4 + [3]
    source = Reader(DATA[:-1])
    with pytest.raises(exceptions.Invalid, match="Size mismatch: expected"):
        make(chunk_size=3).add("a", source, len(DATA), "sha256")
    assert names(make.images) == []


def test_old_style_add_gives_four_values(make: Any) -> None:
    assert len(make().add("a", io.BytesIO(b"x"), 1)) == 4


def test_verifier_gets_all_bytes(make: Any) -> None:
    class Verifier:
        seen = b""

        def update(self, data: bytes) -> None:
            self.seen += data

    verifier = Verifier()
    make().add("a", Reader(DATA), len(DATA), "sha256", verifier=verifier)
    assert verifier.seen == DATA


def test_copying_an_image_between_stores(make: Any, where: Any) -> None:
    one, two = make("one", datadir=make.directory / "one"), make("two", datadir=make.directory / "two")
    url = one.add("a", Reader(DATA), len(DATA), "sha256")[0]
    image, _ = one.get(where(one, url))
    assert two.add("a", image, 0, "sha256")[1] == len(DATA)
    assert image.fp is None
    image, _ = one.get(where(one, url))
    assert two.add("b", iter(image), 0)[1] == len(DATA)
    with pytest.raises(exceptions.Duplicate):
        two.add("b", one.get(where(one, url))[0], 0)


def test_images_of_the_original_driver_and_back(make: Any, where: Any, tmp_path: Path) -> None:
    options = {"datadir": make.images, "file_perm": 640, "thin": "true"}
    mine = make("fast", **options)
    theirs = upstream.original.Store(make.conf(fast=options), "fast")
    theirs.configure()
    for first, second in ((mine, theirs), (theirs, mine)):
        told = first.add("a", Reader(DATA), len(DATA), "sha256")
        with pytest.raises(exceptions.Duplicate):
            second.add("a", Reader(DATA), len(DATA), "sha256")
        assert b"".join(second.get(where(second, told[0]))[0]) == DATA
        mode = stat.S_IMODE((make.images / "a").stat().st_mode)
        second.delete(where(second, told[0]))
        assert second.add("a", Reader(DATA), len(DATA), "sha256") == told
        assert stat.S_IMODE((make.images / "a").stat().st_mode) == mode == 0o640
        first.delete(where(first, told[0]))


def test_staging_of_a_glance_without_backends(make: Any, where: Any) -> None:
    """Glance makes a second store for staging, and lets the main one delete what lies there."""
    main, staging = make(), make(datadir=make.directory / "staging")
    url = staging.add("a", io.BytesIO(b"x"), 1, "sha256")[0]
    main.delete(where(main, url))
    assert names(make.directory / "staging") == []


# -- ChunkedFile ------------------------------------------------------------------------------------------------------


def test_chunked_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    image = driver.ChunkedFile(str(path))
    assert (image.chunk_size, image.partial, image.partial_length) == (4096, False, None)
    image.close()
    image.close()
    assert image.fp is None
    assert list(image) == []
    image = driver.ChunkedFile(str(path), offset=10, chunk_size=30, partial_length=50)
    pieces = iter(image)
    assert next(pieces) == bytes(range(10, 40))
    assert image.partial_length == 20
    assert list(pieces) == [bytes(range(40, 60))]
    assert image.fp is None
    for missing in ("read", "__len__", "__enter__"):
        assert not hasattr(image, missing)
    assert image
    with pytest.raises(FileNotFoundError):
        driver.ChunkedFile(str(tmp_path / "b"))


def test_iteration_that_is_given_up_closes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    image = driver.ChunkedFile(str(path), chunk_size=10)
    pieces = iter(image)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert image.fp is None


# -- locations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("filesystem:///a/b", "/a/b"),
        ("file:////a/b", "//a/b"),
        ("file://rel/b", "rel/b"),
        ("file:///a%20b?c#d", "/a%20b?c#d"),
    ],
)
def test_location(uri: str, path: str) -> None:
    location = driver.StoreLocation({}, None)  # type: ignore[call-arg]
    location.parse_uri(uri)
    assert location.path == path
    assert location.get_uri() == f"file://{path}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("uri", ["file://", "file:// ", "FILE:///a", "http://a/b", "/a/b", "file:/a"])
def test_bad_location(uri: str) -> None:
    with pytest.raises(exceptions.BadStoreUri):
        driver.StoreLocation({}, None).parse_uri(uri)  # type: ignore[call-arg]


# -- where builtins.open is replaced ----------------------------------------------------------------------------------


@pytest.fixture
def _replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As eventlet does it when it is told to: the replacement gives real files."""

    def opened(*arguments: Any, **more: Any) -> Any:
        return io.open(*arguments, **more)  # noqa: UP020

    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.usefixtures("_replaced")
@pytest.mark.parametrize("thin", ["true", "false"])
def test_open_that_is_replaced(make: Any, thin: str) -> None:
    data = DATA[:300_000] + bytes(300_000) + DATA[:7] + bytes(100_000)
    store = make(thin=thin, file_perm=640)
    told = store.add("a", Reader(data), len(data), "sha256")
    assert told[1:4] == (len(data), hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())
    assert (make.images / "a").read_bytes() == data
    assert stat.S_IMODE((make.images / "a").stat().st_mode) == 0o640
    with pytest.raises(exceptions.Duplicate):
        store.add("a", Reader(data), len(data), "sha256")
    assert store.add("b", iter([data, b"", data]), 0, "sha256")[1] == 2 * len(data)
    for source, size, error in (
        (Reader(data), 5, exceptions.Invalid),
        (Reader(data), len(data) + 1, exceptions.Invalid),
        (Reader(data), -1, exceptions.Invalid),
        (failing(KeyboardInterrupt()), 0, KeyboardInterrupt),
        (iter(["text"]), 0, TypeError),
    ):
        with pytest.raises(error):
            store.add("c", source, size, "sha256")
    assert names(make.images) == ["a", "b"]


# -- other processes --------------------------------------------------------------------------------------------------

GREEN = """
import eventlet
eventlet.monkey_patch(builtins=sys.argv[2] == "builtins") if (sys := __import__("sys")) else None
import hashlib, os
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from fastfs.glance import install
install()
from conftest import Maker
from support import Reader, names
from glance_store.location import Location
make = Maker(Path(sys.argv[1]))
for timeout in (0, 5):
    store = make("fast", datadirs=[f"{sys.argv[1]}/a:1", f"{sys.argv[1]}/b:1"], timeout=timeout, thread_pool_size=2)
    def where(url):
        return Location("file", store.get_store_location_class(), store.conf, uri=url, backend="fast")
    ended = []
    def work(number):
        data = os.urandom(3_000_000)
        url, size, _, digest, _ = store.add(f"i{number}", Reader(data, lambda at: eventlet.sleep(0)), 0, "sha256")
        assert digest == hashlib.sha256(data).hexdigest()
        got = b""
        for piece in store.get(where(url))[0]:
            got += piece
            eventlet.sleep(0)
        assert got == data and store.get_size(where(url)) == size
        store.delete(where(url))
        ended.append(number)
    pool = eventlet.GreenPool(16)
    with eventlet.Timeout(60):
        list(pool.imap(work, range(16)))
    assert sorted(ended) == list(range(16))
    # One that is killed in mid-upload leaves nothing.
    def forever(at):
        eventlet.sleep(0.01)
    killed = eventlet.spawn(store.add, "k", Reader(bytes(1 << 28), forever), 0, "sha256")
    eventlet.sleep(0.2)
    killed.kill()
    assert names(Path(sys.argv[1], "a")) == names(Path(sys.argv[1], "b")) == []
print("done")
"""


@pytest.mark.parametrize("patched", ["most", "builtins"])
def test_process_patched_by_eventlet(tmp_path: Path, patched: str) -> None:
    pytest.importorskip("eventlet", reason="eventlet is not installed")
    code = "import sys\n" + GREEN.replace(' if (sys := __import__("sys")) else None', "")
    arguments = [str(tmp_path), patched, str(Path(__file__).parent)]
    environment = {**os.environ, "FASTFS_DURABILITY": "none"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr
