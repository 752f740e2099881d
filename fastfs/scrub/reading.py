# SPDX-License-Identifier: Apache-2.0
"""Read an image once for all its digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastfs import _native, hashing
from fastfs.record import Recorder
from fastfs.scrub.cache import Guest
from fastfs.scrub.limits import Limits
from fastfs.sources import LARGE

# How much the digests take between two looks at limits.
STEP = 8 << 20
# The same where nothing has to be fetched: a stream that stops is missing in its lanes until it goes on.  16 images of
# 64 MiB at once, in one step each instead of eight, take 0.94 of the time.
STEP_IN_MEMORY = 64 << 20


class Unreadable(Exception):
    """The storage gave an error."""

    def __init__(self, error: OSError) -> None:
        super().__init__(os.strerror(error.errno) if error.errno else str(error))


class Digests(NamedTuple):
    """Of one image."""

    #: By algorithm, hexadecimal.
    digests: dict[str, str]
    #: Those of its blocks, one after the other.
    blocks: bytes


def digest_all(
    fd: int,
    info: os.stat_result,
    names: Sequence[str],
    block_size: int,
    limits: Limits,
    engine: str,
    report: Callable[[int], object],
) -> Digests:
    """Digests of the whole file `fd`; several threads that do this at once share the lanes of the hash engine.

    :param names: up to three algorithms of hashlib's.
    :param report: is told how many bytes more are done.
    :raises Unreadable: it cannot be read, or became shorter meanwhile.
    :raises Stopped: it is time to end.
    """
    hashers = hashing.hashers(names, engine)
    recorder = Recorder(block_size)
    pump = _native.Pump(-1, [*hashers, recorder.hasher])
    guest = Guest(fd, info.st_size)
    try:
        if info.st_size >= LARGE:
            _native.expect_stream()
        sparse = info.st_blocks * 512 < info.st_size
        offset, end = 0, info.st_size
        while offset < end:
            guest.reading(offset)
            step = min(STEP, end - offset, guest.window_end(offset) - offset)
            if not limits.rate:
                step = max(step, guest.resident_to(min(end, offset + STEP_IN_MEMORY)) - offset)
            limits.take(step)
            _, taken = pump.read_fd(fd, offset, step, sparse=sparse, budget=step)
            if not taken:
                raise Unreadable(OSError(0, "it became shorter while it was read"))
            offset += taken
            report(taken)
        pump.finish()
    except OSError as error:
        if pump.side != "source":
            raise
        raise Unreadable(error) from error
    finally:
        _native.expect_no_stream()
        pump.close()
        guest.done()
    named = {name: hasher.hexdigest() for name, hasher in zip(names, hashers, strict=True)}
    return Digests(named, recorder.finish())
