# SPDX-License-Identifier: Apache-2.0
"""Many pieces of work on an executor: the longest first, small ones packed, and only so many looked at ahead.

Knows nothing of what the work is.  Everything here runs on the consumer's thread; the only thing that other threads do
is to put what ended into a queue.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Objects and bytes in a pack: a task costs some 60 us, an object 20; the bytes are memory of each pack under way.
PACK = 64
PACK_BYTES = 4 * 1024 * 1024

# How many pieces are looked at ahead; and how many bytes they may hold, where it is for us that they are in memory.
AHEAD = 1024
AHEAD_BYTES = 256 * 1024 * 1024

# Seconds for which idle workers wait for longer pieces than those that were seen.
PATIENCE = 0.005


@dataclass
class Piece(Generic[T]):
    """One piece of work.

    :param size: bytes, for the order; None: unknown, and so among the first.
    :param small: it may be packed with others.
    :param memory: bytes that it holds while it waits.
    :param handles: descriptors that it (probably) holds while it waits.
    """

    item: T
    size: int | None
    small: bool = False
    memory: int = 0
    handles: int = 0


class Conveyor(Generic[T, R]):
    """One run.

    :param pieces: consumed as there is room, on the thread that consumes the results.
    :param submit: starts one task of several pieces.
    :param collect: makes of a task's pieces and what its future brought as many results, on the consumer's thread.
    :param failed: what a piece gives whose task broke (a worker process died, the executor was shut down).
    :param jobs: tasks under way at once.
    :param packs: those of them that may be packs of small pieces.
    :param bundle: how many large pieces one task may have.
    :param bounded: False: what the pieces hold is held anyway, by a list.
    :param stopping: called before what runs is waited for because the run ends early.
    :param more: may more pieces be looked at?  True whenever none is left.
    """

    def __init__(
        self,
        pieces: Iterable[Piece[T]],
        submit: Callable[[list[Piece[T]]], Future[Any]],
        collect: Callable[[list[Piece[T]], Any], list[R]],
        failed: Callable[[Piece[T], BaseException], R],
        *,
        jobs: int,
        packs: int,
        bundle: int = 1,
        bounded: bool = True,
        stopping: Callable[[], object] = lambda: None,
        more: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pieces = iter(pieces)
        self._submit = submit
        self._collect = collect
        self._failed = failed
        self._jobs = jobs
        self._packs = packs
        self._bundle = bundle
        self._stopping = stopping
        self._more = more
        self._most = max(AHEAD, 2 * jobs * bundle)
        self._memory_left: float = AHEAD_BYTES if bounded else math.inf
        self._handles_left: float = 2 * jobs * bundle if bounded else math.inf
        self._count = 0  # pieces that were read and have not ended
        self._order = itertools.count()
        self._large: list[tuple[float, int, Piece[T]]] = []  # a heap, the longest first
        self._small: deque[Piece[T]] = deque()
        self._running: dict[Future[Any], list[Piece[T]]] = {}
        self._packs_running = 0
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self._exhausted = False
        self._error: Exception | None = None

    def run(self, tick: float | None = None) -> Generator[R | None, None, None]:
        """The results as they come; with a `tick` also None, when there was none for so many seconds.

        What ``pieces`` or ``submit`` raises comes out when everything that was begun is done.  Closing this
        cancels what has not begun and waits for what runs.
        """
        try:
            while True:
                self._read_ahead()
                self._start()
                if not self._running:
                    break
                if self._may_read() and len(self._running) < self._jobs and self._ended.empty():
                    continue  # idle workers: rather look for work than wait
                try:
                    ended = self._ended.get(timeout=tick)
                except Empty:
                    yield None
                    continue
                results = self._results(ended)
                del ended
                self._read_ahead()
                self._start()  # before the consumer has its turn, for as long as it likes
                while results:
                    yield results.pop()
        finally:
            self._stop()
        if self._error is not None:
            raise self._error

    def _may_read(self) -> bool:
        if self._exhausted:
            return False
        held = self._memory_left <= 0 or self._handles_left <= 0
        return not self._count or (self._count < self._most and not held and self._more())

    def _read_ahead(self) -> None:
        until = time.monotonic() + PATIENCE
        while self._may_read():
            try:
                piece = next(self._pieces)
            except StopIteration:
                self._exhausted = True
                return
            except Exception as error:
                self._exhausted, self._error = True, error
                return
            self._hold(piece, 1)
            if piece.small:
                self._small.append(piece)
            else:
                size = math.inf if piece.size is None else piece.size
                if self._jobs == 1:
                    size = 0  # the time is the same in any order: keep the one that was given
                heapq.heappush(self._large, (-size, next(self._order), piece))
            idle = len(self._running) < self._jobs
            if (idle or not self._ended.empty()) and time.monotonic() > until:
                return

    def _hold(self, piece: Piece[T], sign: int) -> None:
        self._count += sign
        self._memory_left -= sign * piece.memory
        self._handles_left -= sign * piece.handles

    def _start(self) -> None:
        while len(self._running) < self._jobs and (task := self._take()):
            try:
                future = self._submit(task)
            except Exception as error:
                # The executor takes nothing any more: what has not begun will not begin.
                self._exhausted, self._error = True, self._error or error
                self._large.clear()
                self._small.clear()
                return
            self._running[future] = task
            self._packs_running += task[0].small
            future.add_done_callback(self._ended.put)

    def _take(self) -> list[Piece[T]]:
        """What to start next.  Packs are begun when one is full or when nothing large waits."""
        if self._small and self._packs_running < self._packs and (not self._large or len(self._small) >= PACK):
            return self._take_small()
        if not self._large:
            return []
        # Towards the end the bundles get smaller, so that all workers end at about the same time.
        count = min(self._bundle, max(1, len(self._large) // (2 * self._jobs)))
        return [heapq.heappop(self._large)[2] for _ in range(count)]

    def _take_small(self) -> list[Piece[T]]:
        most = min(PACK * self._bundle, max(1, len(self._small) // (2 * self._packs)))
        task: list[Piece[T]] = []
        total = 0
        while self._small and len(task) < most:
            total += self._small[0].size or 0
            if task and total > PACK_BYTES * self._bundle:
                break
            task.append(self._small.popleft())
        return task

    def _results(self, ended: Future[Any]) -> list[R]:
        """In reverse, to be popped."""
        task = self._running.pop(ended)
        self._packs_running -= task[0].small
        for piece in task:
            self._hold(piece, -1)
        error: BaseException | None
        if ended.cancelled():
            error = CancelledError("the executor was shut down before this was begun")
        else:
            error = ended.exception()
        if error is not None:
            return [self._failed(piece, error) for piece in reversed(task)]
        return self._collect(task, ended.result())[::-1]

    def _stop(self) -> None:
        self._stopping()
        for future in self._running:
            future.cancel()
        wait([future for future in self._running if not future.cancelled()])
        self._running.clear()
