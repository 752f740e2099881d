"""Real errors of real file systems: full, over quota, too large, read-only, forbidden, hanging, dying."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filesystems import MAKERS as KINDS
from filesystems import Disk, isolated, loop, made, missing, mounted, run, tmpfs

import fastfs
from fastfs import Store, datadirs

MIB = 1024 * 1024
NOBODY = 65534


def needs(*filesystems: str) -> pytest.MarkDecorator:
    reason = missing(*filesystems)
    return pytest.mark.skipif(bool(reason), reason=reason or "never")


def pieces(size: int, piece: int = 100_000) -> Iterator[bytes]:
    for at in range(0, size, piece):
        yield os.urandom(min(piece, size - at))


SOURCES: dict[str, Callable[[int], Any]] = {"bytes": os.urandom, "iterator": pieces}


def nothing_left(directory: Path, *allowed: str) -> None:
    records = {f".fastfs-{name}.rec" for name in allowed}
    assert sorted(set(os.listdir(directory)) - records) == sorted(allowed)
    assert len(datadirs._claims) == 0
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in held if path.startswith(str(directory))]


def refused(error: type[fastfs.FastfsError], number: int, directory: Path, function: Callable[[], Any]) -> None:
    """It raises that, tells path and errno, and leaves nothing."""
    before = os.listdir(directory)
    with pytest.raises(error) as caught:
        function()
    assert caught.value.errno == number, caught.value
    assert caught.value.path
    nothing_left(directory, *before)


# -- shared blocks ------------------------------------------------------------------------------------------------


def shared_blocks(kind: str, scratch: Path) -> None:
    with made(kind, scratch) as top:
        store = Store(datadir=str(top / "images"))
        (top / "source").write_bytes(os.urandom(4 * MIB))
        for name in ("one", "two"):
            store.add(name, top / "source")
        store.add("alone", os.urandom(MIB))
        os.sync()
        (space,) = store.space()
        assert space.logical == 9 * MIB
        assert space.shared == 8 * MIB
        assert 5 * MIB <= space.disk < 5 * MIB + 256 * 1024
        # What is cloned is read for its record all the same.
        assert store.scrub(mode="deep").all().clean == 3
        with open(top / "images" / "two", "r+b") as file:
            file.seek(2 * MIB)
            file.write(b"changed")
        assert {f.image_id: f.status.value for f in store.scrub()} == {
            "one": "clean",
            "two": "bit-rot",
            "alone": "clean",
        }
        assert store.repair("two", top / "source").mended
        assert (top / "images" / "one").read_bytes() == (top / "images" / "two").read_bytes()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs(kind)) for kind in ("xfs", "btrfs")])
def test_shared_blocks(kind: str, tmp_path: Path) -> None:
    isolated(partial(shared_blocks, kind), tmp_path)


# -- full ---------------------------------------------------------------------------------------------------------


def full_of_bytes(source: str, declared: bool, scratch: Path) -> None:
    with tmpfs(scratch / "images", "2m") as images:
        store = Store(datadir=str(images))
        size = 3 * MIB

        def add() -> None:
            store.add("large", SOURCES[source](size), size if declared else None)

        for _ in range(3):  # what failed takes no room
            refused(fastfs.StorageFull, errno.ENOSPC, images, add)
        store.add("fits", SOURCES[source](MIB))
        assert store.get_size(store.find("fits")) == MIB


@needs("tmpfs")
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_no_bytes(source: str, declared: bool, tmp_path: Path) -> None:
    isolated(partial(full_of_bytes, source, declared), tmp_path)


def full_on_disk(kind: str, scratch: Path) -> None:
    with made(kind, scratch) as images:
        store = Store(datadir=str(images))
        before = set(os.listdir(images))
        free = os.statvfs(images).f_bavail * os.statvfs(images).f_frsize
        for source in SOURCES.values():
            with pytest.raises(fastfs.StorageFull) as caught:
                store.add("large", source(free + 8 * MIB))
            assert caught.value.errno == errno.ENOSPC
            assert set(os.listdir(images)) == before
        if kind != "btrfs":  # which keeps what it once gave to data, and may have nothing left for names
            store.add("fits", pieces(MIB))
            store.delete(store.find("fits"))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs(kind)) for kind in KINDS])
def test_no_bytes_on_a_disk(kind: str, tmp_path: Path) -> None:
    isolated(partial(full_on_disk, kind), tmp_path)


def without_inodes(scratch: Path) -> None:
    with tmpfs(scratch / "images", "64m", 8) as images:
        store = Store(datadir=str(images))
        stored = [str(number) for number in range(os.statvfs(images).f_favail)]
        for name in stored:
            store.add(name, b"x")
        for data in (b"x", pieces(MIB)):
            refused(fastfs.StorageFull, errno.ENOSPC, images, partial(store.add, "one more", data))


def on_overlay(scratch: Path) -> None:
    """It has no nameless files on some kernels, and files of two devices."""
    data = os.urandom(3 * MIB)
    with tmpfs(scratch / "top") as top:
        for name in ("lower/images", "upper", "work"):
            (top / name).mkdir(parents=True)
        (top / "lower/images/below").write_bytes(b"below" * 50_000)
        options = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
        with mounted("overlay", scratch / "merged", "overlay", options) as merged:
            images = merged / "images"
            with Store(datadir=str(images)) as store:
                for name, source in (("bytes", data), ("iterator", iter([data[:100_000], data[100_000:]]))):
                    store.add(name, source)
                    assert b"".join(store.get(store.find(name), verify=True)[0]) == data
                    with pytest.raises(fastfs.Duplicate):
                        store.add(name, data)
                with pytest.raises(fastfs.Duplicate):
                    store.add("below", data)
                store.delete(store.find("below"))
                store.delete(store.find("bytes"))
                assert [image.image_id for image in store.images()] == ["iterator"]
                assert store.scrub().all().clean == 1
            child = os.fork()
            if child == 0:
                Store(datadir=str(images)).add("killed", killing(data))
            os.waitpid(child, 0)
            Store(datadir=str(images)).close()
            nothing_left(images, "iterator")
        assert (top / "lower/images/below").exists()


def killing(data: bytes) -> Iterator[bytes]:
    yield data
    os.kill(os.getpid(), signal.SIGKILL)


@needs("tmpfs")
def test_overlayfs(tmp_path: Path) -> None:
    isolated(on_overlay, tmp_path)


@needs("tmpfs")
def test_no_inodes(tmp_path: Path) -> None:
    isolated(without_inodes, tmp_path)


def the_other_one(scratch: Path) -> None:
    with tmpfs(scratch / "small", "1m") as small, tmpfs(scratch / "large", "16m") as large:
        store = Store(datadirs=[f"{small}:2", f"{large}:1"])
        data = os.urandom(3 * MIB)
        result = store.add("image", iter([data[:MIB], data[MIB:]]))
        assert result.url == f"file://{large}/image"
        assert (large / "image").read_bytes() == data
        nothing_left(small)


@needs("tmpfs")
def test_full_in_the_middle_and_another_directory(tmp_path: Path) -> None:
    isolated(the_other_one, tmp_path)


def over_quota(scratch: Path) -> None:
    with made("btrfs", scratch) as top:
        run("btrfs", "quota", "enable", top)
        run("btrfs", "subvolume", "create", top / "images")
        run("btrfs", "qgroup", "limit", "4M", top / "images")
        store = Store(datadir=str(top / "images"))
        for source in SOURCES.values():
            refused(fastfs.StorageFull, errno.EDQUOT, top / "images", partial(store.add, "large", source(16 * MIB)))


@needs("btrfs")
def test_over_quota(tmp_path: Path) -> None:
    isolated(over_quota, tmp_path)


def too_large(source: str, scratch: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 1000, MIB + 1000))
    store = Store(datadir=str(scratch))
    refused(fastfs.StorageFull, errno.EFBIG, scratch, lambda: store.add("large", SOURCES[source](3 * MIB)))
    store.add("fits", SOURCES[source](MIB))


@pytest.mark.parametrize("source", SOURCES)
def test_too_large_a_file(source: str, tmp_path: Path) -> None:
    """A short write first, then EFBIG."""
    isolated(partial(too_large, source), tmp_path, namespace=False)


# -- not allowed ----------------------------------------------------------------------------------------------------


def read_only(scratch: Path) -> None:
    with tmpfs(scratch / "images") as images:
        store = Store(datadir=str(images))
        url = store.add("there", b"bytes").url
        run("mount", "-o", "remount,ro", images)
        for data in (b"small", pieces(MIB)):
            refused(fastfs.StorageWriteDenied, errno.EROFS, images, partial(store.add, "image", data))
        refused(fastfs.Forbidden, errno.EROFS, images, lambda: store.delete(url))
        assert store.get(url)[0].read() == b"bytes"


@needs("tmpfs")
def test_read_only(tmp_path: Path) -> None:
    isolated(read_only, tmp_path)


def suddenly_read_only(scratch: Path) -> None:
    image = scratch / "image"
    with open(image, "wb") as file:
        file.truncate(KINDS["ext4"][1])
    run(*KINDS["ext4"][0], image)
    with loop(image) as device, mounted(device, scratch / "top", "ext4", "errors=remount-ro") as top:
        store = Store(datadir=str(top / "images"))
        url = store.add("there", b"bytes").url

        def source() -> Iterator[bytes]:
            yield from pieces(2 * MIB)
            Path(f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error").write_text("faults")
            yield from pieces(2 * MIB)

        with pytest.raises(fastfs.FastfsError) as caught:
            store.add("image", source())
        assert caught.value.errno in (errno.EROFS, errno.EIO, errno.EUCLEAN), caught.value
        nothing_left(top / "images", "there")
        assert store.get(url)[0].read() == b"bytes"


@needs("ext4")
def test_read_only_in_the_middle(tmp_path: Path) -> None:
    isolated(suddenly_read_only, tmp_path)


def immutable(scratch: Path) -> None:
    with made("ext4", scratch) as top:
        images = top / "images"
        store = Store(datadir=str(images))
        url = store.add("there", b"bytes").url
        run("chattr", "+i", images)
        for data in (b"small", pieces(MIB)):
            with pytest.raises(fastfs.StorageWriteDenied) as caught:
                store.add("image", data)
            assert caught.value.errno in (errno.EPERM, errno.EACCES)
            nothing_left(images, "there")
        refused(fastfs.Forbidden, errno.EPERM, images, lambda: store.delete(url))
        run("chattr", "-i", images)
        run("chattr", "+a", images)  # names may come, not go
        refused(fastfs.Forbidden, errno.EPERM, images, lambda: store.delete(url))
        store.add("image", b"bytes")
        run("chattr", "-a", images)


@needs("ext4")
@pytest.mark.skipif(not os.path.exists("/usr/bin/chattr"), reason="chattr is not installed")
def test_immutable(tmp_path: Path) -> None:
    isolated(immutable, tmp_path)


def as_nobody(scratch: Path) -> None:
    images = scratch / "images"
    images.mkdir()
    scratch.chmod(0o755)
    images.chmod(0o777)
    for parent in scratch.parents:
        if parent != Path("/") and parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    root_store = Store(datadir=str(images), file_perm=0o600)
    url = root_store.add("private", b"bytes").url
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    store = Store(datadir=str(images))
    with pytest.raises(fastfs.Forbidden) as caught:
        store.get(url)
    assert caught.value.errno == errno.EACCES
    own = store.add("own", pieces(MIB)).url
    images_fd = os.open(images, os.O_RDONLY)
    os.close(images_fd)
    assert store.get_size(own) == MIB


def directory_of_another(scratch: Path) -> None:
    images = scratch / "images"
    Store(datadir=str(images)).add("there", b"bytes")
    images.chmod(0o755)
    scratch.chmod(0o755)
    store = Store(datadir=str(images))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.chdir("/")
    for data in (b"small", pieces(MIB)):
        refused(fastfs.StorageWriteDenied, errno.EACCES, images, partial(store.add, "image", data))
    refused(fastfs.Forbidden, errno.EACCES, images, lambda: store.delete(f"file://{images}/there"))
    with pytest.raises(fastfs.BadStoreConfiguration, match="not writable"):
        Store(datadir=str(images))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("check", [as_nobody, directory_of_another])
def test_as_somebody_else(check: Callable[[Path], None], open_path: Path) -> None:
    isolated(check, open_path, namespace=False)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that anybody can reach: pytest's own is private."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="fastfs-open-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def without_descriptors(scratch: Path) -> None:
    store = Store(datadir=str(scratch))
    url = store.add("there", b"bytes").url
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8,) * 2)
    for spare in range(4):
        taken: list[int] = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(min(spare, len(taken))):
            os.close(taken.pop())
        before = len(taken)
        failures = []
        for data in (b"small", iter([os.urandom(MIB)])):
            try:
                store.add(f"image-{spare}", data)
            except fastfs.StorageError as error:
                failures.append(error.errno)
            else:
                store.delete(f"file://{scratch}/image-{spare}")
        try:
            assert store.get(url)[0].read() == b"bytes"
        except fastfs.StorageError as error:
            failures.append(error.errno)
        # As many are to be had as before.
        again: list[int] = []
        try:
            while True:
                again.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for fd in taken + again:
            os.close(fd)
        assert len(again) == min(spare, before + spare)
        assert set(failures) <= {errno.EMFILE}
        assert spare > 0 or len(failures) == 3
        nothing_left(scratch, "there")


def test_no_descriptors(tmp_path: Path) -> None:
    isolated(without_descriptors, tmp_path, namespace=False)


# -- hanging and dying ----------------------------------------------------------------------------------------------


def with_disk(function: Callable[[Disk, Path, Path], None], scratch: Path) -> None:
    """An ext4 on a disk that can be told to hang or to die, beside a directory that goes on."""
    scratch = Path("/dev/shm") / f"fastfs-real-{os.getpid()}"
    scratch.mkdir()
    disk = Disk(scratch, KINDS["ext4"][1])
    try:
        with loop(disk.path) as device:
            run(*KINDS["ext4"][0], device)
            with mounted(device, scratch / "top", "ext4") as top:
                try:
                    function(disk, top, scratch)
                finally:
                    disk.trouble(Disk.OBEY)
    finally:
        disk.close()
        for path in sorted(scratch.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        scratch.rmdir()


def flush_fails(disk: Disk, top: Path, scratch: Path) -> None:
    store = Store(datadir=str(top / "images"))
    url = store.add("there", b"bytes").url
    os.sync()
    disk.trouble(Disk.FAIL_A_FLUSH)
    with pytest.raises(fastfs.FastfsError) as caught:
        store.add("image", pieces(MIB))
    assert caught.value.errno in (errno.EIO, errno.EROFS), caught.value
    nothing_left(top / "images", "there")
    assert store.get(url)[0].read() == b"bytes"


def disk_dies(disk: Disk, top: Path, scratch: Path) -> None:
    store = Store(datadir=str(top / "images"))
    store.add("there", b"bytes")

    def source() -> Iterator[bytes]:
        yield from pieces(MIB)
        disk.trouble(Disk.DIE)
        yield from pieces(MIB)

    with pytest.raises(fastfs.FastfsError) as caught:
        store.add("image", source())
    assert caught.value.errno in (errno.EIO, errno.EROFS), caught.value
    nothing_left(top / "images", "there")


def disk_hangs(disk: Disk, top: Path, scratch: Path) -> None:
    other = scratch / "other"
    store = Store(datadirs=[f"{top / 'images'}:2", f"{other}:1"], timeout=60)
    healthy = Store(datadir=str(other), timeout=60)
    store.add("there", b"bytes")
    threads = threading.active_count()
    disk.trouble(Disk.HANG)
    store._guard.timeout = 1  # now it hangs; on a busy machine all else takes its time
    with pytest.raises(fastfs.TimeoutError) as caught:
        store.add("image", pieces(MIB))
    store._guard.timeout = 60
    assert caught.value.path
    healthy.add("elsewhere", pieces(MIB))  # other directories go on
    disk.trouble(Disk.OBEY)
    until = time.monotonic() + 30
    while len(datadirs._claims) and time.monotonic() < until:
        time.sleep(0.01)  # what hung comes to its end, and cleans up after itself
    nothing_left(top / "images", "there")
    healthy.delete(f"file://{other}/elsewhere")
    store.add("image", pieces(MIB))
    store.delete(store.find("image"))
    store.close()
    healthy.close()
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    (top / "images" / "there").unlink()


@needs("ext4", "fuse")
@pytest.mark.parametrize("check", [flush_fails, disk_dies, disk_hangs])
def test_a_bad_disk(check: Callable[[Disk, Path, Path], None], tmp_path: Path) -> None:
    isolated(partial(with_disk, check), tmp_path)


# _IOR('X', 125, __u32), with FS_IOC_GOING_FLAGS_NOLOGFLUSH
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2


def shut_down(kind: str, scratch: Path) -> None:
    with made(kind, scratch) as top:
        store = Store(datadir=str(top / "images"))
        url = store.add("there", os.urandom(MIB)).url

        def source() -> Iterator[bytes]:
            yield from pieces(MIB)
            fd = os.open(top, os.O_RDONLY)
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.close(fd)
            yield from pieces(MIB)

        with pytest.raises(fastfs.FastfsError) as caught:
            store.add("image", source())
        assert caught.value.errno in (errno.EIO, errno.EROFS, errno.ESHUTDOWN), caught.value
        for operation in (lambda: store.add("image", b"small"), lambda: store.delete(url)):
            with pytest.raises(fastfs.FastfsError):
                operation()
        assert len(datadirs._claims) == 0


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs(kind)) for kind in ("ext4", "xfs")])
def test_the_file_system_is_shut_down(kind: str, tmp_path: Path) -> None:
    isolated(partial(shut_down, kind), tmp_path)


# -- no memory ------------------------------------------------------------------------------------------------------


def without_memory(data: bytes, scratch: Path) -> None:
    import _testcapi  # type: ignore[import-not-found]

    # On one processor no helper thread hashes: CPython 3.11 itself crashes where a thread finds no memory for its state
    # (PyGILState_Ensure).
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    with Store(datadir=str(scratch), durability="none") as store:
        store.add("warm", iter([data]))
        failures = 0
        for number in range(1, 400):
            source = data if number % 2 else iter([data])
            failed = False
            _testcapi.set_nomemory(number, number + 1)
            try:
                store.add("image", source)
            except (MemoryError, RuntimeError) as error:
                _testcapi.remove_mem_hooks()
                failed = True
                where = traceback.format_exc()
                if not isinstance(error, MemoryError) and "can't allocate lock" not in str(error):
                    raise
            _testcapi.remove_mem_hooks()
            failures += failed
            if failed:
                try:
                    nothing_left(scratch, "warm")
                except AssertionError as problem:
                    raise AssertionError(f"{problem}\n\nAfter allocation {number} failed:\n{where}") from None
            else:
                assert (scratch / "image").read_bytes() == data
                store.delete(f"file://{scratch}/image")
        assert failures > 20


@pytest.mark.parametrize("size", [1000, 300_000])
def test_no_memory(size: int, tmp_path: Path) -> None:
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi")
    isolated(partial(without_memory, os.urandom(size)), tmp_path, namespace=False)
