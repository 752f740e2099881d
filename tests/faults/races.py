"""Races: several threads, or processes, at one image.  Who wins is chance; that there is one winner is not.

    python tests/faults/races.py --most 10000 [--writer CheckThenOpen]

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import broken
from sweep import Tally, memory_directory, warm_up

RACERS = 4
LENGTHS = (100, 5000, 70_000, 200_000)


def content(racer: int, turn: int) -> bytes:
    """Of one length in one turn; the first bytes tell who wrote it, and all the others that it is whole."""
    return b"%06d" % (racer + 10 * turn) * (LENGTHS[turn % len(LENGTHS)] // 6)


def author(data: bytes, turn: int) -> int | None:
    """Whose whole image that is."""
    racer = int(data[:6] or b"9") - 10 * turn
    return racer if 0 <= racer < RACERS and data == content(racer, turn) else None


def delivery(racer: int, data: bytes) -> Any:
    return data if racer % 2 else iter([data[: len(data) // 2], data[len(data) // 2 :]])


def try_add(store: Any, racer: int, turn: int) -> bool:
    from fastfs import Duplicate

    try:
        store.add("image", delivery(racer, content(racer, turn)))
    except Duplicate:
        return False
    return True


def try_delete(store: Any, url: str) -> bool:
    from fastfs import NotFound

    try:
        store.delete(url)
    except NotFound:
        return False
    return True


def try_read(store: Any, url: str) -> bytes | None:
    from fastfs import NotFound

    try:
        reader, size = store.get(url)
    except NotFound:
        return None
    with reader:
        data: bytes = reader.read()
    return data if len(data) == size else data + b"short"


class Race:
    """One race, over and over in one directory.  `run` is what one racer does; its answer is a small number."""

    def __init__(self, directory: Path, maker: Callable[..., Any]) -> None:
        self.path = directory / "image"
        self.url = f"file://{self.path}"
        self.store = maker(datadir=str(directory), durability="none")

    def prepare(self, turn: int) -> None:
        """Before each turn, alone."""

    def run(self, racer: int, turn: int) -> int:
        raise NotImplementedError

    def problems(self, turn: int, answers: list[int]) -> Iterator[str]:
        raise NotImplementedError

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class AddAdd(Race):
    def run(self, racer: int, turn: int) -> int:
        return try_add(self.store, racer, turn)

    def problems(self, turn: int, answers: list[int]) -> Iterator[str]:
        winners = [racer for racer, answer in enumerate(answers) if answer]
        if len(winners) != 1:
            yield f"lost: {len(winners)} winners"
        there = author(self.path.read_bytes(), turn) if self.path.exists() else None
        if there is None:
            yield "partial: nobody's whole image"
        elif there not in winners:
            yield f"lost: the image is that of {there}, not of {winners}"


class AddDelete(Race):
    """Even racers add, odd ones delete: as many are deleted as added, or one more is there."""

    def run(self, racer: int, turn: int) -> int:
        return try_delete(self.store, self.url) if racer % 2 else try_add(self.store, racer, turn)

    def problems(self, turn: int, answers: list[int]) -> Iterator[str]:
        left = sum(answers[::2]) - sum(answers[1::2])
        if left not in (0, 1) or left != self.path.exists():
            yield f"lost: {answers} is told, {int(self.path.exists())} left"
        if self.path.exists() and author(self.path.read_bytes(), turn) is None:
            yield "partial: nobody's whole image"


class ReadDelete(Race):
    """Even racers read, one deletes, one adds anew: readers see a whole image or none."""

    def prepare(self, turn: int) -> None:
        try_add(self.store, 1, turn)

    def run(self, racer: int, turn: int) -> int:
        if racer == 1:
            return try_delete(self.store, self.url)
        if racer == 3:
            return try_add(self.store, racer, turn)
        data = try_read(self.store, self.url)
        return 2 if data is None else 1 if author(data, turn) in (1, 3) else 0

    def problems(self, turn: int, answers: list[int]) -> Iterator[str]:
        for racer in range(0, RACERS, 2):
            if answers[racer] == 0:
                yield "partial: a reader saw what was nobody's image"
        if not answers[1]:
            yield "lost: there was nothing to delete"


RACES: dict[str, type[Race]] = {"add/add": AddAdd, "add/delete": AddDelete, "read/delete": ReadDelete}


def in_threads(race: Race, turns: int, tally: Tally, name: str) -> None:
    barrier = threading.Barrier(RACERS)
    answers = [0] * RACERS
    failed: list[str] = []

    def racer(number: int) -> None:
        try:
            for turn in range(turns):
                if number == 0:
                    race.clear()
                    race.prepare(turn)
                barrier.wait(60)
                answers[number] = race.run(number, turn)
                barrier.wait(60)
                if number == 0:
                    judge(race, turn, answers, tally, name)
        except BaseException as error:
            failed.append(f"unclear: {error!r}")
            barrier.abort()

    threads = [threading.Thread(target=racer, args=(number,)) for number in range(RACERS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    tally.note(name, [text for text in failed if "BrokenBarrier" not in text])


def in_processes(race: Race, turns: int, tally: Tally, name: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(RACERS)
    answers = mmap.mmap(-1, RACERS)

    def racer(number: int) -> None:
        for turn in range(turns):
            if number == 0:
                race.clear()
                race.prepare(turn)
            barrier.wait(20)
            answers[number] = race.run(number, turn)
            barrier.wait(20)
            if number == 0:
                judge(race, turn, list(answers[:]), tally, name)

    def child(number: int) -> None:
        try:
            racer(number)
        except BaseException:
            barrier.abort()
            os._exit(1)

    children = [context.Process(target=child, args=(number,)) for number in range(1, RACERS)]
    for process in children:
        process.start()
    try:
        racer(0)
    except BaseException as error:
        tally.note(name, [f"unclear: {error!r}"])
        barrier.abort()
    for process in children:
        process.join(60)


def judge(race: Race, turn: int, answers: list[int], tally: Tally, name: str) -> None:
    tally.cases[name] += 1
    tally.note(f"{name}, turn {turn}", race.problems(turn, answers))
    left = [entry for entry in os.listdir(race.path.parent) if entry not in ("image", ".fastfs-image.rec")]
    if left:
        tally.note(f"{name}, turn {turn}", [f"remains: {left}"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--writer", default="fastfs", choices=broken.WRITERS)
    arguments = parser.parse_args()
    started = time.monotonic()
    warm_up()
    tally = Tally()
    each = -(-arguments.most // (2 * len(RACES)))
    for name, kind in RACES.items():
        for how, function in (("threads", in_threads), ("processes", in_processes)):
            with contextlib.ExitStack() as stack:
                scratch = Path(tempfile.mkdtemp(prefix="fastfs-races-", dir=memory_directory()))
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
                function(kind(scratch, broken.WRITERS[arguments.writer]), each, tally, f"{name} {how}")
    total = Counter({"races": sum(tally.cases.values()), **tally.cases})
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"cases": total, "problems": tally.problems[:1000], "seconds": seconds}))
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
