# SPDX-License-Identifier: Apache-2.0
"""Mend an image from a good copy: only the blocks that are damaged, each proven before it is written.

It happens in place.  A block that is written has the digest that its record tells, so an image can only become
better, whatever the copy holds and whenever the process is killed; what is left undone the next repair does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from xxhash import xxh3_128_digest

from fastfs import record as rec
from fastfs import sidecar
from fastfs.datadirs import close_quietly
from fastfs.exceptions import Invalid, NotFound, StorageError, Unverifiable, from_oserror
from fastfs.scrub.check import Check
from fastfs.scrub.finding import Finding, Status

# What mending in place can help.  A wrong file may be the only copy of another image: it is not overwritten.
_MENDABLE = (Status.ROT, Status.TRUNCATED, Status.GROWN, Status.UNREADABLE)

# A finding names the first runs of bad blocks only; so many rounds mend as many images as anybody has.
_ROUNDS = 10_000
_TIMEOUT = 60.0


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What a repair has done."""

    image_id: str
    datadir: str
    #: What was found before, and when all was done: every digest was checked then.
    before: Finding
    after: Finding
    #: Blocks that were written, and their bytes.
    blocks: int
    bytes: int

    @property
    def mended(self) -> bool:
        return self.after.status is Status.CLEAN

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.image_id,
            "url": self.after.url,
            "before": self.before.status.value,
            "after": self.after.status.value,
            "repaired": self.mended,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "detail": self.after.detail,
        }


class GoodCopy(Protocol):
    """Where good bytes come from."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset` on; fewer if there are no more."""

    def close(self) -> None: ...


