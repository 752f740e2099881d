# SPDX-License-Identifier: Apache-2.0
"""`TimeoutExecutor`: the option ``filesystem_store_timeout``, by fastfs's time limits.

One set of threads for each store, which the core works with, too; so everything that touches a data directory is
under the limit, and everything that hangs is counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from fastfs.exceptions import TimeoutError
from fastfs.glance import errors
from fastfs.glance.upstream import LOG
from fastfs.timeouts import Guard

T = TypeVar("T")


def report(active: int, size: int, usage: float, threshold: int) -> None:
    """Warn that threads run short: formatted at once, as glance_store's tests have it."""
    LOG.warning(
        f"Thread pool usage is {active} of {size} ({usage:.0f}%, threshold {threshold}%): the storage is slow or "
        "hangs. Pool may start blocking."
    )


class TimeoutExecutor:
    """Runs operations of a file system with a time limit.

    :param timeout: seconds; 0: no limit, and no thread is ever started.
    :param pool_size: how many operations may be under way at once, those that hang included.
    :param threshold: percentage of `pool_size` from which on a warning is logged.
    """

    def __init__(self, timeout: float, pool_size: int, threshold: int) -> None:
        self.timeout = timeout
        self.pool_size = pool_size
        self.threshold = threshold
        self.guard = Guard(max(0, timeout), pool_size, threshold, report)
        #: What runs the operations.
        self.executor: Any = self.guard if timeout > 0 else _synchronous()

    def execute(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``function(*args, **kwargs)``; what it raises comes out unchanged.

        :raises glance_store.exceptions.TimeoutError: no answer within the limit.
        """
        name = getattr(function, "__name__", "an operation")
        if kwargs:
            function = functools.partial(function, **kwargs)
        try:
            return self.guard.call(name, function, *args)
        except TimeoutError as error:
            raise errors.translated(error, self.timeout) from error

    def shutdown(self, wait: bool = True) -> None:
        """End the threads.

        One that hangs ends when its call returns; it is not waited for, and does not keep the process alive.

        :param wait: for those that do not hang, for a bounded time.
        """
        self.guard.close(wait)


def _synchronous() -> Any:
    """What the attribute `executor` is without a limit.  glance_store needs futurist from 5.4 on only."""
    try:
        from futurist import SynchronousExecutor
    except ImportError:
        return None
    return SynchronousExecutor()
