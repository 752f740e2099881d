"""Power cuts: a store works on a file system on a disk that logs; then disks are made as a cut might have left them.

    python tests/faults/powercut.py ext4 --states 500 [--writer NoSync] [--durability full | file | batch]

A state is everything that was flushed before some moment, and a random part, in units of 4 KiB, of what was written
after that.  Each is mounted, which has the file system recover, and looked at: every image that was acknowledged
is there and whole, none is partly there, what was deleted is gone.  Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import broken
from filesystems import MAKERS, Disk, loop, mounted, own_namespace, run
from sweep import memory_directory

PAGE = 4096
SIZES = (0, 1, 4096, 10_000, 65_537, 300_001, 1_200_000)
IMAGES = 120


class Event(NamedTuple):
    """One record of the disk's log."""

    kind: str
    offset: int
    data: bytes


def content(name: str) -> bytes:
    """Every image's bytes follow from its name."""
    generator = random.Random(name)
    return generator.randbytes(generator.choice(SIZES))


def events(log: Path) -> Iterator[Event]:
    with open(log, "rb") as file:
        while header := file.read(24):
            kind, offset, length = struct.unpack("QQQ", header)
            yield Event(chr(kind), offset, file.read(length))


def work(directory: Path, disk: Disk, writer: str, durability: str, seed: int) -> None:
    """Add and delete images; write down what begins, and what was acknowledged."""
    chance = random.Random(seed)
    there: list[str] = []
    with broken.WRITERS[writer](datadir=str(directory), durability=durability) as store:
        if durability == "batch":
            names = [f"image-{seed}-{number}" for number in range(IMAGES)]
            for outcome in store.add_many(((name, content(name)) for name in names), jobs=4):
                assert outcome.error is None, outcome
                disk.mark(f"+{outcome.image_id}")
            return
        for number in range(IMAGES):
            name = f"image-{seed}-{number}"
            data = content(name)
            store.add(name, data if chance.random() < 0.5 else iter([data[: len(data) // 2], data[len(data) // 2 :]]))
            disk.mark(f"+{name}")
            there.append(name)
            if chance.random() < 0.3:
                gone = there.pop(chance.randrange(len(there)))
                disk.mark(f"~{gone}")
                store.delete(f"file://{directory}/{gone}")
                disk.mark(f"-{gone}")


def meddle(directory: Path) -> None:
    """Somebody else, who writes and syncs: so the file system commits in the middle of everything."""
    with open(directory / "other", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 5000)
            os.fsync(file.fileno())
            time.sleep(0.002)
            file.seek(0)


@contextlib.contextmanager
def forked(function: Any, *args: Any) -> Iterator[int]:
    child = os.fork()
    if child == 0:
        try:
            function(*args)
        except BaseException as error:
            print(f"{error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def recorded(kind: str, scratch: Path, writer: str, durability: str, seed: int) -> list[Event]:
    """What happened to the disk, from its making on."""
    command, size = MAKERS[kind]
    disk = Disk(scratch, size)
    try:
        with loop(disk.path) as device:
            run(*command, device)
            with mounted(device, scratch / "mount", kind) as top:
                images = top / "images"
                images.mkdir()
                os.sync()
                disk.mark("begin")
                with forked(meddle, top), forked(work, images, disk, writer, durability, seed) as worker:
                    _, status = os.waitpid(worker, 0)
                if status:
                    raise RuntimeError(f"the writer ended with {status}")
                disk.mark("end")
    finally:
        disk.close()
    return list(events(disk.log))


class Image:
    """What is on the disk for certain, in a sparse file."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self.file.truncate(size)

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.file.fileno(), data, offset)

    def copy(self, path: Path) -> Image:
        size = os.fstat(self.file.fileno()).st_size
        other = Image(path, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(self.file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(self.file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(self.file.fileno(), min(end - at, 1 << 20), at)
                if data.count(0) != len(data):
                    other.write(at, data)
                at += len(data)
        return other

    def close(self) -> None:
        self.file.close()


def pages(event: Event) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(event.data), PAGE):
        yield event.offset + at, event.data[at : at + PAGE]


class Expected:
    """What has been told of each image up to some moment."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.doomed: set[str] = set()
        self.deleted: set[str] = set()

    def take(self, mark: str) -> None:
        name = mark[1:]
        if mark[0] == "+":
            self.acknowledged.add(name)
        elif mark[0] == "~":
            self.doomed.add(name)
        elif mark[0] == "-":
            self.deleted.add(name)


def problems(directory: Path, expected: Expected, durability: str) -> Iterator[str]:
    """What is wrong with the images, as `checks.py` names it."""
    seen = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    for name in sorted(seen):
        try:
            data = (directory / name).read_bytes()
        except OSError as error:
            yield f"partial: {name}: {error}"
            continue
        if data != content(name):
            yield f"partial: {name} has {len(data)} bytes, not the {len(content(name))} of it"
    if durability in ("full", "batch"):
        for name in sorted(expected.acknowledged - expected.doomed - seen):
            yield f"lost: {name}"
        for name in sorted(expected.deleted & seen):
            yield f"undead: {name}"


def swept(directory: Path) -> Iterator[str]:
    """The next start."""
    import fastfs

    with fastfs.Store(datadir=str(directory)) as store:
        store.sweep()
        for finding in store.scrub(jobs=1):
            if finding.status.value not in ("clean", "no-record"):
                yield f"record: {finding.image_id} is said to be {finding.status.value}"
    there = {path.name for path in directory.iterdir()}
    for name in there - {f".fastfs-{name}.rec" for name in there}:
        if name.startswith("."):
            yield f"remains: {name}"


def states(log: list[Event], count: int, seed: int) -> dict[int, int]:
    """The moments to look at, and how many states of each: between the marks "begin" and "end".

    Half of them just before a flush, when the most is uncertain.
    """
    begin = next(i for i, e in enumerate(log) if e.data == b"begin")
    end = next(i for i, e in enumerate(log) if e.data == b"end")
    chance = random.Random(seed)
    moments = range(begin + 1, end + 1)
    flushes = [i for i in moments if log[i].kind == "F"]
    return Counter(chance.choice(flushes if chance.random() < 0.5 else moments) for _ in range(count))


def cut(
    kind: str, scratch: Path, log: list[Event], count: int, durability: str, seed: int
) -> tuple[Counter[str], list[str]]:
    """Make that many states, and look at them."""
    size = MAKERS[kind][1]
    found: list[str] = []
    tally: Counter[str] = Counter()
    moments = states(log, count, seed)
    chance = random.Random(seed + 1)
    expected = Expected()
    certain = Image(scratch / "certain", size)
    pending: list[tuple[int, bytes]] = []
    begun = False
    for number, event in enumerate(log):
        if event.kind == "W":
            pending += pages(event)
        elif event.kind == "F":
            pass  # below: the cut comes before it
        elif event.data == b"begin":
            begun = True
        elif begun and event.data != b"end":
            expected.take(event.data.decode())
        for _ in range(moments.get(number, 0)):
            share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            kept = [page for page in pending if chance.random() < share]
            state = certain.copy(scratch / "state")
            for offset, data in kept:
                state.write(offset, data)
            state.close()
            tally["states"] += 1
            tally["pages"] += len(kept)
            where = f"[{kind}, seed {seed}, moment {number}, {len(kept)} of {len(pending)} pages]"
            try:
                with loop(scratch / "state") as device, mounted(device, scratch / "look", kind) as top:
                    images = top / "images"
                    found += [f"{p} {where}" for p in problems(images, expected, durability)]
                    found += [f"{p} {where}" for p in swept(images)]
                    if durability != "none":
                        found += [f"{p}, after the sweep {where}" for p in problems(images, expected, durability)]
            except OSError as error:
                found.append(f"lost: the file system itself: {error} {where}")
        if event.kind == "F":
            for offset, data in pending:
                certain.write(offset, data)
            pending.clear()
    certain.close()
    return tally, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("filesystem", choices=MAKERS)
    parser.add_argument("--states", type=int, default=500)
    parser.add_argument("--writer", default="fastfs", choices=broken.WRITERS)
    parser.add_argument("--durability", default="full", choices=("none", "file", "full", "batch"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    own_namespace()
    scratch = Path(tempfile.mkdtemp(prefix="fastfs-power-", dir=memory_directory()))
    tally: Counter[str] = Counter()
    found: list[str] = []
    seed = arguments.seed
    try:
        while tally["states"] < arguments.states:
            # A recording gives many states; more of them make the long run more than the short one again.
            log = recorded(arguments.filesystem, scratch, arguments.writer, arguments.durability, seed)
            tally.update(log=len(log), flushes=sum(e.kind == "F" for e in log))
            many = min(500, arguments.states - tally["states"])
            more, problems_ = cut(arguments.filesystem, scratch, log, many, arguments.durability, seed)
            tally += more
            found += problems_
            seed += 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"cases": tally, "problems": found[:1000], "seconds": seconds}))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
