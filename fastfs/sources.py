# SPDX-License-Identifier: Apache-2.0
"""What an `image_file` can do, and the fastest correct way to get its bytes.

In this order: descriptors are read in C without the GIL; memory is taken as it is; ``readinto`` fills the
ring's buffers; ``read`` and iterators bring `bytes`.  An object only goes a faster way than its ``read`` if
that is sure to give the same bytes: a `gzip.GzipFile` has a ``fileno``, too, and a subclass may have overridden
``read``.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import select
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from fastfs import _native
from fastfs.exceptions import BadSource

# What is asked of a Python source at once.  Inside Glance a call of `read` costs some 75 us whatever its size:
# 64 KiB a call allow 0.45 GB/s, 1 MiB a call 1.56.
READ_SIZE = 1024 * 1024

# Up to here a whole object is handled in one piece: hashed in place and written by one native call.
SMALL = 64 * 1024

# From here on others may wait some milliseconds for a file, to be hashed together with it: 16 of them take 35.
LARGE = 4 * 1024 * 1024

# Memory is taken in steps of this size, between which signals, progress and time limits get their turn.
MEMORY_STEP = 16 * 1024 * 1024

# How long a socket that has brought as many bytes as were declared may take to bring one too many.  It may as
# well stay open for the next message, so its end cannot be waited for.
SOCKET_GRACE_MS = 200


class Sink(Protocol):
    """Where bytes go; `fastfs.upload.Upload` is one."""

    @property
    def size(self) -> int: ...
    def feed(self, data: Any, start: int = 0, stop: int | None = None) -> None: ...
    def fill(self, readinto: Any, most: int | None) -> int: ...
    def read_fd(
        self, fd: int, offset: int | None, limit: int | None, *, wait_ms: int = -1, sparse: bool = False
    ) -> tuple[bool, int]: ...


class Source:
    """Something that can be stored.  `close` gives back what this module opened, never the caller's object."""

    #: Bytes to come, where that is known beforehand; only a hint.
    size_hint: int | None = None

    #: (descriptor, offset) of a regular file that holds nothing but what is to come, so that its blocks can be shared.
    cloneable: tuple[int, int] | None = None

    def small(self, limit: int | None, probe: int) -> bytes | None:
        """All of it, if that is soon known to be no more than `SMALL`; else None, and nothing is lost."""
        return None

    def transfer(self, sink: Sink, limit: int | None) -> None:
        """Bring bytes to `sink` until the source ends or it has brought `limit` bytes."""
        raise NotImplementedError

    def announce(self) -> None:
        """This thread will soon `transfer` it.  Call `fastfs._native.expect_no_stream` if it does not after all."""
        if self.cloneable is not None and (self.size_hint or 0) >= LARGE:
            _native.expect_stream()

    def skip(self, size: int) -> None:
        """`size` bytes were had by cloning: the position moves on."""

    def excess(self, probe: int) -> int:
        """After `limit` bytes: how many more come, in one more read of up to `probe` bytes; 0: it ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Done, or given up."""


