# SPDX-License-Identifier: Apache-2.0
"""What a test may have left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastfs.timeouts import Guard


def descriptors() -> list[str]:
    """The open ones of this process."""
    return sorted(os.listdir("/proc/self/fd"))


def names(directory: Path) -> list[str]:
    """Every name in a data directory, those of unfinished files too, but for the records of images that are there."""
    found = set(os.listdir(directory))
    return sorted(found - {f".fastfs-{name}.rec" for name in found})


def os_threads() -> set[str]:
    """Ids of all of this process; one that was joined may still be listed for a moment, so look for new ones only."""
    return set(os.listdir("/proc/self/task"))


def our_threads() -> list[str]:
    """Names of the library's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastfs")]


@contextmanager
def impatient(guard: Guard, seconds: float = 0.1) -> Iterator[None]:
    """What is called here is going to hang: its limit may be short.  Whatever else has one must have a long one, or it
    fails on a busy machine.
    """
    before, guard.timeout = guard.timeout, seconds
    try:
        yield
    finally:
        guard.timeout = before


def settled(measure: Callable[[], object], wanted: object, seconds: float = 30) -> object:
    """The measure, once it is as wanted: on a busy machine what has been told to end may need a while."""
    ends = time.monotonic() + seconds
    while (found := measure()) != wanted and time.monotonic() < ends:
        time.sleep(0.005)
    return found
