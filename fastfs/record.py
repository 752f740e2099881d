# SPDX-License-Identifier: Apache-2.0
"""The record of an image: what its bytes were when they went in; docs/record.md tells each byte of it.

A header (size, block size, the digests that `add` returned, what file it was made for), a stamp (when the image was
last checked) and a table of block digests.  Every part is protected by a digest of its own, so that a damaged
record is never taken for a damaged image, and one block of a large image can be checked without reading the
whole table.  This module knows bytes; `fastfs.sidecar` knows where they lie.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from xxhash import xxh3_128, xxh3_128_digest

from fastfs import _native

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAGIC = b"\x89FFR\r\n\x1a\n"
VERSION = 1
#: The image carries `Record.nonce` in a user attribute.
TAGGED = 1

DIGEST = 16
#: A group is a page: so many digests, and one of them all.
GROUP = 255
GROUP_SIZE = (GROUP + 1) * DIGEST

# magic, version, flags, size of the header; size, block size, blocks, time made; nonce; mtime, inode, file system,
# inode of the sidecar; md5; lengths of what follows: image id, algorithm, multihash, writer
_FIXED = struct.Struct("<8sHHI QQQQ 16s qQQQ 16s HHHH".replace(" ", ""))
# ids have up to 255 bytes, digests up to 64; the lengths could say 256 KiB
HEADER_MAX = 1024

_STAMP = struct.Struct("<4sBBHQQQQQ")
STAMP_MAGIC = b"FFST"
STAMP_SIZE = _STAMP.size + DIGEST


class Damaged(ValueError):
    """These bytes are no record, or one that was damaged; the message tells why."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The header of a record."""

    image_id: str
    #: Bytes of the image, and of each block but the last.
    size: int
    block_size: int
    #: Digests as `add` returns them, hexadecimal; the name of the second one.
    md5: str
    algorithm: str
    multihash: str
    #: When it was made, nanoseconds since the epoch, and by what: "fastfs 0.1.0".
    time: int
    writer: str
    #: Drawn anew for each record; 16 bytes.
    nonce: bytes
    #: Does the image carry the nonce?
    tagged: bool = False
    #: What the image's file was: modification time in nanoseconds, inode; 0: not known.
    mtime: int = 0
    inode: int = 0
    #: Where the record itself was written: file system (statvfs) and inode of its file; 0: not known.
    filesystem: int = 0
    own_inode: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks, and so digests, there are."""
        return -(-self.size // self.block_size)

    def block_length(self, block: int) -> int:
        """Bytes of a block; the last one may be shorter."""
        return min(self.block_size, self.size - block * self.block_size)


class Stamp:
    """When an image was last checked; kept inside its record."""

    __slots__ = ("changed", "checked", "deep", "position", "started", "verdict")

    #: Values of `verdict`.
    NEVER, CLEAN, DAMAGED = range(3)

    def __init__(
        self,
        verdict: int = NEVER,
        checked: int = 0,
        deep: int = 0,
        started: int = 0,
        position: int = 0,
        changed: int = 0,
    ) -> None:
        self.verdict = verdict
        #: Nanoseconds since the epoch: the end of the last check; of the last one of all digests.
        self.checked = checked
        self.deep = deep
        #: The pass of the scrub that is under way (the time it began), and how many bytes it has found clean.
        self.started = started
        self.position = position
        #: The image's time of change (ctime), nanoseconds, when that was noted.
        self.changed = changed

    def __repr__(self) -> str:
        return f"Stamp({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__)})"

    def pack(self) -> bytes:
        fixed = _STAMP.pack(
            STAMP_MAGIC,
            VERSION,
            self.verdict,
            0,
            self.checked,
            self.deep,
            self.started,
            self.position,
            self.changed,
        )
        return fixed + xxh3_128_digest(fixed)

    @classmethod
    def unpack(cls, data: bytes) -> Stamp:
        """What does not hold water (all zeroes in a new record, a torn write) says that nothing was checked."""
        fixed, digest = data[: _STAMP.size], data[_STAMP.size :]
        if len(data) != STAMP_SIZE or fixed[:4] != STAMP_MAGIC or xxh3_128_digest(fixed) != digest:
            return cls()
        _, version, verdict, _, checked, deep, started, position, changed = _STAMP.unpack(fixed)
        if version != VERSION or verdict not in (cls.NEVER, cls.CLEAN, cls.DAMAGED):
            return cls()
        return cls(verdict, checked, deep, started, position, changed)


class Recorder:
    """Makes the block digests of a stream.

    :ivar hasher: what a `fastfs._native.Pump` feeds: C code, 25 GB/s at the least and without the GIL, so that any
        thread of the extension can do it on the way; where that has no kernels, the xxhash package.
    """

    hasher: _native.BlockDigests | PlainBlocks

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.hasher = _native.BlockDigests(block_size) if _native.kernel() else PlainBlocks(block_size)

    def finish(self) -> bytes:
        """The pump has finished: the digests of all blocks, one after the other."""
        table, rest = self.hasher.digests()
        return table + xxh3_128_digest(rest) if rest else table


def block_digests(data: memoryview, block_size: int) -> bytes:
    """The digests of whole blocks that are at hand, one after the other.

    In one call, 1 MiB each: two threads scrub 1.1 times as fast as with one call of the xxhash package for each block.
    """
    if _native.kernel():
        return _native.block_digests(data, block_size)
    return b"".join(xxh3_128_digest(data[at : at + block_size]) for at in range(0, len(data), block_size))


class PlainBlocks:
    """The digests of blocks by the xxhash package; an object for the pump like one of hashlib."""

    name = "blocks"

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._table = bytearray()
        self._hash = xxh3_128()
        self._left = block_size

    def update(self, data: ReadableBuffer) -> None:
        """The next bytes of the stream."""
        view = memoryview(data)
        while view.nbytes >= self._left:
            self._hash.update(view[: self._left])
            self._complete()
            view = view[self._left :]
            self._left = self.block_size
        if view.nbytes:
            self._hash.update(view)
            self._left -= view.nbytes

    def _complete(self) -> None:
        self._table += self._hash.digest()
        self._hash.reset()

    def digests(self) -> tuple[bytes, bytes]:
        """As those of `fastfs._native.BlockDigests`; there is never a rest."""
        if self._left < self.block_size:
            self._complete()
            self._left = self.block_size
        return bytes(self._table), b""


def pack_small(
    image_id: str, data: ReadableBuffer, block_size: int, digests: Sequence[str], names: Sequence[str]
) -> bytes:
    """The record of an image that is at hand and no longer than a block.

    :param digests: those of `names`, MD5 first, hexadecimal.
    """
    size = memoryview(data).nbytes
    one = make(image_id, size, block_size, digests[0], names[-1], digests[-1])
    return pack(one, xxh3_128_digest(data) if size else b"")


@lru_cache(maxsize=1)
def writer_name() -> str:
    """This version of fastfs, for the field `Record.writer`.  A store asks early, since the answer takes imports that a
    process which has given up its rights since then might not be allowed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"fastfs {version('fastfs-store')}"
    except PackageNotFoundError:
        return "fastfs"


