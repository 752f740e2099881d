"""The record: its bytes, where it lies, that it comes and goes with its image, and reading by it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import pickle
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import settled
from xxhash import xxh3_128_digest

import fastfs
from fastfs import IntegrityError, Store, Unverifiable, _native, publish, record, sidecar
from fastfs.config import Records
from fastfs.datadirs import DataDir

BLOCK = 65536


def content(length: int, seed: int = 0) -> bytes:
    import random

    return random.Random(f"{length} {seed}").randbytes(length)


def made(size: int = 3 * BLOCK + 5, block_size: int = BLOCK, **more: Any) -> record.Record:
    plain = record.make("image", size, block_size, "00" * 16, "sha512", "11" * 64)
    return dataclasses.replace(plain, **more)


class Memory:
    """The bytes of a record."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        self.data = self.data[:offset] + data + self.data[offset + len(data) :]

    def size(self) -> int:
        return len(self.data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(datadir=str(tmp_path / "images"), durability="none", record_block_size=BLOCK) as opened:
        yield opened


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY)
    yield fd
    os.close(fd)


def sidecar_of(path: Path) -> Path:
    return path.with_name(f".fastfs-{path.name}.rec")


# The bytes.


@pytest.mark.parametrize("size", [0, 1, *(n * BLOCK + k for n in (1, 254, 255, 510) for k in (-1, 0, 1))])
def test_what_was_packed_is_read_back(size: int) -> None:
    one = made(size, image_id="ä" * 100, tagged=True, mtime=-5, inode=7, filesystem=2**64 - 1, own_inode=9)
    digests = os.urandom(16 * one.blocks)
    table = record.Table(Memory(record.pack(one, digests)))
    assert table.record == one
    assert b"".join(table.digests()) == digests
    table.check()
    assert table.stamp().verdict == record.Stamp.NEVER


def test_layout() -> None:
    """Byte by byte, as docs/record.md has it, so that a change of it is noticed."""
    one = made(2 * BLOCK + 1, time=1, nonce=b"n" * 16, tagged=True, mtime=2, inode=3, filesystem=4, own_inode=5)
    one = dataclasses.replace(one, writer="fastfs 0.1.0")
    digests = b"a" * 16 + b"b" * 16 + b"c" * 16
    data = record.pack(one, digests)
    fixed = b"\x89FFR\r\n\x1a\n" + struct.pack("<HHI", 1, 1, 224) + struct.pack("<QQQQ", 2 * BLOCK + 1, BLOCK, 3, 1)
    fixed += b"n" * 16 + struct.pack("<qQQQ", 2, 3, 4, 5) + bytes(16) + struct.pack("<HHHH", 5, 6, 64, 12)
    header = (fixed + b"image" + b"sha512" + b"\x11" * 64 + b"fastfs 0.1.0").ljust(208, b"\0")
    assert data[:208] == header
    assert data[208:224] == xxh3_128_digest(header)
    assert data[224:288] == bytes(64)
    assert data[288:336] == digests
    assert data[336:] == xxh3_128_digest(b"n" * 16 + bytes(8) + digests)
    stamp = record.Stamp(1, 2, 3, 4, 5, 6).pack()
    assert stamp[:48] == b"FFST" + struct.pack("<BBHQQQQQ", 1, 1, 0, 2, 3, 4, 5, 6)
    assert stamp[48:] == xxh3_128_digest(stamp[:48])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_bit_is_protected(data: st.DataObject) -> None:
    one = made(data.draw(st.sampled_from([0, 1, 3 * BLOCK, 300 * BLOCK])))
    packed = record.pack(one, os.urandom(16 * one.blocks))
    header = int.from_bytes(packed[12:16], "little")
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    broken = bytearray(packed)
    broken[bit // 8] ^= 1 << bit % 8
    in_stamp = header <= bit // 8 < header + record.STAMP_SIZE
    if in_stamp:
        table = record.Table(Memory(bytes(broken)))
        table.check()
        assert table.stamp().verdict == record.Stamp.NEVER
    else:
        with pytest.raises(record.Damaged):
            record.Table(Memory(bytes(broken))).check()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_record_of_another_length_is_damaged(data: st.DataObject) -> None:
    packed = record.pack(made(), bytes(64))
    length = data.draw(st.integers(0, 2 * len(packed)).filter(lambda n: n != len(packed)))
    with pytest.raises(record.Damaged):
        record.Table(Memory((packed + packed)[:length])).check()


def test_a_newer_version_is_told() -> None:
    packed = bytearray(record.pack(made(), bytes(64)))
    length = int.from_bytes(packed[12:16], "little")
    packed[8] = 2
    packed[length - 16 : length] = xxh3_128_digest(bytes(packed[: length - 16]))
    with pytest.raises(record.Damaged, match="version 2"):
        record.Table(Memory(bytes(packed)))


def test_groups_cannot_change_places() -> None:
    one = made(600 * BLOCK)
    packed = record.pack(one, os.urandom(16 * one.blocks))
    start = int.from_bytes(packed[12:16], "little") + record.STAMP_SIZE
    first, second = packed[start : start + 4096], packed[start + 4096 : start + 8192]
    table = record.Table(Memory(packed[:start] + second + first + packed[start + 8192 :]))
    with pytest.raises(record.Damaged):
        table.check()


def test_stamps_do_not_touch_the_rest() -> None:
    memory = Memory(record.pack(made(), os.urandom(64)))
    table = record.Table(memory)
    before = b"".join(table.digests())
    table.set_stamp(record.Stamp(record.Stamp.CLEAN, 2, 3, 4, 5, 6))
    again = record.Table(memory)
    again.check()
    assert b"".join(again.digests()) == before
    stamp = again.stamp()
    assert [stamp.verdict, stamp.checked, stamp.deep, stamp.started, stamp.position, stamp.changed] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert repr(record.stamp_in(memory.data)) == repr(stamp)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 300) | st.integers(0, 3 * BLOCK), max_size=8),
    st.sampled_from([241, 300, 1024, BLOCK, BLOCK + 4096]),
    st.booleans(),
)
def test_recorder(pieces: list[int], block_size: int, plain: bool) -> None:
    """However the bytes come, the digests are those of the blocks; the extension's and the xxhash package's."""
    recorder, data = record.Recorder(block_size), b""
    if plain:
        recorder.hasher = record.PlainBlocks(block_size)
    pump = _native.Pump(-1, [recorder.hasher])
    for number, length in enumerate(pieces):
        piece = content(length, number)
        pump.feed(memoryview(piece) if number % 2 else piece)
        if number % 3 == 0:
            pump.flush()
        data += piece
    pump.finish()
    want = [xxh3_128_digest(data[at : at + block_size]) for at in range(0, len(data), block_size)]
    assert recorder.finish() == b"".join(want)


