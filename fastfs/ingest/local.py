# SPDX-License-Identifier: Apache-2.0
"""`Store.add_many` in the threads of this process."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastfs import hashing
from fastfs.checksum import is_path, packs_at_once
from fastfs.conveyor import PACK, Conveyor
from fastfs.datadirs import Claim, DataDir
from fastfs.exceptions import Duplicate, FastfsError, SizeMismatch
from fastfs.ingest.groupsync import GroupSync
from fastfs.ingest.items import Entry, Numbered, Outcome, Part, Progress, Storing, numbered, opened, weighed
from fastfs.ingest.pack import Pack, SmallObject
from fastfs.ingest.resume import compared, same
from fastfs.location import check_image_id
from fastfs.record import pack_small
from fastfs.smallfiles import SmallFiles
from fastfs.sources import small_object


@dataclass
class _Small:
    """An item whose bytes are at hand."""

    entry: Numbered
    algorithm: hashing.Algorithm
    object: SmallObject
    #: A file that is to be moved to its end.
    file: Any = None
    digests: tuple[str, ...] = ()


class _Beaten(Exception):
    """Somebody else stored it after it was looked for; perhaps with the same bytes."""

    def __init__(self, error: Duplicate) -> None:
        super().__init__(error)
        self.error = error


class Local:
    """Stores in this process."""

    def __init__(self, store: Storing, resume: bool, progress: Progress | None) -> None:
        self.store = store
        self.resume = resume
        self.progress = progress
        config = store.config
        self.packing = not (config.timeout or config.thin_provisioning or store.read_only)
        self.syncs: dict[int, GroupSync] = {}

    def run(
        self, items: Iterable[Entry], jobs: int, executor: ThreadPoolExecutor | None, tick: float | None
    ) -> Generator[Any, None, None]:
        packs = packs_at_once()
        if self.store.config.durability != "none":
            packs *= 2  # some wait for the disk
        # Each object of a pack has a descriptor.  Half of them are for everything else; one pack that runs alone stores
        # by itself what it has none for.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors != resource.RLIM_INFINITY:
            packs = max(1, min(packs, descriptors // 2 // PACK))
        with contextlib.ExitStack() as stack:
            if self.store.config.durability == "batch" and self.packing:
                self._open_syncs(stack)
            pool = executor or stack.enter_context(ThreadPoolExecutor(jobs, thread_name_prefix="fastfs-ingest"))

            def submit(task: list[Part]) -> Future[list[Outcome]]:
                packed = task[0].small and self.packing
                return pool.submit(self.pack if packed else self.each, [piece.item for piece in task])

            yield from Conveyor(
                map(weighed, numbered(items)),
                submit,
                lambda task, outcomes: outcomes,
                lambda piece, error: piece.item.failed(error),
                jobs=jobs,
                packs=min(jobs, packs),
                bounded=not isinstance(items, Sequence),
            ).run(tick)

    def _open_syncs(self, stack: contextlib.ExitStack) -> None:
        for directory in self.store.datadirs.all:
            device = directory.identity[0]
            with contextlib.suppress(OSError):  # whoever writes there will be told
                if device not in self.syncs and (sync := GroupSync.of(directory)) is not None:
                    stack.callback(sync.close)
                    self.syncs[device] = sync

    # -- one by one -----------------------------------------------------------------------------------------

    def each(self, entries: list[Numbered]) -> list[Outcome]:
        return [self.one(entry) for entry in entries]

    def one(self, entry: Numbered) -> Outcome:
        item = entry.item
        progress = None if self.progress is None else partial(self.progress, item.image_id)
        try:
            if progress is not None:
                progress(0)
            try:
                return self._one(entry, progress)
            except _Beaten:
                if not is_path(item.source):
                    raise  # it cannot be read again
                return self._one(entry, progress)
        except _Beaten as beaten:
            return entry.failed(beaten.error)
        except BaseException as error:
            return entry.failed(error)

    def _one(self, entry: Numbered, progress: Callable[[int], object] | None) -> Outcome:
        item = entry.item
        with opened(item) as (source, size):
            if self.resume:
                stored = compared(self.store, item, source, size)
                if stored is not None:
                    return entry.done(stored, skipped=True)
            try:
                return entry.done(self.store.add(item.image_id, source, size, item.algorithm, progress=progress))
            except Duplicate as error:
                if self.resume:
                    raise _Beaten(error) from error
                raise

    # -- packs ----------------------------------------------------------------------------------------------

    def pack(self, entries: list[Numbered]) -> list[Outcome]:
        """Small objects together; those that turn out to be something else one by one."""
        outcomes: dict[int, Outcome] = {}
        with SmallFiles() as files:
            smalls = self._gather(entries, files, outcomes)
            self._digest(smalls)
            self._store(smalls, outcomes)
        return [outcomes[entry.position] if entry.position in outcomes else self.one(entry) for entry in entries]

    def _gather(self, entries: list[Numbered], files: SmallFiles, outcomes: dict[int, Outcome]) -> list[_Small]:
        paths = [entry.item.source for entry in entries if is_path(entry.item.source)]
        contents = iter(files.read(paths))
        smalls: list[_Small] = []
        for entry in entries:
            item, file = entry.item, None
            data: Any = None
            if is_path(item.source):
                data = next(contents)
            try:
                if isinstance(data, OSError):
                    raise data
                if not is_path(item.source) and (found := small_object(item.source)) is not None:
                    data, file = found
                if data is None:
                    continue
                name = check_image_id(item.image_id)
                algorithm = hashing.algorithm(item.algorithm)
                if item.size and item.size != len(data):
                    raise SizeMismatch.of(item.size, len(data))
                if self.progress is not None:
                    self.progress(item.image_id, 0)
                    self.progress(item.image_id, len(data))
            except BaseException as error:
                outcomes[entry.position] = entry.failed(error)
                continue
            smalls.append(_Small(entry, algorithm, SmallObject(name, data), file))
        return smalls

    def _digest(self, smalls: list[_Small]) -> None:
        groups: dict[tuple[str, ...], list[_Small]] = {}
        for small in smalls:
            groups.setdefault(small.algorithm.names, []).append(small)
        for names, group in groups.items():
            pieces = [small.object.data for small in group]
            found = hashing.digest_many(pieces, names, self.store.config.hash_engine)
            for small, digests in zip(group, found, strict=True):
                small.digests = digests

    def _store(self, smalls: list[_Small], outcomes: dict[int, Outcome]) -> None:
        if not smalls:
            return
        claim: Claim | None = None
        directories, config = self.store.datadirs, self.store.config
        directory = directories.single
        try:
            if directory is None:
                directory, claim = directories.choose(sum(len(small.object.data) for small in smalls))
            if not directory.nameless or not directory.mounted():
                return  # one by one they will do, or tell why not
            if config.records == "all":
                if not directory.attributes:
                    return  # the first one tells whether records can lie in attributes
                for small in smalls:
                    one = small.object
                    one.record = pack_small(
                        one.name, one.data, config.record_block_size, small.digests, small.algorithm.names
                    )
            sync = self.syncs.get(directory.identity[0])
            # Without a sync to be shared, "batch" syncs each object.
            Pack(directories, directory, config.file_perm, config.durability, sync).store(
                [small.object for small in smalls]
            )
        except (FastfsError, OSError):
            return
        finally:
            if claim is not None:
                claim.release()
        for small in smalls:
            outcome = self._outcome(small, directory)
            if outcome is not None:
                outcomes[small.entry.position] = outcome

    def _outcome(self, small: _Small, directory: DataDir) -> Outcome | None:
        one, entry = small.object, small.entry
        try:
            if one.error is None:
                if small.file is not None:
                    small.file.seek(0, os.SEEK_END)
                path = directory.file(one.name)
                return entry.done(self.store.result_of(path, len(one.data), small.digests[0], small.digests[-1]))
            if isinstance(one.error, Duplicate) and self.resume:
                url = self.store.find(one.name)
                stored = same(self.store, one.name, url, len(one.data), small.digests, small.algorithm.names)
                return entry.done(stored, skipped=True)
        except BaseException as error:
            return entry.failed(error)
        return None if one.elsewhere else entry.failed(one.error)