def make(image_id: str, size: int, block_size: int, md5: str, algorithm: str, multihash: str) -> Record:
    """A record made now, of no particular file."""
    return Record(
        image_id=image_id,
        size=size,
        block_size=block_size,
        md5=md5,
        algorithm=algorithm,
        multihash=multihash,
        time=time.time_ns(),
        writer=writer_name(),
        nonce=os.urandom(16),
    )


def pack(record: Record, digests: bytes) -> bytes:
    """A record as bytes, never checked yet.

    :param digests: `Record.blocks` times 16 bytes.
    :raises ValueError: another number of digests.
    """
    if len(digests) != record.blocks * DIGEST:
        raise ValueError(f"{len(digests)} bytes of digests for {record.blocks} blocks")
    texts = (
        os.fsencode(record.image_id),
        record.algorithm.encode(),
        bytes.fromhex(record.multihash),
        record.writer.encode(),
    )
    length = _header_size(sum(map(len, texts)))
    fixed = _FIXED.pack(
        MAGIC,
        VERSION,
        TAGGED if record.tagged else 0,
        length,
        record.size,
        record.block_size,
        record.blocks,
        record.time,
        record.nonce,
        record.mtime,
        record.inode,
        record.filesystem,
        record.own_inode,
        bytes.fromhex(record.md5),
        *map(len, texts),
    )
    header = (fixed + b"".join(texts)).ljust(length - DIGEST, b"\0")
    parts = [header, xxh3_128_digest(header), bytes(STAMP_SIZE)]
    for group, start in enumerate(range(0, len(digests), GROUP * DIGEST)):
        part = digests[start : start + GROUP * DIGEST]
        parts += [part, _group_digest(record.nonce, group, part)]
    return b"".join(parts)


