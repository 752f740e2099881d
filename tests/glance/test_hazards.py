# SPDX-License-Identifier: Apache-2.0
"""What is wrong with images going in by the original driver, hazard by hazard (A1 to A30), and right with this one.

The ids are those of docs/compatibility.md, whose second part lists these tests; see also test_hazards_settings.py
(B) and test_hazards_access.py (C, D, E).
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from glance_store import exceptions
from support import MIB, Reader, descriptors, failing, names, together

import fastfs
from fastfs import hashing, publish

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
DATA = bytes(range(256)) * (MIB // 128)  # 2 MiB


def test_a1_unfinished_image_is_invisible(make: Any, where: Any) -> None:
    store = make()

    def look(at: int) -> None:
        assert names(make.images) == []
        with pytest.raises(exceptions.NotFound):
            store.get(where(store, f"file://{make.images}/a"))

    store.add("a", Reader(DATA, look), len(DATA), "sha256")
    assert names(make.images) == ["a"]


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from conftest import Maker
from pathlib import Path
from support import MIB, Reader
store = Maker(Path(sys.argv[1]))()
def kill(at):
    if at >= MIB:
        os.kill(os.getpid(), signal.SIGKILL)
store.add("a", Reader(bytes(4 * MIB), kill), 4 * MIB, "sha256")
"""


