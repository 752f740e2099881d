# SPDX-License-Identifier: Apache-2.0
"""Records for images that have none: those that other software has stored, or that were stored without."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from fastfs import hashing, sidecar
from fastfs import record as rec
from fastfs.config import StoreConfig
from fastfs.datadirs import DataDir, DataDirs, close_quietly
from fastfs.exceptions import Invalid, UnknownHashingAlgo, from_oserror
from fastfs.location import check_image_id
from fastfs.publish import sync_directory
from fastfs.scrub.limits import Limits, Priority, Stopped, io_priority
from fastfs.scrub.reading import Digests, Unreadable, digest_all
from fastfs.sidecar import Relation

# Streams at once: 16 lanes on each of two processors.
JOBS = 32
# What a pump takes beside the block digests.
ALGORITHMS_MAX = 3

#: What is expected of an image: digests, hexadecimal, by algorithm.
Expected = Mapping[str, Mapping[str, str]]


class Comparison(str, enum.Enum):
    """An image and what was expected of it."""

    MATCH = "match"
    MISMATCH = "mismatch"
    #: Nothing was expected of it.
    UNKNOWN = "unknown"
    #: It was expected, and is not there.
    MISSING = "missing"
    #: It cannot be told: the image could not be read.
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


class Outcome(str, enum.Enum):
    """What became of its record."""

    MADE = "made"
    #: It has one already.
    KEPT = "kept"
    #: It gets none: it is not what was expected, is another image, or something failed.
    NONE = "none"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class Adopted:
    """About one image."""

    image_id: str
    datadir: str
    comparison: Comparison
    record: Outcome
    size: int | None = None
    #: As they are, by algorithm.
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: As they should be.
    expected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.image_id,
            "url": f"file://{self.datadir}/{self.image_id}" if self.datadir else None,
            "result": self.comparison.value,
            "record": self.record.value,
            "size": self.size,
            "digests": dict(self.digests),
            "expected": dict(self.expected),
            "detail": self.detail,
        }


class Adopt:
    """Iterate over it for what became of each image.

    Made by `Store.adopt`, which tells the parameters.
    """

    def __init__(
        self,
        config: StoreConfig,
        datadirs: DataDirs,
        *,
        images: Iterable[object] | None,
        expected: Expected | None,
        algorithm: str,
        reread: bool,
        dry_run: bool,
        rate: float | None,
        seconds: float | None,
        priority: Priority,
        jobs: int | None,
        progress: Callable[[str, int], object] | None,
    ) -> None:
        for what, number in (("rate", rate), ("seconds", seconds), ("jobs", jobs)):
            if number is not None and not number > 0:
                raise Invalid(f"{what}={number!r} is no limit; give a positive number, or none")
        self.config = config
        self.datadirs = datadirs
        self.images = None if images is None else [check_image_id(image) for image in images]
        self.expected = expected
        self.algorithm = hashing.algorithm(algorithm).names[-1]
        self.reread = reread
        self.dry_run = dry_run
        self.priority = priority
        self.jobs = jobs or JOBS
        self.progress = progress
        self.limits = Limits(rate, None if seconds is None else time.monotonic() + seconds)
        #: Images that were not looked at because time was up.
        self.left = 0
        #: Images in all.
        self.total = 0

    def stop(self) -> None:
        """End soon, from any thread."""
        self.limits.stop()

    def __iter__(self) -> Generator[Adopted, None, None]:
        return self.run(None)

    def run(self, tick: float | None) -> Generator[Any, None, None]:
        """What became of them as it comes; with a `tick` also None, when there was nothing for so many seconds."""
        names = self._names()
        self.total = len(names)
        waiting = iter(names)
        running: set[Future[Adopted | None]] = set()
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="fastfs-adopt") as pool:
            try:
                exhausted = False
                while running or not exhausted:
                    while not exhausted and len(running) < self.jobs:
                        following = next(waiting, None)
                        if following is None or self.limits.stopped:
                            exhausted = True
                            self.left += (following is not None) + sum(1 for _ in waiting)
                            break
                        running.add(pool.submit(self._one, *following))
                    if not running:
                        break
                    done, running = wait(running, tick, FIRST_COMPLETED)
                    if not done:
                        yield None
                    for future in done:
                        found = future.result()
                        if found is None:
                            self.left += 1
                        else:
                            yield found
            finally:
                if running:
                    self.limits.stop()
        yield from self._missing({name for _, name in names})

    def _names(self) -> list[tuple[DataDir, str]]:
        found: list[tuple[DataDir, str]] = []
        wanted = None if self.images is None else set(self.images)
        for directory in self.datadirs.all:
            try:
                with os.scandir(directory.path) as entries:
                    names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
            except OSError as error:
                raise from_oserror(error, "read", path=directory.path) from error
            found += [(directory, name) for name in sorted(names) if wanted is None or name in wanted]
        return found

    def _missing(self, there: set[str]) -> Generator[Adopted, None, None]:
        for name, digests in (self.expected or {}).items():
            if name not in there and (self.images is None or name in self.images):
                yield Adopted(name, "", Comparison.MISSING, Outcome.NONE, expected=digests)
        for name in self.images or ():
            if name not in there and name not in (self.expected or {}):
                yield Adopted(name, "", Comparison.MISSING, Outcome.NONE)

    # -- one image ------------------------------------------------------------------------------------------

    def _one(self, directory: DataDir, name: str) -> Adopted | None:
        """None: time was up."""
        expected = dict((self.expected or {}).get(name, {}))
        try:
            with io_priority(self.priority):
                return self._adopt(directory, name, expected)
        except Stopped:
            return None
        except FileNotFoundError:
            return Adopted(name, "", Comparison.MISSING, Outcome.NONE, expected=expected, detail="it has just gone")
        except (OSError, Unreadable) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return Adopted(name, directory.path, Comparison.FAILED, Outcome.NONE, expected=expected, detail=reason)

    def _adopt(self, directory: DataDir, name: str, expected: dict[str, str]) -> Adopted:
        top = directory.open()
        fd = -1
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise FileNotFoundError(name)
            with sidecar.find(top, name, fd) as attached:
                table = attached.table
                usable = table is not None and attached.relation is not Relation.REPLACED
                if table is not None and usable and not self.reread and not self._unanswered(table.record, expected):
                    return self._told(directory, table.record, name, info, expected)
                foreign = table is not None and attached.relation is Relation.OTHER
                damaged = table is not None and usable and table.record.size != info.st_size
            names = self._algorithms(expected)
            found = self._digests(fd, info, name, names)
            comparison = compare(found.digests, expected, self.expected is not None)
            about = Adopted(name, directory.path, comparison, Outcome.NONE, info.st_size, found.digests, expected)
            if comparison is Comparison.MISMATCH:
                return dataclasses.replace(about, detail="it is not what was expected, so it gets no record")
            if foreign or damaged:
                detail = "its record says that it is another image or damaged; 'fastfs scrub' tells more"
                return dataclasses.replace(about, detail=detail)
            if usable:
                assert table is not None
                same = found.digests.get("md5") == table.record.md5
                detail = "" if same else "it is not what its record says; 'fastfs scrub' tells more"
                return dataclasses.replace(about, record=Outcome.KEPT, detail=detail)
            if self.dry_run:
                return about
            detail = self._record(directory, top, fd, info, name, found, names)
            return dataclasses.replace(about, record=Outcome.NONE if detail else Outcome.MADE, detail=detail)
        finally:
            if fd >= 0:
                close_quietly(fd)
            close_quietly(top)

    def _algorithms(self, expected: Mapping[str, str]) -> tuple[str, ...]:
        """What to compute: MD5, what is expected, and a multihash for the record, last."""
        others = [name for name in expected if name != "md5"]
        last = others[0] if others else self.algorithm
        return tuple(dict.fromkeys(["md5", *others[1 : ALGORITHMS_MAX - 1], last]))

    @staticmethod
    def _unanswered(record: rec.Record, expected: Mapping[str, str]) -> bool:
        """Is something expected that the record does not tell?"""
        return any(name not in ("md5", record.algorithm) for name in expected)

    def _told(
        self, directory: DataDir, record: rec.Record, name: str, info: os.stat_result, expected: dict[str, str]
    ) -> Adopted:
        digests = {"md5": record.md5, record.algorithm: record.multihash}
        comparison = compare(digests, expected, self.expected is not None)
        detail = ""
        if record.image_id != name or record.size != info.st_size:
            comparison, detail = Comparison.MISMATCH, "it is not what its record says; 'fastfs scrub' tells more"
        return Adopted(name, directory.path, comparison, Outcome.KEPT, info.st_size, digests, expected, detail)

    def _digests(self, fd: int, info: os.stat_result, name: str, names: tuple[str, ...]) -> Digests:
        progress = self.progress

        def report(count: int) -> None:
            if progress is not None:
                progress(name, count)

        block_size = self.config.record_block_size
        return digest_all(fd, info, names, block_size, self.limits, self.config.hash_engine, report)

    def _record(
        self,
        directory: DataDir,
        top: int,
        fd: int,
        info: os.stat_result,
        name: str,
        found: Digests,
        names: tuple[str, ...],
    ) -> str:
        """Make the record; why there is none, or ""."""
        if not _same(top, name, fd, info):
            return "it was changed or replaced while it was read"
        record = rec.make(
            name, info.st_size, self.config.record_block_size, found.digests["md5"], names[-1], found.digests[names[-1]]
        )
        durability = self.config.durability
        sidecar.discard(top, name)  # of no use; it must not be taken for the new one's
        made = sidecar.Sidecar(directory, record, found.blocks, stat.S_IMODE(info.st_mode) & 0o777, durability)
        keep = False
        try:
            made.write(fd)
            made.link(fd)
            # Whoever has deleted the image meanwhile did not see the record.
            keep = _same(top, name, fd, info)
            if made.error is not None:
                return f"no record: {made.error.strerror or made.error}"
            if not keep:
                return "it was changed or replaced while it was read"
            if durability != "none":
                os.fsync(fd)
                sync_directory(top)
            return ""
        except FileExistsError:
            return "somebody else has made one"
        finally:
            made.release(keep=keep)


def _same(top: int, name: str, fd: int, info: os.stat_result) -> bool:
    """Is the image still the file that was read, and as it was?"""
    now = os.fstat(fd)
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(name, dir_fd=top, follow_symlinks=False)
        return (now.st_size, now.st_mtime_ns, now.st_dev, now.st_ino) == (
            info.st_size,
            info.st_mtime_ns,
            there.st_dev,
            there.st_ino,
        )
    return False


def compare(digests: Mapping[str, str], expected: Mapping[str, str], asked: bool) -> Comparison:
    """Digests as they are and as they should be.

    :param asked: there are expectations, though not of this image perhaps.
    """
    if not expected:
        return Comparison.UNKNOWN
    wrong = any(digests.get(name) != digest.lower() for name, digest in expected.items() if name in digests)
    if wrong:
        return Comparison.MISMATCH
    return Comparison.MATCH if any(name in digests for name in expected) else Comparison.UNKNOWN


def checked_expectations(rows: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Rows of (id, algorithm, digest) by id; several of one id are several algorithms.

    :raises Invalid: two digests of one algorithm, or what is no digest.
    :raises UnknownHashingAlgo: hashlib does not know the algorithm.
    """
    found: dict[str, dict[str, str]] = {}
    for image_id, algorithm, digest in rows:
        try:
            name = hashing.algorithm(algorithm.strip().lower()).names[-1]
        except UnknownHashingAlgo as error:
            raise UnknownHashingAlgo(f"expected of image {image_id}: {error}", image_id=image_id) from None
        text = digest.strip().lower()
        size = hashing.algorithm(name).new().digest_size
        if len(text) != 2 * size or any(c not in "0123456789abcdef" for c in text):
            raise Invalid(f"expected of image {image_id}: {digest!r} is no {name}", image_id=image_id)
        known = found.setdefault(image_id, {})
        if known.setdefault(name, text) != text:
            raise Invalid(f"two different {name} are expected of image {image_id}", image_id=image_id)
        if len(known) > ALGORITHMS_MAX:
            raise Invalid(f"more than {ALGORITHMS_MAX} digests are expected of image {image_id}", image_id=image_id)
    return found