def _header_size(texts: int) -> int:
    return -(-(_FIXED.size + texts) // DIGEST) * DIGEST + DIGEST


def _group_digest(nonce: bytes, group: int, digests: bytes) -> bytes:
    # With nonce and number, so that a group of another record, or of another place, is noticed.
    return xxh3_128_digest(nonce + group.to_bytes(8, "little") + digests)


def stamp_in(data: bytes) -> Stamp:
    """The stamp of a record that begins with `data` (`HEADER_MAX` + `STAMP_SIZE` bytes do), which is not checked."""
    if len(data) < _FIXED.size or data[: len(MAGIC)] != MAGIC:
        return Stamp()
    length = int.from_bytes(data[12:16], "little")
    return Stamp.unpack(data[length : length + STAMP_SIZE])


def packed_size(record: Record, header: int) -> int:
    """Bytes of a whole record whose header has `header`."""
    groups = -(-record.blocks // GROUP)
    return header + STAMP_SIZE + (record.blocks + groups) * DIGEST


def unpack_header(data: bytes) -> tuple[Record, int]:
    """The header at the beginning of `data`, which may hold more, and its length.

    :raises Damaged: it is none.
    """
    if len(data) < _FIXED.size + DIGEST:
        raise Damaged(f"it has {len(data)} bytes only")
    magic, version, flags, length, size, block_size, blocks, made, nonce, mtime, inode, fs, own, md5, *lengths = (
        _FIXED.unpack_from(data)
    )
    if magic != MAGIC:
        raise Damaged("it does not begin like one")
    if length != _header_size(sum(lengths)) or length > min(HEADER_MAX, len(data)):
        raise Damaged("its header is damaged")
    if xxh3_128_digest(data[: length - DIGEST]) != data[length - DIGEST : length]:
        raise Damaged("its header is damaged")
    if version != VERSION:
        raise Damaged(f"it has version {version}; this fastfs knows {VERSION}")
    texts, at = [], _FIXED.size
    for part in lengths:
        texts.append(data[at : at + part])
        at += part
    record = Record(
        image_id=os.fsdecode(texts[0]),
        size=size,
        block_size=block_size,
        md5=md5.hex(),
        algorithm=texts[1].decode(),
        multihash=texts[2].hex(),
        time=made,
        writer=texts[3].decode(),
        nonce=nonce,
        tagged=bool(flags & TAGGED),
        mtime=mtime,
        inode=inode,
        filesystem=fs,
        own_inode=own,
    )
    if not block_size or record.blocks != blocks:
        raise Damaged("its header makes no sense")
    return record, length


class Bytes(Protocol):
    """Where the bytes of a record are read and written."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on; fewer at the end."""

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite bytes."""

    def size(self) -> int:
        """How many bytes there are."""


class Table:
    """A stored record: its header, checked, and its other parts, which are read and checked when asked for.

    :raises Damaged: no record, or not as long as it should be.
    """

    def __init__(self, source: Bytes) -> None:
        self._source = source
        self.record, self._header = unpack_header(source.read(0, HEADER_MAX))
        found, wanted = source.size(), packed_size(self.record, self._header)
        if found != wanted:
            raise Damaged(f"it has {found} bytes, not {wanted}")
        # One attribute: threads that share a table must not take the digests of one group for those of another.
        self._cached: tuple[int, bytes] = (-1, b"")

    def digest(self, block: int) -> bytes:
        """The digest of one block.

        :raises Damaged: that part of the table is.
        """
        group, index = divmod(block, GROUP)
        cached = self._cached
        if cached[0] != group:
            self._cached = cached = (group, self._load(group))
        return cached[1][index * DIGEST : (index + 1) * DIGEST]

    def digests(self) -> Iterator[bytes]:
        """The digests of all blocks in order.

        :raises Damaged: a part of the table is.
        """
        for block in range(self.record.blocks):
            yield self.digest(block)

    def check(self) -> None:
        """Look at every part.

        :raises Damaged: one is.
        """
        for group in range(-(-self.record.blocks // GROUP)):
            self._load(group)

    def _load(self, group: int) -> bytes:
        record = self.record
        length = min(GROUP, record.blocks - group * GROUP) * DIGEST
        data = self._source.read(self._header + STAMP_SIZE + group * GROUP_SIZE, length + DIGEST)
        digests = data[:length]
        if len(data) != length + DIGEST or data[length:] != _group_digest(record.nonce, group, digests):
            raise Damaged(f"its digests of blocks {group * GROUP} and on are damaged")
        return digests

    def stamp(self) -> Stamp:
        """When the image was last checked."""
        return Stamp.unpack(self._source.read(self._header, STAMP_SIZE))

    def set_stamp(self, stamp: Stamp) -> None:
        """:raises OSError: the record cannot be written."""
        self._source.write(self._header, stamp.pack())


@lru_cache(maxsize=8)
def zero_digest(length: int) -> bytes:
    """The digest of that many zeroes."""
    hasher, piece = xxh3_128(), bytes(min(length, 1 << 20))
    for start in range(0, length, len(piece) or 1):
        hasher.update(piece[: length - start])
    return hasher.digest()
