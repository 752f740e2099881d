"""What is proven of every kernel.  As a program: the proof that no byte but the named ones is read."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from kernels import AVX512, QUICK_VECTOR, SHA, Driver, Kernel, States

Piece = tuple[int, int]  # where it begins in the noise, and its length

PAGE = mmap.PAGESIZE


@functools.cache
def noise() -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    data = hashlib.shake_128(b"kernels").digest(1 << 20)
    return data, ctypes.create_string_buffer(data)


def digests(driver: Driver, kernel: Kernel, pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
    """The digests of pieces of the noise: as many at a time as the kernel has lanes, each on until the shortest ends;
    then another one takes its place.  A lane that is left over repeats the first one's bytes for nobody."""
    data, memory = noise()
    base, width, unit = ctypes.addressof(memory), kernel.width, kernel.unit
    states = States(driver, kernel.algorithm, len(pieces) + width)
    md5 = States(driver, "md5", len(pieces) + width)
    at = [0] * len(pieces)
    waiting = deque(i for i, (_, length) in enumerate(pieces) if length >= unit)
    live: list[int] = []
    while waiting or live:
        while waiting and len(live) < width:
            live.append(waiting.popleft())
        units = min((pieces[i][1] - at[i]) // unit for i in live)
        lanes = [*live, *range(len(pieces), len(pieces) + width - len(live))]
        where = [base + pieces[i][0] + at[i] for i in live]
        where += where[:1] * (width - len(live))
        driver.call(kernel, [md5.at(i) for i in lanes], [states.at(i) for i in lanes], where, units)
        for i in live:
            at[i] += units * unit
        live = [i for i in live if pieces[i][1] - at[i] >= unit]
    found = []
    for i, (start, length) in enumerate(pieces):
        rest = data[start + at[i] : start + length]
        both = (md5, states) if kernel.pair else (states,)
        found.append(tuple(each.digest(i, rest, length) for each in both))
    return found


def mistakes(driver: Driver, kernel: Kernel, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of which hashlib has other digests."""
    data = noise()[0]
    names = ("md5", kernel.algorithm) if kernel.pair else (kernel.algorithm,)
    wrong = []
    for (start, length), ours in zip(pieces, digests(driver, kernel, pieces), strict=True):
        piece = data[start : start + length]
        if ours != tuple(hashlib.new(name, piece).hexdigest() for name in names):
            wrong.append((start, length))
    return wrong


def around(kernel: Kernel) -> list[Piece]:
    """Unequal pieces at odd addresses: every length up to two units, then what lies around each unit up to four times
    as many as there are lanes, and around the paddings' limits; in an order that lets late ones join early ones."""
    unit, most = kernel.unit, 4 * kernel.unit * kernel.width
    lengths = set(range(2 * unit + 2))
    for end in range(0, most + 1, unit):
        lengths |= {end - 1, end, end + 1, end + 55, end + 56, end + unit - 17, end + unit - 16}
    lengths = {length for length in lengths if 0 <= length <= most + 1}
    if kernel.width == 1:
        lengths |= set(range(most + 2))
    ordered = sorted(lengths, key=lambda length: hashlib.md5(b"%d" % length).digest())
    return [(977 * i % 65536 | i & 1, length) for i, length in enumerate(ordered)]


def wrong_kernels(driver: Driver) -> list[str]:
    """The kernels of the set that was taken that make mistakes."""
    return [str(kernel) for kernel in driver.kernels() if mistakes(driver, kernel, around(kernel))]


def configurations(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each set with each of the features that choose among its kernels left out or not: name, what is left out."""
    every = []
    for name in names:
        for sha in (0, SHA):
            for quick in (0, QUICK_VECTOR) if name == "avx512" else (0,):
                every.append((name, sha | quick))
    return every


def cannot_run(driver: Driver, name: str, left_out: int) -> str | None:
    """Take the set with features left out; None, or why that cannot be here."""
    if name == "avx512" and not driver.features & AVX512:
        return "this processor has no AVX-512"
    if not left_out & SHA and name != "neon" and not driver.features & SHA:
        return "this processor has no SHA instructions"
    features = driver.features | (QUICK_VECTOR if driver.features & AVX512 else 0)  # how fast they are is no obstacle
    return driver.take(name, features & ~left_out)


def guarded(lanes: int, size: int) -> list[int]:
    """Addresses of `lanes` areas of `size` bytes, of which each ends at an unreadable page (and each of whole pages
    begins after one)."""
    pages = -(-size // PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    stride = (pages + 1) * PAGE
    area = mmap.mmap(-1, lanes * stride + PAGE)
    guarded.__dict__.setdefault("kept", []).append(area)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    ctypes.memmove(base, noise()[0][: lanes * stride + PAGE], lanes * stride + PAGE)
    for lane in range(lanes + 1):
        if libc.mprotect(base + lane * stride, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    return [base + (lane + 1) * stride - size for lane in range(lanes)]


def read_no_more(driver: Driver, kernel: Kernel) -> None:
    """Dies if the kernel touches what it was not given."""
    for size in (kernel.unit, 3 * kernel.unit, PAGE):
        states, md5 = States(driver, kernel.algorithm, kernel.width), States(driver, "md5", kernel.width)
        each = range(kernel.width)
        where = guarded(kernel.width, size)
        driver.call(kernel, [md5.at(i) for i in each], [states.at(i) for i in each], where, size // kernel.unit)
        for i in each:
            name, state = ("md5", md5) if kernel.pair else (kernel.algorithm, states)
            if state.digest(i, b"", size) != hashlib.new(name, ctypes.string_at(where[i], size)).hexdigest():
                raise AssertionError(kernel)


def guard(path: Path, name: str, left_out: int, *only: str) -> subprocess.CompletedProcess[str]:
    """Run this file on all kernels of a set, or on those of `only`."""
    program = [sys.executable, __file__, str(path), name, str(left_out), *only]
    return subprocess.run(program, capture_output=True, text=True, timeout=60)


def main() -> None:
    driver = Driver(Path(sys.argv[1]))
    why = cannot_run(driver, sys.argv[2], int(sys.argv[3]))
    if why is not None:
        sys.exit(why)
    for kernel in driver.kernels():
        if sys.argv[4:] and str(kernel) not in sys.argv[4:]:
            continue
        print(kernel, flush=True)
        read_no_more(driver, kernel)
    print("all", flush=True)


if __name__ == "__main__":
    main()
