"""thin: zeroes become holes. Sources are dense: the store has to find the zeroes itself."""

from __future__ import annotations

from bench.beside import beside
from bench.conftest import RunCase
from bench.material import MIB
from bench.work import Case

CASES = [
    Case(f"thin-{fill}-{source}", f"thin 256m {fill}, {source}", 256 * MIB, source=source, fill=fill, thin=True)
    for fill in ("zeroes", "half", "random")
    for source in ("file", "reader")
]


@beside(CASES)
def test_thin(case: Case, side: str, run_case: RunCase) -> None:
    run_case(case, side)
