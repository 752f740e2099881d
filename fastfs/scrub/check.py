# SPDX-License-Identifier: Apache-2.0
"""Check one image against its record, and tell what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from xxhash import xxh3_128

from fastfs import hashing, sidecar
from fastfs import record as rec
from fastfs.datadirs import close_quietly
from fastfs.exceptions import UnknownHashingAlgo
from fastfs.publish import NO_LOCKS
from fastfs.scrub.cache import Guest
from fastfs.scrub.finding import Finding, Mode, Runs, Status
from fastfs.scrub.limits import Limits, Stopped
from fastfs.scrub.mapped import Mapped
from fastfs.scrub.reading import Unreadable, digest_all
from fastfs.sidecar import Attached, Relation

Progress = Callable[[int], object]

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY

# Read and hashed at once, into memory at the beginning of a page: what stays in a processor's cache in between.
PIECE = 256 * 1024

# Looked at without copying before progress is told and an end is asked for.
MAPPED_RUN = 8 << 20

# For more than that xxhash, which is used where there are no kernels, gives up the GIL (in all versions from 3.1 on):
# nobody has to wait when a page must be fetched after all.
UNLOCKED = 64 * 1024

# How often the position in a long check is noted, in seconds: what a kill may cost.
NOTE_EVERY = 5.0
# A dead disk can take a minute for each block: after so many in a row the rest is not tried.
GIVE_UP = 64


class Check:
    """Checks an image; use it once.

    :param path: the data directory.
    :param started: the pass that this belongs to, nanoseconds since the epoch: what was found clean in it is not
        looked at again, and a check that was broken off goes on where it was; 0: neither.
    :param progress: called with bytes done.
    :param engine: the option `hash_engine`.
    """

    def __init__(
        self,
        path: str,
        name: str,
        mode: Mode = "fast",
        limits: Limits | None = None,
        started: int = 0,
        progress: Progress | None = None,
        engine: str = "auto",
    ) -> None:
        self.path = path
        self.name = name
        self.mode = mode
        self.limits = limits or Limits()
        self.started = started
        self.progress = progress
        self.engine = engine
        self._fd = -1
        self._top = -1
        self._info: os.stat_result
        self._attached = Attached()
        self._checked = 0
        self._told = 0
        self._stamped = 0.0
        self._buffer = bytearray()

    def run(self) -> Finding:
        """Never raises but for what `progress` raises."""
        began = time.monotonic()
        try:
            try:
                finding = self._run()
            except Stopped:
                finding = self._finding(Status.UNFINISHED, "broken off")
            except OSError as error:
                finding = self._failed(error)
        finally:
            self._close()
        return dataclasses.replace(finding, checked=self._checked, seconds=time.monotonic() - began)

    def _failed(self, error: OSError) -> Finding:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return self._finding(Status.VANISHED)
        reason = error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EPERM):
            return self._finding(Status.DENIED, reason)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return self._finding(Status.UNFINISHED, reason)
        return self._finding(Status.UNREADABLE, reason)

    def _close(self) -> None:
        self._attached.close()
        for fd in (self._fd, self._top):
            if fd >= 0:
                close_quietly(fd)
        self._fd = self._top = -1

    def _finding(self, status: Status, detail: str = "", **more: Any) -> Finding:
        info = getattr(self, "_info", None)
        record = self._attached.table.record if self._attached.table is not None else None
        return Finding(
            image_id=self.name,
            datadir=self.path,
            status=status,
            mode=self.mode,
            size=info.st_size if info is not None else None,
            expected_size=record.size if record is not None else None,
            block_size=record.block_size if record is not None else None,
            detail=detail,
            file=(info.st_ino, info.st_mtime_ns) if info is not None else (0, 0),
            **more,
        )

    def _run(self) -> Finding:
        self._top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finding = self._once()
        # What was changed or replaced while it was read looks damaged and may not be.
        for _ in range(3):
            if not finding.damaged and finding.status is not Status.STALE_RECORD:
                break
            if not self._changed():
                break
            finding = self._once()
        self._stamp(finding)
        return finding

    def _once(self) -> Finding:
        self._attached.close()
        if self._fd >= 0:
            close_quietly(self._fd)
            self._fd = -1
        self._fd = os.open(self.name, _READ, dir_fd=self._top)
        self._info = os.fstat(self._fd)
        if not stat.S_ISREG(self._info.st_mode):
            return self._finding(Status.VANISHED)
        self._attached = sidecar.find(self._top, self.name, self._fd, writable=True)
        table = self._attached.table
        if table is None:
            if self._attached.missing:
                return self._finding(Status.NO_RECORD)
            return self._finding(Status.RECORD_DAMAGED, self._attached.damage)
        if not self._lock():
            return self._finding(Status.BUSY, "another scrub checks it")
        stamp = table.stamp()
        if self.started and stamp.started == self.started and stamp.verdict == stamp.CLEAN and not stamp.position:
            return self._finding(Status.SKIPPED)
        try:
            table.check()
            return self._verdict(table, stamp)
        except rec.Damaged as error:
            return self._finding(Status.RECORD_DAMAGED, str(error))

    def _lock(self) -> bool:
        if self._attached.fd < 0:
            return True  # a small one: to check it twice is no matter
        try:
            fcntl.flock(self._attached.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return True

    def _changed(self) -> bool:
        """Is the file another one, or written to, since it was opened?"""
        now = os.fstat(self._fd)
        there = os.stat(self.name, dir_fd=self._top, follow_symlinks=False)
        return (now.st_size, now.st_mtime_ns, now.st_dev, now.st_ino) != (
            self._info.st_size,
            self._info.st_mtime_ns,
            there.st_dev,
            there.st_ino,
        )

    # -- reading --------------------------------------------------------------------------------------------

    def _verdict(self, table: rec.Table, stamp: rec.Stamp) -> Finding:
        record, relation = table.record, self._attached.relation
        if record.image_id != self.name and relation is not Relation.OWN and relation is not Relation.UNKNOWN:
            return self._finding(Status.STALE_RECORD, f"the record is of image {record.image_id}")
        position = self._resumable(stamp)
        if self.mode == "deep" and self._info.st_size == record.size:
            wrong = self._deep(table)
            if wrong is None:
                return self._clean_or_wrong_name(record)
            blocks = self._blocks(table, 0)
            if not blocks.bad.count and not blocks.error:
                return self._finding(Status.WRONG_DIGEST, wrong)
        else:
            blocks = self._blocks(table, position)
        if not blocks.bad.count and not blocks.error and self._info.st_size == record.size:
            return self._clean_or_wrong_name(record)
        return self._judge(record, blocks)

    def _clean_or_wrong_name(self, record: rec.Record) -> Finding:
        if record.image_id != self.name:
            return self._finding(Status.WRONG_FILE, f"it is image {record.image_id}")
        return self._finding(Status.CLEAN)

    def _resumable(self, stamp: rec.Stamp) -> int:
        """How much of the image this pass has found clean already."""
        same = stamp.started == self.started and stamp.changed == self._info.st_ctime_ns
        return min(stamp.position, self._info.st_size) if self.started and same else 0

    def _blocks(self, table: rec.Table, position: int) -> _Blocks:
        """Compare all blocks."""
        record = table.record
        size = record.block_size
        found = _Blocks(matched=position > 0)
        guest = Guest(self._fd, self._info.st_size)
        mapped = Mapped(self._fd, self._info.st_size)
        map_ = _DataMap(self._fd, self._info.st_size)
        failures = 0
        buffer = memoryview(mmap.mmap(-1, PIECE))[: min(PIECE, size, max(1, self._info.st_size))]
        try:
            block = position // size
            while block < record.blocks:
                self.limits.check()
                run = self._clean_run(guest, mapped, map_, table, block, found)
                if run:
                    failures, found.careful = 0, False
                    block += run
                    self._report(run * size)
                    self._note(table, found, block * size)
                    continue
                offset, length = block * size, record.block_length(block)
                there = min(length, self._info.st_size - offset)
                if there <= 0:
                    found.bad.add(block, record.blocks - 1)
                    break
                wanted = table.digest(block)
                try:
                    digest = self._digest(guest, map_, offset, there, buffer)
                    failures = 0
                except Unreadable as error:
                    failures += 1
                    digest, found.error = b"", str(error)
                found.careful = digest != wanted or there < length
                if found.careful:
                    found.bad.add(block)
                elif digest != rec.zero_digest(length):
                    found.matched = True
                block += 1
                self._report(there)
                self._note(table, found, offset + there)
                if failures >= GIVE_UP:
                    found.bad.add(block, record.blocks - 1) if block < record.blocks else None
                    break
        finally:
            try:
                mapped.close()
            finally:
                guest.done()
        return found

    def _clean_run(
        self, guest: Guest, mapped: Mapped, map_: _DataMap, table: rec.Table, block: int, found: _Blocks
    ) -> int:
        """How many whole blocks from this one on are clean, seen where they lie in the page cache; 0: read this one."""
        size, offset = table.record.block_size, block * table.record.block_size
        run = size if found.careful else MAPPED_RUN
        most = min(run, self._info.st_size - offset, table.record.size - offset) // size
        if most <= 0 or size <= UNLOCKED or self.limits.rate or map_.sparse:
            return 0
        guest.reading(offset)
        most = min(most, (guest.window_end(offset) - offset) // size)
        view = mapped.view(offset, most * size) if most > 0 and guest.resident() else None
        if view is None:
            return 0
        count, matched = 0, False
        with view:
            digests = rec.block_digests(view, size)
        while count < most:
            digest = digests[count * rec.DIGEST : (count + 1) * rec.DIGEST]
            if digest != table.digest(block + count):
                break
            matched = matched or digest != rec.zero_digest(size)
            count += 1
        if not mapped.intact:
            return 0
        found.matched = found.matched or matched
        return count

    def _digest(self, guest: Guest, map_: _DataMap, offset: int, length: int, buffer: memoryview) -> bytes:
        if map_.is_hole(offset, length):
            return rec.zero_digest(length)
        hasher = xxh3_128()
        for begin in range(0, length, len(buffer)):
            view = buffer[: length - begin]
            self._read(guest, offset + begin, view)
            hasher.update(view)
        return hasher.digest()

    def _read(self, guest: Guest, offset: int, view: memoryview) -> None:
        self.limits.take(len(view))
        done = 0
        try:
            while done < len(view):
                at = offset + done
                guest.reading(at)
                count = os.preadv(self._fd, [view[done : done + guest.window_end(at) - at]], at)
                if count == 0:
                    raise OSError(errno.EIO, "it became shorter while it was read")
                done += count
        except OSError as error:
            raise Unreadable(error) from error

    def _report(self, count: int) -> None:
        self._checked += count
        if self.progress is not None and self._checked > self._told:
            self.progress(self._checked - self._told)
            self._told = self._checked

    def _deep(self, table: rec.Table) -> str | None:
        """Compare all digests in one pass; what is wrong, or None."""
        record = table.record
        names: tuple[str, ...] = ("md5",)
        with contextlib.suppress(UnknownHashingAlgo):  # one that this Python lacks
            names = hashing.algorithm(record.algorithm).names
        try:
            found = digest_all(self._fd, self._info, names, record.block_size, self.limits, self.engine, self._report)
        except Unreadable as error:
            return str(error)
        if found.blocks != b"".join(table.digests()):
            return "blocks differ"
        if found.digests["md5"] != record.md5:
            return "all blocks are right, but MD5 is not"
        if len(names) > 1 and found.digests[names[-1]] != record.multihash:
            return f"all blocks are right, but {record.algorithm} is not"
        return None

    # -- judging --------------------------------------------------------------------------------------------

    def _judge(self, record: rec.Record, blocks: _Blocks) -> Finding:
        """Something is wrong: what?"""
        relation, size = self._attached.relation, self._info.st_size
        told: dict[str, Any] = {"bad_blocks": blocks.bad.count, "bad": tuple(blocks.bad.runs)}
        if blocks.error:
            return self._finding(Status.UNREADABLE, blocks.error, **told)
        told["foreign"] = not blocks.matched
        if relation is Relation.OTHER:
            return self._finding(Status.WRONG_FILE, "it was stored as another image", **told)
        if relation is Relation.OWN and record.image_id != self.name:
            return self._finding(Status.WRONG_FILE, f"it was stored as image {record.image_id}", **told)
        if relation is Relation.REPLACED or record.image_id != self.name:
            return self._finding(Status.STALE_RECORD, "something else has replaced the image", **told)
        if relation is Relation.UNKNOWN and not blocks.matched and record.mtime != self._info.st_mtime_ns:
            return self._finding(
                Status.STALE_RECORD, "nothing in the file is as recorded, and it was changed since", **told
            )
        if size < record.size:
            return self._finding(Status.TRUNCATED, f"{record.size - size} bytes are missing", **told)
        if size > record.size:
            return self._finding(Status.GROWN, f"{size - record.size} bytes too many", **told)
        return self._finding(Status.ROT, _counted(blocks.bad.count), **told)

    # -- what is kept of it ---------------------------------------------------------------------------------

    def _note(self, table: rec.Table, found: _Blocks, position: int) -> None:
        """From time to time: how far we are."""
        now = time.monotonic()
        if not self.started or found.bad.count or self._attached.fd < 0:
            return
        if not self._stamped:
            self._stamped = now
        if now - self._stamped < NOTE_EVERY:
            return
        self._stamped = now
        old = table.stamp()
        self._write(
            table,
            rec.Stamp(old.verdict, old.checked, old.deep, self.started, position, self._info.st_ctime_ns),
        )

    def _stamp(self, finding: Finding) -> None:
        table = self._attached.table
        if table is None or not (finding.damaged or finding.status is Status.CLEAN):
            return
        now, old = time.time_ns(), table.stamp()
        verdict = rec.Stamp.DAMAGED if finding.damaged else rec.Stamp.CLEAN
        deep = now if self.mode == "deep" else old.deep
        self._write(table, rec.Stamp(verdict, now, deep, self.started))

    @staticmethod
    def _write(table: rec.Table, stamp: rec.Stamp) -> None:
        # A read-only file system, or no right to write: it will be checked again sooner than needed.
        with contextlib.suppress(OSError):
            table.set_stamp(stamp)


class _Blocks:
    """What comparing the blocks has shown."""

    def __init__(self, matched: bool) -> None:
        self.bad = Runs()
        #: One at least, not of zeroes only, is as recorded: the file is the image, whatever happened to it.
        self.matched = matched
        self.error = ""
        #: The block before was bad: the next ones may be, too, and all of a run is hashed before one is compared.
        self.careful = False


class _DataMap:
    """Where a file has holes, asked for front to back."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._from = 0  # what is known: a hole from here
        self._to = 0  # to here, and data from there
        self._data_to = 0  # to here
        #: It has holes.
        self.sparse = os.fstat(fd).st_blocks * 512 < size

    def is_hole(self, offset: int, length: int) -> bool:
        """Is nothing of this stored?"""
        if not self.sparse:
            return False
        if not self._from <= offset < max(self._data_to, self._to):
            self._look(offset)
        return self._from <= offset and offset + length <= self._to

    def _look(self, offset: int) -> None:
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
            self._from, self._to = offset, data
            self._data_to = os.lseek(self._fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._from, self._to, self._data_to = offset, self._size, self._size
            else:
                self.sparse = False


def _counted(count: int) -> str:
    return "1 block is wrong" if count == 1 else f"{count} blocks are wrong"