class FileCopy:
    """A file or a block device."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise Invalid(f"{path} is no file that could hold a copy of an image", path=path)
        except BaseException:
            close_quietly(self._fd)
            raise

    def read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length and (piece := os.pread(self._fd, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        close_quietly(self._fd)


class WebCopy:
    """What a web server has; one that knows ranges is asked for the damaged blocks only."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._response: Any = None
        self._at = 0

    def read(self, offset: int, length: int) -> bytes:
        import urllib.error  # 50 ms that others need not pay
        import urllib.request

        request = urllib.request.Request(self._url, headers={"Range": f"bytes={offset}-{offset + length - 1}"})
        if self._response is not None and self._at <= offset:
            return self._take(offset, length)
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the copy ends before that
                return b""
            raise OSError(errno.EIO, f"{self._url}: {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise OSError(errno.EIO, f"{self._url}: {error.reason}") from None
        if response.status == 206:
            with response:
                return bytes(response.read(length))
        # It sends the whole: what comes before is read and thrown away, and what comes after may be wanted next.
        self.close()
        self._response, self._at = response, 0
        return self._take(offset, length)

    def _take(self, offset: int, length: int) -> bytes:
        while self._at < offset:
            piece = self._response.read(min(1 << 20, offset - self._at))
            if not piece:
                return b""
            self._at += len(piece)
        data = bytes(self._response.read(length))
        self._at += len(data)
        return data

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


def open_copy(place: str | os.PathLike[str], image_id: str) -> GoodCopy:
    """A good copy.

    :param place: a path, of a folder that holds a file `image_id`, too, or a URL: file, http, https.
    :raises Invalid: another kind of URL.
    :raises OSError: it cannot be opened.
    """
    text = os.fspath(place)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("http", "https"):
        return WebCopy(text)
    if scheme in ("file", "filesystem"):
        text = text.partition("://")[2]
    elif scheme:
        raise Invalid(f"{text}: a copy is a path or a URL of file, http or https")
    if os.path.isdir(text):
        text = os.path.join(text, image_id)
    return FileCopy(text)


class Repair:
    """Mends one image; use it once.

    :param progress: called with the bytes that were looked at, since the last call.
    """

    def __init__(
        self,
        path: str,
        image_id: str,
        copy: GoodCopy,
        durability: str,
        engine: str = "auto",
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.path = path
        self.image_id = image_id
        self.copy = copy
        self.durability = durability
        self.engine = engine
        self.progress = progress
        self.blocks = 0
        self.bytes = 0

    def run(self) -> Repaired:
        """:raises Unverifiable: there is no record of use, so that nobody knows what is damaged.
        :raises StorageError: the image cannot be written, or it is not one to be overwritten.
        :raises OSError: the copy cannot be read.
        """
        before = finding = self._check("fast")
        for _ in range(_ROUNDS):
            self._refuse(finding)
            if finding.status is Status.CLEAN:
                break
            written = self.blocks
            self._mend(finding)
            more = self._check("fast")
            if more.damaged and self.blocks == written and more.bad == finding.bad:
                finding = more
                break  # the copy has not what is missing
            finding = more
        after = self._check("deep") if finding.status is Status.CLEAN else finding
        return Repaired(self.image_id, self.path, before, after, self.blocks, self.bytes)

    def _check(self, mode: Any) -> Finding:
        return Check(self.path, self.image_id, mode, None, 0, self.progress, self.engine).run()

    def _refuse(self, finding: Finding) -> None:
        status, url = finding.status, finding.url
        if status is Status.CLEAN or status in _MENDABLE:
            return
        if status is Status.VANISHED:
            raise NotFound(f"no image found at {url}", path=f"{self.path}/{self.image_id}", image_id=self.image_id)
        if status in (Status.NO_RECORD, Status.RECORD_DAMAGED):
            raise Unverifiable(
                f"{url} cannot be repaired: {finding.detail or 'it has no record'}, so nobody knows which of its "
                "blocks are damaged",
                path=f"{self.path}/{self.image_id}",
                image_id=self.image_id,
            )
        reason = finding.detail or status.value
        if status in (Status.WRONG_FILE, Status.STALE_RECORD):
            move = "'fastfs scrub --quarantine'" if status is Status.WRONG_FILE else "a copy and 'fastfs rm'"
            reason += (
                "; it may be all that there is of another image, so it is not overwritten; "
                f"{move} moves it away, then the good copy can be stored"
            )
        raise StorageError(
            f"{url} cannot be repaired: {reason}", path=f"{self.path}/{self.image_id}", image_id=self.image_id
        )

    def _mend(self, finding: Finding) -> None:
        """One round: the blocks that the finding names, then the length."""
        top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = -1
        try:
            with self._writing():
                fd = os.open(self.image_id, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
            info = os.fstat(fd)
            if (info.st_ino, info.st_mtime_ns) != finding.file:
                return  # another one by now; the next check tells
            with sidecar.find(top, self.image_id, fd) as attached:
                table = attached.table
                if table is None:
                    return
                record = table.record
                mended = True
                for first, last in finding.bad:
                    for block in range(first, last + 1):
                        begin, length = block * record.block_size, record.block_length(block)
                        mended &= self._mend_block(fd, begin, length, table.digest(block))
                with self._writing():
                    if mended and os.fstat(fd).st_size > record.size:
                        os.ftruncate(fd, record.size)
                    # As it was: what is mended is what was there before it was damaged.
                    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))
                    if self.durability != "none":
                        os.fsync(fd)
        except rec.Damaged:
            return  # the next check tells
        finally:
            if fd >= 0:
                close_quietly(fd)
            close_quietly(top)

    def _mend_block(self, fd: int, offset: int, length: int, digest: bytes) -> bool:
        data = self.copy.read(offset, length)
        if len(data) != length or xxh3_128_digest(data) != digest:
            return False  # not a good copy of this block
        done = 0
        with self._writing(), memoryview(data) as view:
            while done < length:
                done += os.pwrite(fd, view[done:], offset + done)
        self.blocks += 1
        self.bytes += length
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the image, not of the copy."""
        try:
            yield
        except OSError as error:
            path = f"{self.path}/{self.image_id}"
            raise from_oserror(error, "write", path=path, image_id=self.image_id) from error


def repair(
    path: str,
    image_id: str,
    place: str | os.PathLike[str],
    durability: str,
    engine: str,
    progress: Callable[[int], object] | None,
) -> Repaired:
    """Mend the image of the data directory `path` from a copy; see `Repair.run` and `open_copy`."""
    with contextlib.closing(open_copy(place, image_id)) as copy:
        return Repair(path, image_id, copy, durability, engine, progress).run()
