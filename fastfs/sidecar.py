# SPDX-License-Identifier: Apache-2.0
"""Where records lie: in a hidden file beside the image; those of small images in a user attribute of the image.

A record is named before its image and removed after it, so that what a dead writer leaves is a record without
an image, which nobody misses: `sweep` removes it, or the next image of that name.  Whether an image exists is
never asked here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from xxhash import xxh3_128_hexdigest

from fastfs import record as rec
from fastfs.datadirs import DataDir, close_quietly
from fastfs.location import NAME_MAX
from fastfs.publish import LOCKLESS_GRACE, NO_LOCKS, PREFIX, Draft, take_over
from fastfs.sources import SMALL

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastfs.config import Durability

LOG = logging.getLogger(__name__)

SUFFIX = ".rec"
# For an id that leaves no room for prefix and suffix: a digest of the id in its place, and a suffix of its own,
# so that no other id can have that name.
LONG_SUFFIX = ".hrec"

#: User attributes of an image: the whole record of a small one; the nonce of the record in the sidecar.
RECORD_ATTRIBUTE = "user.fastfs.record"
RECORD_ATTRIBUTE_BYTES = RECORD_ATTRIBUTE.encode()
TAG_ATTRIBUTE = "user.fastfs.tag"

# How long to wait for whoever holds the sidecar of an image that does not exist: another add of the same id is
# about to publish (microseconds), a delete is about to remove it.  Then the image goes without a record.
PATIENCE = 2.0

_NO_ATTRIBUTES = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ERANGE, errno.EINVAL}


def sidecar_name(image_id: str) -> str:
    """The name of the hidden file that holds the record of an image."""
    if len(os.fsencode(image_id)) + len(PREFIX) + len(SUFFIX) <= NAME_MAX:
        return f"{PREFIX}{image_id}{SUFFIX}"
    return f"{PREFIX}{xxh3_128_hexdigest(os.fsencode(image_id))}{LONG_SUFFIX}"


def is_sidecar_name(name: str) -> bool:
    """Is this the name of a record?"""
    return name.startswith(PREFIX) and name.endswith((SUFFIX, LONG_SUFFIX))


class Relation(enum.Enum):
    """What a record has to do with the file that has the image's name."""

    #: It was made for this very file.
    OWN = "own"
    #: The file was stored with another record.
    OTHER = "other"
    #: Something else put a new file in the place of the one that the record was made for.
    REPLACED = "replaced"
    #: Nobody can tell: they were copied without attributes, or there are none here.
    UNKNOWN = "unknown"


