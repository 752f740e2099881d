# SPDX-License-Identifier: Apache-2.0
"""The hash engine through the extension: concurrent streams, their ends and their digests."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import os_threads, settled

import fastfs
from fastfs import Store, _native, hashing

NAMES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
BLOCK = _native.BLOCK_SIZE


def can_run(name: str) -> bool:
    try:
        _native.select_kernel(name)
    except ValueError:
        return False
    finally:
        _native.select_kernel(None)
    return True


KERNELS = [name for name in _native.kernels() if can_run(name)]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.select_kernel(request.param)
    yield request.param
    _native.select_kernel(None)


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(b"%d" % seed).digest(size)


def engine(data: bytes, names: tuple[str, ...], pieces: list[int] | None = None) -> tuple[str, ...]:
    digests = [_native.EngineDigest(name) for name in names]
    pump = _native.Pump(-1, digests)
    at = 0
    for piece in pieces or []:
        pump.feed(data, at, min(len(data), at + piece))
        pump.flush()
        at = min(len(data), at + piece)
    pump.feed(data, at)
    assert pump.finish() == len(data)
    pump.close()
    return tuple(digest.hexdigest() for digest in digests)


def right(data: bytes, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(hashlib.new(name, data).hexdigest() for name in names)


@pytest.mark.parametrize(
    "names", [("md5", "sha512"), ("sha256", "md5"), ("md5",), ("sha1", "sha224", "sha384"), NAMES[2:]]
)
@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 255, 16384, BLOCK, 3 * BLOCK + 77])
def test_one_stream(kernel: str, size: int, names: tuple[str, ...]) -> None:
    data = noise(size)
    assert engine(data, names) == right(data, names) == _native.hash_once(data, names)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(st.integers(0, 2 * BLOCK), max_size=8), extra=st.integers(0, 300))
def test_pieces(pieces: list[int], extra: int) -> None:
    data = noise(sum(pieces) + extra)
    assert engine(data, ("md5", "sha512"), pieces) == right(data, ("md5", "sha512"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.lists(st.integers(0, 1_500_000), min_size=1, max_size=24), threads=st.sampled_from([2, 5, 24]))
def test_many_streams_of_unequal_length(sizes: list[int], threads: int) -> None:
    """Late arrivals, refills, lanes that end early: each stream has its own digests."""
    whole = noise(max(sizes) + len(sizes))

    def one(number: int) -> bool:
        data = whole[number : number + sizes[number]]
        return engine(data, ("md5", "sha512")) == right(data, ("md5", "sha512"))

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(one, range(len(sizes))))


def test_different_algorithms_at_once(kernel: str) -> None:
    sets = [("md5", "sha512"), ("md5", "sha256"), ("md5",), ("sha1", "md5"), ("sha384", "sha224", "md5")]
    data = noise(3_000_001)

    def one(number: int) -> bool:
        names = sets[number % len(sets)]
        piece = data[number : len(data) - 1000 * number]
        return engine(piece, names) == right(piece, names)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(60)))
    assert _native.engine_counters()["live"] == 0


def test_beside_hashlib(kernel: str) -> None:
    data = noise(2_000_003)
    ours, theirs = _native.EngineDigest("md5"), hashlib.blake2b()
    pump = _native.Pump(-1, [theirs, ours])
    pump.feed(data)
    pump.finish()
    pump.close()
    assert (ours.digest(), theirs.digest()) == (hashlib.md5(data).digest(), hashlib.blake2b(data).digest())


def test_streams_that_are_given_up() -> None:
    """Whatever their neighbours do, the others come to their end; nothing is left."""
    python, before = threading.active_count(), os_threads()
    data = noise(1_000_000)

    def one(number: int) -> bool:
        if number % 3 == 0:
            digest = _native.EngineDigest("sha512")
            pump = _native.Pump(-1, [digest])
            pump.feed(data, 0, 600_000 + number)
            if number % 2:
                pump.close()  # the others are collected
            with pytest.raises(ValueError, match="not finished"):
                digest.hexdigest()
            return True
        return engine(data, ("md5", "sha512")) == right(data, ("md5", "sha512"))

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(90)))
    assert _native.engine_counters()["live"] == 0
    assert threading.active_count() == python
    assert settled(lambda: os_threads() - before, set()) == set()


def test_a_hasher_that_raises_beside_the_engine() -> None:
    class Broken:
        def update(self, data: memoryview) -> None:
            raise RuntimeError

    pump = _native.Pump(-1, [_native.EngineDigest("md5"), Broken()])
    with pytest.raises(OSError, match="error"):
        pump.feed(noise(20 * BLOCK))
    pump.close()
    assert _native.engine_counters()["live"] == 0


def test_a_digest_is_of_one_stream() -> None:
    digest = _native.EngineDigest("md5")
    _native.Pump(-1, [digest]).close()
    with pytest.raises(ValueError, match="one stream"):
        _native.Pump(-1, [digest])
    with pytest.raises(ValueError, match="whirlpool"):
        _native.EngineDigest("whirlpool")
    with pytest.raises(ValueError, match="too many"):
        _native.Pump(-1, [_native.EngineDigest("md5") for _ in range(5)])


def test_after_fork() -> None:
    """The child has an engine of its own, also when streams are open in the parent."""
    data = noise(3_000_000)
    pump = _native.Pump(-1, [_native.EngineDigest("md5"), _native.EngineDigest("sha512")])
    pump.feed(data)
    child = os.fork()
    if child == 0:
        good = engine(data, ("md5", "sha512")) == right(data, ("md5", "sha512"))
        os._exit(0 if good and _native.engine_counters()["live"] == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    pump.finish()
    pump.close()


def test_forks_while_others_hash() -> None:
    data = noise(500_000)
    stop = threading.Event()

    def hash_on() -> None:
        while not stop.is_set():
            engine(data, ("md5", "sha512"))

    threads = [threading.Thread(target=hash_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if engine(data, ("md5", "sha512")) == right(data, ("md5", "sha512")) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_lanes_are_filled_by_ordinary_threads(tmp_path: Path) -> None:
    if not hashing.engine_algorithms():
        pytest.skip("no kernel with wide vectors on this machine: hashlib is used")
    data = noise(8 << 20)
    before = _native.engine_counters()
    with Store(datadir=str(tmp_path), durability="none") as store, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: store.add(f"i{n}", data), range(32)))
    assert {(r.checksum, r.multihash) for r in results} == {right(data, ("md5", "sha512"))}
    after = _native.engine_counters()
    assert after["bytes"] - before["bytes"] == 32 * 2 * len(data)
    assert (after["lanes"] - before["lanes"]) / (after["steps"] - before["steps"]) > 2


@pytest.fixture
def two_cores() -> Iterator[None]:
    _native.limit_cores(2)
    yield
    _native.limit_cores(0)


MIB = 1 << 20
# About the ends of blocks (256 KiB), of what one call moves (16 MiB) and of a record's blocks (1 MiB).
SIZES = [16 * MIB, 16 * MIB + 1, 16 * MIB - 1, 17 * MIB + 77, 33 * MIB, 3 * BLOCK, 5 * MIB + 129, MIB + 5] * 2


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("options", [{}, {"records": "none"}, {"thin_provisioning": True}, {"cache": "drop"}])
def test_many_files_are_copied_at_once(options: dict[str, Any], declared: bool, tmp_path: Path) -> None:
    data = noise(max(SIZES) // 2) + bytes(MIB)  # with zeroes for a hole
    data += noise(max(SIZES) - len(data), 1)
    (tmp_path / "store").mkdir()

    def add(store: Store, number: int) -> fastfs.AddResult:
        source = tmp_path / str(number)
        source.write_bytes(data[: SIZES[number]])
        with open(source, "rb") as file:
            ready.wait(60)
            added = store.add(str(number), file, SIZES[number] if declared else None)
            assert file.tell() == SIZES[number]
        source.unlink()
        return added

    ready = threading.Barrier(len(SIZES))
    with (
        Store(datadir=str(tmp_path / "store"), durability="none", **options) as store,
        ThreadPoolExecutor(len(SIZES)) as pool,
    ):
        for number, added in enumerate(pool.map(lambda n: add(store, n), range(len(SIZES)))):
            expected = data[: SIZES[number]]
            assert (added.size, added.checksum, added.multihash) == (len(expected), *right(expected, ("md5", "sha512")))
            assert (tmp_path / "store" / str(number)).read_bytes() == expected
            store.delete(added.url)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("algorithms", [("md5", "sha512"), ("md5", "sha256"), ("sha256",), ("md5", "blake2b", "sha1")])
def test_files_that_change_while_many_are_hashed(algorithms: tuple[str, ...], tmp_path: Path) -> None:
    """One grows, one is cut short: no other digest is wrong."""
    data = noise(6 * MIB)
    for number in range(12):
        (tmp_path / str(number)).write_bytes(data)
    stop = threading.Event()

    def disturb() -> None:
        for _ in range(500):  # who reads to the end must be able to come there
            if stop.wait(0.001):
                break
            os.truncate(tmp_path / "3", 1_000_000)
            with open(tmp_path / "7", "ab") as file:
                file.write(data[:100_000])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = list(fastfs.hash_files([tmp_path / str(number) for number in range(12)], algorithms))
    finally:
        stop.set()
        thread.join()
    expected = {name: hashlib.new(name, data).hexdigest() for name in algorithms}
    for number, one in enumerate(found):
        if number in (3, 7):
            assert one.error is not None or len(one.digests) == len(algorithms)
        else:
            assert one.digests == expected
    assert settled(lambda: _native.engine_counters()["live"], 0) == 0


def test_the_option(tmp_path: Path) -> None:
    before = _native.engine_counters()["streams"]
    with Store(datadir=str(tmp_path), hash_engine="hashlib") as store:
        store.add("a", noise(1_000_000))
    assert _native.engine_counters()["streams"] == before


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    hashing.engine_algorithms.cache_clear()
    hashing.fips_mode.cache_clear()
    yield
    hashing.engine_algorithms.cache_clear()
    hashing.fips_mode.cache_clear()
    _native.limit_cores(0)


@pytest.mark.usefixtures("fresh_choice")
def test_fips_mode_uses_hashlib_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes = b"", *, usedforsecurity: bool = True) -> object:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return real(data, usedforsecurity=False)

    real: Callable[..., object] = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", refuse)
    assert hashing.engine_algorithms() == frozenset()
    assert not any(isinstance(h, _native.EngineDigest) for h in hashing.hashers(("md5", "sha512")))


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTFS_KERNEL", name)
    with Store(datadir=str(tmp_path)) as store:
        added = store.add("a", noise(1_000_000))
    assert _native.kernel() == name
    assert hashing.engine_algorithms() == frozenset(NAMES)
    assert added.multihash == hashlib.sha512(noise(1_000_000)).hexdigest()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("FASTFS_KERNEL", "mmx"), ("FASTFS_HASH_THREADS", "many"), ("FASTFS_HASH_THREADS", "-1")],
)
def test_what_cannot_be_forced(variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(fastfs.BadStoreConfiguration, match=f"{variable}='{value}'.*unset it"):
        Store(datadir=str(tmp_path))


def test_rates_are_measured() -> None:
    rates = _native.kernel_rates("sha512", with_md5=True)
    assert rates[1] > 0
    assert list(rates) == sorted(rates)
    assert _native.cores() >= 1


# Around the ends of blocks, where padding needs one more of them.
EDGES = (0, 1, 55, 56, 63, 64, 65, 111, 112, 119, 120, 127, 128, 129, 191, 192, 255, 256, 257)


@given(
    st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 20_000)), max_size=70),
    st.permutations(NAMES),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_small_objects_at_once(kernel: str, lengths: list[int], order: list[str], count: int) -> None:
    names = tuple(order[:count])
    pieces = [noise(n + 3)[3:] for n in lengths]
    assert _native.hash_many(pieces, names) == [right(piece, names) for piece in pieces]


def test_many_take_what_hash_once_takes() -> None:
    views: list[memoryview | bytearray | bytes] = [memoryview(b"abc"), bytearray(b"de"), b""]
    assert _native.hash_many(views, ("sha512",)) == [_native.hash_once(view, ("sha512",)) for view in views]
    assert _native.hash_many([], ("md5",)) == []
    with pytest.raises(TypeError):
        _native.hash_many([b"a", "text"], ("md5",))  # type: ignore[list-item]
    with pytest.raises(KeyError):
        _native.hash_many([b"a"], ("whirlpool",))
    with pytest.raises(ValueError, match="too many"):
        _native.hash_many([b"a"], ("md5", "sha1", "sha224", "sha256", "sha384"))
