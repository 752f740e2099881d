"""What one round does: prepare (not timed), run (timed), finish (not timed: check, close, delete).

The same rounds serve pytest-benchmark and the interleaved pairs. Every round is checked against hashlib, so a
figure can only come from work that was done right.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.material import MIB, Material, make_material
from bench.stores import OpenStore, Side, open_store


@dataclass(frozen=True)
class Case:
    """One row of a table. A round is `images` of `size` bytes, shared out to `threads` callers."""

    name: str
    title: str
    size: int
    images: int = 1
    threads: int = 1
    work: str = "add"  # add | add-many | hash | get | get-readinto | send-...: bench/send.py
    source: str = "file"
    fill: str = "random"
    algo: str = "sha512"
    where: str = "disk"  # disk | memory
    thin: bool = False
    spread: bool = False  # sizes from 0 to `size`, all different (add-many, hash)
    cpus: int = 0  # 0: all that there are
    target: float | None = None
    cpu_target: float | None = None
    a: str = "glance_store"
    b: str = "fastfs"

    @property
    def total(self) -> int:
        return sum(self.sizes) if self.spread else self.size * self.images

    @property
    def sizes(self) -> list[int]:
        """Of each image, in an order that says nothing."""
        if not self.spread:
            return [self.size] * self.images
        sizes = [self.size * n // (self.images - 1) for n in range(self.images)]
        random.Random(0).shuffle(sizes)
        return sizes

    @property
    def hashes(self) -> list[str]:
        return ["md5", self.algo] if self.work in ("add", "add-many", "hash") else []


@dataclass
class Round:
    """What prepare hands to run, and run to finish."""

    jobs: list[tuple[Any, ...]]
    results: list[Any] = field(default_factory=list)


class Work:
    """A case on a directory: the material made once, one open store a side, any number of rounds."""

    def __init__(self, case: Case, root: Path) -> None:
        self.case, self.root = case, root
        self._ids = itertools.count()
        self._pool = ThreadPoolExecutor(case.threads) if case.threads > 1 else None
        self._stores: list[OpenStore] = []
        self._verified: set[OpenStore] = set()
        self.allocated: dict[Side, int] = {}  # bytes on disk of one stored image, as read back in the warm-up
        self._make()

    def _make(self) -> None:
        raise NotImplementedError

    def prepare(self, store: OpenStore) -> Round:
        raise NotImplementedError

    def one(self, store: OpenStore) -> Callable[..., Any]:
        raise NotImplementedError

    def finish(self, store: OpenStore, round_: Round) -> None:
        raise NotImplementedError

    def open(self, side: Side, label: str = "") -> OpenStore:
        store = open_store(side, self.root / (label or str(side).replace(":", "-")), thin=self.case.thin)
        self._stores.append(store)
        return store

    def run(self, store: OpenStore, round_: Round) -> None:
        """The timed part. A caller's thread takes every n-th job, so nothing of ours is paid per image."""
        one = self.one(store)

        def caller(jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
            return [one(*job) for job in jobs]

        if self._pool is None:
            round_.results = caller(round_.jobs)
        else:
            shares = [round_.jobs[n :: self.case.threads] for n in range(self.case.threads)]
            round_.results = list(itertools.chain.from_iterable(self._pool.map(caller, shares)))

    def close(self) -> None:
        for store in self._stores:
            store.close()
        if self._pool:
            self._pool.shutdown()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AddWork(Work):
    def _make(self) -> None:
        case = self.case
        # Small images all carry the same bytes: their cost is not in the bytes. Large ones differ.
        kinds = case.images if case.size >= MIB else 1
        self._materials: list[Material] = []
        (self.root / "sources").mkdir(parents=True)
        for seed in range(kinds):
            path = self.root / "sources" / f"{seed}.raw" if case.source == "file" else None
            self._materials.append(make_material(case.size, case.algo, fill=case.fill, seed=seed, path=path))

    def prepare(self, store: OpenStore) -> Round:
        case, jobs = self.case, []
        for n in range(case.images):
            source = self._materials[n % len(self._materials)].open(case.source)
            jobs.append((f"image-{next(self._ids):08d}", source, case.size, case.algo))
        return Round(jobs)

    def one(self, store: OpenStore) -> Callable[..., Any]:
        return store.add

    def finish(self, store: OpenStore, round_: Round) -> None:
        for _, source, _, _ in round_.jobs:
            if self.case.source == "file":
                source.close()
        want = {(m.size, m.md5, m.multihash) for m in self._materials}
        got = {tuple(result[1:4]) for result in round_.results}
        if len(round_.results) != self.case.images or got != want:
            raise RuntimeError(f"{store.side}: wrong sizes or digests in {self.case.name}")
        if store not in self._verified:  # once a side, in the warm-up: are the bytes really there?
            self._verified.add(store)
            self._read_back(store, round_)
        if self.case.size >= MIB:
            # Deleted before the kernel writes them out, so that no side pays for the other's dirty pages.
            # Small ones stay until the end, because of what a mass unlink does: see places.py.
            for result in round_.results:
                store.delete(store.locate(result[0]))

    def _read_back(self, store: OpenStore, round_: Round) -> None:
        for result in round_.results[:: max(1, len(round_.results) // 16)]:
            digest = hashlib.new(self.case.algo)
            with Path(result[0].removeprefix("file://")).open("rb") as file:
                self.allocated[store.side] = os.fstat(file.fileno()).st_blocks * 512
                while block := file.read(MIB):
                    digest.update(block)
            if digest.hexdigest() != result[3]:
                raise RuntimeError(f"{store.side}: {result[0]} does not hold what was added")


class ManyWork(Work):
    """Files that lie there, each of its own content; who opens them does so in the timed part, on both sides."""

    def _make(self) -> None:
        (self.root / "sources").mkdir(parents=True)
        self._materials = []
        for seed, size in enumerate(self.case.sizes):
            path = self.root / "sources" / f"{seed}.raw"
            self._materials.append(make_material(size, self.case.algo, seed=seed, path=path))
        self._jobs: list[tuple[Any, ...]] = [(str(n), str(m.path)) for n, m in enumerate(self._materials)]

    def _check(self, store: OpenStore, got: list[tuple[int, str, str]]) -> None:
        if got != [(m.size, m.md5, m.multihash) for m in self._materials]:
            raise RuntimeError(f"{store.side}: wrong sizes or digests in {self.case.name}")


class AddManyWork(ManyWork):
    """The pure-Python store is called in a loop, by one caller or by several threads; fastfs by `add_many`."""

    def prepare(self, store: OpenStore) -> Round:
        return Round([(f"{next(self._ids):06d}-{name}", path) for name, path in self._jobs])

    def one(self, store: OpenStore) -> Callable[..., Any]:
        def add(name: str, path: str) -> Any:
            with open(path, "rb") as file:
                return store.add(name, file, 0, self.case.algo)

        return add

    def run(self, store: OpenStore, round_: Round) -> None:
        if store.side.store != "fastfs":
            shares = round_.jobs
            super().run(store, round_)
            if self._pool is not None:  # back in the order of the jobs, out of that of the callers
                callers = [shares[n :: self.case.threads] for n in range(self.case.threads)]
                order = {job[0]: n for n, job in enumerate(itertools.chain.from_iterable(callers))}
                round_.results = [round_.results[order[job[0]]] for job in shares]
            return
        many: Any = store.add_many
        outcomes = sorted(
            many((name, path, None, self.case.algo) for name, path in round_.jobs), key=lambda one: one.position
        )
        round_.results = [outcome.result for outcome in outcomes]

    def finish(self, store: OpenStore, round_: Round) -> None:
        self._check(store, [tuple(result[1:4]) for result in round_.results])
        if store not in self._verified:
            self._verified.add(store)
            for material, result in list(zip(self._materials, round_.results, strict=True))[:16]:
                stored = hashlib.new(self.case.algo, Path(result[0].removeprefix("file://")).read_bytes())
                if stored.hexdigest() != material.multihash:
                    raise RuntimeError(f"{store.side}: {result[0]} does not hold what was added")
        if self.case.size >= MIB:
            for result in round_.results:
                store.delete(store.locate(result[0]))


class HashWork(ManyWork):
    """hashlib in threads, fed by a plain loop, beside `fastfs.hash_files`."""

    def prepare(self, store: OpenStore) -> Round:
        return Round(self._jobs)

    def one(self, store: OpenStore) -> Callable[..., Any]:
        def digest(name: str, path: str) -> tuple[int, str, str]:
            md5, other, size = hashlib.md5(), hashlib.new(self.case.algo), 0
            with open(path, "rb", buffering=0) as file:
                while block := file.read(256 * 1024):
                    md5.update(block)
                    other.update(block)
                    size += len(block)
            return size, md5.hexdigest(), other.hexdigest()

        return digest

    def run(self, store: OpenStore, round_: Round) -> None:
        if store.side.store != "fastfs":
            assert self._pool is not None
            one = self.one(store)
            round_.results = list(self._pool.map(lambda job: one(*job), round_.jobs))
            return
        hash_files = importlib.import_module("fastfs").hash_files
        names = ("md5", self.case.algo)
        found = hash_files((path for _, path in round_.jobs), names)
        round_.results = [(one.size, *(one.digests[name] for name in names)) for one in found]

    def finish(self, store: OpenStore, round_: Round) -> None:
        self._check(store, round_.results)


class GetWork(Work):
    """Both sides read one and the same file, so that its place in the page cache is the same too."""

    def _make(self) -> None:
        self._material: Material | None = None

    def open(self, side: Side, label: str = "") -> OpenStore:
        store = super().open(side, "shared")
        if self._material is None:
            path = store.datadir / "image"
            self._material = make_material(self.case.size, self.case.algo, path=path)
        return store

    def prepare(self, store: OpenStore) -> Round:
        return Round([(store.locate(f"file://{store.datadir / 'image'}"),)] * self.case.images)

    def one(self, store: OpenStore) -> Callable[..., Any]:
        if self.case.work == "get-readinto" and store.side.store == "fastfs":
            buffer = bytearray(256 * 1024)
            return lambda location: _drain_into(store, location, buffer)
        return lambda location: _drain(store, location)

    def finish(self, store: OpenStore, round_: Round) -> None:
        if [self.case.size] * self.case.images != round_.results:
            raise RuntimeError(f"{store.side}: got {round_.results} bytes, not {self.case.size}")
        if store not in self._verified and self._material is not None:
            self._verified.add(store)
            digest = hashlib.new(self.case.algo)
            for piece in store.get(round_.jobs[0][0])[0]:
                digest.update(piece)
            if digest.hexdigest() != self._material.multihash:
                raise RuntimeError(f"{store.side}: get gives other bytes than were stored")


def _drain(store: OpenStore, location: Any) -> int:
    pieces, _ = store.get(location)
    return sum(map(len, pieces))


def _drain_into(store: OpenStore, location: Any, buffer: bytearray) -> int:
    reader: Any = store.get(location)[0]
    total = 0
    with reader:
        while n := reader.readinto(buffer):
            total += n
    return total


def make_work(case: Case, root: Path) -> Work:
    root.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, type[Work]] = {"add": AddWork, "add-many": AddManyWork, "hash": HashWork}
    if case.work.startswith("send-"):
        from bench.send import SendWork  # which stands on this module

        return SendWork(case, root)
    return kinds.get(case.work, GetWork)(case, root)
