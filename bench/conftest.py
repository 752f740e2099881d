"""Fixtures: where to store, how many rounds, and the one function every benchmark calls."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from bench.places import fresh_directory, scatter
from bench.stores import Side
from bench.work import Case, Round, make_work

RunCase = Callable[[Case, str], None]


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture, which has no types of its own here."""

    group: str | None
    extra_info: dict[str, Any]

    def pedantic(
        self,
        target: Callable[[Round], None],
        *,
        setup: Callable[[], tuple[tuple[Round], dict[str, Any]]],
        rounds: int,
        warmup_rounds: int,
        iterations: int,
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastfs")
    group.addoption("--bench-dir", type=Path, help="where images are stored (default: pytest's own directory)")
    group.addoption("--bench-memory-dir", type=Path, default=Path("/dev/shm"), help="a tmpfs for the small ones")
    group.addoption("--bench-rounds", type=int, default=7, help="rounds of each case, after one that warms up")


@pytest.fixture(scope="session")
def disk_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kept for the whole session: see places.py for what a mass unlink does to those who come after."""
    base: Path | None = request.config.getoption("--bench-dir")
    if base is None:
        directory = tmp_path_factory.mktemp("bench")
    else:
        directory = Path(tempfile.mkdtemp(prefix="fastfs-bench-", dir=base))
    scatter(directory)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def memory_dir(request: pytest.FixtureRequest) -> Iterator[Path]:
    base: Path = request.config.getoption("--bench-memory-dir")
    if not base.is_dir() or not os.access(base, os.W_OK):
        pytest.skip(f"no tmpfs to write to at {base}; name one with --bench-memory-dir")
    directory = Path(tempfile.mkdtemp(prefix="fastfs-bench-", dir=base))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def run_case(request: pytest.FixtureRequest, benchmark: Benchmark) -> RunCase:
    """Measures one side of a case; the other side is the next test of the same pytest-benchmark group."""
    rounds: int = request.config.getoption("--bench-rounds")

    def measure(case: Case, side_name: str) -> None:
        side = Side.parse(side_name)
        try:
            importlib.import_module(side.store)
        except ImportError as error:
            pytest.skip(f"{side.store} cannot be imported: {error}")
        base: Path = request.getfixturevalue("memory_dir" if case.where == "memory" else "disk_dir")
        benchmark.group = case.title
        benchmark.extra_info.update(
            case=case.name,
            side=str(side),
            store=side.store,
            durability=side.durability,
            bytes=case.total,
            images=case.images,
            threads=case.threads,
            hashes=case.hashes,
            source=case.source if case.work == "add" else case.work,
            where=case.where,
            thin=case.thin,
        )
        directory, create_us = fresh_directory(base, case.name, patience=10)
        benchmark.extra_info["create_us"] = round(create_us, 1)
        with make_work(case, directory) as work:
            store = work.open(side)
            benchmark.extra_info["version"] = store.version
            last: list[Round] = []

            def finish() -> None:
                if last:
                    work.finish(store, last.pop())

            def setup() -> tuple[tuple[Round], dict[str, Any]]:
                finish()
                last.append(work.prepare(store))
                return (last[0],), {}

            def run(round_: Round) -> None:
                work.run(store, round_)

            benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=1, iterations=1)
            finish()
            if side in work.allocated:
                benchmark.extra_info["allocated"] = work.allocated[side]

    return measure
