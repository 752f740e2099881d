# SPDX-License-Identifier: Apache-2.0
"""`ChunkedFile`: what `get` gives to Glance, which iterates over it and never closes it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fastfs import reader
from fastfs.exceptions import FastfsError, Invalid
from fastfs.glance.errors import translated, translating


class ChunkedFile:
    """An image, or a range of it, in pieces of `chunk_size` bytes.

    The file is closed at the end, on an error, by `close`, when an iteration is given up, and when nothing refers
    to this object any more.

    :param filepath: the file; opened at once.
    :param offset: where the range begins.
    :param chunk_size: bytes in a piece.
    :param partial_length: bytes in the range; None: to the end.
    """

    #: Only there because others set it; the size of a piece is the instance's `chunk_size`.
    CHUNKSIZE = 65536

    def __init__(
        self, filepath: str, offset: int = 0, chunk_size: int = 4096, partial_length: int | None = None
    ) -> None:
        with translating():
            if offset < 0 or (partial_length or 0) < 0:
                raise Invalid(f"offset={offset}, partial_length={partial_length}: no range of a file", path=filepath)
        fd = os.open(filepath, os.O_RDONLY | os.O_CLOEXEC)
        left = max(0, os.fstat(fd).st_size - offset)
        length = left if partial_length is None else min(left, partial_length)
        self._take(reader.ChunkedFile(fd, filepath, offset, length, chunk_size), partial_length is not None)

    @classmethod
    def of(cls, source: reader.ChunkedFile, partial: bool, timeout: float = 0) -> ChunkedFile:
        """Adopt a reader of the core."""
        new = cls.__new__(cls)
        new._take(source, partial, timeout)
        return new

    def _take(self, source: reader.ChunkedFile, partial: bool, timeout: float = 0) -> None:
        self.source = source
        self.filepath = source.path
        self.partial = partial
        self._timeout = timeout
        self._finished = False
        self._end = source.offset + source.length
        self._position = source.offset

    def __repr__(self) -> str:
        return repr(self.source)

    @property
    def chunk_size(self) -> int:
        """Bytes in a piece."""
        return self.source.chunk_size

    @property
    def fp(self) -> reader.ChunkedFile | None:
        """What is read from; None when it is closed."""
        return None if self.source.closed else self.source

    @property
    def partial_length(self) -> int | None:
        """Bytes of the range that are still to come; None if no range was asked for."""
        return self._end - self._position if self.partial else None

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of `bytes`; nothing after `close`.

        :raises ValueError: everything was read already: silence would look like an empty image.
        :raises OSError: the file cannot be read, or has become shorter.
        """
        if self._finished:
            raise ValueError(f"{self.filepath} was read to its end already; get it again")
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        source = self.source
        try:
            while not source.closed:
                piece = next(source, b"")
                if not piece:
                    self._finished = True
                    break
                self._position += len(piece)
                yield piece
        except FastfsError as error:
            other = translated(error, self._timeout)
            if other is error:
                raise
            raise other from error
        finally:
            self.close()

    def close(self) -> None:
        """May be repeated."""
        self.source.close()
