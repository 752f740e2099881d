"""Every I/O call of every scenario struck by faults: a bounded part of what ``sweep.py`` can do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
from broken import BROKEN, Broken
from shim import HERE

CRASH_POINTS = 2400
ERROR_POINTS = 2400
HANG_POINTS = 400


@lru_cache
def sweep(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "sweep.py"), *arguments], stdout=subprocess.PIPE, text=True, timeout=1200
    )
    assert done.stdout, f"the sweep ended with {done.returncode}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ours(kind: str, most: int) -> dict[str, Any]:
    """fastfs itself: no problem at all."""
    answer = sweep(kind, "--most", str(most))
    assert answer["problems"] == []
    assert answer["cases"]["order"] == answer["scenarios"] > 1000
    assert answer["cases"].get("missed", 0) < most / 20, "scenarios should not change from run to run"
    return answer


def test_killed_at_every_call() -> None:
    assert ours("crash", CRASH_POINTS)["cases"]["crash"] >= 2000


def test_every_call_fails() -> None:
    cases = ours("error", ERROR_POINTS)["cases"]
    assert cases["error"] >= 1000
    assert cases["short"] > 20
    assert cases["eintr"] > 100


def test_every_call_hangs() -> None:
    assert ours("hang", HANG_POINTS)["cases"]["hang"] >= HANG_POINTS * 0.9


PLAIN = "^(add (file|bytes|read|iterator) (0|4K|300K) (none|file|full) hidden|delete full)$"


@pytest.mark.parametrize("kind", ["order", "crash", "error"])
def test_a_plain_writer_passes(kind: str) -> None:
    answer = sweep(kind, "--most", "300", "--writer", "Plain", "--only", PLAIN)
    assert answer["problems"] == []
    assert answer["cases"]["order"] > 35


def test_a_timed_writer_passes() -> None:
    answer = sweep("hang", "--most", "60", "--writer", "Timed", "--only", "^add (file|bytes) 300K full hidden$")
    assert answer["problems"] == []
    assert answer["cases"]["hang"] > 40


@pytest.mark.parametrize("item", BROKEN, ids=lambda item: f"{item.maker.__name__}-{item.sweep}-{item.only.split()[0]}")
def test_a_broken_writer_is_caught(item: Broken) -> None:
    which = ["--writer", item.maker.__name__, "--only", item.only, "--point", item.point]
    answer = sweep(item.sweep, "--most", str(item.most), *which)
    categories = Counter(problem.partition(":")[0] for problem in answer["problems"])
    assert categories[item.category], f"{item.maker.__doc__} Found: {categories} in {answer['cases']}"
