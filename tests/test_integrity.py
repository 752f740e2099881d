"""Adopt, repair, the space that images take, and what a scrub is told to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fastfs
from fastfs import IntegrityError, Store, Unverifiable, record, sidecar
from fastfs.scrub import Status, checked_expectations, space
from fastfs.scrub.adopt import Comparison
from fastfs.scrub.adopt import Outcome as Made
from fastfs.scrub.repair import WebCopy

BLOCK = 65536
SIZE = 5 * BLOCK + 77


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def damage(path: Path, at: int) -> None:
    """One bit, and the time as it was: what rot does."""
    info = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(images: Path) -> Iterator[Store]:
    with Store(datadir=str(images), durability="none", record_block_size=BLOCK) as opened:
        yield opened


@pytest.fixture
def plain(images: Path, store: Store) -> Path:
    """Images that other software has stored."""
    for number in range(4):
        (images / f"image-{number}").write_bytes(content(number))
    (images / "small").write_bytes(b"small")
    return images


def statuses(store: Store, **options: Any) -> dict[str, str]:
    return {finding.image_id: finding.status.value for finding in store.scrub(restart=True, **options)}


# Adopt.


def test_adopted_images_can_be_verified(plain: Path, store: Store) -> None:
    found = {one.image_id: one for one in store.adopt()}
    assert {one.record for one in found.values()} == {Made.MADE}
    assert {one.comparison for one in found.values()} == {Comparison.UNKNOWN}
    assert found["image-2"].digests["md5"] == hashlib.md5(content(2)).hexdigest()
    assert found["image-2"].digests["sha512"] == hashlib.sha512(content(2)).hexdigest()
    assert set(statuses(store, mode="deep").values()) == {"clean"}
    assert store.get(store.find("image-3"), verify=True)[0].read() == content(3)
    assert {one.record for one in store.adopt()} == {Made.KEPT}
    damage(plain / "image-1", 3 * BLOCK)
    damage(plain / "small", 2)
    assert {name for name, status in statuses(store).items() if status == "bit-rot"} == {"image-1", "small"}


def test_compared_with_what_is_expected(plain: Path, store: Store) -> None:
    expected = checked_expectations(
        [
            ("image-0", "sha512", hashlib.sha512(content(0)).hexdigest()),
            ("image-0", "MD5", hashlib.md5(content(0)).hexdigest().upper()),
            ("image-1", "sha256", hashlib.sha256(content(1)).hexdigest()),
            ("image-2", "sha256", hashlib.sha256(b"other").hexdigest()),
            ("gone", "md5", hashlib.md5(b"").hexdigest()),
        ]
    )
    for turn in range(2):  # the second time by their records, as far as those tell
        found = {one.image_id: (one.comparison.value, one.record.value) for one in store.adopt(expected=expected)}
        kept = "made" if turn == 0 else "kept"
        assert found == {
            "image-0": ("match", kept),
            "image-1": ("match", kept),
            "image-2": ("mismatch", "none"),
            "image-3": ("unknown", kept),
            "small": ("unknown", kept),
            "gone": ("missing", "none"),
        }
    assert statuses(store)["image-2"] == "no-record"


def test_nothing_is_certified_that_a_record_contradicts(store: Store, images: Path) -> None:
    """A damaged image must not get a new record that calls it good."""
    for number in range(3):
        store.add(f"image-{number}", content(number))
    damage(images / "image-0", 9)
    os.truncate(images / "image-1", 100)
    (images / "image-2").unlink()
    (images / "image-0b").write_bytes(b"")
    for reread in (False, True):
        list(store.adopt(reread=reread))
        assert statuses(store) | {"image-0b": ""} == {"image-0": "bit-rot", "image-1": "truncated", "image-0b": ""}


def test_a_damaged_or_outdated_record_is_made_anew(store: Store, images: Path) -> None:
    store.add("damaged", content(0))
    store.add("replaced", content(1))
    sidecar_of = images / ".fastfs-damaged.rec"
    sidecar_of.write_bytes(sidecar_of.read_bytes()[:100])
    (images / "new").write_bytes(content(2))
    (images / "new").replace(images / "replaced")
    assert statuses(store) == {"damaged": "record-damaged", "replaced": "stale-record"}
    assert {one.record for one in store.adopt()} == {Made.MADE}
    assert statuses(store) == {"damaged": "clean", "replaced": "clean"}


def test_a_dry_run_makes_nothing(plain: Path, store: Store) -> None:
    before = sorted(os.listdir(plain))
    with Store(datadir=str(plain), read_only=True) as looking:
        assert {one.record for one in looking.adopt(dry_run=True)} == {Made.NONE}
        with pytest.raises(fastfs.StorageWriteDenied):
            looking.adopt()
    assert sorted(os.listdir(plain)) == before


def test_replaced_while_it_is_read(plain: Path, store: Store) -> None:
    """The record of what was read must not become that of what came in its place."""

    def replace(name: str, count: int) -> None:
        if name == "image-1":
            (plain / "new").write_bytes(content(9))
            (plain / "new").replace(plain / "image-1")

    found = {one.image_id: one for one in store.adopt(["image-1", "image-2"], progress=replace)}
    assert found["image-1"].record is Made.NONE
    assert "replaced" in found["image-1"].detail
    assert found["image-2"].record is Made.MADE
    assert statuses(store)["image-1"] == "no-record"
    assert not (plain / ".fastfs-image-1.rec").exists()


def test_adopt_beside_adds_and_deletes(images: Path, store: Store) -> None:
    """Whatever wins, no image is called damaged."""
    stop = threading.Event()

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            name = f"image-{chance.randrange(4)}"
            with contextlib.suppress(fastfs.NotFound, fastfs.Duplicate):
                if chance.random() < 0.5:
                    store.delete(f"file://{images}/{name}")
                elif chance.random() < 0.5:
                    store.add(name, content(chance.randrange(5)))
                else:
                    hidden = images / f".other-{seed}"
                    hidden.write_bytes(content(chance.randrange(5)))
                    hidden.replace(images / name)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        seen: Counter[str] = Counter()
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            seen.update(one.record.value for one in store.adopt())
            seen.update(statuses(store).values())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    list(store.adopt())
    last = set(statuses(store).values())
    assert last <= {"clean"}, last
    assert seen["made"]
    assert not {"bit-rot", "truncated", "grown", "wrong-digest"} & set(seen)


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "sha512", "12")],
        [("a", "md5", "x" * 32)],
        [("a", "md5", "0" * 32), ("a", "md5", "1" * 32)],
        [("a", name, hashlib.new(name).hexdigest()) for name in ("md5", "sha1", "sha256", "sha512")],
        [("a", "sha513", "0" * 32)],
    ],
)
def test_expectations_that_are_none(rows: list[tuple[str, str, str]]) -> None:
    with pytest.raises(fastfs.Invalid, match="image a"):
        checked_expectations(rows)


# Repair.


@pytest.mark.parametrize("kind", ["rot", "two", "truncated", "grown", "emptied", "both"])
@pytest.mark.parametrize("way", ["file", "folder", "url", "web", "web without ranges"])
def test_repaired(kind: str, way: str, store: Store, images: Path, tmp_path: Path) -> None:
    data = content(1)
    store.add("image", data)
    info = (images / "image").stat()
    path = images / "image"
    if kind in ("rot", "both"):
        damage(path, 2 * BLOCK + 5)
    if kind in ("two", "both"):
        damage(path, 0)
        damage(path, 4 * BLOCK + 5)
    if kind == "truncated":
        os.truncate(path, 3 * BLOCK + 1)
    if kind == "emptied":
        os.truncate(path, 0)
    if kind in ("grown", "both"):
        with open(path, "ab") as file:
            file.write(b"more")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "image").write_bytes(data)
    with contextlib.ExitStack() as stack:
        place = {
            "file": str(tmp_path / "good" / "image"),
            "folder": str(tmp_path / "good"),
            "url": f"file://{tmp_path}/good/image",
        }.get(way) or stack.enter_context(served(data, way == "web"))[0]
        done = store.repair("image", place)
    assert done.mended
    assert done.before.damaged
    assert path.read_bytes() == data
    assert path.stat().st_ino == info.st_ino
    assert done.blocks == {"rot": 1, "two": 2, "truncated": 3, "grown": 0, "emptied": 6, "both": 3}[kind]
    assert statuses(store, mode="deep") == {"image": "clean"}


@contextlib.contextmanager
def served(data: bytes, ranges: bool) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            asked.append(wanted)
            body = data
            if ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                body = data[int(first) : int(last) + 1]
            self.send_response(206 if ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/image", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_only_what_is_damaged_is_asked_for(store: Store, images: Path) -> None:
    store.add("image", content(1))
    damage(images / "image", 2 * BLOCK + 5)
    with served(content(1), True) as (url, asked):
        assert store.repair("image", url).blocks == 1
    assert asked == [f"bytes={2 * BLOCK}-{3 * BLOCK - 1}"]


def test_a_bad_copy_does_no_harm(store: Store, images: Path, tmp_path: Path) -> None:
    data = content(1)
    store.add("image", data)
    damage(images / "image", 2 * BLOCK + 5)
    damage(images / "image", 4 * BLOCK + 5)
    before = (images / "image").read_bytes()
    for other in (content(2), b"", data[: 3 * BLOCK - 1]):
        (tmp_path / "copy").write_bytes(other)
        done = store.repair("image", tmp_path / "copy")
        assert not done.mended
        if not data.startswith(other) or not other:
            assert (images / "image").read_bytes() == before
    # One that has half of what is missing helps as far as it goes.
    (tmp_path / "copy").write_bytes(data[: 4 * BLOCK])
    done = store.repair("image", tmp_path / "copy")
    assert (done.blocks, done.after.bad) == (1, ((4, 4),))
    (tmp_path / "copy").write_bytes(data)
    assert store.repair("image", tmp_path / "copy").mended
    assert (images / "image").read_bytes() == data


def test_what_is_not_repaired(store: Store, images: Path, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(content(0))
    with pytest.raises(fastfs.NotFound):
        store.repair("none", tmp_path / "good")
    (images / "unknown").write_bytes(content(0))
    with pytest.raises(Unverifiable, match="no record"):
        store.repair("unknown", tmp_path / "good")
    for name, seed in (("a", 0), ("b", 1)):
        store.add(name, content(seed))
    (images / "a").rename(images / "x")
    (images / "b").rename(images / "a")
    with pytest.raises(fastfs.StorageError, match="not overwritten"):
        store.repair("a", tmp_path / "good")  # it is all that there is of b
    assert (images / "a").read_bytes() == content(1)
    with pytest.raises(fastfs.Invalid, match="file, http or https"):
        store.repair("a", "ftp://somewhere/a")
    with pytest.raises(FileNotFoundError):
        store.repair("a", tmp_path / "nothing")
    with Store(datadir=str(images), read_only=True) as looking, pytest.raises(fastfs.StorageWriteDenied):
        looking.repair("a", tmp_path / "good")


def test_a_server_that_fails(store: Store, images: Path) -> None:
    store.add("image", content(1))
    damage(images / "image", 5)
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        store.repair("image", "http://127.0.0.1:1/image")
    assert statuses(store)["image"] != "clean"
    with contextlib.closing(WebCopy("http://127.0.0.1:1/")) as copy, pytest.raises(OSError, match="refused") as caught:
        copy.read(0, 1)
    assert caught.value.errno == errno.EIO


# Space.


def test_space(store: Store, images: Path) -> None:
    store.add("a", content(0))
    with open(images / "sparse", "wb") as file:
        file.truncate(10 << 20)
    damage_at = images / "b"
    store.add("b", content(1))
    damage(damage_at, 7)
    store.scrub(quarantine=True).all()
    (found,) = store.space()
    assert (found.images, found.logical) == (2, SIZE + (10 << 20))
    assert SIZE <= found.allocated < SIZE + 3 * 4096
    assert found.disk == found.allocated - found.shared
    assert found.records >= 4096
    assert (found.quarantined, found.quarantine > 0) == (1, True)


def test_shared_extents_are_counted_once() -> None:
    """What xfs and btrfs answer; tests/faults/test_real.py asks them."""
    answers = [
        [(0, 1000, 8192, 0x2000), (8192, 50_000, 4096, 0)],
        [(16384, 2000, 4096, 0x2000), (20480, 3000, 512, 0x2000 | 0x200), (24576, 90_000, 4096, 0x2001)],
    ]

    def ask(request: bytearray) -> None:
        extents = answers.pop(0)
        struct.pack_into("<L", request, 20, len(extents))
        for number, (logical, physical, length, flags) in enumerate(extents):
            struct.pack_into("<QQQQQLLLL", request, 32 + 56 * number, logical, physical, length, 0, 0, flags, 0, 0, 0)

    assert list(space.extents(ask)) == [(1000, 8192), (2000, 4096), (90_000, 4096)]
    assert not answers
    assert space._union([(0, 10), (5, 10), (20, 5), (0, 3)]) == 20
    assert space._union([]) == 0


# A scrub and its limits.


def test_limits(store: Store) -> None:
    for number in range(6):
        store.add(f"image-{number}", content(number))
    scrub = store.scrub(rate=10 * SIZE, jobs=1)
    assert scrub.all().clean == 6
    assert scrub.summary.seconds > 0.3 - 0.25  # what may be made up for
    late = store.scrub(seconds=1e-9, restart=True).all()
    assert (late.stopped, late.complete, late.damaged) == (True, False, 0)
    for priority in ("low", "idle"):
        assert store.scrub(priority=priority, restart=True).all().clean == 6


def test_longest_unchecked_first(store: Store) -> None:
    for number in range(4):
        store.add(f"image-{number}", content(number))
    store.scrub(images=["image-2"]).all()
    time.sleep(0.01)
    store.scrub(images=["image-0"]).all()
    order = [finding.image_id for finding in store.scrub(jobs=1)]
    assert order[2:] == ["image-2", "image-0"]


SCRUBBING = """
import sys
from fastfs import Store
with Store(datadir=sys.argv[1], record_block_size=65536, durability="none") as store:
    for finding in store.scrub(rate=2e6, jobs=1, mode=sys.argv[2]):
        print(finding.image_id, flush=True)
