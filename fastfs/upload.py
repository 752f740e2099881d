# SPDX-License-Identifier: Apache-2.0
"""One image on its way: the pump and its digests, the draft it writes, verifier, progress, time limits."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from fastfs import _native
from fastfs.datadirs import Claim, DataDir, DataDirs
from fastfs.exceptions import Duplicate, FastfsError, SizeMismatch, StorageFull, from_oserror
from fastfs.publish import Draft
from fastfs.record import Recorder, make
from fastfs.sidecar import Sidecar, remove_orphan
from fastfs.sources import SMALL, DescriptorSource, Source, check_count
from fastfs.timeouts import Guard

if TYPE_CHECKING:
    from fastfs.config import StoreConfig
    from fastfs.hashing import Hasher

_FULL = (errno.ENOSPC, errno.EDQUOT)


class AddResult(NamedTuple):
    """What `Store.add` tells, as glance_store's drivers do."""

    #: The location: ``file://`` and the path.
    url: str
    #: Bytes stored.
    size: int
    #: MD5, hexadecimal.
    checksum: str
    #: The digest that was asked for, hexadecimal.
    multihash: str
    #: From the metadata file, for the storage that the image lies on; a dictionary of the caller's own.
    metadata: dict[str, Any]


class Upload:
    """Stores one image; use it once, then call `end` whatever happened.

    :param size: what was declared, enforced; None: unknown.
    :param hashers: see `fastfs.hashing.hashers`, MD5 first, the multihash last; they have their results after
        `receive`.
    :param algorithm: the name of the last one, for the record; "": the image gets no record.
    """

    #: An operation was left behind; its thread releases everything.
    handed_over = False

    def __init__(
        self,
        config: StoreConfig,
        directories: DataDirs,
        guard: Guard,
        image_id: str,
        size: int | None,
        hashers: list[Hasher],
        verifier: Any,
        progress: Callable[[int], object] | None,
        algorithm: str = "",
    ) -> None:
        self.config = config
        self.directories = directories
        self.guard = guard
        self.image_id = image_id
        self.expected = size
        self.hashers = hashers
        self.verifier = verifier
        self.progress = progress
        self.directory: DataDir
        self.draft: Draft | None = None
        self.claim: Claim | None = None
        self.pump: _native.Pump | None = None
        self.algorithm = algorithm
        self.recorder = Recorder(config.record_block_size) if algorithm else None
        self.sidecar: Sidecar | None = None
        self._full: frozenset[DataDir] = frozenset()
        self._clone_from: tuple[int, int] | None = None
        #: The draft shares the source's blocks: it is read and hashed, nothing is written.
        self.cloned = False
        #: The caller has the answer, or will have it: the image stays.
        self._acknowledged = False
        self._release_lock = threading.Lock()

    @property
    def what(self) -> str:
        return f"image {self.image_id}"

    # -- the steps ------------------------------------------------------------------------------------------

    def start(self, source: Source) -> None:
        """Choose a home and make the hidden file in it."""
        size = self.expected if self.expected is not None else source.size_hint
        if size == source.size_hint and not self.config.thin_provisioning:
            self._clone_from = source.cloneable
        self._call("choosing a data directory", self._open_draft, size)
        assert self.draft is not None
        hashers: list[Any] = [*self.hashers, *([self.recorder.hasher] if self.recorder is not None else [])]
        self.pump = _native.Pump(
            -1 if self.cloned else self.draft.fd,
            hashers,
            thin=self.config.thin_provisioning,
            cache=self.config.cache,
            early=self.config.durability != "none",
            # A thread that is given up because its target hangs must not hold anybody else's.
            alone=bool(self.config.timeout),
        )
        assert self.claim is not None
        self.claim.meter = self.pump

    def receive(self, source: Source) -> int:
        """Move all bytes; returns how many.

        :raises SizeMismatch: more or fewer than declared.
        """
        expected = self.expected
        if self.cloned:
            # Not the source, which may change, but the blocks that are stored.
            assert self.draft is not None
            DescriptorSource(self.draft.fd).transfer(self, None)
            source.skip(self.size)
        else:
            source.transfer(self, expected)
        if expected is not None:
            size = self.size
            if size == expected:
                size += source.excess(self.config.chunk_size)
            if size != expected:
                raise SizeMismatch.of(expected, size)
        self._on_target(self._pump.finish)
        return self.size

    def publish(self) -> None:
        """Make the image appear, on the disk as far as `durability` says."""
        self._call("publishing", self._publish)
        self._acknowledged = True

    def end(self) -> None:
        """Close and release everything; remove what is not published.  Never raises."""
        self.guard.release(self)

    def release(self) -> None:
        """As `end`, on the calling thread; a thread that was left behind calls it when it is done."""
        with self._release_lock:
            if self.pump is not None:
                self.pump.close()
            if self.draft is not None:
                self.draft.release(keep=self._acknowledged)
            if self.sidecar is not None:
                self.sidecar.release(keep=self._acknowledged)
            if self.claim is not None:
                self.claim.release()

    # -- where sources bring their bytes --------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._pump.size

    def feed(self, data: Any, start: int = 0, stop: int | None = None) -> None:
        """Take bytes that a source gave."""
        stop = len(data) if stop is None else stop
        if self.expected is not None and self.size + stop - start > self.expected:
            raise SizeMismatch.of(self.expected, self.size + stop - start)
        if self.verifier is not None:
            whole = type(data) is bytes and start == 0 and stop == len(data)
            self.verifier.update(data if whole else bytes(memoryview(data)[start:stop]))
        before = self.size
        self._on_target(lambda: self._pump.feed(data, start + self.size - before, stop))
        self._tick()

    def fill(self, readinto: Callable[[memoryview], Any], most: int | None) -> int:
        """Let ``readinto`` fill a buffer of ours with up to `most` bytes; returns how many it brought."""
        view = self._pump.room()
        if most is not None:
            view = view[:most]
        count = check_count(readinto(view), len(view))
        if count:
            if self.verifier is not None:
                self.verifier.update(bytes(view[:count]))
            self._on_target(self._pump.advance, count, once=True)
            self._tick()
        return count

    def read_fd(
        self, fd: int, offset: int | None, limit: int | None, *, wait_ms: int = -1, sparse: bool = False
    ) -> tuple[bool, int]:
        """Read a descriptor in C; see `fastfs._native.Pump.read_fd`."""
        before = self.size
        hold = self.verifier is not None
        if hold:
            self._on_target(self._pump.flush, once=True)  # the verifier has seen what is in the open block

        def read() -> tuple[bool, int]:
            taken = self.size - before  # by an attempt whose target was full
            return self._pump.read_fd(
                fd,
                None if offset is None else offset + taken,
                None if limit is None else limit - taken,
                wait_ms=wait_ms,
                sparse=sparse,
                hold=hold,
            )

        more, _ = self._on_target(read)
        if hold:
            if block := self._pump.pending():
                self.verifier.update(block)
            self._on_target(self._pump.flush, once=True)
        self._tick()
        return more, self.size - before

    # -- inside ---------------------------------------------------------------------------------------------

    @property
    def _pump(self) -> _native.Pump:
        assert self.pump is not None
        return self.pump

    def _tick(self) -> None:
        size = self.size
        if self.progress is not None:
            self.progress(size)

    def _call(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        path = self.directory.path if self.draft is not None else self.directories.where
        try:
            return self.guard.call(f"{what} of image {self.image_id}", function, *args, path=path, owner=self)
        except FastfsError as error:
            error.image_id = self.image_id
            raise
        except OSError as error:
            raise self._translated(error) from error

    def _translated(self, error: OSError) -> FastfsError:
        return from_oserror(error, "write", path=self.directory.file(self.image_id), image_id=self.image_id)

    def _open_draft(self, size: int | None) -> None:
        while True:
            self.directory, self.claim = self.directories.choose(size, self._full)
            self.draft = Draft(self.directory, self.image_id, self.config.file_perm, self.config.durability)
            try:
                self.draft.open()
                self.cloned = self._clone_from is not None and self.draft.clone(*self._clone_from)
                if self.cloned:
                    return
                if size and not self.config.thin_provisioning:
                    self.draft.reserve(size)
                    self.claim.used = self.draft.reserved
                return
            except OSError as error:
                # Its free space said otherwise: a quota, no inodes left, or another process was faster.
                if error.errno not in _FULL or self.directories.single:
                    raise
                self.draft.release(keep=False)
                self.claim.release()
                self._full |= {self.directory}

    def _on_target(self, function: Callable[..., Any], *args: Any, once: bool = False) -> Any:
        """Call the pump, with the time limit; when the target is full and the size unknown, try elsewhere.

        :param once: after the target was replaced, what `function` had to do is done.
        """
        pump = self._pump
        while True:
            try:
                return self.guard.call(
                    f"writing image {self.image_id}",
                    function,
                    *args,
                    path=self.directory.path,
                    owner=self,
                    busy_since=lambda: pump.busy_since,
                )
            except FastfsError as error:
                # Only time limits come this way; what hangs must not go on when it wakes up.
                error.image_id = self.image_id
                pump.cancel()
                raise
            except OSError as error:
                if pump.side != "target":
                    raise
                if error.errno not in _FULL or self.expected is not None or self.directories.single:
                    raise self._translated(error) from error
                self._call("moving", self._move_on, error)
                if once:
                    return None
            except BaseException:
                pump.cancel()
                raise

    def _move_on(self, error: OSError) -> None:
        """The size was unknown and the directory is full: copy what is written to one with more room."""
        self._full |= {self.directory}
        done = self._pump.unwritten_at
        old, claim = self.draft, self.claim
        assert old is not None
        assert claim is not None
        try:
            self._open_draft(max(done, 1))
            self.claim.size = 0  # type: ignore[union-attr]
            _copy(old.fd, self.draft.fd, done)  # type: ignore[union-attr]
            self._pump.retarget(self.draft.fd)  # type: ignore[union-attr]
        except StorageFull:
            raise self._translated(error) from error
        finally:
            claim.release()
            old.release(keep=False)

    def _publish(self) -> None:
        draft = self.draft
        assert draft is not None
        self.sidecar = sidecar = self._sidecar(draft)
        if sidecar is not None:
            draft.trim(self.size)
            sidecar.write(draft.fd)
        draft.seal(self.size)
        with self.directories.publishing():
            other = None if self.directories.single else self.directories.holding(self.image_id, self.directory)
            if other is not None:
                raise Duplicate.of(self.image_id, other.file(self.image_id))
            if sidecar is not None and not sidecar.without:
                sidecar.link(draft.fd)
            else:
                remove_orphan(draft.directory_fd, self.image_id)
            draft.link()
        draft.sync_name()

    def _sidecar(self, draft: Draft) -> Sidecar | None:
        recorder = self.recorder
        if recorder is None or (self.size <= SMALL and self.config.records != "all"):
            return None
        md5, multihash = (hasher.hexdigest() for hasher in (self.hashers[0], self.hashers[-1]))
        record = make(self.image_id, self.size, recorder.block_size, md5, self.algorithm, multihash)
        return Sidecar(self.directory, record, recorder.finish(), draft.mode, draft.durability)


def _copy(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes between descriptors, holes as holes."""
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(size, os.lseek(source, at, os.SEEK_HOLE))
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            count = os.sendfile(target, source, at, end - at)
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            at += count
    os.ftruncate(target, size)