@pytest.mark.parametrize("kernel", _native.kernels())
def test_block_digests_of_every_kernel(kernel: str) -> None:
    """All lengths about the ends of stripes (64 bytes), of their blocks (1024) and of what is too short (240)."""
    program = f"""
from fastfs import _native
from xxhash import xxh3_128_digest
try:
    _native.select_kernel({kernel!r})
except ValueError:
    print("cannot run here")
    raise SystemExit
data = bytes(i * 7 + i // 251 & 255 for i in range(9000))
for length in [*range(200, 400), *range(960, 1100), *range(2000, 2120), 8192, 9000]:
    for piece in (length, 1, 63, 64, 100, 1024):
        blocks = _native.BlockDigests(1 << 16)
        pump = _native.Pump(-1, [blocks])
        for at in range(0, length, piece):
            pump.feed(data[at : min(at + piece, length)])
            pump.flush()
        pump.finish()
        table, rest = blocks.digests()
        assert table == (xxh3_128_digest(data[:length]) if length > 240 else b""), (length, piece)
        assert rest == (data[:length] if length <= 240 else b"")
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if done.stdout == "cannot run here\n":
        pytest.skip(f"this processor cannot run {kernel}")
    assert done.stdout == "equal\n"


def test_block_digests_are_asked_too_early_or_twice() -> None:
    blocks = _native.BlockDigests(1 << 16)
    with pytest.raises(RuntimeError, match="has not ended"):
        blocks.digests()
    with pytest.raises(ValueError, match="more than 240"):
        _native.BlockDigests(240)
    _native.Pump(-1, [blocks])
    with pytest.raises(ValueError, match="one stream only"):
        _native.Pump(-1, [blocks])


# Where it lies.


@pytest.mark.parametrize("size", [65537, BLOCK * 2, 300_001])
def test_made_by_add(size: int, store: Store, images: Path) -> None:
    data = content(size)
    result = store.add("image", io.BytesIO(data), None, "sha256")
    with (
        open(images / "image", "rb") as file,
        opened(images) as top,
        sidecar.find(top, "image", file.fileno()) as found,
    ):
        assert found.relation is sidecar.Relation.OWN
        assert found.table is not None
        one = found.table.record
        assert (one.image_id, one.size, one.block_size, one.md5, one.algorithm, one.multihash) == (
            "image",
            size,
            BLOCK,
            result.checksum,
            "sha256",
            result.multihash,
        )
        assert one.writer == f"fastfs {fastfs.__version__}"
        want = [xxh3_128_digest(data[at : at + BLOCK]) for at in range(0, size, BLOCK)]
        assert list(found.table.digests()) == want
    assert [image.image_id for image in store.images()] == ["image"]


def test_mode_is_the_images(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path), file_perm=0o640) as store:
        store.add("image", content(BLOCK * 2))
    assert stat.S_IMODE(os.stat(tmp_path / ".fastfs-image.rec").st_mode) == 0o640


@pytest.mark.parametrize("records", ["none", "large", "all"])
@pytest.mark.parametrize("size", [0, 1, 65536, 65537])
def test_which_images_get_one(records: str, size: int, tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path), durability="none", records=records) as store:
        for number in range(2):  # the first may find out whether there are attributes
            url = store.add(f"image-{number}", content(size)).url
            has_one = records == "all" or (records == "large" and size > 65536)
            assert os.path.exists(tmp_path / f".fastfs-image-{number}.rec") is (has_one and size > 65536)
            attributes = os.listxattr(tmp_path / f"image-{number}")
            assert (sidecar.RECORD_ATTRIBUTE in attributes) is (has_one and size <= 65536)
            if has_one:
                assert b"".join(store.get(url, verify=True)[0]) == content(size)
            else:
                with pytest.raises(Unverifiable, match="no record"):
                    store.get(url, verify=True)
            store.delete(url)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("durability", ["none", "full", "batch"])
def test_many_small_ones(durability: str, tmp_path: Path) -> None:
    """A pack of them, too."""
    items = [(f"image-{number}", content(number * 100)) for number in range(40)]
    with Store(datadir=str(tmp_path), durability=durability, records="all") as store:
        store.add("first", b"tells whether there are attributes")
        for outcome in store.add_many(items):
            assert outcome.error is None
        assert store.scrub().all().clean == 41
        for name, data in items:
            assert store.get(store.find(name), verify=True)[0].read() == data
    with Store(datadir=str(tmp_path), durability=durability) as store:
        assert all(outcome.error is None for outcome in store.add_many([("plain", b"1"), ("plain-2", b"2")]))
        assert not os.listxattr(tmp_path / "plain")


def test_small_ones_without_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in the sidecar where there are no attributes."""

    def refused(*args: Any, **more: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no attributes here")

    monkeypatch.setattr(os, "setxattr", refused)
    monkeypatch.setattr(os, "getxattr", refused)
    with Store(datadir=str(tmp_path), durability="none", records="all") as store:
        for name, size in (("a", 5), ("b", 5), ("large", 3 * BLOCK)):
            store.add(name, content(size))
            assert (tmp_path / f".fastfs-{name}.rec").exists()
            assert b"".join(store.get(store.find(name), verify=True)[0]) == content(size)
        monkeypatch.undo()
        assert not [name for name in os.listdir(tmp_path) if os.listxattr(tmp_path / name)]
        assert {finding.status.value for finding in store.scrub()} == {"clean"}


@pytest.mark.parametrize("length", [1, 242, 243, 244, 255])
def test_long_ids(length: int, store: Store, images: Path) -> None:
    name = "x" * length
    url = store.add(name, content(2 * BLOCK)).url
    (hidden,) = [found for found in os.listdir(images) if found.startswith(".")]
    assert hidden == sidecar.sidecar_name(name)
    assert sidecar.is_sidecar_name(hidden)
    assert len(hidden) <= 255
    assert b"".join(store.get(url, verify=True)[0]) == content(2 * BLOCK)
    assert store.sweep() == []
    assert store.scrub().all().clean == 1
    os.unlink(images / name)
    assert store.sweep() == [str(images / hidden)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_names_do_not_collide(name: str) -> None:
    for other in (f"{name}.rec", f".fastfs-{name}", f"{name}.part", name + "x"):
        assert sidecar.sidecar_name(name) != sidecar.sidecar_name(other)
    assert not publish.is_hidden_name(sidecar.sidecar_name(name))
    assert sidecar.sidecar_name(name).startswith(".")  # so that no image can have that name


# It comes and goes with its image.


def test_removed_with_its_image(store: Store, images: Path) -> None:
    store.delete(store.add("image", content(3 * BLOCK)).url)
    assert os.listdir(images) == []


def test_swept_when_its_image_is_gone(store: Store, images: Path) -> None:
    for name in ("a", "b"):
        store.add(name, content(3 * BLOCK))
    os.unlink(images / "a")
    assert store.sweep() == [str(images / ".fastfs-a.rec")]
    assert sorted(os.listdir(images)) == [".fastfs-b.rec", "b"]


@pytest.mark.parametrize("records", ["none", "large"])
def test_of_an_upload_that_was_killed(records: Records, store: Store, images: Path) -> None:
    """It is not taken for that of the next image of this id, which has none of its own, or another one."""
    store.add("image", content(3 * BLOCK))
    os.unlink(images / "image")
    with Store(datadir=str(images), durability="none", records=records) as other:
        other.add("image", content(4 * BLOCK))
    assert sorted(os.listdir(images)) == [*([".fastfs-image.rec"] if records == "large" else []), "image"]
    (finding,) = store.scrub()
    assert finding.status == ("clean" if records == "large" else "no-record")


def test_not_swept_while_it_is_held(store: Store, images: Path) -> None:
    """Whoever is about to publish an image holds the lock of its record."""
    store.add("image", content(3 * BLOCK))
    os.unlink(images / "image")
    with open(images / ".fastfs-image.rec", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.sweep() == []
    assert store.sweep() == [str(images / ".fastfs-image.rec")]


def test_an_orphan_makes_room(store: Store, images: Path) -> None:
    """Something else has deleted the image; another one gets its name."""
    store.add("image", content(3 * BLOCK))
    os.unlink(images / "image")
    url = store.add("image", content(2 * BLOCK)).url
    assert b"".join(store.get(url, verify=True)[0]) == content(2 * BLOCK)


def test_an_orphan_that_is_held(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the image goes without a record, and what is there is not taken for its own."""
    monkeypatch.setattr(sidecar, "PATIENCE", 0.05)
    store.add("image", content(3 * BLOCK))
    os.unlink(images / "image")
    with open(images / ".fastfs-image.rec", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        url = store.add("image", content(2 * BLOCK)).url
    assert b"".join(store.get(url)[0]) == content(2 * BLOCK)
    with pytest.raises(Unverifiable):
        store.get(url, verify=True)
    assert [finding.status.value for finding in store.scrub()] == ["stale-record"]


def test_a_failing_add_leaves_no_record(store: Store, images: Path) -> None:
    store.add("image", content(2 * BLOCK))
    before = {name: (images / name).stat().st_ino for name in os.listdir(images)}
    with pytest.raises(fastfs.Duplicate):
        store.add("image", io.BytesIO(content(3 * BLOCK)))
    assert before == {name: (images / name).stat().st_ino for name in os.listdir(images)}


@pytest.mark.parametrize("hidden", [False, True], ids=["nameless", "hidden"])
@pytest.mark.parametrize("step", ["open", "seal", "link"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_record_that_fails_is_done_without(
    hidden: bool,
    step: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = getattr(publish.Draft, step)

    def failing(self: publish.Draft, *args: Any) -> Any:
        if self.name.startswith("."):
            raise OSError(number, os.strerror(number))
        return real(self, *args)

    if hidden:
        monkeypatch.setattr(publish, "has_nameless", seems_to_have_none)
    before = len(os.listdir("/proc/self/fd"))
    with Store(datadir=str(tmp_path)) as store:
        monkeypatch.setattr(publish.Draft, step, failing)
        url = store.add("image", content(3 * BLOCK)).url
        assert os.listdir(tmp_path) == ["image"]
        assert "goes without a record" in caplog.text
        assert b"".join(store.get(url)[0]) == content(3 * BLOCK)
        assert os.listxattr(tmp_path / "image") == []
    assert len(os.listdir("/proc/self/fd")) == before


def seems_to_have_none(directory: DataDir) -> bool:
    directory.nameless = False
    return False


def test_an_add_that_loses_leaves_the_winners_record(store: Store, images: Path) -> None:
    """Many at once, all of the same id and with bytes of their own."""
    for turn in range(40):
        barrier = threading.Barrier(4)
        outcomes: list[Any] = [None] * 4

        def race(racer: int, barrier: threading.Barrier = barrier, outcomes: list[Any] = outcomes) -> None:
            barrier.wait()
            with contextlib.suppress(fastfs.Duplicate):
                outcomes[racer] = store.add("image", content(2 * BLOCK, racer)).url

        threads = [threading.Thread(target=race, args=(racer,)) for racer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [racer for racer in range(4) if outcomes[racer]]
        assert b"".join(store.get(outcomes[winner], verify=True)[0]) == content(2 * BLOCK, winner), f"round {turn}"
        store.delete(outcomes[winner])
        assert os.listdir(images) == []


def test_images_without_a_record_work_as_ever(images: Path, store: Store) -> None:
    (images / "image").write_bytes(content(3 * BLOCK))
    url = store.find("image")
    assert b"".join(store.get(url)[0]) == content(3 * BLOCK)
    store.delete(url)
    assert os.listdir(images) == []


# Portable.


@pytest.mark.parametrize("how", ["cp -r", "cp -a", "rsync -r", "rsync -aX", "tar"])
def test_carried_by_copying(how: str, store: Store, images: Path, tmp_path: Path) -> None:
    program = how.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    for name in ("a", "b"):
        store.add(name, content(3 * BLOCK + 7))
    there = tmp_path / "there"
    if program == "tar":
        command = f"mkdir '{there}' && tar -C '{images}' -cf - . | tar -C '{there}' -xf -"
    else:
        slash = "/" if program == "rsync" else ""
        command = f"{how} '{images}{slash}' '{there}'"
    assert os.system(command) == 0
    with Store(datadir=str(there)) as copy:
        assert b"".join(copy.get(copy.find("a"), verify=True)[0]) == content(3 * BLOCK + 7)
        assert copy.scrub().all().clean == 2
        with open(there / "b", "r+b") as file:
            file.write(b"other")
        assert {f.image_id: f.status.value for f in copy.scrub()} == {"a": "clean", "b": "bit-rot"}


# Reading.


@pytest.mark.parametrize("chunk_size", [1000, 4096, 65536, 100_000, 1 << 20])
@pytest.mark.parametrize("timeout", [0, 60], ids=["unlimited", "limited"])
def test_reading(chunk_size: int, timeout: int, tmp_path: Path) -> None:
    data = content(5 * BLOCK + 123)
    with Store(datadir=str(tmp_path), chunk_size=chunk_size, record_block_size=BLOCK, timeout=timeout) as store:
        url = store.add("image", data).url
        for offset, length in ((0, None), (0, 1), (BLOCK, BLOCK), (BLOCK - 1, 2), (70_000, 200_000), (5 * BLOCK, None)):
            end = len(data) if length is None else offset + length
            pieces = list(store.get(url, offset, length, verify=True)[0])
            assert b"".join(pieces) == data[offset:end]
            assert all(len(piece) == chunk_size for piece in pieces[:-1])
            reader, size = store.get(url, offset, length, verify=True)
            with reader:
                assert size == end - offset
                assert reader.read(10) + reader.read() + reader.read() == data[offset:end]
            buffer = bytearray(end - offset + 10)
            with store.get(url, offset, length, verify=True)[0] as reader:
                assert reader.readinto(buffer) == end - offset
                assert buffer[: end - offset] == data[offset:end]
        with store.get(url, len(data) + 5, verify=True)[0] as reader:
            assert reader.read() == b""


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(st.sampled_from(["next", "read", "readinto"]), st.integers(0, 3 * BLOCK)), max_size=12))
def test_reading_in_turns(steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is called after whatever, the bytes come in order."""
    data = content(6 * BLOCK + 3)
    directory = tmp_path_factory.mktemp("turns")
    with Store(datadir=str(directory), durability="none", record_block_size=BLOCK) as store:
        url = store.add("image", data).url
        got = b""
        with store.get(url, verify=True)[0] as reader:
            for step, size in steps:
                if step == "next":
                    got += next(reader, b"")
                elif reader.closed:
                    break
                elif step == "read":
                    got += reader.read(size)
                else:
                    buffer = bytearray(size)
                    got += buffer[: reader.readinto(buffer)]
                assert got == data[: len(got)]
            if not reader.closed:
                assert got + reader.read() == data
    shutil.rmtree(directory)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("way", ["iterate", "read", "readinto"])
def test_a_bad_block_is_never_handed_out(block: int, way: str, store: Store, images: Path) -> None:
    data = content(3 * BLOCK + 100)
    url = store.add("image", data).url
    with open(images / "image", "r+b") as file:
        file.seek(block * BLOCK + 99)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    got = b""
    before = len(os.listdir("/proc/self/fd"))
    reader, _ = store.get(url, verify=True)
    buffer = bytearray(1000)
    ways: dict[str, Callable[[], bytes | bytearray]] = {
        "iterate": lambda: next(reader),
        "read": lambda: reader.read(1000),
        "readinto": lambda: buffer[: reader.readinto(buffer)],
    }
    caught = None
    while caught is None:
        try:
            got += ways[way]()
        except IntegrityError as error:
            caught = error
    assert len(os.listdir("/proc/self/fd")) == before
    assert (caught.image_id, caught.block, caught.offset) == ("image", block, block * BLOCK)
    assert got == data[: len(got)]
    assert len(got) >= block * BLOCK - 1000
    again = pickle.loads(pickle.dumps(caught))
    assert (again.block, again.offset, str(again)) == (block, block * BLOCK, str(caught))
    # Only the blocks that are touched count.
    for other in set(range(4)) - {block}:
        begin, length = other * BLOCK + 5, 50
        assert store.get(url, begin, length, verify=True)[0].read() == data[begin : begin + length]


@pytest.fixture
def long_image(tmp_path: Path) -> Iterator[tuple[Store, str, bytes]]:
    """A store and an image of 9 MiB and a bit: after the first 4 MiB a second thread reads ahead."""
    data = content((9 << 20) + 123)
    with Store(datadir=str(tmp_path / "long"), record_block_size=1 << 18, durability="none") as store:
        yield store, store.add("image", data).url, data


def threads() -> int:
    """The kernel lists one for a moment after it was joined: see `settled`."""
    return len(os.listdir("/proc/self/task"))


def collect(reader: Iterator[bytes | memoryview], got: bytearray) -> None:
    """What comes until an error."""
    for piece in reader:
        got += piece


def has_helper() -> bool:
    return len(os.sched_getaffinity(0)) > 1 and bool(_native.kernel())


@pytest.mark.parametrize("way", ["to the end", "closed", "dropped", "bad block"])
def test_read_ahead_by_a_second_thread(way: str, long_image: tuple[Store, str, bytes]) -> None:
    store, url, data = long_image
    before, descriptors = threads(), len(os.listdir("/proc/self/fd"))
    if way == "bad block":
        with open(url.removeprefix("file://"), "r+b") as file:
            file.seek(8 << 20)
            file.write(bytes([data[8 << 20] ^ 1]))
    reader, _ = store.get(url, verify=True)
    got = bytearray(b"".join(next(reader) for _ in range(100)))
    assert threads() == before + has_helper()
    if way == "closed":
        reader.close()
    elif way == "to the end":
        collect(reader, got)
        assert len(got) == len(data)
    elif way == "bad block":
        with pytest.raises(IntegrityError) as caught:
            collect(reader, got)
        assert (caught.value.block, len(got)) == (32, 8 << 20)
    assert got == data[: len(got)]
    del reader
    assert (settled(threads, before), len(os.listdir("/proc/self/fd"))) == (before, descriptors)


def by_readinto(reader: fastfs.ChunkedFile, size: int) -> Iterator[bytes]:
    buffer = bytearray(size)
    while count := reader.readinto(buffer):
        yield bytes(buffer[:count])


AHEAD: dict[str, Callable[[fastfs.ChunkedFile], Iterator[bytes | memoryview]]] = {
    "iterate": iter,
    "read": lambda reader: iter(lambda: reader.read(100_000), b""),
    "read blocks": lambda reader: iter(lambda: reader.read(1 << 18), b""),
    "readinto": lambda reader: by_readinto(reader, 300_000),
    "views": iter,
}


@pytest.mark.parametrize("way", AHEAD)
@pytest.mark.parametrize("begin", [0, 1 << 18, 70_007])
def test_nothing_from_a_bad_block_on_is_handed_out(way: str, begin: int, long_image: tuple[Store, str, bytes]) -> None:
    """Not even by a reader that was read ahead for; what is before it is, and all of a good image."""
    store, url, data = long_image
    before = threads()
    reader, size = store.get(url, begin, verify=True, zero_copy=way == "views")
    pieces = [bytes(piece) for piece in AHEAD[way](reader)]
    assert (b"".join(pieces) == data[begin:], size) == (True, len(data) - begin)
    reader.close()
    with open(url.removeprefix("file://"), "r+b") as file:
        file.seek((6 << 20) + 77)
        file.write(bytes([data[(6 << 20) + 77] ^ 1]))
    reader, _ = store.get(url, begin, verify=True, zero_copy=way == "views")
    got = bytearray()
    with pytest.raises(IntegrityError):
        collect(AHEAD[way](reader), got)
    assert got == data[begin:][: len(got)]
    assert (6 << 20) - 300_000 < begin + len(got) <= 6 << 20
    assert settled(threads, before) == before
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_leaps_of_a_reader_that_is_read_ahead_for(long_image: tuple[Store, str, bytes]) -> None:
    store, url, data = long_image
    with store.get(url, 1 << 18, verify=True)[0] as reader:
        got = bytearray(data[: 1 << 18])
        for turn in range(6):
            for _ in range(20):
                got += next(reader)
            got += reader.read(turn * 70_000)
        assert got == data[: len(got)]


def test_cut_short_while_it_is_read_ahead(long_image: tuple[Store, str, bytes]) -> None:
    store, url, data = long_image
    reader, _ = store.get(url, verify=True)
    got = bytearray()
    for _ in range(96):
        got += next(reader)
    os.truncate(url.removeprefix("file://"), (7 << 20) + 5)
    with pytest.raises((IntegrityError, OSError)):
        collect(reader, got)
    assert got == data[: len(got)]
    assert len(got) >= 6 << 20


def test_closed_by_another_thread_while_it_is_read_ahead(long_image: tuple[Store, str, bytes]) -> None:
    store, url, data = long_image
    before, descriptors = threads(), len(os.listdir("/proc/self/fd"))
    for turn in range(20):
        reader, _ = store.get(url, verify=True)
        got = bytearray()
        closer = threading.Timer(turn / 4000, reader.close)
        closer.start()
        with contextlib.suppress(ValueError):  # it is closed
            collect(reader, got)
        closer.join()
        assert got == data[: len(got)]
        del reader
    assert (settled(threads, before), len(os.listdir("/proc/self/fd"))) == (before, descriptors)


@pytest.mark.parametrize("before", [64, 65, 80], ids=["before the helper", "with its first block", "with a helper"])
@pytest.mark.parametrize("another", [False, True], ids=["alone", "beside another"])
def test_a_forked_child_goes_on_reading(before: int, another: bool, long_image: tuple[Store, str, bytes]) -> None:
    """It does not have the thread, nor what that was about to read; neither thread nor descriptor is left in it."""
    store, url, data = long_image
    other, _ = store.get(url, verify=True)
    if another:  # has the only helper that two processors allow
        for _ in range(80):
            next(other)
    for turn in range(5):
        reader, _ = store.get(url, verify=True)
        head = b"".join(next(reader) for _ in range(before + turn))
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                whole = head + b"".join(reader) == data
                reader.close()
                other.close()
                names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
                left = [name for name in names if os.path.exists(name) and os.readlink(name).endswith("/image")]
                code = 0 if whole and not left and settled(threads, 1) == 1 else 2
            os._exit(code)
        assert head + b"".join(reader) == data
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.close()


@pytest.mark.parametrize("verify", [False, True])
def test_closed_is_not_the_end(verify: bool, long_image: tuple[Store, str, bytes]) -> None:
    """Also in the last of the blocks."""
    store, url, _ = long_image
    reader, size = store.get(url, 1 << 18, 1 << 20, verify=verify)
    for _ in range(size // 65536 - 2):
        next(reader)
    position = reader.tell()
    reader.close()
    assert position == (1 << 18) + size - 2 * 65536
    with pytest.raises(ValueError, match="closed"):
        next(reader)


def test_an_interrupt_loses_one_piece_at_most(long_image: tuple[Store, str, bytes]) -> None:
    """A signal's exception may come between any two steps."""

    class Alarm(BaseException):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    def read_through(reader: fastfs.ChunkedFile) -> None:
        position = 0
        while not reader.closed:
            with contextlib.suppress(Alarm):
                for piece in reader:
                    found = data.index(piece, position, position + 3 * 65536)
                    assert found - position <= 65536
                    position = found + len(piece)

    store, url, data = long_image
    before = signal.signal(signal.SIGALRM, ring)
    rung = 0
    try:
        for turn in range(150):
            reader, _ = store.get(url, verify=True)
            with contextlib.suppress(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + turn / 30_000)
                read_through(reader)
            rung += signal.setitimer(signal.ITIMER_REAL, 0)[0] == 0
            reader.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung > 20


def test_only_the_blocks_touched_are_read(store: Store, images: Path) -> None:
    """And of the record only what they need."""
    url = store.add("image", content(2 * BLOCK)).url
    with open(images / "image", "r+b") as file:
        file.write(b"damaged")  # the other block, which nobody looks at
    reader, _ = store.get(url, BLOCK + 5, 10, verify=True)
    before = int(Path("/proc/self/io").read_text().split()[1])
    assert len(reader.read()) == 10
    assert int(Path("/proc/self/io").read_text().split()[1]) - before < BLOCK + record.GROUP_SIZE + 1000


@pytest.mark.parametrize("change", [-1, -BLOCK, 1])
def test_another_size(change: int, store: Store, images: Path) -> None:
    url = store.add("image", content(3 * BLOCK)).url
    os.truncate(images / "image", 3 * BLOCK + change)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(IntegrityError, match="went in") as caught:
        store.get(url, verify=True)
    assert caught.value.offset == min(3 * BLOCK, 3 * BLOCK + change)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor(store: Store) -> None:
    """What is read from it would not be checked."""
    reader, _ = store.get(store.add("image", content(3 * BLOCK)).url, verify=True)
    with reader, pytest.raises(io.UnsupportedOperation):
        reader.fileno()
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_out_through_a_descriptor(store: Store, images: Path, tmp_path: Path) -> None:
    """Also what goes into a socket, a file or a copy is checked."""
    data = content(3 * BLOCK + 100) + bytes(2 << 20)
    url = store.add("image", data).url
    ours, theirs = socket.socketpair()
    got = bytearray()

    def receive() -> None:
        while piece := theirs.recv(1 << 20):
            got.extend(piece)

    drain = threading.Thread(target=receive)
    drain.start()
    reader, size = store.get(url, 5, verify=True)
    with reader, open(tmp_path / "copy", "wb") as file:
        assert reader.sendfile(file, 0, 100) == 100
        assert reader.sendfile(ours) == size
        assert reader.tell() == 5
    ours.close()
    drain.join(60)
    theirs.close()
    assert (tmp_path / "copy").read_bytes() == data[5:105]
    assert got == data[5:]
    assert store.copy_to(url, tmp_path / "whole", verify=True) == len(data)
    assert (tmp_path / "whole").read_bytes() == data
    before = len(os.listdir("/proc/self/fd"))
    with open(images / "image", "r+b") as damaged:
        damaged.seek(2 * BLOCK + 9)
        damaged.write(bytes([data[2 * BLOCK + 9] ^ 1]))
    with pytest.raises(IntegrityError):
        store.copy_to(url, tmp_path / "none", verify=True)
    assert not (tmp_path / "none").exists()
    reader, _ = store.get(url, verify=True)
    sink = io.BytesIO()
    with pytest.raises(IntegrityError):
        reader.sendfile(sink)
    assert data.startswith(sink.getvalue())
    assert len(sink.getvalue()) <= 2 * BLOCK
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_views(store: Store) -> None:
    data = content(5 * BLOCK + 9)
    url = store.add("image", data).url
    pieces = list(store.get(url, 7, verify=True, zero_copy=True)[0])
    assert all(isinstance(piece, memoryview) and piece.readonly for piece in pieces)
    assert b"".join(pieces) == data[7:]


def test_in_an_event_loop(store: Store) -> None:
    data = content(5 * BLOCK + 9)
    url = store.add("image", data).url

    async def read() -> bytes:
        return b"".join([piece async for piece in store.get(url, verify=True)[0]])

    assert asyncio.run(read()) == data


def test_a_reader_that_is_dropped(store: Store) -> None:
    """It gives its descriptors back."""
    url = store.add("image", content(3 * BLOCK)).url
    before = len(os.listdir("/proc/self/fd"))
    reader, _ = store.get(url, verify=True)
    next(reader)
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_records_of_no_use(store: Store, images: Path) -> None:
    url = store.add("image", content(3 * BLOCK)).url
    place = sidecar_of(images / "image")
    whole = place.read_bytes()
    for broken in (b"", b"\0" * len(whole), whole[:-1], whole + b"x", whole[:100] + b"x" + whole[101:]):
        place.write_bytes(broken)
        with pytest.raises(Unverifiable, match="its record is damaged"):
            store.get(url, verify=True)
    place.write_bytes(whole[:-20] + b"x" + whole[-19:])  # the table, which is looked at when it is needed
    with pytest.raises(Unverifiable, match="its record is damaged"):
        store.get(url, verify=True)[0].read(1)
    place.unlink()
    with pytest.raises(Unverifiable, match="no record"):
        store.get(url, verify=True)
    place.mkdir()
    with pytest.raises(Unverifiable, match="no regular file"):
        store.get(url, verify=True)
    place.rmdir()
    place.symlink_to("image")
    with pytest.raises(Unverifiable, match="symbolic link"):
        store.get(url, verify=True)
    assert b"".join(store.get(url)[0]) == content(3 * BLOCK)


def test_a_fifo_for_a_record_does_not_hang(store: Store, images: Path) -> None:
    url = store.add("image", content(3 * BLOCK)).url
    sidecar_of(images / "image").unlink()
    os.mkfifo(sidecar_of(images / "image"))
    with pytest.raises(Unverifiable):
        store.get(url, verify=True)
    assert store.scrub().all().unverified == 1
    store.delete(url)


def test_replaced_by_other_software(store: Store, images: Path) -> None:
    """Its record is stale; that is told, and the image is not called damaged."""
    url = store.add("image", content(3 * BLOCK)).url
    (images / "new").write_bytes(content(3 * BLOCK, 2))
    os.rename(images / "new", images / "image")
    reader, _ = store.get(url, verify=True)
    with pytest.raises(Unverifiable, match="another file"):
        reader.read(1)
    (images / "new").write_bytes(content(2 * BLOCK, 2))
    os.rename(images / "new", images / "image")
    with pytest.raises(Unverifiable, match="another file"):
        store.get(url, verify=True)
    # The very same bytes may be handed out.
    (images / "new").write_bytes(content(3 * BLOCK))
    os.rename(images / "new", images / "image")
    assert b"".join(store.get(url, verify=True)[0]) == content(3 * BLOCK)


def test_wrong_file_under_a_name(store: Store, images: Path) -> None:
    for name in ("a", "b"):
        store.add(name, content(3 * BLOCK, ord(name)))
    for name in ("a", ".fastfs-a.rec"):
        os.rename(images / name, images / name.replace("a.", "b.").replace("a", "b", name == "a"))
    with pytest.raises(IntegrityError, match="stored as a"):
        store.get(store.find("b"), verify=True)


@pytest.mark.parametrize("block_size", [241, 1000, 1024, 65536, 1 << 20])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_digests_of_whole_blocks(block_size: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = memoryview(os.urandom(block_size * blocks))
    right = b"".join(xxh3_128_digest(data[at : at + block_size]) for at in range(0, len(data), block_size))
    assert record.block_digests(data, block_size) == right
    monkeypatch.setattr(_native, "kernel", lambda: "")
    assert record.block_digests(data, block_size) == right


def test_blocks_that_have_no_digests() -> None:
    with pytest.raises(ValueError, match="no XXH3"):
        _native.block_digests(b"", 240)
    with pytest.raises(ValueError, match="not whole"):
        _native.block_digests(bytes(1001), 500)
