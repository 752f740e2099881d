# SPDX-License-Identifier: Apache-2.0
"""Give up operations of a data directory that hangs.

A system call that hangs (a dead NFS server) cannot be stopped.  It can be made on another thread, and that
thread can be left behind.  What such a thread still holds when its call returns at last (descriptors, an
unpublished file) it releases itself, so that nothing is published or lost late.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from fastfs.exceptions import FastfsError, StorageError, TimeoutError

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_current = threading.local()


def direct(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, without a time limit."""
    return function(*args)


class Owner(Protocol):
    """Whoever holds what an operation works on."""

    #: True once an operation was left behind: `release` is then the business of its thread.
    handed_over: bool

    @property
    def what(self) -> str:
        """For the log."""

    def release(self) -> None:
        """Undo and close everything.  May be repeated, but not by two threads at once."""


class Abandoned(BaseException):
    """Ends an operation, on its own thread, that nobody waits for any more."""


def checkpoint() -> None:
    """To be called before a step that must not happen late.

    :raises Abandoned: the caller has had its `TimeoutError`.
    """
    task: _Task | None = getattr(_current, "task", None)
    if task is not None and task.abandoned:
        raise Abandoned


class _Task:
    __slots__ = ("abandoned", "args", "done", "error", "function", "lock", "owner", "result", "undo")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        owner: Owner | None,
        undo: Callable[[Any], object] | None,
    ) -> None:
        self.function = function
        self.args = args
        self.owner = owner
        self.undo = undo
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        _current.task = self
        try:
            if not self.abandoned:
                self.result = self.function(*self.args)
        except BaseException as error:  # it is raised again in the caller
            self.error = error
        finally:
            _current.task = None
        self.args = ()  # the caller's memory, for one
        with self.lock:
            self.done.set()
            late = self.abandoned
        if late:
            self._undo()
            self.error = None  # its traceback leads here
        self.owner = self.undo = None

    def _undo(self) -> None:
        _current.task = _UNDOING  # what has a limit of its own goes on here: the pool may have been closed
        try:
            if self.owner is not None:
                self.owner.release()
            if self.undo is not None and self.result is not None:
                self.undo(self.result)
        except Exception as error:  # nobody is there to be told; the thread goes on to other tasks
            LOG.warning("cleaning up after an operation that came too late: %s", error)
        finally:
            _current.task = None

    def abandon(self) -> bool:
        """Nobody waits any more.  False: too late, it is done."""
        with self.lock:
            if self.done.is_set():
                return False
            self.abandoned = True
            if self.owner is not None:
                self.owner.handed_over = True
            return True


_UNDOING = _Task(lambda: None, (), None, None)

#: Is told of threads in use, all threads, percentage in use, percentage from which on that is told.
Report = Callable[[int, int, float, int], object]


def _log_usage(active: int, size: int, usage: float, threshold: int) -> None:
    LOG.warning(
        "%d of %d threads for file operations are in use (%d%%, threshold %d%%); the storage may be slow",
        active,
        size,
        usage,
        threshold,
    )


#: Seconds for which closing waits for threads that have nothing to do: they need a moment of the processor, no more.
_END_SECONDS = 10.0


class _Worker(threading.Thread):
    """A thread that runs the tasks of a queue until it finds a None."""

    def __init__(self, pool: _Pool, tasks: SimpleQueue[_Task | None]) -> None:
        super().__init__(name="fastfs-guard", daemon=True)
        self._pool = pool
        self._tasks = tasks
        self._task: _Task | None = None

    def run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._task = task
            task.run()
            self._task = None
            del task
            self._pool.finished()

    @property
    def idle(self) -> bool:
        """Nothing is under way here, or only the moment after it."""
        task = self._task
        return task is None or (task.done.is_set() and not task.abandoned)


class _Pool:
    """Threads that run tasks.  They refer to this, not to the guard, so that a guard that is dropped ends them."""

    def __init__(self, size: int, threshold: int, report: Report) -> None:
        self.pid = os.getpid()
        self.report = report
        self.size = size
        self.threshold = threshold
        self.slots = threading.BoundedSemaphore(size)
        # Of one thread several times: the collector may end a guard in the middle of anything.
        self.lock = threading.RLock()
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.workers: list[_Worker] = []
        self.active = 0
        self.warned = False

    @property
    def usage(self) -> float:
        """Percentage of the threads in use, those left behind included."""
        return 100 * self.active / self.size

    def submit(self, task: _Task) -> bool:
        """Run a task; the caller has one of the `slots`, so a thread is free for it or may be started.

        :return: it is time to warn.
        """
        with self.lock:
            self.active += 1
            try:
                if len(self.workers) < self.active:
                    worker = _Worker(self, self.tasks)
                    worker.start()
                    self.workers.append(worker)
                warn = self.usage >= self.threshold and not self.warned
                self.warned = self.usage >= self.threshold
                self.tasks.put(task)
            except BaseException:
                self.finished()
                raise
        return warn

    def warn(self) -> None:
        self.report(self.active, self.size, self.usage, self.threshold)

    def finished(self) -> None:
        """A thread is free again."""
        with self.lock:
            self.active -= 1
            self.warned = self.warned and self.usage >= self.threshold
        self.slots.release()

    def close(self, wait: bool) -> None:
        """End the threads; see `Guard.close`."""
        if self.pid != os.getpid():
            return  # there are none after fork(), and the lock may be held by nobody
        with self.lock:
            workers, self.workers = self.workers, []
            # What hangs must not leave its None to the threads that come later.
            tasks, self.tasks = self.tasks, SimpleQueue()
        for _ in workers:
            tasks.put(None)
        ends = time.monotonic() + _END_SECONDS
        for worker in workers if wait else ():
            if worker.idle and worker is not threading.current_thread():
                worker.join(max(0.0, ends - time.monotonic()))


