"""The bytes that go in, the same for both sides, and the kinds of source that they come from."""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
PIECE = 64 * 1024  # what the iterator source yields; glance_store's own chunk size

FILLS = ("random", "zeroes", "half")  # half: one MiB of data, one MiB of zeroes, and so on
SOURCES = ("file", "bytesio", "reader", "iterator")


class ReadOnly:
    """Nothing but read(n), as an upload arrives in Glance: no descriptor, no readinto, no seek."""

    __slots__ = ("_at", "_view")

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self._at = 0

    def read(self, n: int) -> bytes:
        piece = bytes(self._view[self._at : self._at + n])
        self._at += len(piece)
        return piece


def pieces(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(data), PIECE):
        yield bytes(view[at : at + PIECE])


@dataclass(frozen=True)
class Material:
    """One image's content: in memory, and as a file when sources are files. Digests by hashlib, made once."""

    size: int
    data: bytes
    path: Path | None
    md5: str
    multihash: str

    def open(self, kind: str) -> Any:
        if kind == "file":
            if self.path is None:
                raise ValueError("this material has no file")
            return open(self.path, "rb")  # closed by the round, after its timed part
        if kind == "bytesio":
            return io.BytesIO(self.data)
        return ReadOnly(self.data) if kind == "reader" else pieces(self.data)


def fill_blocks(size: int, fill: str, seed: int) -> Iterator[bytes]:
    """Seeded, so every run and both sides see the same bytes."""
    rng = random.Random(seed)
    for at in range(0, size, MIB):
        n = min(MIB, size - at)
        zero = fill == "zeroes" or (fill == "half" and at // MIB % 2)
        yield bytes(n) if zero else rng.randbytes(n)


def make_material(size: int, algo: str, *, fill: str = "random", seed: int = 0, path: Path | None = None) -> Material:
    """With a path the bytes are written there (zeroes too: a dense file) and not kept in memory."""
    md5, other = hashlib.md5(), hashlib.new(algo)
    kept: list[bytes] = []
    file = path.open("wb") if path else None
    try:
        for block in fill_blocks(size, fill, seed):
            md5.update(block)
            other.update(block)
            if file:
                file.write(block)
            else:
                kept.append(block)
        if file:
            file.flush()
            os.fsync(file.fileno())  # or the kernel writes it out in the middle of a measurement
    finally:
        if file:
            file.close()
    return Material(size, b"".join(kept), path, md5.hexdigest(), other.hexdigest())
