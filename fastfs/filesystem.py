# SPDX-License-Identifier: Apache-2.0
"""``fastfs://``: a store as a file system of fsspec, so that whatever knows fsspec reads and stores images.

::

    with fsspec.open("fastfs://8f3c", datadir="/srv/images") as file: ...
    pandas.read_parquet("fastfs://table.parquet", storage_options={"datadir": "/srv/images"})

A path is the id of an image.  Ids have no slashes, but paths may: a slash is kept as ``%2F``, and directories are there
as long as something is in them, as in other object stores.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import re
import sys
import threading
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, SupportsIndex

import fsspec

from fastfs.config import StoreConfig
from fastfs.exceptions import Duplicate, Invalid, InvalidImageId, NotFound
from fastfs.store import ImageInfo, Store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from fastfs.reader import ChunkedFile

    class AbstractFileSystem:
        """What is used of fsspec's class, which has no types."""

        _intrans: bool

        def __init__(self, *args: Any, **options: Any) -> None: ...
        def exists(self, path: str, **options: Any) -> bool: ...
        def expand_path(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> list[str]: ...

else:
    from fsspec.spec import AbstractFileSystem

# Written in steps of this size; what is smaller is stored at one go when it is closed.
BLOCK = 1024 * 1024

# How many blocks may wait for being stored.
AHEAD = 4

_SLASH = re.compile("%((?:25)*)2F")


def image_id_of(path: str) -> str:
    """The id of the image that a path stands for: ``a/b`` is ``a%2Fb``; what looks like that is quoted once more."""
    return _SLASH.sub(r"%25\g<1>2F", path).replace("/", "%2F")


def path_of(image_id: str) -> str:
    """The path that stands for an image."""
    return _SLASH.sub(lambda found: f"%{found[1][2:]}2F" if found[1] else "/", image_id)


class FastfsFileSystem(AbstractFileSystem):
    """The images of a store.

    :param replace: may what is written take the place of an image that is there?  That one is removed first, as a file
        that is opened for writing is; otherwise it is a `Duplicate`, as everywhere else in fastfs.
    :param read_only: as for `Store`.
    :param skip_instance_cache: and others of fsspec's own.
    :param options: those of the store; what is not given comes from ``FASTFS_...`` in the environment.
    """

    protocol = "fastfs"
    root_marker = ""

    def __init__(self, *, replace: bool = False, read_only: bool = False, **options: Any) -> None:
        known = {name: options.pop(name) for name in StoreConfig.__dataclass_fields__ if name in options}
        super().__init__(replace=replace, read_only=read_only, **known, **options)
        self.replace = replace
        self.store = Store(StoreConfig.load(**known), read_only=read_only)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = fsspec.utils.stringify_path(path)
        return re.sub("/+", "/", text.removeprefix("fastfs://").removeprefix("fastfs::")).strip("/")

    # -- looking --------------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path:
            try:
                return _entry(self.store.info(self._url(path)))
            except (NotFound, InvalidImageId):
                if not any(entry["name"].startswith(path + "/") for entry in self._files()):
                    raise NotFound(f"no image and no directory {path!r}", image_id=path) from None
        return {"name": path, "size": 0, "type": "directory"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        prefix = path + "/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        for entry in self._files():
            if entry["name"].startswith(prefix):
                name, below, _rest = entry["name"][len(prefix) :].partition("/")
                name = prefix + name
                if not below:
                    found[name] = entry
                else:
                    found.setdefault(name, {"name": name, "size": 0, "type": "directory"})
        if not found and path:
            entry = self.info(path)
            found = {path: entry} if entry["type"] == "file" else {}
        return [found[name] if detail else name for name in sorted(found)]

    def created(self, path: str) -> datetime:
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._image(path).mtime, tz=timezone.utc)

    def _files(self) -> Iterable[dict[str, Any]]:
        return (_entry(image) for image in self.store.images())

    def _image(self, path: str) -> ImageInfo:
        return self.store.info(self._url(path))

    def _url(self, path: str) -> str:
        return self.store.find(image_id_of(self._strip_protocol(path)))

    # -- reading --------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **_: Any) -> ImageFile | Writer:
        if mode == "rb":
            return ImageFile(self, path)
        if mode not in ("wb", "xb"):
            raise Invalid(f"mode {mode!r}: an image is read ('rb') or written as a whole ('wb', 'xb')", image_id=path)
        return Writer(self, path, replace=self.replace and mode == "wb", autocommit=autocommit)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        url = self._url(path)
        if (start or 0) < 0 or (end is not None and end < 0):
            start, end, _step = slice(start, end).indices(self.store.get_size(url))
        start = start or 0
        with self.store.get(url, start, None if end is None else max(0, end - start))[0] as reader:
            return reader.read()

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **_: Any) -> None:
        callback = callback or fsspec.callbacks.NoOpCallback()
        target = lpath if outfile is None else outfile
        if not hasattr(target, "write") and self.info(rpath)["type"] == "directory":
            os.makedirs(target, exist_ok=True)
            return
        image = self._image(rpath)
        callback.set_size(image.size)
        if hasattr(target, "write"):
            with self.store.get(image.url)[0] as reader:
                callback.relative_update(reader.sendfile(target))
            return
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        self.store.copy_to(image.url, target, replace=True, progress=callback.absolute_update)

    # -- writing --------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: ReadableBuffer, mode: str = "overwrite", **_: Any) -> None:
        self._add(path, value, self.replace and mode != "create")

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **_: Any) -> None:
        if os.path.isdir(lpath):
            return
        callback = callback or fsspec.callbacks.NoOpCallback()
        callback.set_size(os.path.getsize(lpath))
        self._add(rpath, lpath, self.replace and mode != "create", callback.absolute_update)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        if self.info(path1)["type"] == "file":
            with self.store.get(self._url(path1))[0] as reader:
                self._add(path2, reader, self.replace)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing: a directory is there when something is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """As `mkdir`."""

    def rmdir(self, path: str) -> None:
        """As `mkdir`."""

    def rm_file(self, path: str) -> None:
        self.store.delete(self._url(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        for name in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
            if self.info(name)["type"] == "file" if self.exists(name) else not recursive:
                self.rm_file(name)

    def _add(self, path: str, source: Any, replace: bool, progress: Any = None) -> None:
        name = image_id_of(self._strip_protocol(path))
        if replace:
            self._make_room(name)
        self.store.add(name, source, progress=progress)

    def _make_room(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.store.delete(self.store.find(name))


def _entry(image: ImageInfo) -> dict[str, Any]:
    return {
        "name": path_of(image.image_id),
        "size": image.size,
        "type": "file",
        "mtime": image.mtime,
        "mode": image.mode,
        "allocated": image.allocated,
        "url": image.url,
    }


class _Raw(io.RawIOBase):
    """A whole image as Python's raw file."""

    def __init__(self, reader: ChunkedFile) -> None:
        self.reader = reader

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self.reader.readinto(buffer)

    def readall(self) -> bytes:
        return self.reader.read()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.reader.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # As files do: behind the end there is nothing.
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.reader.tell(), os.SEEK_END: self.reader.length}[whence]
        if base + offset < 0:
            raise Invalid(f"{self.reader.path}: seek to {base + offset}", path=self.reader.path)
        return self.reader.seek(min(base + offset, self.reader.length))

    def fileno(self) -> int:
        return self.reader.fileno()

    def close(self) -> None:
        super().close()
        self.reader.close()


class ImageFile(io.BufferedReader):
    """An image, opened for reading."""

    mode = "rb"

    def __init__(self, fs: FastfsFileSystem, path: str) -> None:
        reader, self.size = fs.store.get(fs._url(path))
        super().__init__(_Raw(reader), 64 * 1024)
        self.fs = fs
        self.path = path

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:  # BufferedReader's own refuses (Python 3.13)
        return _reopen, (self.fs, self.path, self.tell())


def _reopen(fs: FastfsFileSystem, path: str, position: int) -> ImageFile:
    file = ImageFile(fs, path)
    file.seek(position)
    return file


class Abandoned(Exception):
    """The writer was given up."""


class _Feed:
    """What `Store.add` reads while somebody else writes.  One block after the other, b"" at the end."""

    def __init__(self) -> None:
        self._blocks: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._last = False

    def put(self, block: bytes | None) -> None:
        """None: give up."""
        if not self._ended.is_set():
            self._blocks.put(block)

    def read(self, size: int) -> bytes:
        if self._last:
            return b""
        block = self._blocks.get()
        if block is None:
            raise Abandoned
        self._last = not block
        return block

    def end(self) -> None:
        """Nobody reads any more: whoever waits for room need not wait."""
        self._ended.set()
        while not self._blocks.empty():
            self._blocks.get()


class Writer(io.RawIOBase):
    """A new image, which appears when this is closed without an error.

    Closed while an exception is on its way, as a ``with`` block does, or dropped, it leaves nothing.

    :param replace: an image that is there makes room; otherwise that is a `Duplicate`, at once if possible.
    :param autocommit: False: it waits for `commit`, as in a transaction of fsspec's.
    """

    mode = "wb"

    def __init__(self, fs: FastfsFileSystem, path: str, replace: bool, autocommit: bool) -> None:
        self.fs = fs
        self.path = path
        self.name = image_id_of(path)
        self.replace = replace
        self.autocommit = autocommit
        self._outer = sys.exc_info()[1]
        self._pending = bytearray()
        self._feed: _Feed | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._settled = False
        self._written = 0
        if not replace and fs.exists(path):
            raise Duplicate.of(self.name, path)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: ReadableBuffer) -> int:
        if self.closed:
            raise ValueError(f"{self.path} is closed")
        if self._error is not None:
            raise self._error
        view = memoryview(data).cast("B")
        self._pending += view
        self._written += len(view)
        while len(self._pending) >= BLOCK:
            self._push(bytes(self._pending[:BLOCK]))
            del self._pending[:BLOCK]
        return len(view)

    def _push(self, block: bytes | None) -> None:
        if self._feed is None:
            self._feed = _Feed()
            self._thread = threading.Thread(target=self._store, args=(self._feed,), name="fastfs-writer", daemon=True)
            self._thread.start()
        self._feed.put(block)

    def _store(self, source: Any) -> None:
        try:
            self.fs._add(self.path, source, self.replace)
        except BaseException as error:  # it is raised again in the writer
            self._error = error
        finally:
            if isinstance(source, _Feed):
                source.end()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        now = sys.exc_info()[1]
        if now is not None and now is not self._outer:
            self.discard()
        elif self.autocommit:
            self.commit()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_settled", True):
            self.discard()

    def commit(self) -> None:
        """Make the image appear."""
        if self._settled:
            return
        self._settled = True
        if self._thread is None:
            self._store(bytes(self._pending))
        else:
            if self._pending:
                self._push(bytes(self._pending))
            self._push(b"")
            self._thread.join()
        self._pending.clear()
        if self._error is not None:
            raise self._error

    def discard(self) -> None:
        """Leave nothing."""
        if self._settled:
            return
        self._settled = True
        self._pending.clear()
        if self._thread is not None:
            self._push(None)
            self._thread.join()
