# SPDX-License-Identifier: Apache-2.0
"""Hashing for its own sake: any number of algorithms in one pass over a file, many files at once."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from fastfs import _native, hashing
from fastfs.conveyor import Conveyor, Piece
from fastfs.exceptions import Invalid
from fastfs.smallfiles import SmallFiles
from fastfs.sources import SMALL, Source, check_count, open_source

# Streams at once: 16 lanes on each of two processors.  More only costs memory, 1 MiB a stream.
JOBS = 32

# What a pump takes; any further algorithms share one place.
_PUMP_HASHERS = 4

ALGORITHMS = ("md5", "sha512")

# Results that may wait for those of a huge file before them.
WAITING = 16384


def packs_at_once() -> int:
    """Packs of small objects under way at once: they keep a processor busy, and do not wait."""
    return max(2, len(os.sched_getaffinity(0)))


class _Several:
    """Several hash objects in the place of one."""

    def __init__(self, names: Sequence[str]) -> None:
        self.hashers = [hashing.algorithm(name).new() for name in names]

    def update(self, data: Any) -> None:
        for hasher in self.hashers:
            hasher.update(data)


class Stopped(BaseException):
    """Nobody waits for the digests any more."""


class Digester:
    """Takes the bytes of one source and only hashes them: a `fastfs.sources.Sink`.

    :param stop: is asked between blocks whether to go on; `Stopped` is raised then.
    :param engine: the option `hash_engine`.
    """

    def __init__(self, names: Sequence[str], stop: Callable[[], bool] = lambda: False, engine: str = "auto") -> None:
        self._stop = stop
        self._names = tuple(names)
        split = len(names) if len(names) <= _PUMP_HASHERS else _PUMP_HASHERS - 1
        self._hashers = hashing.hashers(names[:split], engine)
        self._rest = _Several(names[split:])
        more = [self._rest] if self._rest.hashers else []
        self._pump = _native.Pump(-1, [*self._hashers, *more])

    @property
    def size(self) -> int:
        return self._pump.size

    def _check(self) -> None:
        if self._stop():
            raise Stopped

    def feed(self, data: Any, start: int = 0, stop: int | None = None) -> None:
        self._check()
        self._pump.feed(data, start, stop)

    def fill(self, readinto: Callable[[memoryview], Any], most: int | None) -> int:
        self._check()
        view = self._pump.room()
        if most is not None:
            view = view[:most]
        count = check_count(readinto(view), len(view))
        if count:
            self._pump.advance(count)
        return count

    def read_fd(
        self, fd: int, offset: int | None, limit: int | None, *, wait_ms: int = -1, sparse: bool = False
    ) -> tuple[bool, int]:
        self._check()
        return self._pump.read_fd(fd, offset, limit, wait_ms=wait_ms, sparse=sparse)

    def finish(self) -> dict[str, str]:
        """The digests by name, hexadecimal."""
        self._pump.finish()
        return {
            name: hasher.hexdigest()
            for name, hasher in zip(self._names, [*self._hashers, *self._rest.hashers], strict=True)
        }

    def close(self) -> None:
        self._pump.close()


def digest_source(
    source: Source,
    names: Sequence[str],
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    engine: str = "auto",
) -> tuple[int, dict[str, str]]:
    """Size and digests of what a source has left, up to `limit` bytes.  For `stop` and `engine` see `Digester`."""
    digester = Digester(names, stop, engine)
    try:
        source.transfer(digester, limit)
        found = digester.finish()
        return digester.size, found
    finally:
        digester.close()


def checked_algorithms(algorithms: str | Iterable[str]) -> tuple[str, ...]:
    """The names, each once.

    :raises UnknownHashingAlgo: hashlib does not know one of them, or it has no fixed length.
    :raises Invalid: there is none.
    """
    names = (algorithms,) if isinstance(algorithms, str) else tuple(dict.fromkeys(algorithms))
    for name in names:
        hashing.algorithm(name)
    if not names:
        raise Invalid("no algorithm is named; give one or several, such as sha512")
    return names


def hash_file(path: Any, algorithms: str | Iterable[str] = ALGORITHMS) -> dict[str, str]:
    """The digests of a file, by algorithm, hexadecimal; the file is read once.

    :param path: a path, or anything else that `Store.add` takes as a source.
    :raises UnknownHashingAlgo: hashlib does not know the algorithm, or it has no fixed length.
    :raises OSError: the file cannot be read.
    """
    return _hash_one(path, checked_algorithms(algorithms))[1]


class FileDigests(NamedTuple):
    """What `hash_files` tells of one file."""

    path: Any
    #: Bytes that were hashed; None: see `error`.
    size: int | None
    #: By algorithm, hexadecimal; empty: see `error`.
    digests: dict[str, str]
    error: BaseException | None = None


def hash_files(
    paths: Iterable[Any], algorithms: str | Iterable[str] = ALGORITHMS, *, jobs: int | None = None
) -> Generator[FileDigests, None, None]:
    """The digests of many files, many at a time, in the order of `paths`; one that fails does not stop the rest.

    Of a file that is written to meanwhile the digests may be of different states: they may be hashed in place.

    :param paths: an iterable that may be long: some thousand are looked at ahead.  Each is a path or, as for
        `hash_file`, another source.
    :param jobs: files that are read at once; None: 32.
    :raises UnknownHashingAlgo: at once, as `hash_file`.
    :return: an iterator.  Closing it gives up what is not done.
    """
    return _Hashing(checked_algorithms(algorithms), checked_jobs(jobs)).in_order(paths)


def checked_jobs(jobs: int | None, default: int = JOBS) -> int:
    """:raises Invalid: not a positive number."""
    if jobs is None:
        return default
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise Invalid(f"jobs={jobs!r} is no number of things to do at once; give 1 or more, or None")
    return jobs


_Numbered = tuple[int, FileDigests]
_Part = Piece[tuple[int, Any]]


class _Hashing:
    def __init__(self, names: tuple[str, ...], jobs: int) -> None:
        self.names = names
        self.jobs = jobs
        self.waiting: dict[int, FileDigests] = {}
        self.stopped = False

    def in_order(self, paths: Iterable[Any]) -> Generator[FileDigests, None, None]:
        expected = 0
        with contextlib.closing(self.run(paths)) as numbered:
            for one in numbered:
                assert one is not None  # there is no tick
                self.waiting[one[0]] = one[1]
                while expected in self.waiting:
                    yield self.waiting.pop(expected)
                    expected += 1

    def run(self, paths: Iterable[Any]) -> Generator[_Numbered | None, None, None]:
        pieces = (
            Piece((number, path), size, small=is_small_file(path, size), handles=not is_path(path))
            for number, path in enumerate(paths)
            for size in (size_of_path(path),)
        )
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="fastfs-hash") as pool:

            def submit(task: list[_Part]) -> Future[list[_Numbered]]:
                return pool.submit(self._pack if task[0].small else self._each, task)

            def failed(piece: _Part, error: BaseException) -> _Numbered:
                return piece.item[0], FileDigests(piece.item[1], None, {}, error)

            packs = min(self.jobs, packs_at_once())
            conveyor = Conveyor(
                pieces,
                submit,
                lambda task, results: results,
                failed,
                jobs=self.jobs,
                packs=packs,
                stopping=self._stop,
                more=lambda: len(self.waiting) < WAITING,
            )
            yield from conveyor.run()

    def _stop(self) -> None:
        self.stopped = True

    def _each(self, task: list[_Part]) -> list[_Numbered]:
        return [(number, self._one(path)) for number, path in (piece.item for piece in task)]

    def _one(self, path: Any) -> FileDigests:
        try:
            size, digests = _hash_one(path, self.names, lambda: self.stopped)
        except BaseException as error:
            return FileDigests(path, None, {}, error)
        return FileDigests(path, size, digests)

    def _pack(self, task: list[_Part]) -> list[_Numbered]:
        done: list[_Numbered] = []
        with SmallFiles() as files:
            found = files.read([piece.item[1] for piece in task])
            whole = [data for data in found if isinstance(data, memoryview)]
            digests = iter(hashing.digest_many(whole, self.names))
            for piece, data in zip(task, found, strict=True):
                number, path = piece.item
                if isinstance(data, memoryview):
                    named = dict(zip(self.names, next(digests), strict=True))
                    done.append((number, FileDigests(path, len(data), named)))
                elif data is None:  # not small any more
                    done.append((number, self._one(path)))
                else:
                    done.append((number, FileDigests(path, None, {}, data)))
        return done


def is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def size_of_path(path: Any) -> int | None:
    """How long the regular file is; None: it is none, or cannot be looked at."""
    if not is_path(path):
        return None
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def is_small_file(path: Any, size: int | None) -> bool:
    return size is not None and size <= SMALL and is_path(path)


def _hash_one(
    path: Any, names: tuple[str, ...], stop: Callable[[], bool] = lambda: False
) -> tuple[int, dict[str, str]]:
    try:
        source = open_source(path)
        try:
            source.announce()
            return digest_source(source, names, stop=stop)
        finally:
            source.close()
    except OSError as error:
        if error.filename is None and is_path(path):
            error.filename = os.fspath(path)
        raise
    finally:
        _native.expect_no_stream()
