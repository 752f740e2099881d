# SPDX-License-Identifier: Apache-2.0
"""The items of `Store.add_many`: what they are and hold, how their sources are opened, what became of them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from fastfs.checksum import is_path, size_of_path
from fastfs.config import StoreConfig
from fastfs.conveyor import Piece
from fastfs.datadirs import DataDirs
from fastfs.exceptions import BadSource, Invalid, StorageError
from fastfs.reader import ChunkedFile
from fastfs.sources import SMALL
from fastfs.upload import AddResult


class Item(NamedTuple):
    """An image to be stored.

    :param source: as for `Store.add`; or a function without arguments that opens one when its turn comes, and what it
        opens is closed afterwards.
    :param size: bytes to come, enforced; None or 0: unknown (of a regular file: its length when its turn comes).
    :param algorithm: the second digest beside MD5.
    """

    image_id: object
    source: Any
    size: int | None = None
    algorithm: str = "sha512"


Entry: TypeAlias = (
    "Item | tuple[object, Any] | tuple[object, Any, int | None] | tuple[object, Any, int | None, str]"  # as Item
)


class Outcome(NamedTuple):
    """What became of one item: there is a `result` or an `error`."""

    #: As it was given.
    image_id: object
    result: AddResult | None
    error: BaseException | None
    #: It was stored already, and holds the same bytes.
    skipped: bool
    #: Which item it was, from 0.
    position: int


#: Is told an image id and how many of its bytes are taken.
Progress: TypeAlias = Callable[[Any, int], object]


class Storing(Protocol):
    """What is needed of a `Store`."""

    @property
    def config(self) -> StoreConfig: ...
    @property
    def datadirs(self) -> DataDirs: ...
    @property
    def read_only(self) -> bool: ...
    def add(
        self,
        image_id: object,
        image_file: Any,
        image_size: int | None = None,
        hashing_algo: str = "sha512",
        *,
        progress: Callable[[int], object] | None = None,
    ) -> AddResult: ...
    def find(self, image_id: object) -> str: ...
    def get(self, location: object) -> tuple[ChunkedFile, int]: ...
    def result_of(self, path: str, size: int, checksum: str, multihash: str) -> AddResult: ...


@dataclass
class Numbered:
    """An item on its way."""

    position: int
    item: Item
    #: What is known without trying.
    outcome: Outcome | None = None

    def failed(self, error: BaseException) -> Outcome:
        return Outcome(self.item.image_id, None, error, False, self.position)

    def done(self, result: AddResult, skipped: bool = False) -> Outcome:
        return Outcome(self.item.image_id, result, None, skipped, self.position)


Part: TypeAlias = Piece[Numbered]


def numbered(items: Iterable[Entry]) -> Iterator[Numbered]:
    for index, entry in enumerate(items):
        if not isinstance(entry, tuple) or not 2 <= len(entry) <= 4:
            raise Invalid(
                f"item {index} is {type(entry).__name__}; give a tuple (image_id, source[, size[, algorithm]])"
            )
        yield Numbered(index, entry if isinstance(entry, Item) else Item(*entry))


def weighed(entry: Numbered) -> Part:
    """How long it is and what it holds."""
    source, declared = entry.item.source, entry.item.size
    size = declared if isinstance(declared, int) and declared > 0 else None
    kind = type(source)
    if is_path(source):
        if size is None or size <= SMALL:
            known = size_of_path(source)
            return Piece(entry, known if size is None else size, small=known is not None and known <= SMALL)
        return Piece(entry, size)
    if isinstance(source, (bytes, bytearray, memoryview)):
        length = memoryview(source).nbytes
        return Piece(entry, length, small=kind is bytes and length <= SMALL, memory=length)
    if kind is io.BytesIO:
        with source.getbuffer() as view:
            length = view.nbytes
        return Piece(entry, length, small=length <= SMALL, memory=length)
    if kind is io.BufferedReader:
        with contextlib.suppress(OSError, ValueError):
            info = os.fstat(source.fileno())
            if stat.S_ISREG(info.st_mode):
                return Piece(entry, info.st_size, small=0 < info.st_size <= SMALL, handles=1)
    return Piece(entry, size, handles=0 if is_opener(source) else 1)


def is_opener(source: Any) -> bool:
    return callable(source) and not hasattr(source, "read") and not hasattr(source, "__iter__")


@contextlib.contextmanager
def opened(item: Item) -> Iterator[tuple[Any, int | None]]:
    """The source, and the size to be enforced.  What was opened here is closed; an error of that is none of the image,
    which may be there."""
    source = item.source
    if is_path(source):
        file = io.FileIO(source, "rb", opener=_open)
        try:
            info = os.fstat(file.fileno())
            # A file that somebody is writing to must not be stored as if it were whole.
            yield file, item.size or (info.st_size if stat.S_ISREG(info.st_mode) else None)
        finally:
            with contextlib.suppress(OSError):
                file.close()
    elif is_opener(source):
        made = source()
        try:
            yield made, item.size
        finally:
            if hasattr(made, "close"):
                with contextlib.suppress(OSError):
                    made.close()
    else:
        yield source, item.size


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOCTTY)


def portable_source(source: Any) -> Any:
    """A source that means the same in another process.

    :raises BadSource: there is none.
    """
    if is_path(source):
        return os.path.abspath(source)
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if is_opener(source):
        try:
            pickle.dumps(source)
            return source
        except Exception as error:
            raise BadSource(f"the source {source!r} cannot be sent to another process: {error}") from error
    raise BadSource(
        f"a source of type {type(source).__name__} cannot be sent to another process; give a path, bytes, or a "
        "function that can be pickled and opens it"
    )


def portable_error(error: BaseException) -> BaseException:
    """As it is, if it survives the way to another process."""
    error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return StorageError(f"{type(error).__name__}: {error}")