class DescriptorSource(Source):
    """A regular file or block device, read at offsets; or a stream: a pipe, a FIFO, a terminal.

    :param owner: the Python file whose position is moved on behind what was read; None: the descriptor is ours.
    """

    def __init__(self, fd: int, owner: Any = None, path: Any = None) -> None:
        self.fd = fd
        self.owner = owner
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):  # open(2) does not mind, read(2) does, and does not know the name
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), None if path is None else os.fspath(path))
        self.offset: int | None = None
        self.sparse = False
        if stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode):
            self.offset = 0 if owner is None else owner.tell()
        if stat.S_ISREG(info.st_mode) and info.st_size > 0:
            self.size_hint = max(0, info.st_size - (self.offset or 0))
            self.sparse = info.st_blocks * 512 < info.st_size
            self.cloneable = (fd, self.offset or 0) if self.size_hint else None

    def transfer(self, sink: Sink, limit: int | None) -> None:
        if self.offset is None:
            self._stream(sink, limit)
            return
        more = True
        try:
            while more:
                before = sink.size
                try:
                    more, _ = sink.read_fd(
                        self.fd,
                        self.offset,
                        None if limit is None else limit - before,
                        sparse=self.sparse,
                    )
                finally:
                    self.offset += sink.size - before
        finally:
            if self.owner is not None:
                self.owner.seek(self.offset)

    def skip(self, size: int) -> None:
        self.offset = (self.offset or 0) + size
        if self.owner is not None:
            self.owner.seek(self.offset)

    def _stream(self, sink: Sink, limit: int | None) -> None:
        if isinstance(self.owner, io.BufferedReader):
            # What lies in its buffer comes first.  peek() never reads more than once, read1() empties it.
            ready = len(self.owner.peek(1))
            if limit is not None:
                ready = min(ready, limit - sink.size)
            if ready:
                sink.feed(self.owner.read1(ready))
        more = True
        while more:
            more, _ = sink.read_fd(self.fd, None, None if limit is None else limit - sink.size)

    def excess(self, probe: int) -> int:
        if self.offset is not None:
            return len(os.pread(self.fd, probe, self.offset))
        if isinstance(self.owner, io.BufferedReader):
            return len(self.owner.read1(probe))
        _wait_readable(self.fd)
        return len(os.read(self.fd, probe))

    def close(self) -> None:
        if self.owner is None and self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # it was only read: all is had, and the image may be there
                os.close(fd)


class SocketSource(Source):
    """A plain stream socket, to its end or to the declared size; its own timeout counts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        timeout = sock.gettimeout()
        # A socket in non-blocking mode (timeout 0) is waited for: add() is a blocking call.
        self.wait_ms = int(timeout * 1000) if timeout else -1

    def transfer(self, sink: Sink, limit: int | None) -> None:
        more = True
        while more:
            left = None if limit is None else limit - sink.size
            more, _ = sink.read_fd(self.sock.fileno(), None, left, wait_ms=self.wait_ms)

    def excess(self, probe: int) -> int:
        if not _wait_readable(self.sock.fileno(), SOCKET_GRACE_MS):
            return 0
        return len(self.sock.recv(probe, socket.MSG_PEEK))  # the next message is not ours


class MemorySource(Source):
    """Bytes that are all there.  `owner`: a `BytesIO` or `mmap` whose position is moved on."""

    def __init__(self, data: Any, offset: int = 0, owner: Any = None) -> None:
        self.data = data
        self.view = memoryview(data)
        self.offset = min(offset, self.view.nbytes)
        self.owner = owner
        self.size_hint = self.view.nbytes - self.offset

    def transfer(self, sink: Sink, limit: int | None) -> None:
        end = self.view.nbytes if limit is None else min(self.view.nbytes, self.offset + limit)
        # Immutable bytes are not copied on their way.  Anything else might change between hash and write.
        data = self.data if type(self.data) is bytes else self.view
        while self.offset < end:
            step = min(end, self.offset + MEMORY_STEP)
            sink.feed(data, self.offset, step)
            self.offset = step

    def excess(self, probe: int) -> int:
        more = min(probe, self.view.nbytes - self.offset)
        self.offset += more
        return more

    def close(self) -> None:
        try:
            self.view.release()
        except BufferError:
            return  # what was given up after the time limit still has it, and lets it go when it wakes up
        if self.data is not None and self.owner is not None:
            self.data = None  # a BytesIO cannot be moved or closed while there is a view of it
            if not getattr(self.owner, "closed", False):
                self.owner.seek(self.offset)


class ReadIntoSource(Source):
    """A file-like object that fills our buffers."""

    def __init__(self, readinto: Any) -> None:
        self.readinto = readinto

    def transfer(self, sink: Sink, limit: int | None) -> None:
        while limit is None or sink.size < limit:
            if sink.fill(self.readinto, None if limit is None else limit - sink.size) == 0:
                return

    def excess(self, probe: int) -> int:
        return check_count(self.readinto(memoryview(bytearray(probe))), probe)


class ReadSource(Source):
    """Anything with ``read(n)``."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.ahead: list[bytes] = []  # what `small` has read in vain

    def _read(self, want: int) -> bytes | memoryview:
        return self.ahead.pop(0) if self.ahead else check_piece(self.owner.read(want), "read()")

    def small(self, limit: int | None, probe: int) -> bytes | None:
        first = bytes(self._read(READ_SIZE if limit is None else min(READ_SIZE, limit)))
        if 0 < len(first) <= SMALL:
            left = READ_SIZE if limit is None else min(READ_SIZE, limit - len(first))
            second = bytes(self._read(left if left > 0 else probe))
            if second:
                self.ahead = [first, second]
                return None
        if len(first) <= SMALL:
            return first
        self.ahead = [first]
        return None

    def transfer(self, sink: Sink, limit: int | None) -> None:
        while limit is None or sink.size < limit:
            piece = self._read(READ_SIZE if limit is None else min(READ_SIZE, limit - sink.size))
            if not piece:
                return
            sink.feed(piece)

    def excess(self, probe: int) -> int:
        return len(self._read(probe))


