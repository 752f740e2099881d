"""add: every kind of source, small to large, one caller and sixteen at once."""

from __future__ import annotations

from bench.beside import beside
from bench.conftest import RunCase
from bench.material import MIB, SOURCES
from bench.work import Case

# Images that one caller adds in a round: enough that a round is milliseconds, few enough to stay in memory.
SIZES = {"4k": (4096, 250), "1m": (MIB, 16), "64m": (64 * MIB, 1)}
NAMES = {"file": "file", "bytesio": "BytesIO", "reader": "read(n)", "iterator": "iterator"}


def cases() -> list[Case]:
    made = []
    for label, (size, each) in SIZES.items():
        for callers in (1, 16):
            for source in SOURCES:
                title = f"add {NAMES[source]} {label}, {callers} at once"
                images = each * callers if size >= MIB else max(each, 16 * callers)
                made.append(Case(f"add-{source}-{label}-x{callers}", title, size, images, callers, source=source))
    return made


@beside(cases(), costs=[f"add-file-{label}-x1" for label in SIZES])
def test_add(case: Case, side: str, run_case: RunCase) -> None:
    run_case(case, side)
