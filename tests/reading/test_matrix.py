"""Every consumer of an image in every situation: the right bytes or a clear error, and no descriptor left."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from consumers import CONSUMERS, GONE, QUIET, Consumer, Stopped

import fastfs
from fastfs import Store

MIB = 1 << 20
SIZE = 12 * MIB + 4321
CONTENT = random.Random(5).randbytes(SIZE)

READERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zero-copy": {"zero_copy": True},
    "timeout": {"timeout": 60},
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Image:
    """One image of a store, opened as many times as one likes."""

    def __init__(self, directory: Path, kind: str) -> None:
        options = dict(READERS[kind])
        self.zero_copy = options.pop("zero_copy", False)
        self.path = directory / "image"
        self.store = Store(datadir=str(directory), durability="none", **options)
        self.path.write_bytes(CONTENT)
        self.url = f"file://{self.path}"

    def open(self, offset: Any = 0, length: Any = None) -> fastfs.ChunkedFile:
        return self.store.get(self.url, offset, length, zero_copy=self.zero_copy)[0]


# On one version of Python everything, on the others the plain reader.
KINDS = [pytest.param(name, marks=() if name == "plain" else pytest.mark.slow) for name in READERS]


@pytest.fixture(scope="module", params=KINDS)
def kept(request: Any, tmp_path_factory: Any) -> Iterator[Image]:
    """One for all that leave it as it is."""
    image = Image(tmp_path_factory.mktemp("kept"), request.param)
    with image.store:
        image.open().read(1)  # a thread of the time limit: what stays from the first time on
        yield image


@pytest.fixture
def image(kept: Image) -> Iterator[Image]:
    """One to be changed: a copy in the same store."""
    image = copy.copy(kept)
    image.path = kept.path.with_name("changing")
    image.url = f"file://{image.path}"
    image.path.write_bytes(CONTENT)
    yield image
    image.path.unlink(missing_ok=True)


@pytest.fixture(params=CONSUMERS)
def name(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def consume(name: str) -> Iterator[Consumer]:
    before = descriptors()
    yield CONSUMERS[name]
    assert descriptors() == before, "a descriptor is left"


def nothing() -> None:
    """Happens meanwhile."""


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, SIZE + 1), (MIB - 1, 3 * MIB + 2), (SIZE - 1, None), (7, 1)],
    ids=["whole", "more than there is", "range", "the last byte", "one byte"],
)
def test_bytes(offset: int, length: int | None, kept: Image, consume: Consumer) -> None:
    wanted = CONTENT[offset:] if length is None else CONTENT[offset : offset + length]
    assert consume(kept.open(offset, length), nothing, False) == wanted


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, None), (SIZE + 1, 10), (2**63 - 1, None), (2**70, 1), (0, 0), (MIB, 0)],
    ids=["at the end", "past the end", "far past", "past what a file can be", "zero length", "zero length within"],
)
def test_no_bytes(offset: int, length: int | None, kept: Image, consume: Consumer) -> None:
    assert consume(kept.open(offset, length), nothing, False) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (-1, -1), (-(2**70), 5), (1.5, None)])
def test_negative(offset: Any, length: Any, kept: Image, consume: Consumer) -> None:
    with pytest.raises(fastfs.Invalid, match="no number of bytes"):
        consume(kept.open(offset, length), nothing, False)


@pytest.mark.parametrize("end", [SIZE - MIB, SIZE - 1, SIZE - 4322 - 4096], ids=["1 MiB", "1 byte", "pages"])
def test_shrinks(end: int, image: Image, consume: Consumer) -> None:
    reader = image.open(0, None)
    with pytest.raises((fastfs.StorageError, EOFError)):
        consume(reader, lambda: os.truncate(image.path, end), False)
    assert reader.closed


def test_is_shorter_before(image: Image, consume: Consumer) -> None:
    """By a part of the last page, which a mapping shows as zeroes."""
    reader = image.open(SIZE - 1000)
    os.truncate(image.path, SIZE - 10)
    with pytest.raises((fastfs.StorageError, EOFError)):
        consume(reader, nothing, False)


@pytest.mark.parametrize(("offset", "length"), [(0, None), (5, 9 * MIB)], ids=["whole", "range"])
def test_grows(offset: int, length: int | None, image: Image, consume: Consumer) -> None:
    def grow() -> None:
        with image.path.open("ab") as file:
            file.write(b"more" * MIB)

    wanted = CONTENT[offset:] if length is None else CONTENT[offset : offset + length]
    assert consume(image.open(offset, length), grow, False) == wanted


def test_deleted(image: Image, consume: Consumer) -> None:
    assert consume(image.open(), lambda: image.store.delete(image.url), False) == CONTENT
    with pytest.raises(fastfs.NotFound):
        image.open()


def test_stops_half_way(kept: Image, name: str, consume: Consumer) -> None:
    reader = kept.open()
    if name in QUIET:
        got = consume(reader, nothing, True)
        assert CONTENT.startswith(got)
        assert len(got) < SIZE
    else:
        with pytest.raises((Stopped, *GONE)):
            consume(reader, nothing, True)
    del reader


@pytest.mark.parametrize("case", ["whole", "shrinks", "grows", "deleted", "stops"])
@pytest.mark.parametrize("kind", ["plain", "timeout"])
def test_copy_to(case: str, kind: str, tmp_path: Path) -> None:
    image, target = Image(tmp_path / "images", kind), tmp_path / "copy"
    meanwhile: dict[str, Callable[[], object]] = {
        "whole": nothing,
        "shrinks": lambda: os.truncate(image.path, SIZE - 1),
        "grows": lambda: os.truncate(image.path, SIZE + 1),
        "deleted": lambda: image.store.delete(image.url),
        "stops": lambda: (_ for _ in ()).throw(Stopped),
    }

    def progress(done: int) -> None:
        if not done:
            meanwhile[case]()

    with image.store:
        image.open().read(1)
        before = descriptors()
        if case in ("shrinks", "stops"):
            with pytest.raises((fastfs.StorageError, Stopped)):
                image.store.copy_to(image.url, target, progress=progress)
            assert not target.exists()
            assert os.listdir(tmp_path) == ["images"]
        else:
            assert image.store.copy_to(image.url, target, progress=progress) == SIZE
            assert target.read_bytes() == CONTENT
        assert descriptors() == before


def test_every_error_of_a_shrunk_file_says_what_happened(tmp_path: Path) -> None:
    image = Image(tmp_path / "images", "plain")
    reader = image.open()
    os.truncate(image.path, 10)
    with pytest.raises(fastfs.StorageError, match=r"ends before byte \d+.*truncated") as caught:
        reader.read()
    assert caught.value.path == str(image.path)
