"""The figures that docs/scaling.md reckons with: what an image and a byte cost a core.

    python -m bench.scaling --dir /srv/scratch

They are CPU time, user and system of all threads, and not elapsed time: waiting does not count, but who shares a core
makes them worse.  The best of some rounds counts.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from bench.material import MIB
from bench.pairs import machine
from bench.places import filesystem_of, fresh_directory, scatter

LARGE, LARGE_COUNT = 16 * MIB, 32
SMALL_COUNT = 2000
ROUNDS = 5


def cpu_of(function: Callable[[], object]) -> float:
    before = time.process_time()
    function()
    return time.process_time() - before


def best(rounds: int, function: Callable[[], float]) -> float:
    return min(function() for _ in range(rounds))


def make_files(directory: Path, count: int, size: int) -> list[str]:
    directory.mkdir()
    noise = random.Random(0)
    paths = []
    for number in range(count):
        path = directory / f"{number:06d}"
        path.write_bytes(noise.randbytes(size))
        paths.append(str(path))
    os.sync()
    return paths


class Nowhere(Executor):
    """Takes tasks and pretends: what is left is the cost of handing out work."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        from fastfs import AddResult, Outcome

        future: Future[Any] = Future()
        result = AddResult("file:///", 0, "", "", {})
        future.set_result([Outcome(item.image_id, result, None, False, n) for n, item in enumerate(args[-1])])
        return future


def measure(base: Path, rounds: int) -> Iterator[tuple[str, str]]:
    from fastfs import Item, Store, hash_files

    turn = iter(range(1_000_000))

    def add(paths: Sequence[str], durability: str) -> float:
        directory = base / f"store-{next(turn)}"
        with Store(datadir=str(directory), durability=durability) as store:
            items = [(os.path.basename(path), path) for path in paths]

            def run() -> None:
                for outcome in store.add_many(items):
                    if outcome.error is not None:
                        raise outcome.error

            cost = cpu_of(run)
        if os.path.getsize(paths[0]) >= MIB:
            shutil.rmtree(directory)  # small ones stay: see places.py
        return cost

    def consume(paths: Sequence[str]) -> None:
        for one in hash_files(paths):
            if one.error is not None:
                raise one.error

    large = make_files(base / "large", LARGE_COUNT, LARGE)
    total = LARGE * LARGE_COUNT
    yield "add_many, 16 MiB images, md5 and sha512", rate(total, best(rounds, lambda: add(large, "none")))
    yield "hash_files, the same files", rate(total, best(rounds, lambda: cpu_of(lambda: consume(large))))
    for size, text in ((0, "empty"), (4096, "4 KiB"), (65536, "64 KiB")):
        small = make_files(base / f"small-{size}", SMALL_COUNT, size)
        for durability in ("none", "batch") if size == 4096 else ("none",):
            cost = best(rounds, lambda paths=small, kind=durability: add(paths, kind))  # type: ignore[misc]
            yield f'add_many, an object ({text}), durability "{durability}"', per(SMALL_COUNT, cost)
    with Store(datadir=str(base / "nothing"), durability="none") as store:
        items = [Item(f"{n:06d}", large[0], LARGE) for n in range(20_000)]

        def hand_out() -> None:
            for _ in store.add_many(iter(items), executor=Nowhere()):
                pass

        yield (
            "handing an image out to workers (here, of one core)",
            per(len(items), best(rounds, lambda: cpu_of(hand_out))),
        )


def rate(size: int, seconds: float) -> str:
    return f"{size / seconds / 1e9:.2f} GB per core second"


def per(count: int, seconds: float) -> str:
    return f"{seconds / count * 1e6:.0f} µs"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="The figures of docs/scaling.md.")
    parser.add_argument("--dir", type=Path, help="where to store (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args(argv)
    base = Path(tempfile.mkdtemp(prefix="fastfs-bench-", dir=args.dir))
    try:
        scatter(base)
        place, _ = fresh_directory(base, "scaling", patience=60)
        here = machine()
        print(f"| {here['cpu']}, {here['system']}, {filesystem_of(base)}, Python {here['python']} | CPU time |")
        print("| --- | ---: |")
        for name, figure in measure(place, args.rounds):
            print(f"| {name} | {figure} |", flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
