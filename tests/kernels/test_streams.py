# SPDX-License-Identifier: Apache-2.0
"""The kernels through the engine: unequal streams that come late, end early, are interrupted, with few processors."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import proofs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfs import _native, hash_files

SETS = [
    ("md5", "sha512"),
    ("md5", "sha256"),
    ("md5", "sha1"),
    ("md5", "sha384"),
    ("sha224", "md5"),
    ("sha512",),
    ("sha1", "sha256", "sha512", "md5"),
]
BLOCK = _native.BLOCK_SIZE


def can_run(name: str) -> bool:
    try:
        _native.select_kernel(name)
    except ValueError:
        return False
    finally:
        _native.select_kernel(None)
    return True


@pytest.fixture(params=_native.kernels())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    if not can_run(request.param):
        pytest.skip(f"{request.param} cannot run on this processor")
    _native.select_kernel(request.param)
    yield request.param
    _native.select_kernel(None)


def right(data: bytes, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(hashlib.new(name, data).hexdigest() for name in names)


def engine(data: bytes, names: tuple[str, ...], cuts: list[int]) -> tuple[str, ...]:
    """The digests, posted in blocks that end at `cuts`."""
    digests = [_native.EngineDigest(name) for name in names]
    pump = _native.Pump(-1, digests)
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        pump.feed(data, at, cut)
        pump.flush()
        at = cut
    pump.finish()
    pump.close()
    return tuple(digest.hexdigest() for digest in digests)


def test_unequal_streams_of_all_algorithms(kernel: str) -> None:
    """Refills, late arrivals, tails, every algorithm beside every other; more streams than lanes."""
    data = proofs.noise()[0]
    lengths = [0, 1, 63, 64, 65, 127, 128, 129, 4095, 4097, 16384, 16447, BLOCK - 1, BLOCK, BLOCK + 65, 700_001]
    work = [(names, i * 37 + j, length) for i, names in enumerate(SETS) for j, length in enumerate(lengths)]

    def one(item: tuple[tuple[str, ...], int, int]) -> bool:
        names, start, length = item
        piece = data[start : start + length]
        return engine(piece, names, [64, 191, 16384, 65536 + start]) == right(piece, names)

    for threads in (3, 56):
        with ThreadPoolExecutor(threads) as pool:
            assert [item for item, good in zip(work, pool.map(one, work), strict=True) if not good] == []
    assert _native.engine_counters()["live"] == 0


@settings(max_examples=12, deadline=None)
@given(
    streams=st.lists(
        st.tuples(
            st.sampled_from(SETS),
            st.integers(0, 4000),
            st.integers(0, 600_000),
            st.lists(st.integers(0, 600_000), max_size=6),
        ),
        min_size=1,
        max_size=40,
    ),
    threads=st.sampled_from([2, 7, 40]),
)
def test_any_streams(streams: list[tuple[tuple[str, ...], int, int, list[int]]], threads: int) -> None:
    data = proofs.noise()[0]

    def one(stream: tuple[tuple[str, ...], int, int, list[int]]) -> bool:
        names, start, length, cuts = stream
        piece = data[start : start + length]
        return engine(piece, names, cuts) == right(piece, names)

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(one, streams))


def test_hash_files(kernel: str, tmp_path: Path) -> None:
    data = proofs.noise()[0]
    sizes = [0, 1, 127, 128, 129, 4096, 70_000, 262_144, 262_145, 900_001] * 5
    paths = []
    for number, size in enumerate(sizes):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(data[number : number + size])
    for names in SETS:
        seen = {}
        for result in hash_files(paths, names, jobs=12):
            assert result.digests is not None
            seen[str(result.path)] = tuple(result.digests[name] for name in names)
        assert seen == {
            str(path): right(data[number : number + sizes[number]], names) for number, path in enumerate(paths)
        }


FEW = """
import os, sys
sys.path[:0] = sys.argv[1:2]
if sys.argv[2] == "affinity":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import test_streams
from fastfs import _native, hashing
if sys.argv[2] == "variable":
    hashing.engine_algorithms()
assert _native.cores() == 1, _native.cores()
test_streams.test_unequal_streams_of_all_algorithms("")
print(_native.engine_counters()["helpers"])
"""


@pytest.mark.parametrize("way", ["affinity", "variable"])
def test_one_processor(way: str) -> None:
    environment = {**os.environ, **({"FASTFS_HASH_THREADS": "1"} if way == "variable" else {})}
    done = subprocess.run(
        [sys.executable, "-c", FEW, str(Path(__file__).parent), way],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


class Stop(BaseException):
    pass


def test_interrupted_streams_beside_others() -> None:
    """An exception comes from outside at any moment; the neighbours' digests are right and nothing is left."""
    data = proofs.noise()[0]
    done = threading.Event()
    counts = {"whole": 0, "stopped": 0}

    def victim() -> None:
        while not done.is_set():
            with contextlib.suppress(Stop):
                try:
                    engine(data, ("md5", "sha512"), [65, 70_000])
                    counts["whole"] += 1
                except Stop:
                    counts["stopped"] += 1

    def run() -> None:
        with contextlib.suppress(Stop):
            victim()

    victims = [threading.Thread(target=run) for _ in range(4)]
    for thread in victims:
        thread.start()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    try:
        for i in range(60):
            ident = victims[i % 4].ident
            assert ident is not None
            raise_in(ctypes.c_ulong(ident), ctypes.py_object(Stop))
            piece = data[i : 300_000 + 64 * i]
            assert engine(piece, SETS[i % 7], [129 * i]) == right(piece, SETS[i % 7])
    finally:
        done.set()
        for thread in victims:
            thread.join()
    assert counts["stopped"] > 0
    assert _native.engine_counters()["live"] == 0


def test_many_forks_beside_split_streams() -> None:
    """A child's engine is its own, whatever the parent's threads were in the middle of."""
    data = proofs.noise()[0]
    stop = threading.Event()

    def hash_on(number: int) -> None:
        while not stop.is_set():
            assert engine(data, SETS[number % 3], [127, 129]) == rights[number % 3]

    rights = [right(data, names) for names in SETS[:3]]
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(hash_on, number) for number in range(6)]
        try:
            for _ in range(8):
                child = os.fork()
                if child == 0:
                    good = all(engine(data, SETS[i], [127, 129]) == rights[i] for i in range(3))
                    os._exit(0 if good and _native.engine_counters()["live"] == 0 else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
        for each in running:
            each.result()