class Guard:
    """Run operations with a time limit.

    :param timeout: seconds; 0: no limit, and operations run on the calling thread at no cost.
    :param pool_size: how many may be under way at once, those left behind included.
    :param threshold: percentage of `pool_size` from which on a warning is logged, once until it is below again.
    :param report: logs that warning.
    """

    def __init__(self, timeout: float, pool_size: int, threshold: int, report: Report = _log_usage) -> None:
        self.timeout = timeout
        self._pool = _Pool(pool_size, threshold, report)

    def call(
        self,
        what: str,
        function: Callable[..., T],
        *args: Any,
        path: str | None = None,
        owner: Owner | None = None,
        undo: Callable[[T], object] | None = None,
        busy_since: Callable[[], int] | None = None,
    ) -> T:
        """``function(*args)``, given up after `timeout` seconds.

        :param what: the operation, for the message.
        :param owner: is told when the operation is left behind, and releases what it holds when it ends.
        :param undo: is called with a result that comes too late.
        :param busy_since: where an operation also does other things (read a slow source), tells since when
            (`time.monotonic_ns`) it has been waiting for the data directory; 0: it is not.
        :raises TimeoutError: no answer, or no thread free to ask, for `timeout` seconds.
        :raises StorageError: the system lets us have no more threads.
        """
        if not self.timeout or getattr(_current, "task", None) is not None:
            return function(*args)  # within an operation its limit counts; a second slot might never be free
        if self._pool.pid != os.getpid():
            # after fork() there are no threads
            self._pool = _Pool(self._pool.size, self._pool.threshold, self._pool.report)
        pool = self._pool
        where = f" in {path}" if path else ""
        if not pool.slots.acquire(timeout=self.timeout):
            raise TimeoutError(
                f"{what}{where} timed out: {pool.size} earlier operations still hang (thread_pool_size); "
                "check the health of the storage and its network",
                path=path,
            )
        task = _Task(function, args, owner, undo)
        try:
            crowded = pool.submit(task)
        except RuntimeError as error:
            raise StorageError(
                f"{what}{where}: {error}; raise the limit of processes (ulimit -u), or set timeout=0",
                path=path,
                errno=errno.EAGAIN,
            ) from error
        try:
            if crowded:
                pool.warn()
            finished = self._wait(task, busy_since)
        except BaseException:  # KeyboardInterrupt, for one
            if not task.abandon() and undo is not None and task.result is not None:
                with suppress(OSError):
                    undo(task.result)  # it is done, and nobody takes what came of it
            raise
        if not finished and task.abandon():
            raise TimeoutError(
                f"{what}{where} timed out after {self.timeout:g} s; check the health of the storage and its network",
                path=path,
            )
        if (failure := task.error) is not None:
            task.error = None  # its traceback leads to the task, and to this frame: cycles would keep what was given
            try:
                raise failure
            finally:
                del failure
        result: T = task.result
        return result

    def release(self, owner: Owner) -> None:
        """Have the owner of an operation that is over release what it holds, unless it was left behind.

        Where that takes too long it is left to the thread that it hangs on, and where there is none, to one of its own.
        """
        if owner.handed_over:
            return
        try:
            if sys.is_finalizing():  # daemon threads run no more
                owner.release()
            else:
                self.call("cleaning up", owner.release, owner=owner)
        except MemoryError:
            if not owner.handed_over:
                owner.release()  # some has become free meanwhile; and what is published must not fail
        except BaseException as error:
            if not owner.handed_over:
                self._release_apart(owner)
            if not isinstance(error, FastfsError):
                raise
            LOG.warning("%s: %s", owner.what, error)

    @staticmethod
    def _release_apart(owner: Owner) -> None:
        try:
            threading.Thread(target=owner.release, name="fastfs-release", daemon=True).start()
        except RuntimeError:  # nor is there another thread
            owner.release()

    def _wait(self, task: _Task, busy_since: Callable[[], int] | None) -> bool:
        if busy_since is None:
            return task.done.wait(self.timeout)
        left = self.timeout
        while not task.done.wait(max(left, 0.001)):
            since = busy_since()
            left = self.timeout if not since else self.timeout - (time.monotonic_ns() - since) / 1e9
            if left <= 0:
                return False
        return True

    def close(self, wait: bool = True) -> None:
        """End the threads.  One that hangs ends when its call returns and does not keep the process alive.

        :param wait: until those that do not hang have ended, for a bounded time.
        """
        self._pool.close(wait)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter modules are gone, and daemon threads run no more.
        if (pool := getattr(self, "_pool", None)) is not None and not finalizing():
            pool.close(wait=False)