def test_a2_killed_upload_leaves_nothing(make: Any) -> None:
    arguments = [str(make.directory), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert make().add("a", Reader(DATA), len(DATA), "sha256")[1] == len(DATA)
    assert names(make.images) == ["a"]


class GreenletExit(BaseException):
    """As greenlet's."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GreenletExit()])
def test_a3_interrupted_upload_leaves_nothing(make: Any, error: BaseException) -> None:
    store = make()
    with pytest.raises(type(error)) as caught:
        store.add("a", failing(error), 0, "sha256")
    assert caught.value is error
    assert names(make.images) == []
    assert descriptors(make.images) == []


def test_a4_one_of_several_uploads_of_one_id_wins(make: Any) -> None:
    store = make()
    for turn in range(20):
        sources = [bytes([number]) * 200_000 for number in range(4)]

        def upload(number: int, name: str = f"{turn}", data: list[bytes] = sources) -> Any:
            return store.add(name, Reader(data[number]), len(data[number]), "sha256")

        results = list(together(4, upload))
        (winner,) = [number for number, result in enumerate(results) if isinstance(result, tuple)]
        losers = [result for result in results if not isinstance(result, tuple)]
        assert all(isinstance(loser, exceptions.Duplicate) for loser in losers)
        assert (make.images / f"{turn}").read_bytes() == sources[winner]
        assert results[winner][3] == hashlib.sha256(sources[winner]).hexdigest()


def test_a5_failing_upload_leaves_the_others_image(make: Any) -> None:
    store = make()

    def other(at: int) -> None:
        if at == MIB:
            store.add("a", io.BytesIO(b"other"), 5, "sha256")
        elif at > MIB:
            raise OSError(errno.EIO, "gone")

    with pytest.raises((OSError, exceptions.Duplicate)):
        store.add("a", Reader(DATA * 2, other), 0, "sha256")
    assert (make.images / "a").read_bytes() == b"other"


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "b/a", "", "a\0b", ".", "..", "x" * 256])
def test_a6_an_id_cannot_leave_the_datadir(make: Any, name: str) -> None:
    store = make()
    with pytest.raises(exceptions.Invalid):
        store.add(name, io.BytesIO(b"x"), 1, "sha256")
    assert names(make.images) == []
    assert names(make.directory) == ["glance-0.conf", "images"]


def test_a7_dangling_link_is_not_written_through(make: Any) -> None:
    store = make()
    outside = make.directory / "outside"
    (make.images / "a").symlink_to(outside)
    with pytest.raises(exceptions.Duplicate):
        store.add("a", io.BytesIO(b"x"), 1, "sha256")
    assert not outside.exists()


def test_a8_denied_source_leaves_nothing(make: Any) -> None:
    store = make()
    with pytest.raises(PermissionError):
        store.add("a", failing(PermissionError(errno.EACCES, "no")), 0, "sha256")
    assert store.add("a", Reader(DATA), 0, "sha256")[1] == len(DATA)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.ETIMEDOUT])
def test_a9_errors_of_the_source_come_out_as_they_are(make: Any, number: int) -> None:
    error = OSError(number, "the source's")
    with pytest.raises(OSError, match="the source's") as caught:
        make().add("a", failing(error), 0, "sha256")
    assert caught.value is error


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, exceptions.StorageFull),
        (errno.EDQUOT, exceptions.StorageFull),
        (errno.EFBIG, exceptions.StorageFull),
        (errno.EACCES, exceptions.StorageWriteDenied),
        (errno.EPERM, exceptions.StorageWriteDenied),
        (errno.EROFS, exceptions.StorageWriteDenied),
        (errno.EIO, OSError),
    ],
)
def test_a10_errors_of_the_storage_are_mapped(
    make: Any, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    store = make()

    def fail(draft: publish.Draft) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(publish.Draft, "open", fail)
    with pytest.raises(expected) as caught:
        store.add("a", Reader(DATA), 0, "sha256")
    if expected is OSError:
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == number
    else:
        assert str(make.images) not in str(caught.value)  # Glance shows it to whoever uploads
        assert isinstance(caught.value.__cause__, fastfs.FastfsError)


def test_a11_digest_without_a_length_is_refused_at_once(make: Any) -> None:
    source = Reader(DATA)
    with pytest.raises(exceptions.UnknownHashingAlgo):
        make().add("a", source, 0, "shake_128")
    assert source.asked == []
    assert names(make.images) == []


def test_a12_unknown_hash_has_its_own_exception(make: Any) -> None:
    with pytest.raises(exceptions.UnknownHashingAlgo) as caught:
        make().add("a", Reader(DATA), 0, "no-such-hash")
    assert isinstance(caught.value, ValueError)  # upstream's, which Glance answers with 400


def test_a13_file_and_directory_are_synced(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTFS_DURABILITY")
    store = make()
    synced: list[bool] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    store.add("a", Reader(DATA), 0, "sha256")
    assert synced == [False, True]  # the image, the directory


def test_a14_not_readable_before_its_mode_is_set(make: Any) -> None:
    store = make(file_perm=600)
    modes: list[int] = []

    def look(at: int) -> None:
        modes.extend(stat.S_IMODE(os.fstat(fd).st_mode) for fd in descriptors(make.images))

    before = os.umask(0)
    try:
        store.add("a", Reader(DATA, look), 0, "sha256")
    finally:
        os.umask(before)
    assert set(modes) == {0o600}
    assert stat.S_IMODE((make.images / "a").stat().st_mode) == 0o600


def test_a15_failing_chmod_fails_the_add(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(file_perm=640)

    def fail(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(exceptions.StorageWriteDenied):
        store.add("a", Reader(DATA), 0, "sha256")
    assert names(make.images) == []


def metadata_file(make: Any, *entries: dict[str, Any]) -> Path:
    path: Path = make.directory / "metadata.json"
    path.write_text(json.dumps(list(entries)))
    return path


def test_a16_metadata_is_the_callers_own(make: Any) -> None:
    entry = {"id": "nfs", "mountpoint": str(make.images), "more": ["x"]}
    store = make("fast", datadir=make.images, metadata_file=metadata_file(make, entry))
    first = store.add("a", io.BytesIO(b"x"), 1, "sha256")[4]
    first["id"] = "changed"
    first["more"].append("y")
    assert store.add("b", io.BytesIO(b"x"), 1, "sha256")[4] == {**entry, "store": "fast"}


def test_a17_mountpoints_end_at_a_slash(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"id": "nfs", "mountpoint": str(make.directory / "im")}
    store = make(metadata_file=metadata_file(make, entry))
    assert store.add("a", io.BytesIO(b"x"), 1, "sha256")[4] == {}
    assert "no mountpoint" in caplog.text


def test_a18_longest_mountpoint_wins(make: Any) -> None:
    entries = [{"id": "root", "mountpoint": "/"}, {"id": "nfs", "mountpoint": str(make.images)}]
    store = make(metadata_file=metadata_file(make, *entries))
    assert store.add("a", io.BytesIO(b"x"), 1, "sha256")[4]["id"] == "nfs"


def test_a19_bytes_are_counted(make: Any) -> None:
    pieces = [memoryview(b"123456789012").cast("i")]
    assert make().add("a", iter(pieces), 12, "sha256")[1] == 12


def test_a20_none_is_no_end(make: Any) -> None:
    class Lazy:
        given = iter([b"x" * 3, None, b"y" * 3, b""])

        def read(self, count: int) -> bytes | None:
            return next(self.given)

    with pytest.raises(exceptions.Invalid, match="None"):
        make().add("a", Lazy(), 0, "sha256")
    assert names(make.images) == []


def test_a21_size_may_be_unknown(make: Any) -> None:
    assert make().add("a", Reader(DATA), None, "sha256")[1] == len(DATA)


def test_a22_zeroes_are_found_fast(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = any

    def refuse(items: Any) -> bool:
        assert not isinstance(items, (bytes, bytearray, memoryview)), "byte by byte, as Python's integers"
        return real(items)

    monkeypatch.setattr(builtins, "any", refuse)
    make(thin="true").add("a", Reader(bytes(MIB) + b"x"), MIB + 1, "sha256")
    assert (make.images / "a").read_bytes() == bytes(MIB) + b"x"


@pytest.mark.parametrize("kind", ["read", "iterator"])
def test_a23_pages_of_zeroes_take_no_room(make: Any, kind: str) -> None:
    data = (b"x" + bytes(65535)) * 64
    source: Any = Reader(data) if kind == "read" else iter([data])
    make(thin="true").add("a", source, len(data), "sha256")
    assert (make.images / "a").read_bytes() == data
    if sum(_holes(make.directory)):
        assert (make.images / "a").stat().st_blocks * 512 <= len(data) // 4


def _holes(directory: Path) -> tuple[int]:
    """Can this file system have them?"""
    with open(directory / "probe", "wb") as file:
        file.truncate(MIB)
        return (int(os.fstat(file.fileno()).st_blocks == 0),)


def test_a24_md5_is_made_once_and_reads_are_large(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    hashers = hashing.hashers

    def counted(*arguments: Any) -> Any:
        made.extend(found := hashers(*arguments))
        return found

    monkeypatch.setattr(hashing, "hashers", counted)
    source = Reader(DATA)
    _, _, checksum, multihash, _ = make().add("a", source, len(DATA), "md5")
    assert checksum == multihash == hashlib.md5(DATA).hexdigest()
    assert len(made) == 1
    assert source.asked[:2] == [MIB, MIB]


def test_a26_what_cannot_be_removed_does_not_hinder(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    with monkeypatch.context() as broken:
        broken.setattr(publish.Draft, "_remove", lambda draft: None)
        broken.setattr(type(store), "_delete_partial", lambda *_: None)  # where upstream does it
        with pytest.raises(ZeroDivisionError):
            store.add("a", failing(ZeroDivisionError()), 0, "sha256")
    assert store.add("a", Reader(DATA), 0, "sha256")[1] == len(DATA)


def test_a27_duplicate_in_another_datadir(make: Any) -> None:
    one, two = make.directory / "one", make.directory / "two"
    make(datadir=one).add("a", io.BytesIO(b"x"), 1, "sha256")
    store = make(datadirs=[f"{one}:1", f"{two}:2"])
    with pytest.raises(exceptions.Duplicate):
        store.add("a", Reader(DATA), len(DATA), "sha256")
    assert names(two) == []


def test_a28_upload_of_unknown_size_moves_on(make: Any) -> None:
    small, large = make.directory / "small", make.directory / "large"
    small.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        store = make(datadirs=[f"{small}:2", f"{large}:1"])
        url, size, *_ = store.add("a", Reader(DATA * 2), 0, "sha256")
        assert (url, size) == (f"file://{large}/a", len(DATA) * 2)
        assert names(small) == []
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_a29_empty_image_needs_no_room(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(datadirs=[f"{make.images}:1", f"{make.directory}/more:2"])
    monkeypatch.setattr(store, "_get_capacity_info", lambda path: 0)
    assert store.add("a", io.BytesIO(b""), 0, "sha256")[1] == 0
    with pytest.raises(exceptions.StorageFull):
        store.add("b", Reader(DATA), len(DATA), "sha256")


def test_a30_failure_after_the_last_byte_leaves_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()

    def fail(path: str) -> dict[str, Any]:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(store, "_get_metadata", fail)
        with pytest.raises(ZeroDivisionError):
            store.add("a", Reader(DATA), 0, "sha256")
    assert names(make.images) == []


def test_every_hazard_is_in_the_table_with_its_test() -> None:
    hazards = [f"A{number}" for number in range(1, 31) if number != 25]
    hazards += [f"B{number}" for number in range(1, 18)] + [f"C{number}" for number in range(1, 15)] + ["D1"]
    hazards += ["E1", "E2", "E2b", "E3", "E4", "E5", "E6", "E7", "E10"]
    _, _, second = DOCUMENT.read_text().partition("# The driver, fastfs.glance")
    rows = [line.split("|") for line in second.splitlines() if re.match(r"\| [A-E]\d", line)]
    assert [row[1].strip() for row in rows] == hazards
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_hazards*.py"))
    for row in rows:
        assert re.search(r"`(test_\w+)`", row[-2]), row
        for name in re.findall(r"`(test_\w+)`", row[-2]):
            assert f"def {name}(" in sources, name
            assert name.startswith(f"test_{row[1].strip().lower()}_"), name
