"""get: read an image back to its end, one reader and sixteen at once; both sides read the same file."""

from __future__ import annotations

from bench.beside import beside
from bench.conftest import RunCase
from bench.material import MIB
from bench.work import Case

CASES = [
    Case("get-64m", "get 64m, iterating", 64 * MIB, work="get"),
    Case("get-512m", "get 512m, iterating", 512 * MIB, work="get"),
    Case("get-512m-readinto", "get 512m, fastfs by readinto", 512 * MIB, work="get-readinto"),
    Case("get-64m-x16", "get 64m, 16 at once", 64 * MIB, 16, 16, work="get"),
    Case("get-4k", "get 4k", 4096, 500, work="get"),
]


@beside(CASES)
def test_get(case: Case, side: str, run_case: RunCase) -> None:
    run_case(case, side)
