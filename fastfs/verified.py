# SPDX-License-Identifier: Apache-2.0
"""`VerifiedFile`: an image whose every block is checked against the record before its bytes are handed out."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, cast

from xxhash import xxh3_128_digest

from fastfs import _native
from fastfs import record as rec
from fastfs.exceptions import FastfsError, IntegrityError, Unverifiable
from fastfs.reader import PIECE, Caller, ChunkedFile, close_in_time
from fastfs.sidecar import Attached, Relation
from fastfs.timeouts import direct

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def check_usable(path: str, image_id: str, size: int, attached: Attached) -> None:
    """Can the bytes of an image of `size` bytes be checked by its record?

    :raises Unverifiable: there is none, it is damaged, or of another image.
    :raises IntegrityError: the image has another size, or is another image.
    """
    table = attached.table
    if table is None:
        reason = f"its record is damaged: {attached.damage}" if attached.damage else "it has no record"
        raise Unverifiable(
            f"{path} cannot be verified: {reason}; 'fastfs adopt' makes a new one of what is there",
            path=path,
            image_id=image_id,
        )
    record = table.record
    if record.image_id != image_id:
        if attached.relation is Relation.OWN:
            raise IntegrityError(
                f"{path} is another image: it was stored as {record.image_id}", path=path, image_id=image_id
            )
        raise _stale(path, image_id)
    if record.size != size:
        if attached.relation is Relation.REPLACED:
            raise _stale(path, image_id)
        offset = min(size, record.size)
        raise IntegrityError(
            f"{path} has {size} bytes, {record.size} went in",
            path=path,
            image_id=image_id,
            block=offset // record.block_size,
            offset=offset,
        )


def _stale(path: str, image_id: str) -> Unverifiable:
    return Unverifiable(
        f"{path} cannot be verified: its record was made for another file, which something else has replaced; "
        "'fastfs adopt' makes a new one of what is there",
        path=path,
        image_id=image_id,
    )


# No block, nor the one before the first.
NONE = -2


class VerifiedFile(ChunkedFile):
    """As a `ChunkedFile`, but of checked blocks, whatever way its bytes take.

    There is no `fileno`, because what is read from a descriptor is not checked; `sendfile` hands the bytes over in
    Python for the same reason.

    :param attached: the record, with a table that `check_usable` had no objection to; this object owns it from now on.
    :param call: runs one blocking call on the image's data directory.
    """

    _by_descriptor = False

    def __init__(
        self,
        fd: int,
        path: str,
        offset: int,
        length: int,
        chunk_size: int,
        *,
        image_id: str,
        attached: Attached,
        call: Caller = direct,
        views: bool = False,
    ) -> None:
        assert attached.table is not None
        self.image_id = image_id
        self._attached = attached
        self._table = table = attached.table
        #: See `GuardedFile.call`.
        self.call = call
        # Checked pieces that follow, the next one last, and where they end; -1: the position of the base class counts.
        # One attribute, for a signal may come between any two; moving the base class for each piece would cost as much
        # as hashing it.
        self._out: tuple[list[bytes], int] = ([], -1)
        super().__init__(fd, path, offset, length, chunk_size, views=views)
        self._block_size = table.record.block_size
        self._size = table.record.size
        # The position of this object is what was handed out; whole blocks are read by another one.
        self._blocks = _native.FileRange(os.dup(fd), path, 0, self._size, self._block_size, views=True)
        self._block = NONE
        self._data = memoryview(b"")
        # Blocks that are read one after the other come from another object yet, which reads ahead, in pieces: of the
        # size that is handed out where pieces are iterated and do not straddle blocks, otherwise of a block.
        self._ahead: _native.CheckedBlocks | None = None
        self._native = bool(_native.kernel()) and _native.can_check(self._block_size, self._block_size)
        self._piece_size = chunk_size
        self._in_pieces = self._native and not views and _native.can_check(self._block_size, chunk_size)

    def fileno(self) -> int:
        """:raises io.UnsupportedOperation: always."""
        raise io.UnsupportedOperation(f"reading {self.path}: what is verified has no descriptor")

    def _descriptor(self) -> int:
        """:raises ValueError: closed."""
        return _native.FileRange.fileno(self)

    def tell(self) -> int:
        ready, end = self._out
        return super().tell() if end < 0 else end - len(ready) * self._piece_size

    def _move(self, position: int) -> None:
        super()._move(position)
        self._out = ([], -1)

    def __next__(self) -> bytes:
        ready = self._out[0]
        if ready:
            return ready.pop()
        piece = self._piece(False)
        if piece is None:
            raise StopIteration
        return cast(bytes, piece)

    def _piece(self, nowait: bool) -> Any:
        if self._out[0]:
            return self._out[0].pop()
        if self.finished:
            return None
        if nowait:
            return NotImplemented
        at, end = self.tell(), self.offset + self.length
        if at >= end:
            self._finish()
            return None
        chunk = self.chunk_size
        whole = at % self._block_size == 0 and at + self._block_size <= end
        if whole and self._in_pieces and self.call is direct and chunk == self._piece_size:
            ready = self._read_pieces(at, chunk)
            self._out = (ready, at + self._block_size)
            return ready.pop()
        size = min(chunk, end - at)
        if self.views and at % self._block_size + size <= self._block_size:
            piece = self._checked(at, at + size)
            self._move(at + size)
            return piece
        data = self.read(size)
        return memoryview(data) if self.views else data

    def _read_pieces(self, at: int, piece_size: int) -> list[bytes]:
        """The pieces of the whole block that begins at `at`, checked, the first one last."""
        try:
            ahead = self._ahead
            if ahead is None or ahead.piece_size != piece_size:
                self._stop_ahead()
                # No further than the blocks that the range touches.
                end = -(-(self.offset + self.length) // self._block_size) * self._block_size
                ahead = _native.CheckedBlocks(self._dup(), min(end, self._size), self._block_size, piece_size)
                self._ahead = ahead
                if self.closed:  # before it was known that this had to be closed, too
                    self._stop_ahead()
            pieces, digest = ahead.read(at)
        except OSError as error:
            raise self._error(error.errno) from error
        self._compare(at // self._block_size, digest)
        return pieces

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def read(self, size: int | None = -1) -> bytes:
        """As `ChunkedFile.read`.

        :raises IntegrityError: a block is not what went in.  Nothing of it was handed out.
        :raises Unverifiable: the record is of no use.
        """
        self._descriptor()  # closed?
        at = self.tell()
        left = self.offset + self.length - at
        end = at + (left if size is None or size < 0 or size > left else size)
        if at == end:
            return b""
        view = self._checked(at, end)
        if at + len(view) == end:
            block = view.obj
            data = block if isinstance(block, bytes) and len(block) == len(view) else bytes(view)
            self._move(end)
            return data
        # `join` would need all of it twice.
        sink = io.BytesIO(bytes(end - at))
        while True:
            sink.write(view)
            at += len(view)
            if at == end:
                break
            view = self._checked(at, end)
        data = sink.getvalue()
        self._move(end)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As `ChunkedFile.readinto`; raises as `read`."""
        self._descriptor()
        at = self.tell()
        target = memoryview(buffer).cast("B")[: self.offset + self.length - at]
        done = 0
        while done < len(target):
            view = self._checked(at + done, at + len(target))
            target[done : done + len(view)] = view
            done += len(view)
            self._move(at + done)
        return done

    def _checked(self, start: int, end: int) -> memoryview:
        """Checked bytes from `start` on, up to `end` or the end of the block."""
        block, begin = divmod(start, self._block_size)
        if block != self._block:
            # The first one is read alone: there may be no second one, and to read ahead takes some preparation.
            follows = self._native and self.call is direct and block == self._block + 1
            at, self._block, self._data = block * self._block_size, NONE, memoryview(b"")
            if follows and at + self._block_size <= self._size:
                self._data = memoryview(self._read_pieces(at, self._block_size)[0])
            else:
                self._blocks._move(at)
                data = self._read_one(self._blocks)
                self._compare(block, xxh3_128_digest(data))
                self._data = data
            self._block = block
        return self._data[begin : begin + end - start]

    def _read_one(self, source: _native.FileRange) -> Any:
        """The next piece of a file."""
        try:
            piece = self.call(source._piece, False)
        except FastfsError:
            self.close()
            raise
        except OSError as error:
            raise self._error(error.errno) from error
        if piece is None:
            raise self._error(errno.ENODATA)
        return piece

    def _compare(self, block: int, digest: bytes) -> None:
        """:raises IntegrityError: the block has another digest.
        :raises Unverifiable: nobody knows which one it should have.
        :raises ValueError: closed by another thread.
        """
        try:
            wanted = self.call(self._table.digest, block)
        except rec.Damaged as error:
            self._descriptor()  # closed by another thread, and the record with it?
            self.close()
            raise Unverifiable(
                f"{self.path} cannot be verified: its record is damaged: {error}",
                path=self.path,
                image_id=self.image_id,
            ) from None
        except FastfsError:
            self.close()
            raise
        except OSError as error:
            self._descriptor()
            raise self._error(error.errno) from error
        if digest == wanted:
            return
        self.close()
        if self._attached.relation is Relation.REPLACED:
            raise _stale(self.path, self.image_id)
        offset = block * self._block_size
        raise IntegrityError(
            f"{self.path}: block {block}, at byte {offset}, is not what went in; "
            "'fastfs scrub' looks at all of it, 'fastfs repair' mends it from a good copy",
            path=self.path,
            image_id=self.image_id,
            block=block,
            offset=offset,
        )

    def _part(self, start: int, count: int) -> ChunkedFile:
        attached = self._attached.again()
        try:
            return VerifiedFile(
                self._dup(), self.path, start, count, PIECE, image_id=self.image_id, attached=attached, call=self.call
            )
        except OSError as error:
            attached.close()
            raise self._error(error.errno) from error
        except BaseException:
            attached.close()
            raise

    def close(self) -> None:
        self._out = ([], self.tell())
        close_in_time(self.call, self._close, self.path)

    def _close(self) -> None:
        super().close()
        self._blocks.close()
        self._stop_ahead()
        self._data, self._block = memoryview(b""), NONE
        self._attached.close()
