"""Which driver is tested, and the mark for what only fastfs does right."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DRIVER = os.environ.get("FASTFS_COMPAT_DRIVER", "fastfs")
"""The driver under test: ``fastfs`` or, to see what the tests say of the original, ``upstream``."""


def strict_fastfs_only(hazard: str, *, always: bool = True) -> pytest.MarkDecorator:
    """Mark a test whose expectation the upstream driver is known to miss.

    With ``upstream`` the test is expected to fail, and if ``always``, failing to fail is an error: then the hazard is
    gone upstream and the mark wrong. Hazards that depend on timing say ``always=False``.
    """
    return pytest.mark.xfail(DRIVER == "upstream", reason=f"upstream hazard: {hazard}", strict=always)


def wait_until(condition: Callable[[], object], what: str, timeout: float = 15.0) -> None:
    """Wait until a condition holds, for what another process does in its own time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout:.0f} s still not: {what}"
        time.sleep(0.05)


def files(directory: Path) -> list[str]:
    """Return the names of everything in a directory, hidden or not, but for fastfs's records of what is there."""
    names = {entry.name for entry in directory.iterdir()}
    return sorted(names - {f".fastfs-{name}.rec" for name in names})


def visible_files(directory: Path) -> list[str]:
    """Return the names in a directory without hidden ones: unfinished data may have a hidden name, never another."""
    return [name for name in files(directory) if not name.startswith(".")]
