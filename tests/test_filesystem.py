"""``fastfs://`` of fsspec: its own test suite, whole, and what is ours."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pytest
from fsspec.tests import abstract

import fastfs
from fastfs import Store
from fastfs.filesystem import FastfsFileSystem

CONTENT = random.Random(2).randbytes(3 * (1 << 20) + 1)


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, tmp_path: Path) -> Any:
        return FastfsFileSystem(datadir=str(tmp_path / "images"), durability="none", replace=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return "there"

    @pytest.fixture
    def fs_join(self) -> Any:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures): ...  # type: ignore[misc]


class TestGet(abstract.AbstractGetTests, Fixtures): ...  # type: ignore[misc]


class TestPut(abstract.AbstractPutTests, Fixtures): ...  # type: ignore[misc]


class TestOpen(abstract.AbstractOpenTests, Fixtures): ...  # type: ignore[misc]


class TestPipe(abstract.AbstractPipeTests, Fixtures): ...  # type: ignore[misc]


# -- what is ours -------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"datadir": str(tmp_path / "images"), "durability": "none"}


@pytest.fixture
def fs(options: dict[str, Any]) -> Iterator[Any]:
    fs = fsspec.filesystem("fastfs", **options)  # known by its entry point
    assert isinstance(fs, FastfsFileSystem)
    before = len(os.listdir("/proc/self/fd"))
    yield fs
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left"


def test_ranges(fs: Any) -> None:
    fs.pipe("image", CONTENT)
    assert fs.cat_file("image", 5, 70_000) == CONTENT[5:70_000]
    assert fs.cat_file("image", -10) == CONTENT[-10:]
    assert fs.cat_file("image", 10, 5) == fs.cat_file("image", len(CONTENT) + 5) == b""
    assert fs.cat_ranges(["image"] * 3, [0, 1 << 20, 7], [10, (1 << 20) + 1, 7]) == [
        CONTENT[:10],
        CONTENT[1 << 20 :][:1],
        b"",
    ]
    assert fs.head("image", 7) == CONTENT[:7]
    assert fs.tail("image", 7) == CONTENT[-7:]


def test_file(fs: Any) -> None:
    fs.pipe("image", CONTENT)
    with fs.open("image") as file:
        assert (file.size, file.read(3), file.seek(-5, os.SEEK_END)) == (len(CONTENT), CONTENT[:3], len(CONTENT) - 5)
        assert (file.read(), file.read(), file.seek(len(CONTENT) + 9), file.read(1)) == (
            *(CONTENT[-5:], b"", len(CONTENT), b""),
        )
        again = pickle.loads(pickle.dumps(file))
        file.seek(1)
        assert again.tell() == len(CONTENT)
        again.close()
        with pytest.raises(ValueError, match="seek"):
            file.seek(-1)
    with fs.open("image", "rb") as file:
        os.truncate(Path(fs.info("image")["url"].removeprefix("file://")), 1 << 20)
        with pytest.raises(fastfs.StorageError):
            file.read()
    with pytest.raises(FileNotFoundError):
        fs.open("other")


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_images_are_written_as_a_whole(mode: str, fs: Any) -> None:
    with pytest.raises(fastfs.Invalid, match="as a whole"):
        fs.open("image", mode)


def test_writing_that_fails_leaves_nothing(fs: Any) -> None:
    with pytest.raises(ZeroDivisionError), fs.open("image", "wb") as file:  # noqa: PT012
        file.write(CONTENT)
        raise ZeroDivisionError
    assert fs.ls("") == []
    fs.pipe("image", b"first")
    with pytest.raises(FileExistsError):
        fs.open("image", "wb")
    assert fs.cat("image") == b"first"


def test_transaction(fs: Any) -> None:
    with fs.transaction:
        with fs.open("image", "wb") as file:
            file.write(CONTENT)
        assert not fs.exists("image")
    assert fs.cat("image") == CONTENT
    with pytest.raises(ZeroDivisionError), fs.transaction:  # noqa: PT012
        with fs.open("other", "wb") as file:
            file.write(CONTENT)
        raise ZeroDivisionError
    assert fs.ls("", detail=False) == ["image"]


def test_pickled(fs: Any) -> None:
    fs.pipe("image", CONTENT)
    assert pickle.loads(pickle.dumps(fs)).cat("image") == CONTENT


def test_pandas(options: dict[str, Any]) -> None:
    frame = pandas.DataFrame({"number": range(1000), "text": [str(n) * 3 for n in range(1000)]})
    frame.to_csv("fastfs://table.csv", storage_options=options, index=False)
    frame.to_pickle("fastfs://table.pickle", storage_options=options)
    found = pandas.read_csv("fastfs://table.csv", storage_options=options, dtype={"text": str})
    pandas.testing.assert_frame_equal(found, frame)
    pandas.testing.assert_frame_equal(pandas.read_pickle("fastfs://table.pickle", storage_options=options), frame)


def test_dask(fs: Any, options: dict[str, Any]) -> None:
    """In blocks of 64 KiB, each read by itself."""
    bytes_of = pytest.importorskip("dask.bytes").read_bytes
    fs.pipe({"a": CONTENT, "b": CONTENT[::-1]})
    _, blocks = bytes_of("fastfs://*", blocksize=1 << 16, **options)
    assert len(blocks[0]) > 40
    found = [b"".join(block.compute(scheduler="threads") for block in of_one) for of_one in blocks]
    assert found == [CONTENT, CONTENT[::-1]]


@pytest.mark.parametrize("kind", ["memory", "file", "zip"])
def test_added_from_anywhere(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """`Store.add` of what ``fsspec.open`` gives, which opens it itself and closes it."""
    (tmp_path / "source").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "source.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", CONTENT)
    with fsspec.open("memory://source", "wb") as file:
        file.write(CONTENT)
    address = {
        "memory": "memory://source",
        "file": f"file://{tmp_path}/source",
        "zip": f"zip://inner::file://{tmp_path}/source.zip",
    }
    with Store(**options) as store:
        added = store.add("image", fsspec.open(address[kind]))
        assert (added.size, added.multihash) == (len(CONTENT), hashlib.sha512(CONTENT).hexdigest())
        assert store.get(added.url)[0].read() == CONTENT


def test_paths_with_slashes(fs: Any) -> None:
    fs.pipe({"a/b/c": b"1", "a%2Fb": b"2", "a/d": b"3"})
    assert fs.find("") == ["a%2Fb", "a/b/c", "a/d"]
    assert fs.ls("a", detail=False) == ["a/b", "a/d"]
    assert [fs.cat(path) for path in fs.find("")] == [b"2", b"1", b"3"]
    with pytest.raises(FileNotFoundError):
        fs.cat("a/../a/d")