"""


@pytest.mark.parametrize("mode", ["fast", "deep"])
def test_goes_on_after_sigkill(mode: Any, store: Store, images: Path) -> None:
    for number in range(12):
        store.add(f"image-{number}", content(number))
    child = subprocess.Popen([sys.executable, "-c", SCRUBBING, str(images), mode], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    done = [child.stdout.readline().strip() for _ in range(4)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    done += child.stdout.read().split()
    child.stdout.close()
    scrub = store.scrub(mode=mode)
    rest = [finding.image_id for finding in scrub]
    assert len(done) < 12, "it was killed too late"
    assert not set(done) & set(rest)
    unheard = 12 - len(done) - len(rest)  # found clean and noted, but killed before it could be told
    assert unheard in (0, 1)
    assert (scrub.summary.resumed, scrub.summary.complete) == (len(done) + unheard, True)
    # That pass is over.
    assert len(list(store.scrub(mode=mode))) == 12


def test_page_cache_is_left_alone(store: Store, images: Path) -> None:
    """What was in memory stays; what only the scrub has read goes again."""
    from fastfs import _native

    size = 40 << 20
    for name in ("cold", "warm"):
        store.add(name, content(7, size))
        with open(images / name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if any(byte & 1 for byte in _native.resident(file.fileno(), 0, size)):
                pytest.skip("this file system keeps everything in memory")
            if name == "warm":
                while file.read(1 << 20):
                    pass
    assert store.scrub().all().clean == 2
    for name, share in (("cold", 0.0), ("warm", 1.0)):
        with open(images / name, "rb") as file:
            pages = _native.resident(file.fileno(), 0, size)
        there = sum(byte & 1 for byte in pages) / len(pages)
        assert abs(there - share) < 0.1, (name, there)


def test_over_worker_processes(store: Store, images: Path) -> None:
    for number in range(6):
        store.add(f"image-{number}", content(number))
    damage(images / "image-3", BLOCK)
    with ProcessPoolExecutor(2) as pool:
        scrub = store.scrub(executor=pool, quarantine=True)
        found = {finding.image_id: finding.status for finding in scrub}
    assert found.pop("image-3") is Status.ROT
    assert set(found.values()) == {Status.CLEAN}
    assert not (images / "image-3").exists()


def test_an_executor_that_takes_no_more(store: Store) -> None:
    """What had been begun is not waited for by those who would begin it."""

    class Full(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            if self._work_queue.qsize() + len(self._threads) > 2:
                raise RuntimeError("no more")
            return super().submit(*arguments, **named)

    for number in range(6):
        store.add(f"image-{number}", content(number))
    with Full(8) as pool:
        scrub = store.scrub(executor=pool)
        with pytest.raises(RuntimeError, match="no more"):
            scrub.all()
    assert scrub.summary.stopped
    assert store.scrub().all().clean == 6


def test_small_images_without_a_record(store: Store) -> None:
    """They make a scrub incomplete only where they should have one."""
    store.add("small", b"small")
    store.add("large", content(0))
    summary = store.scrub().all()
    assert (summary.unrecorded, summary.unverified, summary.complete) == (1, 0, True)
    with Store(store.config.from_mapping({**store.config.as_dict(), "records": "all"})) as strict:
        summary = strict.scrub().all()
        assert (summary.unrecorded, summary.unverified, summary.complete) == (0, 1, False)


def test_verified_range_of_a_huge_image(images: Path, store: Store) -> None:
    """100 GiB of holes: a range reads one block and one page of the table."""
    size = 100 << 30
    with open(images / "huge", "wb") as file:
        file.truncate(size)
    made = record.make("huge", size, 1 << 20, "0" * 32, "sha512", "0" * 128)
    one = sidecar.Sidecar(store.datadirs.all[0], made, record.zero_digest(1 << 20) * made.blocks, 0o644, "none")
    fd = os.open(images / "huge", os.O_RDONLY)
    try:
        one.write(fd)
        one.link(fd)
    finally:
        one.release(keep=True)
        os.close(fd)
    before = int(Path("/proc/self/io").read_text().split()[1])
    with store.get(f"file://{images}/huge", 99 << 30, 4096, verify=True)[0] as reader:
        assert reader.read() == bytes(4096)
    read = int(Path("/proc/self/io").read_text().split()[1]) - before
    assert read < (1 << 20) + 3 * record.GROUP_SIZE
    with open(images / "huge", "r+b") as file:
        file.seek((99 << 30) + 100_000)
        file.write(b"1")
    with (
        store.get(f"file://{images}/huge", 99 << 30, 4096, verify=True)[0] as reader,
        pytest.raises(IntegrityError) as caught,
    ):
        reader.read()
    assert caught.value.block == 99 << 10
