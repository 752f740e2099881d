# SPDX-License-Identifier: Apache-2.0
"""Sources and looks at directories that the tests of the driver share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


class Reader:
    """All that Glance's reader offers: ``read(n)``.

    :param before: called before each read, with the number of bytes given so far.
    """

    def __init__(self, data: bytes, before: Callable[[int], object] | None = None) -> None:
        self.data = data
        self.at = 0
        self.before = before
        self.asked: list[int] = []

    def read(self, count: int) -> bytes:
        if self.before is not None:
            self.before(self.at)
        self.asked.append(count)
        piece = self.data[self.at : self.at + count]
        self.at += len(piece)
        return piece


def failing(error: BaseException, after: int = 1) -> Reader:
    """Gives 2 MiB, but raises from byte `after` on."""

    def fail(at: int) -> None:
        if at >= after:
            raise error

    return Reader(b"x" * (2 * MIB), fail)


def names(directory: Path) -> list[str]:
    """What is in a directory, hidden or not, but for the records of images that are there."""
    found = set(os.listdir(directory)) if directory.exists() else set()
    return sorted(found - {f".fastfs-{name}.rec" for name in found})


def descriptors(below: Path) -> list[int]:
    """This process's open descriptors of files below a directory, nameless ones included."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{below}/"):
            found.append(int(name))
    return found


def together(count: int, function: Callable[[int], Any]) -> Iterator[Any]:
    """Run ``function(number)`` on `count` threads at once; their results or exceptions, by number."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = function(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from results
