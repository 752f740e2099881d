"""What looking at the bytes again costs: records, verified reading, scrub; and a directory of 10,000 images.

    python -m bench.integrity [--case NAME]... [--dir DIR] [--pairs N] [--json FILE]

Each case runs A and B in turn, A B B A ..., and tells the median of the ratios of pairs.  Prints one line a case.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.material import fill_blocks
from bench.places import fresh_directory, scatter
from fastfs import Store, record, sidecar
from fastfs.datadirs import DataDir

MIB = 1 << 20
GIB = 1 << 30
FILES = 16
BLOCK = MIB

Side = Callable[[], float]
Result = dict[str, Any]


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles(values, n=4)] if len(values) > 1 else []


def pairs(a: Side, b: Side, count: int) -> Result:
    """Seconds of A divided by seconds of B, so more than 1 says that B is faster."""
    a(), b()
    times: list[tuple[float, float]] = []
    for number in range(count):
        if number % 2:
            second = b()
            times.append((a(), second))
        else:
            first = a()
            times.append((first, b()))
    ratios = [one / two for one, two in times]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": quartiles(ratios),
        "a": round(statistics.median(one for one, _ in times), 6),
        "b": round(statistics.median(two for _, two in times), 6),
        "pairs": count,
    }


class Bench:
    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.count = count

    def directory(self, name: str) -> str:
        return str(self.root / name)

    @contextlib.contextmanager
    def filled(self, total: int = GIB) -> Iterator[tuple[Store, list[str]]]:
        """`FILES` images, read once so that they are in memory."""
        path = self.root / "filled"
        with Store(datadir=str(path), durability="none") as store:
            urls = []
            for number in range(FILES):
                data = random.Random(number).randbytes(total // FILES)
                urls.append(store.add(f"image-{number}", data).url)
            for url in urls:
                for _ in store.get(url)[0]:
                    pass
            yield store, urls
        shutil.rmtree(path)

    # -- cases ----------------------------------------------------------------------------------------------

    def records(self, size: int, images: int, on: str) -> Result:
        """The rate of add with records, divided by that without."""
        source = self.root / "source"
        with open(source, "wb") as file:
            file.writelines(fill_blocks(size, "random", 1))
        data = source.read_bytes() if size <= 65536 else None
        scatter(self.root)

        def add(records: str) -> float:
            # A directory of its own each time: see places.py for what a mass unlink does to those who come after.
            path, _ = fresh_directory(self.root, records)
            with Store(datadir=str(path), durability="none", records=records) as store:
                store.add("first", b"tells what the file system can do")

                def run() -> None:
                    for number in range(images):
                        if data is not None:
                            store.add(f"image-{number}", data)
                        else:
                            with open(source, "rb") as file:
                                store.add(f"image-{number}", file, size)

                seconds = timed(run)
                if size >= MIB:  # before the kernel writes them out
                    for number in range(images):
                        store.delete(store.find(f"image-{number}"))
            return seconds

        return {**pairs(lambda: add("none"), lambda: add(on), self.count), "bytes": size * images}

    def scrub(self, mode: str, jobs: int) -> Result:
        """hashlib's sha512 of the same files in one thread, and a scrub."""
        with self.filled() as (store, urls):
            paths = [url.removeprefix("file://") for url in urls]

            def hashed() -> None:
                for path in paths:
                    with open(path, "rb") as file:
                        _digest(file)

            def scrubbed() -> None:
                summary = store.scrub(mode=mode, jobs=jobs, restart=True).all()  # type: ignore[arg-type]
                assert summary.clean == FILES, summary

            found = pairs(lambda: timed(hashed), lambda: timed(scrubbed), self.count)
        return {**found, "gb_s": round(GIB / found["b"] / 1e9, 2)}

    def read(self, chunk_size: int = 65536) -> Result:
        """A plain read of an image to its end, divided by a verified one."""
        with self.filled() as (store, urls):

            def drain(verify: bool) -> None:
                for url in urls[:8]:
                    for _ in store.get(url, verify=verify)[0]:
                        pass

            found = pairs(lambda: timed(lambda: drain(False)), lambda: timed(lambda: drain(True)), self.count)
        return {**found, "gb_s": round(GIB / 2 / found["b"] / 1e9, 2)}

    def ranges(self) -> Result:
        """A verified 4 KiB range of an image of 100 GiB with holes, beside one of 1 GiB: seconds of each."""
        path = self.directory("sparse")
        with Store(datadir=path, durability="none") as store:
            urls = [_sparse(store.datadirs.all[0], name, size) for name, size in (("1g", GIB), ("100g", 100 * GIB))]
            offsets = [random.Random(0).randrange(0, GIB - 4096) for _ in range(200)]

            def look(number: int, scale: int) -> None:
                for offset in offsets:
                    reader, _ = store.get(urls[number], offset * scale, 4096, verify=True)
                    with reader:
                        assert len(reader.read()) == 4096

            found = pairs(lambda: timed(lambda: look(0, 1)), lambda: timed(lambda: look(1, 100)), self.count)
        return {**found, "us_1g": round(found["a"] * 1e6 / 200, 1), "us_100g": round(found["b"] * 1e6 / 200, 1)}

    def many(self, count: int) -> Result:
        """A directory of many images: seconds until each command ends, or has its first result, and its memory."""
        path = self.directory("many")
        data = random.Random(3).randbytes(100_000)
        with Store(datadir=path, durability="none") as store:
            for number in range(count):
                store.add(f"image-{number:05d}", data[: 66_000 + number % 30_000])
        found: Result = {"images": count}
        commands = {
            "start": ["info", "image-00000"],
            "ls": ["ls", "-q"],
            "du": ["du"],
            "scrub": ["scrub", "-q", "--restart"],
            "scrub_json": ["scrub", "--json", "--restart"],
        }
        for name, words in commands.items():
            runs = [_command([*words, "--datadir", path]) for _ in range(3)]
            found[name] = {
                "seconds": round(statistics.median(run[0] for run in runs), 3),
                "first_line": round(statistics.median(run[1] for run in runs), 3),
                "mib": round(max(run[2] for run in runs) / 1024, 1),
            }
        shutil.rmtree(path)
        return found


