"""Power cuts on real file systems: a bounded part of what ``powercut.py`` can do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from broken import LOSING, Plain
from filesystems import missing
from shim import HERE

STATES = {"ext4": 500, "xfs": 50, "btrfs": 50}


def power_cuts(filesystem: str, states: int, *options: str) -> dict[str, Any]:
    if reason := missing(filesystem, "fuse"):
        pytest.skip(reason)
    command = [sys.executable, str(HERE / "powercut.py"), filesystem, "--states", str(states), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    assert done.stdout, f"it ended with {done.returncode}"
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["cases"]["states"] >= states
    assert answer["cases"]["flushes"] > 100, "the disk was not flushed: nothing could be lost"
    return answer


@pytest.mark.parametrize("filesystem", STATES)
def test_nothing_is_lost(filesystem: str) -> None:
    answer = power_cuts(filesystem, STATES[filesystem])
    assert answer["problems"] == []
    assert answer["cases"]["pages"] > 0, "no write was uncertain"


def test_with_synced_files_nothing_is_partial() -> None:
    assert power_cuts("ext4", 100, "--durability", "file")["problems"] == []


def test_nothing_that_was_acknowledged_in_a_group_is_lost() -> None:
    assert power_cuts("ext4", 100, "--durability", "batch")["problems"] == []


def test_a_group_that_is_not_synced_loses_is_caught() -> None:
    assert caught("partial", "--durability", "batch", "--writer", "no_group_sync")


@pytest.mark.parametrize("writer", LOSING)
def test_a_writer_that_loses_is_caught(writer: type[Plain]) -> None:
    assert caught(LOSING[writer], "--writer", writer.__name__), writer.__doc__


def caught(category: str, *options: str) -> bool:
    """By chance some runs have no moment at which the mistake shows: one of four must."""
    for seed in range(4):
        problems = power_cuts("ext4", 60, "--seed", str(seed), *options)["problems"]
        if any(problem.startswith(category) for problem in problems):
            return True
    return False
