# SPDX-License-Identifier: Apache-2.0
"""What a check says about an image."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Literal

Mode = Literal["fast", "deep"]


class Status(str, enum.Enum):
    """The outcome of checking one image."""

    CLEAN = "clean"

    # Damaged: the bytes are not those that went in.
    ROT = "bit-rot"
    TRUNCATED = "truncated"
    GROWN = "grown"
    WRONG_FILE = "wrong-file"
    UNREADABLE = "unreadable"
    #: All blocks are right, but MD5 or multihash is not: what was told when the image was added was wrong.
    WRONG_DIGEST = "wrong-digest"

    # Not verified: nothing is known about the bytes.
    NO_RECORD = "no-record"
    RECORD_DAMAGED = "record-damaged"
    #: Something else put another file in the place of the one that the record was made for.
    STALE_RECORD = "stale-record"
    DENIED = "denied"
    #: The check was broken off.
    UNFINISHED = "unfinished"
    #: Another scrub is at it.
    BUSY = "busy"

    # Nothing to say: deleted meanwhile; found clean earlier in the same pass.
    VANISHED = "vanished"
    SKIPPED = "skipped"

    def __str__(self) -> str:
        return self.value


DAMAGED = frozenset(
    {Status.ROT, Status.TRUNCATED, Status.GROWN, Status.WRONG_FILE, Status.UNREADABLE, Status.WRONG_DIGEST}
)
UNVERIFIED = frozenset(
    {
        Status.NO_RECORD,
        Status.RECORD_DAMAGED,
        Status.STALE_RECORD,
        Status.DENIED,
        Status.UNFINISHED,
        Status.BUSY,
    }
)

# How many runs of bad blocks are told one by one.
RUNS_MAX = 256


@dataclasses.dataclass(frozen=True)
class Finding:
    """About one image.  Can be pickled."""

    image_id: str
    datadir: str
    status: Status
    mode: Mode = "fast"
    #: Bytes of the file, and of what went in; None: not known.
    size: int | None = None
    expected_size: int | None = None
    block_size: int | None = None
    #: How many blocks are wrong, missing or unreadable, and which: runs (first, last) of their numbers.
    bad_blocks: int = 0
    bad: tuple[tuple[int, int], ...] = ()
    #: In words.
    detail: str = ""
    #: Bytes that were looked at, holes included.
    checked: int = 0
    seconds: float = 0.0
    #: Where the image was moved to, if it was.
    quarantined: str = ""
    #: Inode and modification time of the file; a device has other numbers on other machines.
    file: tuple[int, int] = (0, 0)
    #: Nothing of it, but for zeroes, is as recorded.
    foreign: bool = False

    @property
    def url(self) -> str:
        return f"file://{self.datadir}/{self.image_id}"

    @property
    def damaged(self) -> bool:
        """Is it known to be damaged?"""
        return self.status in DAMAGED

    @property
    def verified(self) -> bool:
        """Is it known to be what went in?"""
        return self.status in (Status.CLEAN, Status.SKIPPED)

    @property
    def offset(self) -> int | None:
        """Where the first bad block begins, in bytes; None if no block is bad."""
        return self.bad[0][0] * self.block_size if self.bad and self.block_size else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {
            "id": self.image_id,
            "url": self.url,
            "status": self.status.value,
            "damaged": self.damaged,
            "mode": self.mode,
            "size": self.size,
            "expected_size": self.expected_size,
            "block_size": self.block_size,
            "bad_blocks": self.bad_blocks,
            "bad": [list(run) for run in self.bad],
            "offset": self.offset,
            "checked": self.checked,
            "seconds": round(self.seconds, 6),
        }
        if self.detail:
            told["detail"] = self.detail
        if self.quarantined:
            told["quarantined"] = self.quarantined
        return told


class Runs:
    """Collects numbers that go up, as runs."""

    def __init__(self) -> None:
        self.count = 0
        self.runs: list[tuple[int, int]] = []

    def add(self, first: int, last: int | None = None) -> None:
        last = first if last is None else last
        self.count += last - first + 1
        if self.runs and self.runs[-1][1] + 1 == first:
            self.runs[-1] = (self.runs[-1][0], last)
        elif len(self.runs) < RUNS_MAX:
            self.runs.append((first, last))