class _File:
    """The bytes of a sidecar."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        while 0 < len(data) < size:
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def size(self) -> int:
        return os.fstat(self.fd).st_size


class _Attribute:
    """The bytes of a record in a user attribute."""

    def __init__(self, fd: int, data: bytes) -> None:
        self.fd = fd
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        self.data = self.data[:offset] + data + self.data[offset + len(data) :]
        os.setxattr(self.fd, RECORD_ATTRIBUTE, self.data, os.XATTR_REPLACE)

    def size(self) -> int:
        return len(self.data)


@dataclasses.dataclass
class Attached:
    """What was found for an image: a record, or why there is none.  To be closed."""

    table: rec.Table | None = None
    relation: Relation = Relation.UNKNOWN
    #: Where it lies: a path, or the name of an attribute; "" if there is none.
    place: str = ""
    #: Why a record that is there is of no use.
    damage: str = ""
    fd: int = -1

    @property
    def missing(self) -> bool:
        return self.table is None and not self.damage

    def again(self) -> Attached:
        """The same once more, to be closed by itself.

        :raises OSError: there are no descriptors left, or it cannot be read.
        """
        other = dataclasses.replace(self, fd=-1)
        if self.fd >= 0:
            other.fd = os.dup(self.fd)
            _load(other, _File(other.fd))
        return other

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)

    def __del__(self) -> None:
        self.close()  # of a reader that is dropped half-way

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attribute(fd: int, name: str) -> bytes | None:
    """A user attribute; None where there is none."""
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return None
        raise


def find(top: int, name: str, fd: int, writable: bool = False) -> Attached:
    """The record of an image.

    :param top: a descriptor of the directory that holds the image `name`.
    :param fd: the image, open for reading.
    :param writable: the stamp is going to be set; where that is not allowed the record comes read-only.
    :raises OSError: it cannot be read.
    """
    data = attribute(fd, RECORD_ATTRIBUTE)
    if data is not None:
        found = Attached(place=RECORD_ATTRIBUTE, relation=Relation.OWN)
        _load(found, _Attribute(fd, data))
        return found
    place = sidecar_name(name)
    found = Attached(place=place)
    try:
        found.fd = _open(top, place, writable)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Attached()
        if error.errno != errno.ELOOP:
            raise
        found.damage = "it is a symbolic link"
        return found
    try:
        info = os.fstat(found.fd)
        if not stat.S_ISREG(info.st_mode):
            found.damage = "it is no regular file"
            return found
        _load(found, _File(found.fd))
        if found.table is not None:
            found.relation = _relation(found.table.record, fd, found.fd, info)
        return found
    except BaseException:
        found.close()
        raise


def open_sidecar(path: str, name: str) -> Attached:
    """The sidecar `name` of the directory `path`, without its image.

    :raises OSError: it cannot be read.
    """
    found = Attached(place=name, fd=os.open(f"{path}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    try:
        _load(found, _File(found.fd))
    except BaseException:
        found.close()
        raise
    return found


def stamp_of(top: int, path: str, name: str) -> rec.Stamp:
    """When the image `name` of the directory `path`, which `top` is a descriptor of, was last checked."""
    try:
        fd = os.open(sidecar_name(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        try:
            return rec.stamp_in(os.getxattr(f"{path}/{name}", RECORD_ATTRIBUTE, follow_symlinks=False))
        except OSError:
            return rec.Stamp()
    try:
        return rec.stamp_in(os.pread(fd, rec.HEADER_MAX + rec.STAMP_SIZE, 0))
    except OSError:
        return rec.Stamp()
    finally:
        close_quietly(fd)


def _open(top: int, name: str, writable: bool) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if writable:
        try:
            return os.open(name, flags | os.O_RDWR, dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENXIO):
                raise
    return os.open(name, flags | os.O_RDONLY, dir_fd=top)


def _load(found: Attached, source: rec.Bytes) -> None:
    try:
        found.table = rec.Table(source)
    except rec.Damaged as error:
        found.damage = str(error)


def _relation(record: rec.Record, fd: int, sidecar: int, info: os.stat_result) -> Relation:
    tag = attribute(fd, TAG_ATTRIBUTE)
    if tag is not None and len(tag) == len(record.nonce):
        return Relation.OWN if tag == record.nonce else Relation.OTHER
    image = os.fstat(fd)
    if record.own_inode and (record.filesystem, record.own_inode) == (_filesystem(sidecar), info.st_ino):
        # The sidecar lies where it was written.  An image that has lost its tag is another file then; without
        # tags the inode tells, though not for sure that it is the same: ext4 gives a freed one to the next file.
        if record.tagged or record.inode != image.st_ino:
            return Relation.REPLACED
        if record.mtime == image.st_mtime_ns:
            return Relation.OWN
    return Relation.UNKNOWN


def _filesystem(fd: int) -> int:
    return os.fstatvfs(fd).f_fsid & (2**64 - 1)


class Sidecar:
    """The record of an image on its way: `write`, then `link`, each before the same is done to the image.

    What goes wrong with it is only logged: the image does without.  At the end, and after any failure, `release`.

    :param record: what `fastfs.record.make` gave.
    :param digests: those of its blocks.
    """

    def __init__(
        self, directory: DataDir, record: rec.Record, digests: bytes, mode: int, durability: Durability
    ) -> None:
        self.directory = directory
        self.record = record
        self.digests = digests
        self._draft = Draft(directory, sidecar_name(record.image_id), mode, durability)
        #: There is nothing to be linked: it lies in an attribute of the image, or it could not be written.
        self.without = False
        #: Why it could not be written.
        self.error: OSError | None = None

    def write(self, fd: int) -> None:
        """Write the record of the image `fd`, which is complete, but not synced yet, and mark that as its own."""
        if self.record.size <= SMALL:
            whole = rec.pack(self.record, self.digests)
            self.without = set_attribute(self.directory, fd, RECORD_ATTRIBUTE, whole)
        if self.without:
            return
        with self._forgiving(fd):
            tagged = set_attribute(self.directory, fd, TAG_ATTRIBUTE, self.record.nonce)
            self._draft.open()
            own = self._draft.fd
            with contextlib.suppress(OSError):  # where there are no locks there are none
                fcntl.flock(own, fcntl.LOCK_EX)
            data = rec.pack(describe(self.record, tagged, fd, own), self.digests)
            write_all(own, data)
            self._draft.seal(len(data))

    def link(self, fd: int) -> None:
        """Give the record its name, before the image `fd` gets its.

        :raises FileExistsError: the image exists.
        """
        if self.without:
            return
        with self._forgiving(fd):
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    self._draft.link()
                    return
                except FileExistsError:
                    if self.directory.holds(self.record.image_id):
                        raise
                    if not _remove_orphan(self._draft.directory_fd, self._draft.name, self.record.image_id):
                        if time.monotonic() > deadline:
                            raise OSError(errno.EBUSY, "an old record is in use") from None
                        time.sleep(0.001)

    def release(self, keep: bool) -> None:
        """Close everything; unless `keep`, nothing of the record stays.  Never raises, may be repeated."""
        self._draft.release(keep=keep and not self.without)

    @contextlib.contextmanager
    def _forgiving(self, fd: int) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            self.without, self.error = True, error
            path = self.directory.file(self.record.image_id)
            LOG.warning("image %s goes without a record: %s", path, error.strerror or error)
            self._draft.release(keep=False)
            # A tag without its record would make another record, left over there, look like that of another image.
            with contextlib.suppress(OSError):
                os.removexattr(fd, TAG_ATTRIBUTE)


def describe(record: rec.Record, tagged: bool, fd: int, sidecar: int) -> rec.Record:
    """The record of the file `fd`, to be written to the file `sidecar`."""
    info = os.fstat(fd)
    return dataclasses.replace(
        record,
        tagged=tagged,
        mtime=info.st_mtime_ns,
        inode=info.st_ino,
        filesystem=_filesystem(sidecar),
        own_inode=os.fstat(sidecar).st_ino,
    )


def set_attribute(directory: DataDir, fd: int, name: str, value: bytes) -> bool:
    """Set a user attribute where there are such."""
    if directory.attributes is False:
        return False
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            directory.attributes = False
        else:  # no room, or the file may not be written: nothing that has to be told
            LOG.debug("no attribute %s: %s", name, error)
        return False
    directory.attributes = True
    return True


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to an empty file."""
    at = 0
    while at < len(data):
        at += os.pwrite(fd, data[at : at + (1 << 20)], at)


