# SPDX-License-Identifier: Apache-2.0
"""The order of work, by itself: the longest first, small ones packed, each once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfs import conveyor
from fastfs.conveyor import Conveyor, Piece
from fastfs.sources import SMALL

BIG = SMALL + 7


def run_conveyor(
    sizes: Sequence[int | None], jobs: int, packs: int, bundle: int = 1
) -> tuple[list[list[int]], list[int]]:
    """The tasks in the order of their beginning, and the results."""
    tasks: list[list[int]] = []
    with ThreadPoolExecutor(jobs) as pool:

        def submit(task: list[Piece[int]]) -> Future[list[int]]:
            tasks.append([piece.item for piece in task])
            return pool.submit(lambda: [piece.item for piece in task])

        pieces = [Piece(n, size, small=size is not None and size <= SMALL) for n, size in enumerate(sizes)]
        run = Conveyor(
            pieces, submit, lambda task, found: found, lambda piece, error: -1, jobs=jobs, packs=packs, bundle=bundle
        ).run()
        results = [result for result in run if result is not None]
    return tasks, results


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.sampled_from([None, 0, 10, SMALL, BIG, 2 * BIG, 100 * BIG]), max_size=300),
    jobs=st.integers(1, 5),
    packs=st.integers(1, 5),
    bundle=st.sampled_from([1, 3, 32]),
)
def test_each_piece_once(sizes: Sequence[int | None], jobs: int, packs: int, bundle: int) -> None:
    tasks, results = run_conveyor(sizes, jobs, min(jobs, packs), bundle)
    assert sorted(results) == list(range(len(sizes)))
    for task in tasks:
        small = [sizes[n] is not None and sizes[n] <= SMALL for n in task]  # type: ignore[operator]
        assert all(small) or not any(small)
        assert len(task) <= (conveyor.PACK * bundle if all(small) else bundle)


def test_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyor, "PATIENCE", 60)
    tasks, _ = run_conveyor([BIG, 3 * BIG, 2 * BIG, None, 5 * BIG], 2, 1)
    assert tasks == [[3], [4], [1], [2], [0]]


def test_with_one_job_the_order_is_kept() -> None:
    tasks, _ = run_conveyor([BIG, 3 * BIG, 2 * BIG, None], 1, 1)
    assert tasks == [[0], [1], [2], [3]]


def test_small_ones_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyor, "PATIENCE", 60)
    tasks, _ = run_conveyor([100] * 1000, 2, 2)
    assert len(tasks) < 60
    assert max(map(len, tasks)) == conveyor.PACK


def test_small_ones_do_not_wait_for_all_large_ones() -> None:
    tasks, _ = run_conveyor([100] * 200 + [BIG] * 100, 2, 1)
    first_large = next(n for n, task in enumerate(tasks) if task[0] >= 200)
    last_large = max(n for n, task in enumerate(tasks) if task[0] >= 200)
    assert any(task[0] < 200 for task in tasks[:last_large])
    assert first_large < len(tasks) - 1


def test_a_tick() -> None:
    hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        run = Conveyor(
            [Piece("x", None)],
            lambda task: pool.submit(hold.wait, 30),
            lambda task, found: [1],
            lambda piece, error: 2,
            jobs=1,
            packs=1,
        ).run(0.01)
        assert next(run) is None
        hold.set()
        assert [result for result in run if result is not None] == [1]