class IteratorSource(Source):
    """Pieces of any length, empty ones included."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.pieces: Iterator[Any] = iter(pieces)

    def transfer(self, sink: Sink, limit: int | None) -> None:
        for item in self.pieces:
            piece = check_piece(item, "the iterator")
            if piece:
                sink.feed(piece)
            if limit is not None and sink.size >= limit:
                return

    def excess(self, probe: int) -> int:
        for item in self.pieces:
            if size := len(check_piece(item, "the iterator")):
                return size
        return 0


class OpenedSource(Source):
    """An `OpenFile` of fsspec's, which is opened when it is read and closed afterwards."""

    def __init__(self, openable: Any) -> None:
        self.openable = openable
        try:
            self.inner = open_source(openable.open())
        except BaseException:
            openable.close()
            raise
        self.size_hint = self.inner.size_hint
        self.cloneable = self.inner.cloneable

    def skip(self, size: int) -> None:
        self.inner.skip(size)

    def small(self, limit: int | None, probe: int) -> bytes | None:
        return self.inner.small(limit, probe)

    def transfer(self, sink: Sink, limit: int | None) -> None:
        self.inner.transfer(sink, limit)

    def excess(self, probe: int) -> int:
        return self.inner.excess(probe)

    def close(self) -> None:
        self.inner.close()
        self.openable.close()


def _is_of_fsspec(image_file: Any, module: str, name: str) -> bool:
    """Is it one of those classes?  If fsspec is not imported, nothing is."""
    cls = getattr(sys.modules.get(f"fsspec.{module}"), name, None)
    return cls is not None and type(image_file) is cls


def _wait_readable(fd: int, most_ms: int | None = None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(most_ms))


def check_piece(piece: Any, what: str) -> bytes | memoryview:
    """A piece of data from a Python source, as bytes or a flat view; empty at the end.

    :raises BadSource: not bytes-like.
    """
    if type(piece) is bytes:
        return piece
    if piece is None:
        raise BadSource(f"{what} gave None: the source is in non-blocking mode, or is no source of bytes")
    if isinstance(piece, str):
        raise BadSource(f"{what} gave str, not bytes: open the source in binary mode")
    try:
        return _flat(memoryview(piece))
    except TypeError:
        raise BadSource(f"{what} gave {type(piece).__name__}, not bytes") from None


def check_count(count: Any, most: int) -> int:
    """What ``readinto`` returned.

    :raises BadSource: None (non-blocking mode), or not a number that fits the buffer.
    """
    if count is None:
        raise BadSource("readinto() gave None: the source is in non-blocking mode")
    if not isinstance(count, int) or not 0 <= count <= most:
        raise BadSource(f"readinto() gave {count!r} for a buffer of {most} bytes")
    return count


def _flat(view: memoryview) -> memoryview:
    # Only what lies in one piece can be looked at byte by byte; anything else has to be copied.
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _overridden(image_file: Any) -> bool:
    """Has somebody put a ``read`` of his own on this very object?"""
    return "read" in getattr(image_file, "__dict__", ())


def _position_in_mro(cls: type, name: str) -> int:
    for position, base in enumerate(cls.__mro__):
        if name in vars(base):
            return position
    return len(cls.__mro__)


