# SPDX-License-Identifier: Apache-2.0
"""`Scrub`: check what is stored, image by image."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastfs import sidecar
from fastfs.datadirs import DataDir, DataDirs, close_quietly
from fastfs.exceptions import Invalid, NotFound, from_oserror
from fastfs.location import check_image_id
from fastfs.scrub.check import Check
from fastfs.scrub.finding import DAMAGED, UNVERIFIED, Finding, Mode, Status
from fastfs.scrub.limits import Limits, Priority, Stopped, io_priority
from fastfs.scrub.passes import Pass
from fastfs.scrub.quarantine import Quarantine
from fastfs.scrub.strangers import Strangers
from fastfs.sources import SMALL

if TYPE_CHECKING:
    from fastfs.config import StoreConfig

# Images at once.  A fast check keeps a processor busy; a deep one wants many streams for the lanes that hash them.
FAST_JOBS = 2
DEEP_JOBS = 32
# On an executor that does not tell how many workers it has.
REMOTE_JOBS = 32

# How long to wait before looking again at what another scrub is checking.
AGAIN = 0.2

Progress = Callable[[str, int], object]


class Scrubbed(Protocol):
    """What a scrub needs of a store."""

    config: StoreConfig
    datadirs: DataDirs


class Candidate(NamedTuple):
    """An image that may be checked."""

    checked: int  # when it was, nanoseconds since the epoch
    datadir: int
    name: str
    size: int
    done: bool  # found clean in the pass that is gone on with


@dataclasses.dataclass
class Summary:
    """What a scrub has found so far."""

    #: Images in all, and how many of them had been found clean when this scrub went on with a pass.
    images: int = 0
    resumed: int = 0
    #: Bytes of the images that are to be checked, and of those that were, holes included.
    bytes: int = 0
    checked: int = 0
    seconds: float = 0.0
    #: The limit of time was reached, or it was broken off.
    stopped: bool = False
    counts: Counter[Status] = dataclasses.field(default_factory=Counter)
    #: Small images that have no record because the option `records` gives them none.
    unrecorded: int = 0

    @property
    def damaged(self) -> int:
        return sum(self.counts[status] for status in DAMAGED)

    @property
    def unverified(self) -> int:
        """Images of which nothing is known and something should be."""
        return sum(self.counts[status] for status in UNVERIFIED) - self.unrecorded

    @property
    def clean(self) -> int:
        return self.counts[Status.CLEAN] + self.counts[Status.SKIPPED] + self.resumed

    @property
    def complete(self) -> bool:
        """Was every image checked that should have a record?"""
        return not self.stopped and not self.unverified

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "clean": self.clean,
            "damaged": self.damaged,
            "unverified": self.unverified,
            "unrecorded": self.unrecorded,
            "resumed": self.resumed,
            "complete": self.complete,
            "bytes": self.bytes,
            "checked": self.checked,
            "seconds": round(self.seconds, 3),
            "counts": {status.value: count for status, count in sorted(self.counts.items())},
        }


class Scrub:
    """Checks images against their records; iterate over it for the findings, then look at `summary`.

    Made by `Store.scrub`, which tells the parameters.  Nothing is ever deleted, and nothing but records' stamps is
    changed, unless `quarantine` is set.
    """

    def __init__(
        self,
        store: Scrubbed,
        *,
        mode: Mode = "fast",
        images: Iterable[object] | None = None,
        match: str | None = None,
        rate: float | None = None,
        seconds: float | None = None,
        priority: Priority = "normal",
        jobs: int | None = None,
        executor: Executor | None = None,
        quarantine: bool = False,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if mode not in ("fast", "deep"):
            raise Invalid(f"mode={mode!r} is no mode of a scrub; use 'fast' or 'deep'")
        if priority not in ("normal", "low", "idle"):
            raise Invalid(f"priority={priority!r} is none; use 'normal', 'low' or 'idle'")
        for what, number in (("rate", rate), ("seconds", seconds), ("jobs", jobs)):
            if number is not None and not number > 0:
                raise Invalid(f"{what}={number!r} is no limit; give a positive number, or none")
        self.store = store
        self.mode: Mode = mode
        self.images = None if images is None else [check_image_id(image) for image in images]
        self.match = match
        self.rate = rate
        self.seconds = seconds
        self.priority: Priority = priority
        self.jobs = jobs
        self.executor = executor
        self.quarantine = quarantine
        self.restart = restart
        self.progress = progress
        self.summary = Summary()
        self.limits = Limits()

    def stop(self) -> None:
        """End soon, from any thread: images that are being checked are left unfinished."""
        self.limits.stop()

    def __iter__(self) -> Generator[Finding, None, None]:
        return self.run(None)

    def all(self) -> Summary:
        """Run to the end; the summary."""
        for _ in self:
            pass
        return self.summary

    def run(self, tick: float | None) -> Generator[Any, None, None]:
        """The findings as they come; with a `tick` also None, when there was none for so many seconds."""
        began = time.monotonic()
        self.summary = Summary()
        self.limits = Limits(self.rate, None if self.seconds is None else began + self.seconds)
        directories = self.store.datadirs.all
        what = {"mode": self.mode, "images": self.images, "match": self.match}
        passes = [Pass(directory, what, self.restart) for directory in directories]
        queue_ = self._candidates(directories, passes)
        strangers = Strangers([directory.path for directory in directories])
        open_ends = {directory.path: 0 for directory in directories}
        for candidate in queue_:
            open_ends[directories[candidate.datadir].path] += 1
        try:
            with contextlib.closing(self._checked(queue_, directories, passes, tick)) as findings:
                for finding in findings:
                    self.summary.seconds = time.monotonic() - began
                    if finding is None:
                        yield None
                        continue
                    finding = strangers.recognise(finding)
                    if self.quarantine and finding.damaged:
                        finding = self._put_away(finding)
                    self._count(finding)
                    if finding.status not in (Status.UNFINISHED, Status.BUSY):
                        open_ends[finding.datadir] -= 1
                    if finding.status not in (Status.VANISHED, Status.SKIPPED):
                        yield finding
        finally:
            self.summary.seconds = time.monotonic() - began
            self.summary.stopped = any(open_ends.values())
        for one in passes:
            if not open_ends[one.directory.path]:
                one.finish()

    def _count(self, finding: Finding) -> None:
        self.summary.counts[finding.status] += 1
        small = finding.size is not None and finding.size <= SMALL
        if finding.status is Status.NO_RECORD and small and self.store.config.records != "all":
            self.summary.unrecorded += 1
        self.summary.checked += finding.checked

    def _put_away(self, finding: Finding) -> Finding:
        try:
            entry = Quarantine(finding.datadir).put(finding)
        except OSError as error:
            detail = f"{finding.detail}; it could not be moved to the quarantine: {error.strerror or error}"
            return dataclasses.replace(finding, detail=detail.removeprefix("; "))
        return dataclasses.replace(finding, quarantined=entry)

    # -- what to check --------------------------------------------------------------------------------------

    def _candidates(self, directories: list[DataDir], passes: list[Pass]) -> deque[Candidate]:
        found: list[Candidate] = []
        for number, (directory, one) in enumerate(zip(directories, passes, strict=True)):
            found += self._listed(number, directory, one)
        if self.images is not None:
            there = {candidate.name for candidate in found}
            for name in self.images:
                if name not in there:
                    raise NotFound(f"no image {name} in {self.store.datadirs.where}", image_id=name)
        self.summary.images = len(found)
        self.summary.resumed = sum(candidate.done for candidate in found)
        found = sorted(candidate for candidate in found if not candidate.done)
        self.summary.bytes = sum(candidate.size for candidate in found)
        return deque(found)

    def _listed(self, number: int, directory: DataDir, one: Pass) -> Iterator[Candidate]:
        wanted = None if self.images is None else set(self.images)
        top = directory.open()
        try:
            with os.scandir(top) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or not entry.is_file(follow_symlinks=False):
                        continue
                    if wanted is not None and name not in wanted:
                        continue
                    if self.match is not None and not fnmatch.fnmatchcase(name, self.match):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        stamp = sidecar.stamp_of(top, directory.path, name)
                        last = stamp.deep if self.mode == "deep" else stamp.checked
                        clean = stamp.verdict == stamp.CLEAN and not stamp.position
                        yield Candidate(last, number, name, size, stamp.started == one.started and clean)
        except OSError as error:
            raise from_oserror(error, "read", path=directory.path) from error
        finally:
            close_quietly(top)

    # -- checking -------------------------------------------------------------------------------------------

    def _checked(
        self, waiting: deque[Candidate], directories: list[DataDir], passes: list[Pass], tick: float | None
    ) -> Generator[Finding | None, None, None]:
        """Have all of them checked, several at a time; those that another scrub is at come last."""
        ended: queue.SimpleQueue[Future[Finding]] = queue.SimpleQueue()
        running: dict[Future[Finding], Candidate] = {}
        busy: deque[Candidate] = deque()
        together = threading.Event()
        with contextlib.ExitStack() as stack:
            submit, jobs = self._workers(stack, together)
            stack.callback(self._settle, running)
            stack.callback(together.set)
            while True:
                while waiting and len(running) < jobs and not self.limits.stopped:
                    candidate = waiting.popleft()
                    directory = directories[candidate.datadir].path
                    future = submit(directory, candidate.name, passes[candidate.datadir].started)
                    running[future] = candidate
                    future.add_done_callback(ended.put)
                together.set()
                if not running:
                    if not busy or self.limits.stopped:
                        break
                    with contextlib.suppress(Stopped):
                        self.limits.nap(AGAIN)
                    waiting, busy = busy, deque()
                    if tick is not None:
                        yield None
                    continue
                try:
                    future = ended.get(timeout=tick)
                except queue.Empty:
                    yield None
                    continue
                candidate = running.pop(future)
                finding = self._result(future, candidate, directories[candidate.datadir])
                if finding.status is Status.BUSY and not self.limits.stopped:
                    busy.append(candidate)
                    continue
                yield finding
            for candidate in busy:
                yield Finding(
                    candidate.name, directories[candidate.datadir].path, Status.BUSY, self.mode, candidate.size
                )

    @staticmethod
    def _result(future: Future[Finding], candidate: Candidate, directory: DataDir) -> Finding:
        try:
            return future.result()
        except (Exception, CancelledError) as error:
            # A worker process died, the executor was shut down, or `progress` raised.
            reason = str(error) or type(error).__name__
            return Finding(candidate.name, directory.path, Status.UNFINISHED, "fast", candidate.size, detail=reason)

    def _workers(
        self, stack: contextlib.ExitStack, together: threading.Event
    ) -> tuple[Callable[[str, str, int], Future[Finding]], int]:
        """What has an image checked, and how many at a time.

        :param together: the first ones begin when it is set.  While the first two keep two processors busy, starting
            the others takes 30 ms instead of 10, with lanes that are not filled.
        """
        executor = self.executor
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            jobs = self.jobs or (executor and executor._max_workers) or self._default_jobs()
            pool = executor or stack.enter_context(ThreadPoolExecutor(jobs, thread_name_prefix="fastfs-scrub"))
            if type(pool) is not ThreadPoolExecutor:
                together.set()  # its `submit` may wait for somebody to begin

            def here(path: str, name: str, started: int) -> Future[Finding]:
                return pool.submit(self._check, together, path, name, started)

            return here, jobs
        workers = getattr(executor, "_max_workers", None)
        jobs = self.jobs or (2 * workers if isinstance(workers, int) else REMOTE_JOBS)
        rate = None if self.rate is None else self.rate / jobs
        engine = self.store.config.hash_engine

        def there(path: str, name: str, started: int) -> Future[Finding]:
            left = None if self.limits.until is None else max(0.0, self.limits.until - time.monotonic())
            return executor.submit(check_image, path, name, self.mode, started, rate, left, self.priority, engine)

        return there, jobs

    def _default_jobs(self) -> int:
        return DEEP_JOBS if self.mode == "deep" else min(FAST_JOBS, len(os.sched_getaffinity(0)))

    def _check(self, together: threading.Event, path: str, name: str, started: int) -> Finding:
        together.wait()
        told: Callable[[int], object] | None = None
        if (progress := self.progress) is not None:

            def told(count: int) -> object:
                return progress(name, count)

        with io_priority(self.priority):
            return Check(path, name, self.mode, self.limits, started, told, self.store.config.hash_engine).run()

    def _settle(self, running: dict[Future[Finding], Candidate]) -> None:
        """At the end, or when the caller goes away: wait for what runs."""
        if running:
            self.limits.stop()
        for future in running:
            future.cancel()
        wait([future for future in running if not future.cancelled()])


def check_image(
    path: str,
    name: str,
    mode: Mode = "fast",
    started: int = 0,
    rate: float | None = None,
    seconds: float | None = None,
    priority: Priority = "normal",
    engine: str = "auto",
) -> Finding:
    """Check the image `name` of the data directory `path`: one task of a scrub, for any executor.

    :param rate: bytes a second.
    :param seconds: how long it may take.
    """
    limits = Limits(rate, None if seconds is None else time.monotonic() + seconds)
    with io_priority(priority):
        return Check(path, name, mode, limits, started, None, engine).run()
