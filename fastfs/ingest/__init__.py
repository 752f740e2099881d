# SPDX-License-Identifier: Apache-2.0
"""Many images at once: in the threads of this process, or on any `concurrent.futures.Executor`.

::

    for outcome in store.add_many((path.name, path) for path in Path("disks").iterdir()):
        print(outcome.image_id, outcome.error or outcome.result.multihash)

What makes it fast is that many images are under way together, so that the lanes of the hash engine are full, and that
small ones are stored in packs.  What makes it safe on several machines is what makes one upload safe: an image gets
its name by an exclusive link(2), and whoever comes second finds it there.  There are no locks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from fastfs.checksum import JOBS, checked_jobs
from fastfs.config import StoreConfig
from fastfs.exceptions import Invalid
from fastfs.ingest.items import Entry, Item, Outcome, Progress, Storing, portable_error
from fastfs.ingest.local import Local
from fastfs.ingest.remote import Executors, Remote

__all__ = ["Entry", "Executors", "Item", "Outcome", "Progress", "add_many", "outcomes"]

# Tasks under way on an executor that does not tell how many workers it has.
REMOTE_JOBS = 32


def add_many(
    store: Storing,
    items: Iterable[Entry],
    *,
    jobs: int | None = None,
    executor: Executors | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> Generator[Outcome, None, None]:
    """Store many images, many at a time; one that fails does not stop the rest.

    :param items: each an `Item` or a tuple ``(image_id, source[, size[, algorithm]])``.  They are taken from the
        iterable on the calling thread, as there is room: about a thousand ahead, fewer where they hold memory or open
        files.  The longest of those go first.
    :param jobs: images (with an executor: tasks) under way at once; None: 32, or what suits the executor.
    :param executor: where to work instead of in threads of this process.  For anything but a `ThreadPoolExecutor` the
        sources must be paths, `bytes` or functions that can be pickled, and the workers must see the same files
        under the same paths.  A mapping from each data directory to an executor has each image stored by the one that
        is close to it.
    :param progress: called with the image id and the bytes taken so far (0: it is begun), on the thread that stores
        it; what it raises is the outcome of that image.  With worker processes: once, here, when an image is stored.
    :param resume: what is stored already under the same id is compared, and skipped if it holds the same bytes.
        Both are read for that.
    :return: an iterator of outcomes, as they come.  Closing it (or an exception such as KeyboardInterrupt in it)
        cancels what has not begun and waits for what runs.  With durability "batch", as with "full", an image is
        on the disk when its outcome comes.
    :raises Invalid: an entry that is no item (from the iterator, when all before it are done); jobs < 1.
    Whatever `items` raises comes out of the iterator, too, when all before it are done.
    """
    return outcomes(store, items, jobs=jobs, executor=executor, progress=progress, resume=resume, tick=None)


def outcomes(
    store: Storing,
    items: Iterable[Entry],
    *,
    jobs: int | None = None,
    executor: Executors | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    tick: float | None,
) -> Generator[Any, None, None]:
    """As `add_many`; with a `tick` it also yields None, when nothing came for so many seconds."""
    if executor is None or isinstance(executor, ThreadPoolExecutor):
        jobs = checked_jobs(jobs, _workers(executor) or JOBS)
        return Local(store, resume, progress).run(items, jobs, executor, tick)
    if isinstance(executor, Mapping):
        missing = [directory.path for directory in store.datadirs.all if directory.path not in executor]
        if missing:
            raise Invalid(f"executor: there is none for the data directory {missing[0]}; name one for each")
        workers = sum(_workers(one) or REMOTE_JOBS for one in executor.values())
    else:
        workers = _workers(executor) or REMOTE_JOBS
    # Two tasks a worker, so that none waits for us.
    return Remote(store, resume, progress, executor, _work).run(items, checked_jobs(jobs, 2 * workers), tick)


def _workers(executor: Executor | None) -> int | None:
    found = getattr(executor, "_max_workers", None)
    return found if isinstance(found, int) else None


@lru_cache(maxsize=16)
def _store_of(kind: Callable[[StoreConfig], Storing], config: StoreConfig) -> Storing:
    return kind(config)


def _work(kind: Callable[[StoreConfig], Storing], config: StoreConfig, items: list[Item]) -> list[Outcome]:
    """One task, in a worker process."""
    store = _store_of(kind, config)
    with contextlib.closing(add_many(store, items, resume=True)) as outcomes:
        return [
            outcome if outcome.error is None else outcome._replace(error=portable_error(outcome.error))
            for outcome in outcomes
        ]