def _remove_orphan(top: int, name: str, image_id: str) -> bool:
    """Remove a record that nobody holds and that has no image; False: somebody holds it."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return True
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        # Looked for again now: whoever held the lock may have published the image meanwhile.
        if not _exists(top, image_id):
            _unlink_same(top, name, fd)
        return True
    finally:
        close_quietly(fd)


def remove_orphan(top: int, image_id: str) -> None:
    """Before an image without a hidden record is published: no record of another that was killed must be taken for its
    own.  Never raises: what stays is told of by a scrub, as a stale record.
    """
    with contextlib.suppress(OSError):
        _remove_orphan(top, sidecar_name(image_id), image_id)


def _unlink_same(top: int, name: str, fd: int) -> None:
    """Unlink `name` if it still is the file `fd`."""
    try:
        there = os.stat(name, dir_fd=top, follow_symlinks=False)
        ours = os.fstat(fd)
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            os.unlink(name, dir_fd=top)
    except FileNotFoundError:
        pass


def discard(top: int, image_id: str) -> None:
    """Remove the sidecar of an image, which is of no use.

    :raises OSError: it cannot be removed.
    """
    name = sidecar_name(image_id)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=top)


@contextlib.contextmanager
def returned(top: int, kept: str, image_id: str) -> Iterator[None]:
    """Link a record that was kept elsewhere, at `kept`, to its place; then its image may be put back in the body.

    If that fails the record goes again.

    :raises OSError: it cannot be linked, for another reason than that there is none.
    """
    name = sidecar_name(image_id)
    try:
        fd = os.open(kept, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # so that no sweep takes it for an orphan
        try:
            os.link(kept, name, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
        except FileExistsError:
            # An orphan, unless the image exists, which then is not replaced.
            if not _exists(top, image_id) and _remove_orphan(top, name, image_id):
                os.link(kept, name, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
        try:
            yield
        except BaseException:
            _unlink_same(top, name, fd)
            raise
    finally:
        close_quietly(fd)


class Removal:
    """Removes the record of an image together with it: made before the image goes, `finish` after that.

    Holds the record's lock meanwhile, so that an add of the same id waits instead of losing its own record.
    """

    def __init__(self, top: int, image_id: str) -> None:
        self._top = top
        self._name = sidecar_name(image_id)
        self._fd = -1
        try:
            self._fd = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # none; or a scrub holds it, which does not mind; or there are no locks

    def finish(self) -> None:
        """The image is gone: the record goes, too.  What cannot be removed is left for a sweep."""
        if self._fd < 0:
            return
        try:
            _unlink_same(self._top, self._name, self._fd)
        except OSError as error:
            LOG.warning("a record without an image stays, %s: %s", self._name, error)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)


def sweep(directory: DataDir, grace: float = LOCKLESS_GRACE) -> list[str]:
    """Remove records whose image is gone.  Returns their paths.

    :param grace: where there are no locks: seconds since a record was last written.
    """
    removed = []
    top = directory.open()
    try:
        for name in orphans(top):
            try:
                if _sweep_one(top, name, grace):
                    removed.append(directory.file(name))
                    LOG.info("removed a record without an image, %s", removed[-1])
            except OSError as error:
                LOG.warning("cannot sweep %s: %s", directory.file(name), error)
    finally:
        close_quietly(top)
    return removed


def orphans(top: int) -> list[str]:
    """Names of records in a directory in which nothing has the name of the image."""
    with os.scandir(top) as entries:
        names = {entry.name for entry in entries}
    # Every name that a record may have, rather than every image that a record may be of: an id may be long.
    wanted = {sidecar_name(name) for name in names if not name.startswith(".")}
    return sorted(name for name in names if is_sidecar_name(name) and name not in wanted)


def _is_orphan(top: int, name: str) -> bool:
    if name.endswith(LONG_SUFFIX):
        return name in orphans(top)
    return not _exists(top, name[len(PREFIX) : -len(SUFFIX)])


def _exists(top: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _sweep_one(top: int, name: str, grace: float) -> bool:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    try:
        if not take_over(fd, grace):
            return False
        # An image may have come since; whoever publishes one holds the lock from before its record has a name.
        if not _is_orphan(top, name):
            return False
        _unlink_same(top, name, fd)
        return True
    finally:
        close_quietly(fd)
