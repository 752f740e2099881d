"""Races between threads and between processes: a bounded part of what ``races.py`` can do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from shim import HERE


def races(most: int, writer: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "races.py"), "--most", str(most), "--writer", writer]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    assert done.stdout, f"it ended with {done.returncode}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_races() -> None:
    answer = races(10_000, "fastfs")
    assert answer["problems"] == []
    assert answer["cases"]["races"] >= 10_000


def test_who_checks_and_then_opens_is_caught() -> None:
    # How soon the threads meet depends on what else the machine does.
    for most in (1200, 6000, 30_000):
        if any(problem.startswith("lost") for problem in races(most, "CheckThenOpen")["problems"]):
            return
    pytest.fail("never caught")
