"""Iterating: pieces of exactly the asked size, one allocation a piece and no more, views that stay what they were."""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastfs
from fastfs import Store

SIZE = 5 * (1 << 20) + 3
CONTENT = random.Random(8).randbytes(SIZE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(datadir=str(tmp_path), durability="none") as store:
        store.add("image", CONTENT)
        yield store


@pytest.mark.parametrize("zero_copy", [False, True], ids=["bytes", "views"])
@pytest.mark.parametrize("size", [1000, 4096, 65536, 65537, 262144, 3 << 20, 8 << 20])
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (4095, 3 * (1 << 20)), (1, 65536)])
def test_sizes(size: int, offset: int, length: int, zero_copy: bool, store: Store) -> None:
    reader = store.get(store.find("image"), offset, length, zero_copy=zero_copy)[0]
    reader.chunk_size = size
    pieces = [bytes(piece) for piece in reader]
    assert {len(piece) for piece in pieces[:-1]} <= {size}
    assert 0 < len(pieces[-1]) <= size
    assert b"".join(pieces) == CONTENT[offset : offset + length][: SIZE - offset]


def test_one_allocation_a_piece(store: Store) -> None:
    """None where nobody keeps a piece: its memory is used again."""
    url = store.find("image")
    counts = {}
    for keep in (False, True):
        kept: list[bytes | None] = [None] * 81
        reader = store.get(url)[0]
        before = sys.getallocatedblocks()
        for n, piece in enumerate(reader):
            kept[n] = piece if keep else None
        counts[keep] = sys.getallocatedblocks() - before
    assert counts[True] - counts[False] <= 81 + 20


def test_kept_pieces_stay(store: Store) -> None:
    pieces = []
    hashes = []
    for piece in store.get(store.find("image"))[0]:
        pieces.append(piece)
        hashes.append(hash(piece))
    assert b"".join(pieces) == CONTENT
    assert hashes == [hash(bytes(bytearray(piece))) for piece in pieces]


def test_views_of_memory_that_is_used_again(store: Store) -> None:
    places = set()
    views: Iterable[Any] = store.get(store.find("image"), zero_copy=True)[0]
    for view in views:
        assert view.readonly
        address = _address(view)
        places.add(address - address % mmap.PAGESIZE)
    assert len(places) * 65536 <= 3 << 20, "every piece has memory of its own"


def _address(view: Any) -> int:
    class Buffer(ctypes.Structure):
        _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_char * 256)]

    buffer = Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def test_views_that_are_kept_stay(store: Store) -> None:
    reader = store.get(store.find("image"), zero_copy=True)[0]
    views = list(reader)
    assert reader.closed
    assert b"".join(views) == CONTENT


def test_first_view_is_aligned(store: Store) -> None:
    view = next(store.get(store.find("image"), 5, zero_copy=True)[0])
    assert _address(view) % mmap.PAGESIZE == 0


def test_second_iteration(store: Store) -> None:
    reader = store.get(store.find("image"))[0]
    assert b"".join(reader) == CONTENT
    with pytest.raises(ValueError, match="get\\(\\) it again"):
        iter(reader)


def test_seek(store: Store) -> None:
    with store.get(store.find("image"), 100, 1000)[0] as reader:
        next(reader)
        assert (reader.seek(150), reader.read(5)) == (150, CONTENT[150:155])
        assert (reader.seek(-5, 2), reader.read()) == (1095, CONTENT[1095:1100])
        for outside in (99, 1101, -1):
            with pytest.raises(fastfs.Invalid, match="leaves the range"):
                reader.seek(outside)


def test_two_threads_at_one_position(store: Store) -> None:
    """One of them is told; no byte is given twice or lost."""
    reader = store.get(store.find("image"))[0]
    reader.chunk_size = 1000
    pieces: list[bytes] = []

    def take() -> None:
        while True:
            try:
                pieces.append(next(reader))
            except ValueError:
                if reader.closed:
                    return
            except StopIteration:
                return

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, pieces)) == SIZE
    assert sorted(pieces) == sorted(CONTENT[at : at + 1000] for at in range(0, SIZE, 1000))
