# SPDX-License-Identifier: Apache-2.0
"""`Store`: images go in, come out and go away.  The only module that knows all the others."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from fastfs import _native, hashing, ingest, metadata, publish, record, sidecar, timeouts
from fastfs import scrub as upkeep  # `scrub` is a method
from fastfs.config import NAME_DURABLE, StoreConfig
from fastfs.copies import Copy
from fastfs.datadirs import DataDir, DataDirs, close_quietly, reserved_on, stat_regular
from fastfs.exceptions import (
    BadStoreUri,
    Duplicate,
    FastfsError,
    Forbidden,
    Invalid,
    NotFound,
    SizeMismatch,
    StorageWriteDenied,
    from_oserror,
)
from fastfs.ingest import Outcome
from fastfs.location import SCHEMES, Location, check_image_id
from fastfs.reader import ChunkedFile, GuardedFile
from fastfs.sources import open_source, small_object
from fastfs.upload import AddResult, Upload
from fastfs.verified import VerifiedFile, check_usable

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Self

    from fastfs.exceptions import Action

LOG = logging.getLogger(__name__)

Progress = Callable[[int], object]

# File sizes are signed 64-bit numbers: off_t, sys_types.h(0P)
MAX_SIZE = 2**63


class ImageInfo(NamedTuple):
    """A stored image."""

    image_id: str
    url: str
    #: Length in bytes.
    size: int
    #: Bytes that it takes on the disk; fewer than `size` if it has holes.
    allocated: int
    #: Time of the last change, seconds since the epoch.
    mtime: float
    #: Permission bits.
    mode: int
    datadir: str


class DatadirUsage(NamedTuple):
    """The space of one data directory, in bytes."""

    path: str
    priority: int
    total: int
    used: int
    #: What an unprivileged process may still use.
    free: int
    #: What uploads of this process that are under way will still take of that.
    reserved: int
    #: The file system's type, such as ``ext4``; "" if it cannot be told.
    filesystem: str
    writable: bool


class Store:
    """A store of images in one or several directories.

    One object serves any number of threads, and is of use again in a forked child.

    :param config: the options; or give them as keywords: ``Store(datadir="/images")``.
    :param read_only: for looking and reading: nothing is created, swept or checked for being writable; `add` and
        `delete` are refused.
    :param guard: the time limits, where they are shared with others; else made from `config`.
    :raises BadStoreConfiguration: an option has no sense, or a data directory cannot be used.
    """

    def __init__(
        self,
        config: StoreConfig | None = None,
        *,
        read_only: bool = False,
        guard: timeouts.Guard | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = StoreConfig.from_mapping(options)
        elif options:
            raise Invalid("give either a StoreConfig or keywords")
        self.config = config
        self.read_only = read_only
        #: What was swept up when the store was made: paths of unfinished files.
        self.swept: list[str] = []
        if config.hash_engine == "auto":
            hashing.engine_algorithms()  # a kernel that cannot be had is told now, not at the first image
        self._metadata = metadata.load(config.metadata_file) if config.metadata_file else []
        if config.records != "none" and not read_only:
            record.writer_name()
        self._guard = guard or timeouts.Guard(config.timeout, config.thread_pool_size, config.threadpool_threshold)
        try:
            self.datadirs: DataDirs = self._guard.call(
                "checking the data directories",
                DataDirs,
                config.directories,
                config.file_perm,
                config.mount_guard,
                read_only,
                path=", ".join(path for path, _ in config.directories),
            )
            # Nameless files need no sweeping, and so no look at every image.
            # Time limits and holes need what the upload of a large image has.
            plain = not (config.timeout or config.thin_provisioning)
            self._for_small = self.datadirs.single if plain else None
            for directory in () if read_only else self.datadirs.all:
                if not self._guard.call("probing", publish.has_nameless, directory, path=directory.path):
                    self.swept += self._reading(directory.path, publish.sweep, directory)
                    self.swept += self._reading(directory.path, sidecar.sweep, directory)
        except BaseException:
            self._guard.close()
            raise

    def __repr__(self) -> str:
        return f"Store({[directory.path for directory in self.datadirs.all]})"

    def close(self) -> None:
        """End the threads of time limits; one that hangs is left behind.  The store may be used again afterwards."""
        self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- storing --------------------------------------------------------------------------------------------

    def add(
        self,
        image_id: object,
        image_file: Any,
        image_size: int | None = None,
        hashing_algo: str = "sha512",
        context: object = None,
        verifier: Any = None,
        *,
        progress: Progress | None = None,
    ) -> AddResult:
        """Store an image: nothing is visible under its name until it is whole.

        :param image_id: the name of the file; see `fastfs.location.check_image_id`.
        :param image_file: where the bytes come from: a path, a binary file (from its position on), bytes-like,
            `io.BytesIO`, `mmap.mmap`, a stream socket, anything with ``read(n)`` or an iterator of bytes.  It is
            not closed.
        :param image_size: bytes to come, enforced; None or 0: unknown.
        :param hashing_algo: a name that hashlib knows, for the second digest beside MD5.
        :param context: ignored, as glance_store's drivers have it.
        :param verifier: its ``update`` is called with every byte, in order, as `bytes` that it may keep.
        :param progress: called with the number of bytes taken so far, on the calling thread; what it raises ends
            the upload.
        :raises Duplicate: the id is stored already.
        :raises SizeMismatch: the source has not `image_size` bytes.
        :raises StorageFull: there is no room.
        :raises StorageWriteDenied: no permission, read-only, or not mounted.
        :raises StorageError: any other error of the storage.
        :raises TimeoutError: a data directory hangs.
        :raises InvalidImageId: the id cannot be a file's name.
        :raises UnknownHashingAlgo: no such algorithm, or one without a fixed length.
        :raises BadSource: `image_file` is no source of bytes.
        Whatever the source, the verifier or `progress` raises comes out unchanged.  After any of these nothing
        of the image is left.
        """
        name = check_image_id(image_id)
        try:
            if self.read_only:
                raise self._refused("add", StorageWriteDenied, name)
            algorithm = hashing.algorithm(hashing_algo)
            size = image_size if type(image_size) is int and 0 < image_size < MAX_SIZE else _checked_size(image_size)
            if verifier is not None and not verifier:
                verifier = None
            # With one directory, a small object is stored by one native call, which also looks at its name.
            directory = self._for_small
            # The record of one lies in a user attribute; whether there are such is not known at first.
            if directory is not None and self.config.records == "all" and not directory.attributes:
                directory = None
            if directory is not None and directory.nameless and directory.mounted():
                small = small_object(image_file)
                # One of another size than declared is read as a large one is: up to where the size is exceeded.
                if small is not None and (size is None or size == len(small[0])):
                    added = self._add_small(directory, name, small[0], size, algorithm, verifier, progress)
                    if small[1] is not None:
                        with suppress(OSError):  # the image is stored, whatever becomes of its source
                            small[1].seek(0, os.SEEK_END)
                    return added
            else:
                directory = None
            return self._add_large(name, image_file, size, algorithm, verifier, progress, directory)
        except Invalid as error:
            error.image_id = error.image_id or name
            raise

    def _add_large(
        self,
        name: str,
        image_file: Any,
        size: int | None,
        algorithm: hashing.Algorithm,
        verifier: Any,
        progress: Progress | None,
        directory: DataDir | None,
    ) -> AddResult:
        """A large image; or one that turns out to be small, for which there is `directory`."""
        holder = self._guard.call("looking for a duplicate", self.datadirs.holding, name, path=self.datadirs.where)
        if holder is not None:
            raise Duplicate.of(name, holder.file(name))
        source = open_source(image_file)
        try:
            if directory is not None:
                data = source.small(size, self.config.chunk_size)
                if data is not None:
                    return self._add_small(directory, name, data, size, algorithm, verifier, progress)
            if not self.config.timeout:  # otherwise it is copied by another thread, and alone
                source.announce()
            hashers = hashing.hashers(algorithm.names, self.config.hash_engine)
            recorded = "" if self.config.records == "none" else algorithm.names[-1]
            upload = Upload(self.config, self.datadirs, self._guard, name, size, hashers, verifier, progress, recorded)
            try:
                upload.start(source)
                stored = upload.receive(source)
                # The answer first: once the image is there, nothing may fail any more.
                path = upload.directory.file(name)
                result = self.result_of(path, stored, hashers[0].hexdigest(), hashers[-1].hexdigest())
                upload.publish()
            finally:
                upload.end()
        finally:
            _native.expect_no_stream()
            source.close()
        return result

    def _add_small(
        self,
        directory: DataDir,
        name: str,
        data: bytes,
        size: int | None,
        algorithm: hashing.Algorithm,
        verifier: Any,
        progress: Progress | None,
    ) -> AddResult:
        """A small object as a whole.  Half the time of such an add would be the machinery of a large one, and most
        of the rest is hashing (15 us for 4 KiB) and four system calls (9 to 14 us): so few Python calls.
        """
        count = len(data)
        if size is not None and size != count:
            raise SizeMismatch.of(size, count)
        config = self.config
        digests = hashing.digest_small(data, algorithm.names, config.hash_engine)
        if verifier is not None and count:
            verifier.update(data)
        if progress is not None:
            progress(count)
        path = directory.file(name)
        # First: once it is stored, nothing may fail any more.
        result = self.result_of(path, count, digests[0], digests[-1])
        durability = config.durability
        recorded = None
        if config.records == "all":
            recorded = record.pack_small(name, data, config.record_block_size, digests, algorithm.names)
        try:
            _native.store_object(
                directory.encoded,
                name,
                data,
                config.file_perm or -1,
                durability != "none",
                durability in NAME_DURABLE,
                sidecar.RECORD_ATTRIBUTE_BYTES,
                recorded,
            )
        except OSError as error:
            raise from_oserror(error, "write", path=path, image_id=name) from error
        return result

    def result_of(self, path: str, size: int, checksum: str, multihash: str) -> AddResult:
        """What to tell of an image that is stored at `path`."""
        found = metadata.match(self._metadata, path) if self._metadata else {}
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("storing %d bytes in %s, md5 %s, multihash %s", size, path, checksum, multihash)
        return AddResult(f"file://{path}", size, checksum, multihash, found)

    def add_many(
        self,
        items: Iterable[ingest.Entry],
        *,
        jobs: int | None = None,
        executor: ingest.Executors | None = None,
        progress: ingest.Progress | None = None,
        resume: bool = False,
    ) -> Generator[Outcome, None, None]:
        """Store many images, many at a time: see `fastfs.ingest.add_many`."""
        return ingest.add_many(self, items, jobs=jobs, executor=executor, progress=progress, resume=resume)

    # -- reading --------------------------------------------------------------------------------------------

    def get(
        self,
        location: object,
        offset: int = 0,
        chunk_size: int | None = None,
        context: object = None,
        *,
        zero_copy: bool = False,
        verify: bool = False,
    ) -> tuple[ChunkedFile, int]:
        """Open an image, or `chunk_size` bytes of it from `offset` on.

        :param location: what `add` returned, or a parsed location.
        :param chunk_size: the length of the range, as glance_store calls it; None: to the end.
        :param zero_copy: pieces are read-only `memoryview` of page-aligned memory that the kernel fills, good as long
            as there is a reference to them, and used again afterwards: nothing is allocated or copied for a piece.
            Not of the mapped file, which is no faster and kills the process (SIGBUS) when somebody truncates it.
        :param verify: check each block against the image's record before its bytes are handed out; only the blocks
            that the range touches are read.
        :return: (reader, bytes that it will give); past the end there are none.
        :raises NotFound: no such image, or not below a data directory.
        :raises Forbidden: it may not be read.
        :raises Invalid: negative `offset` or `chunk_size`.
        :raises Unverifiable: with `verify`: there is no record, or none that is of use.
        :raises IntegrityError: with `verify`: the image is not as long as it was; reading raises it for a block that
            is not what went in.
        """
        # The usual kind by itself: 0.1 us of the 6 that all this takes, not 1.6.
        usual = type(location) is str and location.startswith("file:///")
        path = location[len("file://") :] if usual else Location.of(location).path  # type: ignore[index]
        whole = chunk_size is None
        if type(offset) is not int or offset < 0 or not (whole or (type(chunk_size) is int and chunk_size >= 0)):
            for what, number in (("offset", offset), ("chunk_size", 0 if chunk_size is None else chunk_size)):
                if not isinstance(number, int) or number < 0:
                    raise Invalid(f"{what}={number!r} is no number of bytes, 0 or more", path=path)
        if verify:
            return self._verified(path, offset, chunk_size, zero_copy)
        fd, size = self._reading(path, self.datadirs.open_file, path, undo=_close_first)
        length = _length(size, offset, chunk_size)
        piece = self.config.chunk_size
        if self.config.timeout:
            guarded = GuardedFile(fd, path, offset, length, piece, views=zero_copy)
            guarded.call = self._guarded_read(path)
            return guarded, length
        return ChunkedFile(fd, path, offset, length, piece, views=zero_copy), length

    def _verified(self, path: str, offset: int, chunk_size: int | None, views: bool) -> tuple[VerifiedFile, int]:
        call = self._guarded_read(path) if self.config.timeout else timeouts.direct
        opened: _Opened = self._reading(path, self._open_with_record, path, undo=_Opened.release)
        try:
            name, attached = opened.name, opened.attached
            check_usable(path, name, opened.size, attached)
            length = _length(opened.size, offset, chunk_size)
            piece = self.config.chunk_size
            fd, opened.fd = opened.fd, -1  # the reader's from here on, even if it cannot be made
            return VerifiedFile(
                fd, path, offset, length, piece, image_id=name, attached=attached, call=call, views=views
            ), length
        except BaseException as error:
            self._guard.release(opened)
            if isinstance(error, OSError) and not isinstance(error, FastfsError):
                raise from_oserror(error, "read", path=path) from error
            raise

    def _open_with_record(self, path: str) -> _Opened:
        fd, size = self.datadirs.open_file(path)
        try:
            with self.datadirs.parent(path) as (top, name):
                return _Opened(path, name, fd, size, sidecar.find(top, name, fd))
        except BaseException:
            close_quietly(fd)
            raise

    def _guarded_read(self, path: str) -> Callable[..., Any]:
        def call(function: Callable[..., Any], *args: Any) -> Any:
            return self._guard.call("reading", function, *args, path=path)

        return call

    def copy_to(
        self,
        location: object,
        path: str | os.PathLike[str],
        *,
        replace: bool = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Copy an image into a file of the caller's: it appears whole or not at all, as durable as `durability` says.

        Where both are on one file system that can share blocks (xfs, btrfs), nothing is copied and it takes no room;
        elsewhere holes stay holes.

        :param path: the file; its directory must exist.
        :param replace: take the place of a regular file that is there.
        :param verify: check each block against the image's record before it is written.  Then nothing is shared, and
            blocks of zeroes become holes.
        :param progress: called with the number of bytes copied so far, holes included; what it raises ends the copy.
        :return: bytes of the image.
        :raises Duplicate: something has that name.
        :raises Invalid: what is to be replaced is no regular file.
        :raises StorageFull: there is no room.
        Also raises as `get`, and for the target as `add`.  After any of these nothing of the copy is left.
        """
        reader, size = self.get(location, verify=verify)
        copy = Copy(reader, os.path.abspath(os.fspath(path)), self.config.durability, replace, progress)
        try:
            self._guard.call("copying", copy.check, path=copy.path)
            self._guard.call("copying", copy.run, path=copy.path, owner=copy, busy_since=copy.busy_since)
            copy.acknowledged = True
        except OSError as error:
            if isinstance(error, FastfsError):
                raise
            raise copy.translated(error) from error
        finally:
            self._guard.release(copy)
        return size

    def get_size(self, location: object, context: object = None) -> int:
        """The image's length in bytes.  Raises as `get`."""
        path = Location.of(location).path
        size: int = self._reading(path, self.datadirs.stat, path).st_size
        return size

    def _reading(
        self,
        path: str,
        function: Callable[..., Any],
        *args: Any,
        action: Action = "read",
        owner: timeouts.Owner | None = None,
        undo: Callable[[Any], object] | None = None,
    ) -> Any:
        try:
            if not self._guard.timeout:
                return function(*args)
            return self._guard.call(f"{action} of {path}", function, *args, path=path, owner=owner, undo=undo)
        except FastfsError:
            raise
        except OSError as error:
            raise from_oserror(error, action, path=path) from error

    # -- deleting -------------------------------------------------------------------------------------------

    def delete(self, location: object, context: object = None) -> None:
        """Remove an image; with durability "full" or "batch" it stays removed after a power cut.

        :raises NotFound: no such image.
        :raises Forbidden: it may not be removed.
        :raises TimeoutError: the data directory hangs.  The file system may or may not remove the image then.
        """
        if self.read_only:
            raise self._refused("delete", Forbidden, None)
        path = Location.of(location).path
        self._reading(path, self._unlink, path, action="delete")
        LOG.debug("deleted %s", path)

    def _refused(self, what: str, cls: type[FastfsError], image_id: str | None) -> FastfsError:
        path = self.datadirs.all[0].path
        return cls(f"cannot {what}: the store was opened read-only", path=path, image_id=image_id)

    def _unlink(self, path: str) -> None:
        with self.datadirs.parent(path) as (top, name):
            stat_regular(top, name)
            timeouts.checkpoint()
            removal = sidecar.Removal(top, name)
            try:
                os.unlink(name, dir_fd=top)
                removal.finish()
            finally:
                removal.close()
            if self.config.durability in NAME_DURABLE:
                publish.sync_directory(top)

    # -- looking --------------------------------------------------------------------------------------------

    def find(self, image_id: object) -> str:
        """The location of a stored image.

        :raises NotFound: no such image.
        :raises FastfsError: no such image elsewhere, and of one data directory it cannot be told.
        """
        name = check_image_id(image_id)
        failed: FastfsError | None = None
        for directory in self.datadirs.all:
            try:
                self._reading(directory.file(name), self.datadirs.stat, directory.file(name))
            except NotFound:
                continue
            except FastfsError as error:
                failed = failed or error
                continue
            return f"file://{directory.file(name)}"
        if failed is not None:
            raise failed
        raise NotFound(f"no image {name} in {self.datadirs.where}", image_id=name)

    def info(self, image: object) -> ImageInfo:
        """About one image, by its location or its id.

        :raises NotFound: no such image.
        """
        try:
            path = Location.of(image).path
        except BadStoreUri:
            if str(image).startswith(SCHEMES):
                raise
            path = Location.of(self.find(image)).path
        directory, name = self._reading(path, self.datadirs.locate, path)
        return _info(directory, name, self._reading(path, self.datadirs.stat, path))

    def images(self) -> Iterator[ImageInfo]:
        """All images, directory by directory, in no order within one; what appears meanwhile may be missing."""
        for directory in self.datadirs.all:
            listing = _Listing(directory)
            try:
                while batch := self._reading(directory.path, listing.following, owner=listing):
                    yield from batch
            finally:
                self._guard.release(listing)

    def usage(self) -> list[DatadirUsage]:
        """The space of each data directory, the highest priority first."""
        return [self._reading(directory.path, _usage, directory) for directory in self.datadirs.all]

    def sweep(self, grace: float = publish.LOCKLESS_GRACE) -> list[str]:
        """Remove what writers that are gone have left unfinished, and records whose image is gone; returns the paths.

        Runs by itself when a store is made on a file system that can keep such remains.

        :param grace: where the file system has no locks: seconds since the last write.
        """
        removed: list[str] = []
        for directory in self.datadirs.all:
            removed += self._reading(directory.path, publish.sweep, directory, grace)
            removed += self._reading(directory.path, sidecar.sweep, directory, grace)
        return removed

    # -- checking -------------------------------------------------------------------------------------------

    def scrub(
        self,
        *,
        mode: upkeep.Mode = "fast",
        images: Iterable[object] | None = None,
        match: str | None = None,
        rate: float | None = None,
        seconds: float | None = None,
        priority: upkeep.Priority = "normal",
        jobs: int | None = None,
        executor: Executor | None = None,
        quarantine: bool = False,
        restart: bool = False,
        progress: upkeep.Progress | None = None,
    ) -> upkeep.Scrub:
        """Check stored images against their records; iterate over the result for the findings.

        Those that were not checked for longest come first.  What is broken off, killed too, is gone on with by the next
        scrub of the same mode and filter.

        :param mode: "fast": the block digests; "deep": MD5 and the multihash, too.
        :param images: ids; None: all.
        :param match: only ids that this pattern of a shell matches.
        :param rate: bytes a second; None: no limit.
        :param seconds: end after that time.
        :param priority: of reading from the disk: "normal", "low" or "idle".
        :param jobs: images at once; None: what suits the mode or the executor.
        :param executor: where to work instead of in threads of this process: any of `concurrent.futures`, whose
            workers see the same directories.
        :param quarantine: move what is damaged out of the way.
        :param restart: begin anew where an earlier scrub was broken off.
        :param progress: called with id and bytes done, on the thread that checks; not with worker processes.
        :raises Invalid: a parameter has no sense.
        """
        return upkeep.Scrub(
            self,
            mode=mode,
            images=images,
            match=match,
            rate=rate,
            seconds=seconds,
            priority=priority,
            jobs=jobs,
            executor=executor,
            quarantine=quarantine,
            restart=restart,
            progress=progress,
        )

    def adopt(
        self,
        images: Iterable[object] | None = None,
        *,
        expected: upkeep.Expected | None = None,
        algorithm: str = "sha512",
        reread: bool = False,
        dry_run: bool = False,
        rate: float | None = None,
        seconds: float | None = None,
        priority: upkeep.Priority = "normal",
        jobs: int | None = None,
        progress: upkeep.Progress | None = None,
    ) -> upkeep.Adopt:
        """Make records for images that have none of use; iterate over the result for what became of each.

        Images that have a record are not read, but compared by what it tells; whether they still are what it tells is
        for `scrub` to say.

        :param images: ids; None: all.
        :param expected: digests by id and algorithm, to be compared.  An image that is not what is expected gets no
            record.
        :param algorithm: the multihash of records, where none is expected.
        :param reread: read images that have a record, too.
        :param dry_run: read and compare only.
        :param rate: and `seconds`, `priority`, `jobs`, `progress`: as for `scrub`.
        :raises Invalid: a parameter has no sense.
        """
        if self.read_only and not dry_run:
            raise self._refused("adopt", StorageWriteDenied, None)
        return upkeep.Adopt(
            self.config,
            self.datadirs,
            images=images,
            expected=expected,
            algorithm=algorithm,
            reread=reread,
            dry_run=dry_run,
            rate=rate,
            seconds=seconds,
            priority=priority,
            jobs=jobs,
            progress=progress,
        )

    def repair(
        self, image: object, good_copy: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> upkeep.Repaired:
        """Replace the damaged blocks of an image by those of a good copy, and check all its digests then.

        Each block is compared with the record before it is written, so the copy need not be trusted.

        :param image: its location or id.
        :param good_copy: a path, also of a folder that holds a file of the image's name, or a URL: file, http, https.
        :param progress: called with bytes that were looked at, since the last call.
        :raises NotFound: no such image.
        :raises Unverifiable: it has no record of use, so nobody knows what is damaged.
        :raises StorageError: it cannot be written, or is another image, which is not overwritten.
        :raises OSError: the copy cannot be read.
        """
        if self.read_only:
            raise self._refused("repair", StorageWriteDenied, None)
        info = self.info(image)
        durability, engine = self.config.durability, self.config.hash_engine
        return upkeep.repair(info.datadir, info.image_id, good_copy, durability, engine, progress)

    def space(self) -> list[upkeep.Space]:
        """What the images of each data directory take; looks at every one."""
        return [self._reading(directory.path, upkeep.space_of, directory) for directory in self.datadirs.all]


def _close_first(opened: tuple[int, int]) -> None:
    os.close(opened[0])


@dataclasses.dataclass
class _Opened:
    """An image and its record, until there is a reader for them."""

    what: str
    name: str
    fd: int
    size: int
    attached: sidecar.Attached
    handed_over: bool = False

    def release(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)
        self.attached.close()


def _length(size: int, offset: int, most: int | None) -> int:
    """Of the range of a file."""
    length = max(0, size - offset)
    return length if most is None else min(length, most)


def _checked_size(size: int | None) -> int | None:
    """The declared size; None if it is unknown."""
    if size is None or (type(size) is int and size == 0):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_SIZE:
        raise Invalid(f"image_size={size!r} is no number of bytes; give None if it is unknown")
    return int(size)


def _info(directory: DataDir, name: str, info: os.stat_result) -> ImageInfo:
    return ImageInfo(
        image_id=name,
        url=f"file://{directory.file(name)}",
        size=info.st_size,
        allocated=info.st_blocks * 512,
        mtime=info.st_mtime,
        mode=info.st_mode & 0o7777,
        datadir=directory.path,
    )


# How many directory entries are read at once: so that a time limit costs little, and memory stays small.
_BATCH = 256


class _Listing:
    """The images in a directory; what hangs in it must not lose it."""

    def __init__(self, directory: DataDir) -> None:
        self.directory = directory
        self.entries: Any = None
        self.handed_over = False

    @property
    def what(self) -> str:
        return self.directory.path

    def following(self) -> list[ImageInfo]:
        """The next images; none at the end."""
        if self.entries is None:
            self.entries = os.scandir(self.directory.path)
        images: list[ImageInfo] = []
        for entry in self.entries:
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            try:
                images.append(_info(self.directory, entry.name, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:
                continue  # deleted meanwhile
            if len(images) == _BATCH:
                break
        return images

    def release(self) -> None:
        if self.entries is not None:
            self.entries.close()


def _usage(directory: DataDir) -> DatadirUsage:
    usage = psutil.disk_usage(directory.path)
    mount, kind = "", ""
    real = os.path.realpath(directory.path) + "/"
    for partition in psutil.disk_partitions(all=True):
        if real.startswith(partition.mountpoint.rstrip("/") + "/") and len(partition.mountpoint) >= len(mount):
            mount, kind = partition.mountpoint, partition.fstype
    return DatadirUsage(
        path=directory.path,
        priority=directory.priority,
        total=usage.total,
        used=usage.used,
        free=usage.free,
        reserved=reserved_on(directory.identity[0]),
        filesystem=kind,
        writable=directory.mounted() and os.access(directory.path, os.W_OK | os.X_OK),
    )