def _digest(file: Any) -> None:
    digest = hashlib.sha512()
    while block := file.read(262144):
        digest.update(block)


def _sparse(directory: DataDir, name: str, size: int) -> str:
    """An image of holes with a record; that of 100 GiB would take minutes to be hashed."""
    path = directory.file(name)
    with open(path, "wb") as file:
        file.truncate(size)
    made = record.make(name, size, BLOCK, "0" * 32, "sha512", "0" * 128)
    one = sidecar.Sidecar(directory, made, record.zero_digest(BLOCK) * made.blocks, 0o644, "none")
    fd = os.open(path, os.O_RDONLY)
    try:
        one.write(fd)
        one.link(fd)
    finally:
        one.release(keep=True)
        os.close(fd)
    return f"file://{path}"


def _command(words: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds to the first line, peak memory in KiB of a command."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "fastfs.cli", *words], stdout=subprocess.PIPE)
    assert child.stdout is not None
    first = child.stdout.readline()
    at_first = time.perf_counter() - started
    child.stdout.read()
    child.stdout.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, (words, child.returncode, first)
    return time.perf_counter() - started, at_first, usage.ru_maxrss


CASES: dict[str, Callable[[Bench], Result]] = {
    "record-64m": lambda bench: bench.records(64 * MIB, 1, "large"),
    "record-1g": lambda bench: bench.records(GIB, 1, "large"),
    "record-1m": lambda bench: bench.records(MIB, 64, "large"),
    "record-128k": lambda bench: bench.records(128 * 1024, 500, "large"),
    "record-4k-default": lambda bench: bench.records(4096, 2000, "large"),
    "record-4k-all": lambda bench: bench.records(4096, 2000, "all"),
    "scrub-fast-1": lambda bench: bench.scrub("fast", 1),
    "scrub-fast-2": lambda bench: bench.scrub("fast", 2),
    "scrub-deep": lambda bench: bench.scrub("deep", 32),
    "verified-read": lambda bench: bench.read(),
    "verified-range": lambda bench: bench.ranges(),
    "many-10000": lambda bench: bench.many(10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--dir", type=Path, help="where images are stored")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", type=argparse.FileType("w"), help="one object a line")
    chosen = parser.parse_args()
    for name in chosen.case or CASES:
        root = Path(tempfile.mkdtemp(prefix="fastfs-integrity-", dir=chosen.dir))
        try:
            found = {"case": name, **CASES[name](Bench(root, chosen.pairs))}
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(json.dumps(found), flush=True)
        if chosen.json:
            chosen.json.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
