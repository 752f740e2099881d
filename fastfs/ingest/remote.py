# SPDX-License-Identifier: Apache-2.0
"""`Store.add_many` on executors whose workers are other processes, here or on other machines."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeAlias

from fastfs.checksum import JOBS
from fastfs.config import StoreConfig
from fastfs.conveyor import Conveyor
from fastfs.datadirs import Claim, DataDir
from fastfs.exceptions import Duplicate, FastfsError
from fastfs.ingest.items import (
    Entry,
    Item,
    Numbered,
    Outcome,
    Part,
    Progress,
    Storing,
    numbered,
    portable_source,
    weighed,
)
from fastfs.location import check_image_id

# Images in one task, on which a worker process works with threads of its own.
BUNDLE = JOBS

#: What a worker process does, as a function that can be pickled: (kind of the store, its configuration, items).
Work: TypeAlias = Callable[[Callable[[StoreConfig], Storing], StoreConfig, list[Item]], list[Outcome]]

Executors: TypeAlias = "Executor | Mapping[str, Executor]"


class Remote:
    """Has worker processes store, here or elsewhere.

    A task can run twice (a cluster repeats those of a worker that died), so it takes what it finds stored with the
    same bytes for its own; that nothing of that id was there before is looked for here.
    """

    def __init__(
        self, store: Storing, resume: bool, progress: Progress | None, executor: Executors, work: Work
    ) -> None:
        self.store = store
        self.work = work
        self.resume = resume
        self.progress = progress
        self.executor = executor
        self.under_way: set[str] = set()

    def run(self, items: Iterable[Entry], jobs: int, tick: float | None) -> Generator[Any, None, None]:
        yield from Conveyor(
            (weighed(self._prepared(entry)) for entry in numbered(items)),
            self._submit,
            self._collect,
            self._failed,
            jobs=jobs,
            packs=jobs,
            bundle=BUNDLE,
            bounded=not isinstance(items, Sequence),
        ).run(tick)

    def _prepared(self, entry: Numbered) -> Numbered:
        """Its source as a worker can open it; or the outcome, if there is no need to try."""
        try:
            name = check_image_id(entry.item.image_id)
            entry.item = entry.item._replace(image_id=name, source=portable_source(entry.item.source))
            if not self.resume:
                if name in self.under_way:
                    raise Duplicate(f"image {name} is named twice", image_id=name, errno=errno.EEXIST)
                holder = self.store.datadirs.holding(name)
                if holder is not None:
                    raise Duplicate.of(name, holder.file(name))
                self.under_way.add(name)
        except Exception as error:
            entry.outcome = entry.failed(error)
            entry.item = entry.item._replace(source=b"")
        return entry

    def _submit(self, task: list[Part]) -> Future[Any]:
        live = [piece for piece in task if piece.item.outcome is None]
        if not live:
            nothing: Future[Any] = Future()
            nothing.set_result([])
            return nothing
        directory, claim = self._place(live)
        config = self.store.config if directory is None else _placed(self.store.config, directory.path)
        try:
            executor = self.executor
            if isinstance(executor, Mapping):
                executor = executor[(directory or self.store.datadirs.all[0]).path]
            future = executor.submit(self.work, type(self.store), config, [piece.item.item for piece in live])
        except BaseException:
            if claim is not None:
                claim.release()
            raise
        if claim is not None:
            future.add_done_callback(partial(_release, claim))
        return future

    def _place(self, live: list[Part]) -> tuple[DataDir | None, Claim | None]:
        """Where the images of a task should go, as all tasks together will fill the directories.

        A worker that finds no room there looks elsewhere.
        """
        directories = self.store.datadirs
        if directories.single is not None:
            return None, None
        sizes = [piece.size for piece in live]
        total = None if None in sizes else sum(filter(None, sizes))
        try:
            return directories.choose(total)
        except FastfsError:
            return None, None  # the worker will say so, of each image

    def _collect(self, task: list[Part], found: list[Outcome]) -> list[Outcome]:
        theirs = iter(sorted(found, key=lambda outcome: outcome.position))
        outcomes = []
        for piece in task:
            entry = piece.item
            outcome = entry.outcome
            if outcome is None:
                self.under_way.discard(str(entry.item.image_id))
                outcome = next(theirs)
                outcome = outcome._replace(position=entry.position, skipped=outcome.skipped and self.resume)
                if self.progress is not None and outcome.result is not None:
                    self.progress(outcome.image_id, outcome.result.size)
            outcomes.append(outcome)
        return outcomes

    def _failed(self, piece: Part, error: BaseException) -> Outcome:
        self.under_way.discard(str(piece.item.item.image_id))
        return piece.item.outcome or piece.item.failed(error)


def _release(claim: Claim, future: Future[Any]) -> None:
    claim.release()


@lru_cache(maxsize=64)
def _placed(config: StoreConfig, path: str) -> StoreConfig:
    """The same directories, this one first."""
    top = max(priority for _, priority in config.directories) + 1
    directories = tuple(
        f"{directory}:{top if directory == path else priority}" for directory, priority in config.directories
    )
    return replace(config, datadir=None, datadirs=directories)
