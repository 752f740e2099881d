"""What is not a comparison with glance_store: copies that share blocks, and the first byte of a large sparse image.

    python -m bench.reading --clone /mnt/xfs --clone /mnt/btrfs
    python -m bench.reading --sparse /srv

`--clone`: `Store.copy_to` of images of 1 MiB to 2 GiB within a file system that shares blocks; the image is written out
before.  `--sparse`: a range near the end of an image of 100 GiB, by `Store.get` and by open, pread and close, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.material import MIB
from bench.places import filesystem_of
from fastfs import Store

SIZES = tuple(MIB << shift for shift in (0, 3, 6, 9, 11))
SPARSE = 100 << 30
KIB = 1024


def clone(base: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=base) as directory:
        images = Path(directory, "images")
        images.mkdir()
        block = os.urandom(MIB)
        for size in SIZES:
            with (images / str(size)).open("wb") as file:
                for _ in range(size // MIB):
                    file.write(block)
                os.fsync(file.fileno())
        for durability in ("none", "full"):
            store = Store(datadir=str(images), durability=durability)
            took: dict[int, list[float]] = {size: [] for size in SIZES}
            for _ in range(rounds):
                for size in SIZES:
                    url, target = store.find(str(size)), Path(directory, "copy")
                    start = time.perf_counter()
                    store.copy_to(url, target)
                    took[size].append(time.perf_counter() - start)
                    target.unlink()
            figures = ", ".join(f"{size // MIB} MiB {statistics.median(took[size]) * 1e3:.2f} ms" for size in SIZES)
            print(f"copy_to on {filesystem_of(base)}, durability {durability}: {figures}", flush=True)


def sparse(base: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=base) as directory:
        store = Store(datadir=directory, durability="none")
        path = f"{directory}/image"
        with open(path, "wb") as file:
            file.truncate(SPARSE)
            file.seek(SPARSE - MIB)
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        url, offset = store.find("image"), SPARSE - 64 * KIB

        def bare(size: int) -> bytes:
            fd = os.open(path, os.O_RDONLY)
            data = os.pread(fd, size, offset)
            os.close(fd)
            return data

        def get(size: int) -> bytes:
            with store.get(url, offset, size)[0] as reader:
                return next(reader)

        for size in (1, 4 * KIB, 64 * KIB):
            if bare(size) != get(size):
                raise RuntimeError("get gives other bytes than pread")
            for kept in (True, False):
                pairs = [(_time(bare, size, path, kept), _time(get, size, path, kept)) for _ in range(rounds)]
                a, b = (statistics.median(values) * 1e6 for values in zip(*pairs, strict=True))
                ratio = statistics.median(y / x for x, y in pairs)
                state = "in memory" if kept else "on disk"
                print(
                    f"{size} bytes {state}: open, pread, close {a:.1f} us, get {b:.1f} us, {ratio:.2f} times",
                    flush=True,
                )


def _time(function: Callable[[int], bytes], size: int, path: str, kept: bool) -> float:
    """Seconds of one call: of many where the bytes are in memory, of one where they are not."""
    calls = 1000 if kept else 1
    if not kept:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    start = time.perf_counter()
    for _ in range(calls):
        function(size)
    return (time.perf_counter() - start) / calls


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m bench.reading", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--clone", type=Path, action="append", default=[], help="a directory on xfs or btrfs")
    p.add_argument("--sparse", type=Path, action="append", default=[], help="a directory for a sparse file of 100 GiB")
    p.add_argument("--rounds", type=int, default=31)
    args = p.parse_args(argv)
    for base in args.clone:
        clone(base, args.rounds)
    for base in args.sparse:
        sparse(base, args.rounds)


if __name__ == "__main__":
    main()
