# SPDX-License-Identifier: Apache-2.0
"""`ChunkedFile`: an image, or a range of it: piece by piece, into buffers, or out through a descriptor."""

from __future__ import annotations

import _socket
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from fastfs import _native
from fastfs.exceptions import FastfsError, Invalid, StorageError, from_oserror
from fastfs.targets import Target, open_target
from fastfs.timeouts import direct

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from typing_extensions import Self

LOG = logging.getLogger(__name__)

# Runs one blocking call on the image's data directory; the store puts its time limit here.
Caller = Callable[..., Any]

# What goes out through Python is handed over in pieces of this size.
PIECE = 256 * 1024

# How often to see whether a transport was closed, in seconds.
LOOK = 0.25

GONE = "the transport was closed, or its connection is lost"

# Below this, two files do not begin to share blocks.
CLONE_MIN = 64 * 1024
# The offsets of shared blocks are multiples of this on every file system of note.
CLONE_UNIT = 4096


class ChunkedFile(_native.FileRange):
    """Reads a range of an open file.

    Iterating gives `bytes` of exactly `chunk_size` (the last piece may be shorter) and closes the file at the
    end; ``async for`` does the same and lets an event loop go on meanwhile.  A reader that is dropped half-way gives
    its descriptor back as soon as nothing refers to it; ``with`` and `close` do so at once.  Reading to the end of
    the range and going on gives nothing, but starting a second iteration is an error: it would look like an empty
    image.

    A file that becomes shorter than the range is a `StorageError`, one that grows makes no difference, one that is
    deleted can be read to its end.

    Positions (`seek`, `tell`, `fileno`) are those of the file, as those who take a descriptor want them; `offset` of
    `sendfile` counts from the beginning of the range.

    :param fd: an open file, which this object owns from now on.
    :param path: for messages.
    :param offset: where the range begins, in bytes.
    :param length: bytes in the range; the file must have them.
    :param chunk_size: bytes in a piece.
    :param views: pieces are read-only `memoryview` instead of `bytes`; see `Store.get`.
    """

    def __repr__(self) -> str:
        end = self.offset + self.length
        state = "closed" if self.closed else f"{end - self.tell()} bytes left"
        return f"<{type(self).__name__} {self.path} [{self.offset}:{end}] {state}>"

    def __length_hint__(self) -> int:
        """How many pieces are left."""
        return 0 if self.closed else -((self.tell() - self.offset - self.length) // self.chunk_size)

    def __iter__(self) -> Self:
        if self.finished:
            raise ValueError(f"{self.path} was read to its end already; get() it again")
        return self

    def _error(self, number: int | None) -> BaseException:
        self.close()
        number = number or errno.EIO
        if number == errno.ENODATA:
            return StorageError(
                f"{self.path} ends before byte {self.offset + self.length}, to which it reached when it was opened: it "
                "was truncated meanwhile",
                path=self.path,
                errno=errno.EIO,
            )
        return from_oserror(OSError(number, os.strerror(number)), "read", path=self.path)

    # -- as a file ------------------------------------------------------------------------------------------

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file, within the range; relative to the end is to the range's.

        :raises Invalid: outside of the range.
        """
        end = self.offset + self.length
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: end}.get(whence)
        if base is None or not self.offset <= base + offset <= end:
            raise Invalid(
                f"{self.path}: seek({offset}, {whence}) leaves the range, bytes {self.offset} to {end} of the file",
                path=self.path,
            )
        self._move(base + offset)
        return base + offset

    def fileno(self) -> int:
        """The descriptor, its own position where the reader's is, for those who go on from there.

        :raises ValueError: closed.
        :raises StorageError: the storage gives an error.
        """
        fd = super().fileno()
        try:
            if self.length:
                os.lseek(fd, self.tell(), os.SEEK_SET)
            else:  # it may lie where no file can have a position
                os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise self._error(error.errno) from error
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- out through a descriptor ---------------------------------------------------------------------------

    def sendfile(self, target: Any, offset: int = 0, count: int | None = None) -> int:
        """Send the range, or a part of it, by whatever moves the bytes with the least work; see `fastfs.targets`.

        The reader's position is not used and does not move, so that one reader may serve several threads.

        :param target: a socket, a descriptor, a file open for writing (from its position on), or anything with
            ``sendall`` or ``write``.
        :param offset: where to begin, counted from the beginning of the range; behind its end there is nothing.
        :param count: bytes to send; None: to the end of the range.
        :return: the bytes sent: fewer only if the target is in non-blocking mode.
        :raises BlockingIOError: in non-blocking mode, the target takes nothing now.
        :raises TimeoutError: a socket with a timeout took nothing for so long.
        :raises StorageError: the file cannot be read, or has become shorter than it was.
        :raises Invalid: negative `offset` or `count`; no such target.
        What the target raises comes out unchanged.
        """
        start, count = self._within(offset, count)
        super().fileno()
        out = open_target(target, self._by_descriptor)
        if not count:
            return 0
        if out.put is not None:
            return self._put(out, start, count)
        try:
            return self._send_to(out, start, count)
        finally:
            out.settle()

    # What reads with a time limit cannot leave the reading to the kernel.
    _by_descriptor = True

    def _within(self, offset: int, count: int | None) -> tuple[int, int]:
        """Position in the file and length of a part of the range."""
        for what, number in (("offset", offset), ("count", 0 if count is None else count)):
            if not isinstance(number, int) or number < 0:
                raise Invalid(f"{what}={number!r} is no number of bytes, 0 or more", path=self.path)
        left = max(0, self.length - offset)
        return self.offset + offset, left if count is None else min(count, left)

    def _send_to(self, out: Target, start: int, count: int) -> int:
        done = self._share(out, start, count) if out.file and count >= CLONE_MIN else 0
        if done < count:
            moved, number, ours = self._send(out.fd, start + done, count - done, out.way, out.socket, out.wait_ms)
            done += moved
            if number and ours:
                raise self._error(number)
            if number and not (number == errno.EAGAIN and done):
                raise OSError(number, os.strerror(number))
        return done

    def _share(self, out: Target, start: int, count: int) -> int:
        """Have the file system put blocks of ours into the target, a file; how many bytes that was."""
        fd = super().fileno()
        to = os.lseek(out.fd, 0, os.SEEK_CUR)
        moved = 0
        if start % CLONE_UNIT == 0 and to % CLONE_UNIT == 0:
            # An error of either file shows again when its bytes are copied.
            with contextlib.suppress(OSError):
                # Only the last block of a file need not be a whole one.
                whole = count if start + count == os.fstat(fd).st_size else count - count % CLONE_UNIT
                _native.clone_range(fd, start, whole, out.fd, to)
                moved = whole
        if not moved and _native.is_remote(out.fd):
            moved, _, _ = _native.copy(fd, start, out.fd, to, count, count, True)
        os.lseek(out.fd, to + moved, os.SEEK_SET)
        return moved

    def _put(self, out: Target, start: int, count: int) -> int:
        """Hand the bytes over in Python."""
        assert out.put is not None
        done = 0
        with self._part(start, count) as part:
            for piece in part:
                rest = piece
                while rest:
                    try:
                        taken = out.put(rest)
                    except OSError:
                        if out.wait_ms == 0 and done:
                            return done  # the next call shows whether it was more than "not now"
                        raise
                    if taken is None:
                        if done:
                            return done
                        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                    done += taken
                    rest = rest[taken:]
        return done

    def _part(self, start: int, count: int) -> ChunkedFile:
        """A reader of its own for a part of the file, in pieces of `PIECE`."""
        return ChunkedFile(self._dup(), self.path, start, count, PIECE)

    # -- in an event loop -----------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self.__iter__()

    async def __anext__(self) -> bytes:
        """The next piece, at once if it is in memory; the running loop's default executor waits for the disk."""
        piece = self._piece(True)
        if piece is NotImplemented:
            import asyncio  # 40 ms that others need not pay

            piece = await asyncio.get_running_loop().run_in_executor(None, self._piece, False)
        if piece is None:
            raise StopAsyncIteration
        return cast(bytes, piece)

    async def asendfile(self, transport: Any, offset: int = 0, count: int | None = None) -> int:
        """`sendfile` through the running event loop; it may move the reader's position.

        :param transport: a transport or a stream writer (``loop.sendfile``), or a socket in non-blocking mode
            (``loop.sock_sendfile``).  In pieces where the loop has neither (uvloop), to TLS, and with a time limit or
            compared with the record.
        :return: the bytes sent, all of them.
        :raises ConnectionError: a transport was closed, or its connection is lost.
        """
        start, count = self._within(offset, count)
        super().fileno()
        if not count:
            return 0
        import asyncio

        loop = asyncio.get_running_loop()
        try:
            if isinstance(transport, _socket.socket):
                file: Any = self if self._by_descriptor else _Unnumbered(self)
                done = await loop.sock_sendfile(cast(socket.socket, transport), file, start, count)
            elif self._by_descriptor and transport.get_extra_info("sslcontext") is None:
                # asyncio's own way without sendfile(2) reads into a buffer that its transports, from CPython 3.12 on,
                # may not have sent yet: whoever receives slowly gets wrong bytes (seen with 3.12.1 and 3.13.0).
                plain = getattr(transport, "transport", transport)
                if plain.is_closing():  # RuntimeError to asyncio
                    raise ConnectionError(GONE)
                sending = loop.sendfile(plain, cast(Any, self), start, count, fallback=False)
                done = await _unless_closed(plain, sending)
            else:
                done = await self._aput(transport, start, count)
        except (NotImplementedError, asyncio.SendfileNotAvailableError):
            done = await self._aput(transport, start, count)
        if done < count:
            raise self._error(errno.ENODATA)
        return done

    async def _aput(self, target: Any, start: int, count: int) -> int:
        """Hand the bytes over piece by piece."""
        import asyncio

        is_socket = isinstance(target, _socket.socket)
        with self._part(start, count) as part:
            async for piece in part:
                if is_socket:
                    await asyncio.get_running_loop().sock_sendall(target, piece)
                    continue
                target.write(piece)
                if hasattr(target, "drain"):
                    await target.drain()
                plain = getattr(target, "transport", target)
                if hasattr(plain, "get_write_buffer_size"):
                    await _drained(plain)
        return count

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _unless_closed(transport: Any, sending: Coroutine[Any, Any, int]) -> int:
    """What is being sent by the loop, which waits for ever when somebody closes the transport meanwhile."""
    import asyncio

    task = asyncio.ensure_future(sending)
    closed = False
    try:
        while not (await asyncio.wait({task}, timeout=LOOK))[0]:
            if closed:  # and it was not told in the meantime
                raise ConnectionError(GONE)
            closed = transport.is_closing()
        return task.result()
    finally:
        if task.cancel():
            await asyncio.wait({task})


async def _drained(transport: Any) -> None:
    """Wait until a transport, whose protocol may be somebody else's, has sent most of what it was given.

    :raises ConnectionError: it is closed, or takes no more.
    """
    import asyncio

    nap = 0.0  # the loop runs once in any case: a transport learns only from it that its connection is lost
    while True:
        await asyncio.sleep(nap)
        # TLS that has lost its connection or heard its peer shut down throws away what it is given, and does not call
        # that closing.  CPython 3.11 and later count it; in 3.10 there is nothing below any more.
        tls = getattr(transport, "_ssl_protocol", None)
        if transport.is_closing() or getattr(tls, "_conn_lost", 0) or getattr(tls, "_transport", transport) is None:
            raise ConnectionError(GONE)
        if transport.get_write_buffer_size() <= PIECE:
            return
        nap = min(max(0.001, 2 * nap), 0.05)


class _Unnumbered:
    """A reader whose descriptor an event loop does not see, so that it calls `readinto` on another thread."""

    def __init__(self, reader: ChunkedFile) -> None:
        self.reader = reader
        self.readinto = reader.readinto

    def seek(self, offset: int) -> None:
        # After an error as well, which closes the reader: that error is the one to be told.
        if not self.reader.closed:
            self.reader.seek(offset)


def close_in_time(call: Caller, close: Callable[[], object], path: str) -> None:
    """Closing may hang, too, and nothing depends on it: after the time limit it is left to the thread it hangs on."""
    try:
        call(close)
    except FastfsError as error:
        LOG.warning("closing %s: %s", path, error)


class GuardedFile(ChunkedFile):
    """A reader whose every access to the file has a time limit."""

    _by_descriptor = False
    #: Runs one blocking call on the image's data directory.
    call: Caller = staticmethod(direct)

    def __next__(self) -> bytes:
        piece = self._piece(False)
        if piece is None:
            raise StopIteration
        return cast(bytes, piece)

    def _piece(self, nowait: bool) -> Any:
        if self.finished:
            return None
        if nowait:
            return NotImplemented
        piece = self.read(self.chunk_size)
        if not piece:
            self._finish()
            return None
        return memoryview(piece) if self.views else piece

    def read(self, size: int | None = -1) -> bytes:
        left = self.offset + self.length - self.tell()
        if size is None or size < 0 or size > left:
            size = left
        fd = _native.FileRange.fileno(self)
        pieces = []
        while size > 0:
            # pread(2) gives at most 2 GiB - 4 KiB at once, and some file systems less than was asked for.
            piece = self._attempt(os.pread, fd, size, self.tell())
            self._move(self.tell() + len(piece))
            size -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: WriteableBuffer) -> int:
        # Not straight into it: a read that was given up may still happen, and the buffer has an owner.
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (piece := self.read(min(PIECE, len(view) - done))):
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def _attempt(self, function: Callable[..., bytes], *args: Any) -> bytes:
        """Read something; nothing at all, before the end of the range, is an error."""
        try:
            piece: bytes = self.call(function, *args)
        except FastfsError:
            self.close()
            raise
        except OSError as error:
            raise self._error(error.errno) from error
        if not piece:
            raise self._error(errno.ENODATA)
        return piece

    def close(self) -> None:
        if not self.closed:
            close_in_time(self.call, super().close, self.path)

    def _part(self, start: int, count: int) -> ChunkedFile:
        part = GuardedFile(self._dup(), self.path, start, count, PIECE)
        part.call = self.call
        return part
