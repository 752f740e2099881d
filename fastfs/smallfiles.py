# SPDX-License-Identifier: Apache-2.0
"""Many small files read at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from fastfs import _native
from fastfs.conveyor import PACK_BYTES
from fastfs.sources import SMALL

if TYPE_CHECKING:
    from typing_extensions import Self

# Fresh memory costs 2 GB/s at its first touch, so a few buffers are kept (as much as a pack, 4 MiB, each).
_spare: list[bytearray] = []
_SPARE_MAX = 8


class SmallFiles:
    """A context in which what `read` gives is valid."""

    def __enter__(self) -> Self:
        try:
            self._buffer = _spare.pop()
        except IndexError:
            self._buffer = bytearray(PACK_BYTES)
        self._views: list[memoryview] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for view in self._views:
                view.release()
        except BufferError:
            return  # somebody still looks at it, such as the traceback of an error: then it is not used again
        if len(_spare) < _SPARE_MAX:
            _spare.append(self._buffer)

    def read(self, paths: Sequence[str | os.PathLike[str]]) -> list[memoryview | OSError | None]:
        """The contents of each file, or why it cannot be read; None: it is no small regular file, or the buffer
        is full.  To be called once."""
        names = [os.fsencode(path) for path in paths]
        plain = [name for name in names if b"\0" not in name]
        lengths = iter(_native.read_files(plain, self._buffer, SMALL))
        view = memoryview(self._buffer)
        self._views.append(view)
        found: list[memoryview | OSError | None] = []
        start = 0
        for path, name in zip(paths, names, strict=True):
            length = -errno.EFBIG if b"\0" in name else next(lengths)
            if length >= 0:
                piece = view[start : start + length]
                found.append(piece)
                self._views.append(piece)
                start += length
            else:
                found.append(
                    None if length == -errno.EFBIG else OSError(-length, os.strerror(-length), os.fspath(path))
                )
        return found
