# SPDX-License-Identifier: Apache-2.0
"""One image on its way, as the display sees it."""

from __future__ import annotations

from dataclasses import dataclass

from fastfs.cli.plan import Item

__all__ = ["TICK", "Job"]

TICK = 0.1  # seconds between two looks at the progress


@dataclass
class Job:
    """A worker writes, the main thread reads; each field is set by one assignment.

    :param total: bytes to come; None: unknown.
    :param started: on the monotonic clock; 0: not yet.
    """

    item: Item
    total: int | None
    done: int = 0
    started: float = 0.0
