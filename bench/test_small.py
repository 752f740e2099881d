"""small: objects of 4 KiB, where the cost is in the calls and not in the bytes; on disk and in memory."""

from __future__ import annotations

from bench.beside import beside
from bench.conftest import RunCase
from bench.work import Case

CASES = [
    Case(
        f"small-{where}-x{callers}",
        f"small 4k, {where}, {callers} at once",
        4096,
        1000,
        callers,
        source="bytesio",
        where=where,
    )
    for where in ("memory", "disk")
    for callers in (1, 2, 16)
]
# A sync for each object is about half a millisecond on a disk: fewer of them, in cases of their own.
COSTS = [Case("small-disk-durable", "small 4k, disk, durability", 4096, 100, source="bytesio")]


@beside([*CASES, *COSTS], costs=[case.name for case in COSTS])
def test_small(case: Case, side: str, run_case: RunCase) -> None:
    run_case(case, side)