def _readinto_is_as_good(image_file: Any) -> bool:
    """Is ``readinto`` defined by the same class as ``read``, or by one derived from it?

    Otherwise somebody has overridden ``read``, to count, limit or decode, and ``readinto`` would bypass that.
    """
    cls = type(image_file)
    if _overridden(image_file) or not callable(getattr(cls, "readinto", None)):
        return False
    return _position_in_mro(cls, "readinto") <= _position_in_mro(cls, "read")


def _plain_file(image_file: Any) -> bool:
    """Is this a file of `open`, reading a descriptor with nothing in between?"""
    kind = type(image_file)
    if kind is io.FileIO:
        return not _overridden(image_file)
    return (
        kind in (io.BufferedReader, io.BufferedRandom)
        and not _overridden(image_file)
        and type(image_file.raw) is io.FileIO
    )


def unwrap(image_file: Any) -> Any:
    """The file inside a `tempfile.NamedTemporaryFile`, or a local one of fsspec's."""
    if isinstance(image_file, tempfile._TemporaryFileWrapper):
        return image_file.file
    if _is_of_fsspec(image_file, "implementations.local", "LocalFileOpener"):
        return image_file.f
    return image_file


def open_source(image_file: Any) -> Source:
    """Find the way in.

    :raises BadSource: nothing that bytes can be got from.
    :raises OSError: a path that cannot be opened, unchanged.
    """
    if isinstance(image_file, (str, os.PathLike)):
        fd = os.open(image_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return DescriptorSource(fd, path=os.fspath(image_file))
        except BaseException:
            os.close(fd)
            raise
    if _is_of_fsspec(image_file, "core", "OpenFile"):
        return OpenedSource(image_file)
    image_file = unwrap(image_file)
    if _plain_file(image_file):
        if not image_file.readable():
            raise BadSource(f"{image_file!r} is not open for reading")
        if type(image_file) is io.BufferedRandom:
            image_file.flush()
        return DescriptorSource(image_file.fileno(), image_file)
    kind = type(image_file)
    if kind is socket.socket and image_file.type & socket.SOCK_STREAM:
        return SocketSource(image_file)
    if kind is io.BytesIO and not _overridden(image_file):
        return MemorySource(image_file.getbuffer(), image_file.tell(), image_file)
    if kind is mmap.mmap:
        return MemorySource(image_file, image_file.tell(), image_file)
    if isinstance(image_file, io.TextIOBase):
        raise BadSource(f"{image_file!r} gives text, not bytes: open it in binary mode ('rb')")
    if isinstance(image_file, socket.socket):
        return ReadIntoSource(image_file.recv_into)  # TLS: the descriptor's bytes are not the stream's
    if _readinto_is_as_good(image_file):
        return ReadIntoSource(image_file.readinto)
    if hasattr(image_file, "read"):
        return ReadSource(image_file)
    if kind is bytes:
        return MemorySource(image_file)
    try:
        return MemorySource(_flat(memoryview(image_file)))
    except TypeError:
        pass
    try:
        return IteratorSource(image_file)
    except TypeError:
        raise BadSource(
            f"image_file is {kind.__name__!r}; give a path, a file open in binary mode, bytes, a socket or an iterator "
            "of bytes"
        ) from None


def small_object(image_file: Any) -> tuple[bytes, Any] | None:
    """All that is left of a source that is memory or a regular file of up to 64 KiB, without moving it.

    :return: (data, the file that is to be moved to its end or None); None: not such a source.
    """
    kind = type(image_file)
    if kind is bytes:
        return (image_file, None) if len(image_file) <= SMALL else None
    if kind is io.BytesIO and not _overridden(image_file):
        # Not getbuffer(): that copies bytes which the object has in common with whoever made it from them.
        data = image_file.getvalue()
        offset = image_file.tell()
        if len(data) - offset > SMALL:
            return None
        if offset:
            data = data[offset:]
        # Behind the end there is nothing to be read; the position stays where it is.
        return data, image_file if data else None
    if kind is io.BufferedReader and _plain_file(image_file):
        fd = image_file.fileno()
        info = os.fstat(fd)
        # The files of /proc are regular and have no size.
        if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= SMALL:
            return None
        offset = image_file.tell()
        data = os.pread(fd, SMALL + 1, offset)
        return (data, image_file) if offset + len(data) == info.st_size else None
    return None
