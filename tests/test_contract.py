"""What glance_store's filesystem driver does, row by row, and where fastfs is deliberately stricter.

The rows are those of the contract: its methods, its edge cases, its hazards. The tests named after a hazard
(`test_a1_...`) show that it does not exist here; docs/compatibility.md lists them all with the reason.

Run as a script, this file calls one of its functions named `on_...` in the file systems made for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import hashlib
import io
import logging
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from leftovers import impatient
from leftovers import names as visible

import fastfs
from fastfs import Store, _native
from fastfs.datadirs import DataDir
from fastfs.timeouts import Guard

HUNDRED = bytes(range(100))
CHUNK = 65536
MIB = 1024 * 1024
NOBODY = 65534
DOCUMENT = Path(__file__).parent.parent / "docs" / "compatibility.md"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(images: Path) -> Iterator[Store]:
    with Store(datadir=str(images), durability="none") as made:
        yield made


@pytest.fixture
def unmasked() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def read(store: Store, location: Any) -> bytes:
    reader, _ = store.get(location)
    with reader:
        return b"".join(reader)


def content(length: int) -> bytes:
    return hashlib.shake_128(b"%d" % length).digest(length)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def writing(directory: Path) -> list[os.stat_result]:
    """The unfinished files that this process has below `directory`, named or nameless."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/self/fd/{name}")
            below = os.readlink(f"/proc/self/fd/{name}").startswith(f"{directory}/")
            if below and stat.S_ISREG(status.st_mode):
                found.append(status)
    return found


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A directory of a user whom permission bits stop; root becomes that user for a while."""
    directory = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(directory, NOBODY, NOBODY)
            os.setresgid(NOBODY, NOBODY, 0)
            os.setresuid(NOBODY, NOBODY, 0)
        yield directory
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
        for path in [directory, *directory.rglob("*")]:
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(directory)


# Section 6: locations.


@pytest.mark.parametrize("scheme", ["file", "filesystem"])
def test_scheme(scheme: str, store: Store, images: Path) -> None:
    store.add("image", HUNDRED)
    assert read(store, f"{scheme}://{images}/image") == HUNDRED
    assert store.get_size(f"{scheme}://{images}/image") == 100


BAD_URIS = [
    "",
    "image",
    "/image",
    "file:",
    "file:/image",
    "file://",
    "filesystem://",
    "FILE:///image",
    "http://a/b",
]


@pytest.mark.parametrize("uri", [*BAD_URIS, "filesystems:///image", " file:///image"], ids=repr)
@pytest.mark.parametrize("method", ["get", "get_size", "delete"])
def test_bad_uri(method: str, uri: str, store: Store) -> None:
    with pytest.raises(fastfs.BadStoreUri):
        getattr(store, method)(uri)


def test_uri_of_an_image(store: Store, images: Path) -> None:
    assert store.add("image", HUNDRED).url == f"file://{images}/image"


def test_uri_with_two_slashes(store: Store, images: Path) -> None:
    store.add("image", HUNDRED)
    assert read(store, f"file:///{images}/image") == HUNDRED
    assert read(store, f"file://{images}//image") == HUNDRED


class WithUri:
    def __init__(self, uri: str) -> None:
        self.uri = uri

    def get_uri(self) -> str:
        return self.uri


class WithStoreLocation:
    def __init__(self, uri: str) -> None:
        self.store_location = WithUri(uri)


@pytest.mark.parametrize("wrapped", [str, WithUri, WithStoreLocation, fastfs.Location.parse])
def test_location(wrapped: Callable[[str], Any], store: Store) -> None:
    location = wrapped(store.add("image", HUNDRED).url)
    assert read(store, location) == HUNDRED
    assert store.get_size(location) == 100
    assert store.info(location).image_id == "image"
    store.delete(location)
    with pytest.raises(fastfs.NotFound):
        store.get(location)


# Section 6: reading.


def test_pieces(images: Path) -> None:
    with Store(datadir=str(images), chunk_size=10) as store:
        reader, size = store.get(store.add("image", HUNDRED[:19]).url)
        assert ([len(piece) for piece in reader], size) == ([10, 9], 19)


def test_pieces_are_bytes(store: Store) -> None:
    """Some web servers refuse anything else."""
    reader, _ = store.get(store.add("image", content(CHUNK + 1)).url)
    assert [type(piece) for piece in reader] == [bytes, bytes]


def test_range_in_pieces(images: Path) -> None:
    with Store(datadir=str(images), chunk_size=10) as store:
        reader, size = store.get(store.add("image", HUNDRED).url, offset=3, chunk_size=25)
        assert (list(reader), size) == ([HUNDRED[3:13], HUNDRED[13:23], HUNDRED[23:28]], 25)


def test_opened_at_once(store: Store) -> None:
    url = store.add("image", HUNDRED).url
    reader, _ = store.get(url)
    store.delete(url)
    assert b"".join(reader) == HUNDRED


def test_close_may_be_repeated(store: Store) -> None:
    reader, _ = store.get(store.add("image", HUNDRED).url)
    reader.close()
    reader.close()
    assert reader.closed


def test_closed_at_the_end(store: Store) -> None:
    reader, _ = store.get(store.add("image", HUNDRED).url)
    before = descriptors()
    assert b"".join(reader) == HUNDRED
    assert descriptors() == before - 1


def test_reader_is_a_file(store: Store) -> None:
    reader, _ = store.get(store.add("image", HUNDRED).url, 10, 50)
    with reader:
        buffer = bytearray(7)
        assert reader.__length_hint__() > 0
        assert reader.read(5) == HUNDRED[10:15]
        assert (reader.readinto(buffer), bytes(buffer)) == (7, HUNDRED[15:22])
        assert os.fstat(reader.fileno()).st_size == 100
        assert reader.read() == HUNDRED[22:60]
        assert reader.read() == reader.read(1) == b""
        assert reader.readinto(buffer) == 0
    assert reader.closed


@pytest.mark.parametrize(
    ("offset", "chunk_size", "reported", "expected"),
    [
        (0, None, 100, HUNDRED),
        (90, None, 10, HUNDRED[90:]),
        (90, 50, 10, HUNDRED[90:]),
        (90, 5, 5, HUNDRED[90:95]),
        (100, None, 0, b""),
        (1000, None, 0, b""),
        (1000, 5, 0, b""),
        (2**63 - 1, None, 0, b""),
        (2**70, None, 0, b""),
        (0, 2**70, 100, HUNDRED),
        (0, 0, 0, b""),
        (10, 0, 0, b""),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else str(value),
)
def test_range(offset: int, chunk_size: int | None, reported: int, expected: bytes, store: Store) -> None:
    reader, size = store.get(store.add("image", HUNDRED).url, offset, chunk_size)
    with reader:
        assert (size, b"".join(reader)) == (reported, expected)


@pytest.mark.parametrize(("offset", "chunk_size"), [(-1, None), (0, -1), (-(2**70), 5), ("1", None), (1.5, None)])
def test_bad_range(offset: Any, chunk_size: Any, store: Store) -> None:
    url = store.add("image", HUNDRED).url
    before = descriptors()
    with pytest.raises(fastfs.Invalid):
        store.get(url, offset, chunk_size)
    assert descriptors() == before


METHODS = ("get", "get_size", "delete", "info")


def beneath_a_file(images: Path) -> str:
    (images / "plain").write_bytes(b"")
    return "plain/image"


def dangling(images: Path) -> str:
    (images / "link").symlink_to(images.parent / "nothing")
    return "link"


def link_to_itself(images: Path) -> str:
    (images / "loop").symlink_to("loop")
    return "loop"


def link_out(images: Path) -> str:
    (images.parent / "outside").write_bytes(b"secret")
    (images / "link").symlink_to(images.parent / "outside")
    return "link"


def linked_directory(images: Path) -> str:
    (images.parent / "elsewhere").mkdir()
    (images.parent / "elsewhere" / "image").write_bytes(b"secret")
    (images / "link").symlink_to(images.parent / "elsewhere")
    return "link/image"


def directory(images: Path) -> str:
    (images / "directory").mkdir()
    return "directory"


def fifo(images: Path) -> str:
    os.mkfifo(images / "fifo")
    return "fifo"


def bound_socket(images: Path) -> str:
    here = os.open(images, os.O_PATH)  # the path itself may be too long for bind()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    return "socket"


def device(images: Path) -> str:
    try:
        os.mknod(images / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make a device")
    return "device"


def outside(images: Path) -> str:
    (images.parent / "outside").write_bytes(b"secret")
    return f"/{images.parent}/outside"


def out_and_in(images: Path) -> str:
    (images.parent / "outside").write_bytes(b"secret")
    return "../outside"


def neighbour(images: Path) -> str:
    """Its path begins with the datadir's text."""
    Path(f"{images}2").mkdir()
    (Path(f"{images}2") / "image").write_bytes(b"secret")
    return f"/{images}2/image"


PLACES: dict[str, Callable[[Path], str]] = {
    "missing": lambda images: "image",
    "in a missing directory": lambda images: "missing/image",
    "beneath a plain file": beneath_a_file,
    "dangling link": dangling,
    "link to itself": link_to_itself,
    "link that leads out": link_out,
    "linked directory": linked_directory,
    "name too long": lambda images: "x" * 256,
    "path too long": lambda images: "x/" * 4096,
    "NUL": lambda images: "ima\0ge",
    "directory": directory,
    "the datadir": lambda images: "",
    "FIFO": fifo,
    "socket": bound_socket,
    "device": device,
    "outside": outside,
    "out with two dots": out_and_in,
    "a neighbour's": neighbour,
    "of the kernel": lambda images: "//proc/version",
    "of a missing datadir": lambda images: "//missing/image",
    "no file name in any encoding": lambda images: "\ud800",
    "nowhere in any encoding": lambda images: "//\ud800/image",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_not_found(place: str, method: str, store: Store, images: Path) -> None:
    path = PLACES[place](images)
    uri = f"file://{path[1:] if path.startswith('/') else f'{images}/{path}'}"
    before = sorted(images.parent.rglob("*"))
    with pytest.raises(fastfs.NotFound) as caught:
        getattr(store, method)(uri)
    assert isinstance(caught.value, FileNotFoundError)
    assert sorted(images.parent.rglob("*")) == before


def test_not_found_names_the_path(store: Store, images: Path) -> None:
    with pytest.raises(fastfs.NotFound) as caught:
        store.get(f"file://{images}/image")
    assert caught.value.path == f"{images}/image"
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(fastfs.NotFound) as caught:
        store.find("image")
    assert caught.value.image_id == "image"


# Section 6 and 7: add.


@pytest.mark.parametrize(
    ("source", "size", "expected"),
    [
        pytest.param(io.BytesIO, 0, b"", id="empty, size 0"),
        pytest.param(io.BytesIO, None, b"", id="empty, size None"),
        pytest.param(io.BytesIO, 5, fastfs.SizeMismatch, id="empty, size 5"),
        pytest.param(lambda: io.BytesIO(b"sixsix"), 6, b"sixsix", id="6 bytes, size 6"),
        pytest.param(lambda: io.BytesIO(b"sixsix"), 3, fastfs.SizeMismatch, id="6 bytes, size 3"),
        pytest.param(lambda: io.BytesIO(b"sixsix"), -1, fastfs.Invalid, id="size -1"),
        pytest.param(lambda: io.BytesIO(b"sixsix"), None, b"sixsix", id="size None"),
        pytest.param(lambda: iter([b"a", bytearray(b"b"), b"", b"c"]), 3, b"abc", id="iterator"),
        pytest.param(lambda: iter(["a"]), 1, fastfs.BadSource, id="iterator of str"),
        pytest.param(lambda: b"sixsix", 6, b"sixsix", id="bytes as image_file"),
    ],
)
def test_add(source: Callable[[], Any], size: int | None, expected: Any, store: Store, images: Path) -> None:
    if isinstance(expected, bytes):
        result = store.add("image", source(), size)
        assert (images / "image").read_bytes() == expected
        assert result == (
            f"file://{images}/image",
            len(expected),
            hashlib.md5(expected, usedforsecurity=False).hexdigest(),
            hashlib.sha512(expected).hexdigest(),
            {},
        )
    else:
        with pytest.raises(expected) as caught:
            store.add("image", source(), size)
        assert isinstance(caught.value, ValueError)
        assert visible(images) == []


def test_add_by_keywords(store: Store) -> None:
    result = store.add(
        image_id="image", image_file=b"sixsix", image_size=6, hashing_algo="md5", context=None, verifier=None
    )
    assert result.checksum == result.multihash == hashlib.md5(b"sixsix", usedforsecurity=False).hexdigest()
    assert result._fields == ("url", "size", "checksum", "multihash", "metadata")


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b", "blake2s"])
def test_algorithm(algorithm: str, store: Store) -> None:
    result = store.add("image", HUNDRED, 100, algorithm)
    assert result.multihash == hashlib.new(algorithm, HUNDRED).hexdigest()


@pytest.mark.parametrize("image_id", [42, uuid.UUID(int=7)], ids=["number", "UUID"])
def test_id_that_is_no_str(image_id: Any, store: Store, images: Path) -> None:
    assert store.add(image_id, HUNDRED).url == f"file://{images}/{image_id}"


ODD_IDS = [
    "a b",
    "a ",
    " a",
    "a#b",
    "a?b",
    "a%2eb",
    "%2e%2e",
    "a\nb",
    "a:1",
    "ä",
    "漢" * 85,
    "x" * 255,
    "~",
    "-rf",
    "a\\b",
]


@pytest.mark.parametrize("image_id", ODD_IDS)
def test_odd_id_is_found_again(image_id: str, store: Store, images: Path) -> None:
    """Also hazard B16: what is stored can be found under the URI that was returned."""
    url = store.add(image_id, HUNDRED).url
    assert visible(images) == [image_id]
    assert read(store, url) == HUNDRED
    assert store.find(image_id) == url
    assert [image.image_id for image in store.images()] == [image_id]
    assert store.info(url).image_id == store.info(image_id).image_id == image_id
    store.delete(url)
    assert visible(images) == []


@pytest.mark.parametrize("image_id", ["", ".", "..", "a/b", "/a", "../a", "a\0b", "x" * 256, "ä" * 128, ".a", "a/"])
def test_refused_id(image_id: str, store: Store, images: Path) -> None:
    source = io.BytesIO(HUNDRED)
    with pytest.raises(fastfs.InvalidImageId) as caught:
        store.add(image_id, source)
    assert caught.value.image_id == image_id
    assert source.tell() == 0
    assert list(images.parent.rglob("*")) == [images]
    with pytest.raises((fastfs.InvalidImageId, fastfs.NotFound)):
        store.find(image_id)


@pytest.mark.parametrize("image_id", [None, b"image"])
def test_id_that_is_no_text(image_id: Any, store: Store, images: Path) -> None:
    """What ``str`` makes of it, such as "None", is nobody's id."""
    with pytest.raises(fastfs.InvalidImageId, match="no text"):
        store.add(image_id, HUNDRED)
    assert visible(images) == []
    assert store.add(uuid.UUID(int=5), HUNDRED).url == f"file://{images}/{uuid.UUID(int=5)}"


@pytest.mark.parametrize("algorithm", [None, 5, b"sha256", ["sha256"], {}])
def test_algorithm_that_is_no_text(algorithm: Any, store: Store) -> None:
    with pytest.raises(fastfs.UnknownHashingAlgo, match="no name of an algorithm"):
        store.add("image", HUNDRED, hashing_algo=algorithm)


def test_source_that_is_a_directory(store: Store, tmp_path: Path) -> None:
    """The caller's own mistake comes out as the system tells it, with the path."""
    with pytest.raises(IsADirectoryError) as caught:
        store.add("image", tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("length", [1.5, "1", b"1", [], float("nan")])
def test_range_that_is_no_number(length: Any, store: Store) -> None:
    url = store.add("image", HUNDRED).url
    with pytest.raises(fastfs.Invalid, match="chunk_size="):
        store.get(url, 0, length)


@pytest.mark.parametrize("chunk_size", [2**31, 2**62, sys.maxsize])
def test_pieces_as_large_as_can_be(chunk_size: int, tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path), durability="none", chunk_size=chunk_size) as store:
        url = store.add("image", content(20 * CHUNK)).url
        assert list(store.get(url)[0]) == [content(20 * CHUNK)]
        assert list(store.get(url, 7)[0]) == [content(20 * CHUNK)[7:]]


def test_duplicate(store: Store, images: Path) -> None:
    store.add("image", b"first")
    with pytest.raises(fastfs.Duplicate) as caught:
        store.add("image", b"second")
    assert isinstance(caught.value, FileExistsError)
    assert (caught.value.image_id, caught.value.path) == ("image", f"{images}/image")
    assert (images / "image").read_bytes() == b"first"
    assert visible(images) == ["image"]


def test_duplicate_of_what_is_no_file(store: Store, images: Path) -> None:
    (images / "image").mkdir()
    with pytest.raises(fastfs.Duplicate):
        store.add("image", HUNDRED)
    with pytest.raises(fastfs.Duplicate):
        store.add("image", io.BytesIO(content(10 * CHUNK)))


def test_umask_decides_without_file_perm(store: Store, images: Path) -> None:
    before = os.umask(0o027)
    try:
        store.add("small", HUNDRED)
        store.add("large", iter([content(10 * CHUNK)]))
    finally:
        os.umask(before)
    assert {stat.S_IMODE((images / name).stat().st_mode) for name in ("small", "large")} == {0o640}


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644, 0o664, 0o744, 0o777])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_file_perm_is_exact(umask: int, mode: int, images: Path) -> None:
    before = os.umask(umask)
    try:
        with Store(datadir=str(images), file_perm=mode) as store:
            store.add("small", HUNDRED)
            store.add("large", iter([content(10 * CHUNK)]))
    finally:
        os.umask(before)
    assert {stat.S_IMODE((images / name).stat().st_mode) for name in ("small", "large")} == {mode}


def test_log_is_quiet(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A store that works says nothing above DEBUG but that it made its directory."""
    with Store(datadir=str(images)) as store:
        url = store.add("image", HUNDRED).url
        read(store, url)
        store.delete(url)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# Section 6: choosing a data directory.


def test_highest_priority_first(tmp_path: Path) -> None:
    with Store(datadirs=[f"{tmp_path}/a:100", f"{tmp_path}/b:200", f"{tmp_path}/c"]) as store:
        assert store.add("image", HUNDRED).url == f"file://{tmp_path}/b/image"
        assert [usage.priority for usage in store.usage()] == [200, 100, 0]


# Small file systems, in a mount namespace of their own.


def namespaces() -> list[str]:
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    command = [*namespaces(), "sh", "-c", "mount -t tmpfs none /proc/self/cwd"]
    with tempfile.TemporaryDirectory() as place:
        return (
            shutil.which("unshare") is not None
            and subprocess.run(command, cwd=place, check=False, capture_output=True).returncode == 0
        )


NEEDS_MOUNT = pytest.mark.skipif(not can_mount(), reason="no mount namespace to be had here")
MOUNT = """
for size in small:1m large:8m; do
    mkdir "$1/${size%:*}" && mount -t tmpfs -o size=${size#*:} none "$1/${size%:*}" || exit
done
shift
exec "$@"
"""


def with_small_file_systems(function: Callable[[Path], None], tmp_path: Path) -> None:
    """Call a function of this file where `small` (1 MiB) and `large` (8 MiB) are file systems of their own."""
    command = [sys.executable, __file__, function.__name__, str(tmp_path)]
    done = subprocess.run(
        [*namespaces(), "sh", "-c", MOUNT, "sh", str(tmp_path), *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not re.findall("^(?:ERROR|WARNING):.*", done.stderr, re.MULTILINE)


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError), open(directory / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def on_most_free_space(base: Path) -> None:
    """Among equals the one with most free space; then the next priority, where an image finds room."""
    with Store(datadirs=[f"{base}/small", f"{base}/large"], durability="none") as store:
        assert store.add("a", content(MIB)).url == f"file://{base}/large/a"
    with Store(datadirs=[f"{base}/small:1", f"{base}/large:0"], durability="none") as store:
        assert store.add("b", content(CHUNK), CHUNK).url == f"file://{base}/small/b"
        assert store.add("c", io.BytesIO(content(2 * MIB)), 2 * MIB).url == f"file://{base}/large/c"
        with pytest.raises(fastfs.StorageFull):
            store.add("d", io.BytesIO(content(9 * MIB)), 9 * MIB)
        assert visible(base / "small") + visible(base / "large") == ["b", "a", "c"]


def on_full(base: Path) -> None:
    """StorageFull, whatever the source, and nothing stays; what fits can be stored afterwards."""
    with Store(datadir=f"{base}/small", durability="none") as store:
        for size in (None, 2 * MIB):
            for source in (content(2 * MIB), io.BytesIO(content(2 * MIB)), iter([content(2 * MIB)])):
                with pytest.raises(fastfs.StorageFull) as caught:
                    store.add("image", source, size)
                assert caught.value.errno == errno.ENOSPC
                assert visible(base / "small") == []
        assert store.usage()[0].reserved == 0
        store.add("image", content(512 * 1024))


def on_unknown_size(base: Path) -> None:
    """A28: the datadir turns out to be too small only when it is full."""
    with Store(datadirs=[f"{base}/small:2", f"{base}/large:1"], durability="none") as store:
        for number, source in enumerate((io.BytesIO(content(2 * MIB)), iter([content(CHUNK)] * 32))):
            result = store.add(f"image-{number}", source)
            assert result.url == f"file://{base}/large/image-{number}"
            assert read(store, result.url) == (content(CHUNK) * 32 if number else content(2 * MIB))
            assert hashlib.sha512(read(store, result.url)).hexdigest() == result.multihash
        assert visible(base / "small") == []
        for source in (io.BytesIO(content(9 * MIB)), iter([content(MIB)] * 9)):
            with pytest.raises(fastfs.StorageFull):
                store.add("none has room", source)
        assert visible(base / "small") == []
        assert visible(base / "large") == ["image-0", "image-1"]
        assert [usage.reserved for usage in store.usage()] == [0, 0]


def on_nothing_free(base: Path) -> None:
    """A29 and B7: a full disk takes an empty image, and does not keep the store from starting."""
    fill(base / "small")
    for options in ({"datadir": f"{base}/small"}, {"datadirs": [f"{base}/small:1"]}):
        with Store(durability="none", **options) as store:
            with pytest.raises(fastfs.StorageFull):
                store.add("image", content(CHUNK), CHUNK)
            sources: list[Any] = [b"", io.BytesIO(), iter([])]
            for source in sources:
                url = store.add("empty", source, 0).url
                assert store.get_size(url) == 0
                store.delete(url)
    assert visible(base / "small") == ["filler"]


def on_read_only(base: Path) -> None:
    """EROFS: StorageWriteDenied when writing, Forbidden when deleting; reading goes on."""
    with Store(datadir=f"{base}/small", durability="none") as store:
        url = store.add("image", HUNDRED).url
        subprocess.run(["mount", "-o", "remount,bind,ro", f"{base}/small"], check=True)
        for source in (HUNDRED, io.BytesIO(content(10 * CHUNK))):
            with pytest.raises(fastfs.StorageWriteDenied) as denied:
                store.add("other", source)
            assert denied.value.errno == errno.EROFS
        with pytest.raises(fastfs.Forbidden) as forbidden:
            store.delete(url)
        assert forbidden.value.errno == errno.EROFS
        assert read(store, url) == HUNDRED
    with pytest.raises(fastfs.BadStoreConfiguration, match="small"):
        Store(datadir=f"{base}/small")


# Errors of the storage, from real causes.


@contextlib.contextmanager
def size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("known", [0, 10 * CHUNK], ids=["unknown", "known"])
def test_file_too_big(known: int, store: Store, images: Path) -> None:
    before = descriptors()
    with size_limit(CHUNK + 100):
        for source in (content(10 * CHUNK), io.BytesIO(content(10 * CHUNK)), iter([content(10 * CHUNK)])):
            with pytest.raises(fastfs.StorageFull) as caught:
                store.add("image", source, known)
            assert caught.value.errno == errno.EFBIG
    assert (visible(images), descriptors()) == ([], before)
    store.add("image", content(10 * CHUNK))


def test_write_denied() -> None:
    with unprivileged() as directory, Store(datadir=str(directory), durability="none") as store:
        url = store.add("image", HUNDRED).url
        directory.chmod(0o500)
        for source in (HUNDRED, io.BytesIO(content(10 * CHUNK))):
            with pytest.raises(fastfs.StorageWriteDenied) as denied:
                store.add("other", source)
            assert denied.value.errno == errno.EACCES
            assert isinstance(denied.value, PermissionError)
        with pytest.raises(fastfs.Forbidden) as forbidden:
            store.delete(url)
        assert forbidden.value.errno == errno.EACCES
        assert forbidden.value.path == f"{directory}/image"
        assert isinstance(forbidden.value, PermissionError)
        assert visible(directory) == ["image"]


@pytest.mark.parametrize("flag", ["i", "a"])
def test_immutable(flag: str, images: Path) -> None:
    with Store(datadir=str(images), durability="none") as store:
        url = store.add("image", HUNDRED).url
        target = images / "image" if flag == "a" else images
        if (
            shutil.which("chattr") is None
            or subprocess.run(["chattr", f"+{flag}", str(target)], check=False, capture_output=True).returncode
        ):
            pytest.skip("no such attribute to be set here")
        try:
            if flag == "i":
                with pytest.raises(fastfs.StorageWriteDenied):
                    store.add("other", HUNDRED)
            with pytest.raises(fastfs.Forbidden) as caught:
                store.delete(url)
            assert caught.value.errno == errno.EPERM
            assert visible(images) == ["image"]
        finally:
            subprocess.run(["chattr", f"-{flag}", str(target)], check=True)


def test_out_of_descriptors(store: Store, images: Path) -> None:
    url = store.add("image", HUNDRED).url
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for source in (HUNDRED, iter([content(10 * CHUNK)])):
            with pytest.raises(fastfs.StorageError) as caught:
                store.add("other", source)
            assert caught.value.errno == errno.EMFILE
        with pytest.raises(fastfs.StorageError):
            store.get(url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert visible(images) == ["image"]
    assert read(store, url) == HUNDRED


# Section 9: hazards. A: data.


def during(store: Store, look: Callable[[], object], image_id: str = "image", **options: Any) -> Any:
    """Store an image of some blocks, with a look in the middle."""

    def source() -> Iterator[bytes]:
        for number in range(20):
            if number == 15:
                look()
            yield content(CHUNK)

    return store.add(image_id, source(), **options)


def test_a1_unfinished_image_is_invisible(store: Store, images: Path) -> None:
    def look() -> None:
        assert not (images / "image").exists()
        assert list(store.images()) == []
        for method in (store.find, store.info):
            with pytest.raises(fastfs.NotFound):
                method("image")
        for method_name in METHODS:
            with pytest.raises(fastfs.NotFound):
                getattr(store, method_name)(f"file://{images}/image")
        seen.append(len(writing(images)))

    seen: list[int] = []
    during(store, look)
    assert seen == [1]
    assert store.get_size(store.find("image")) == 20 * CHUNK


def test_a5_failing_upload_leaves_the_others_image(store: Store, images: Path) -> None:
    def source() -> Iterator[bytes]:
        yield content(CHUNK)
        with Store(datadir=str(images)) as other:
            other.add("image", HUNDRED)
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        store.add("image", source())
    assert (images / "image").read_bytes() == HUNDRED
    with pytest.raises(fastfs.SizeMismatch):
        during(store, lambda: None, "other", image_size=5)
    assert visible(images) == ["image"]


@pytest.mark.parametrize("large", [False, True])
def test_a7_dangling_link_is_not_written_through(large: bool, store: Store, images: Path) -> None:
    (images / "image").symlink_to(images.parent / "target")
    with pytest.raises(fastfs.Duplicate):
        store.add("image", io.BytesIO(content(20 * CHUNK)) if large else HUNDRED)
    assert not (images.parent / "target").exists()
    assert (images / "image").is_symlink()
    assert visible(images) == ["image"]


def test_a8_denied_source_leaves_nothing(store: Store, images: Path) -> None:
    error = PermissionError(errno.EACCES, "the source's")

    def fail() -> None:
        raise error

    with pytest.raises(PermissionError) as caught:
        during(store, fail)
    assert caught.value is error
    assert visible(images) == []
    during(store, lambda: None)


ERRNO_TABLE = {
    errno.ENOSPC: (fastfs.StorageFull, fastfs.StorageError),
    errno.EDQUOT: (fastfs.StorageFull, fastfs.StorageError),
    errno.EFBIG: (fastfs.StorageFull, fastfs.StorageError),
    errno.EACCES: (fastfs.StorageWriteDenied, fastfs.Forbidden),
    errno.EPERM: (fastfs.StorageWriteDenied, fastfs.Forbidden),
    errno.EROFS: (fastfs.StorageWriteDenied, fastfs.Forbidden),
    errno.EIO: (fastfs.StorageError, fastfs.StorageError),
    errno.EBUSY: (fastfs.StorageError, fastfs.StorageError),
    errno.ESTALE: (fastfs.StorageError, fastfs.StorageError),
    errno.ETIMEDOUT: (fastfs.StorageError, fastfs.StorageError),
    errno.EMFILE: (fastfs.StorageError, fastfs.StorageError),
}


@pytest.mark.parametrize("number", ERRNO_TABLE, ids=errno.errorcode.get)
def test_a10_errno_table(number: int) -> None:
    """Also hazard D1. By number, whatever the subclass of OSError."""
    plain = OSError()
    plain.errno = number
    for error in (OSError(number, os.strerror(number)), plain):
        for action, expected in zip(("write", "delete"), ERRNO_TABLE[number], strict=True):
            made = fastfs.exceptions.from_oserror(error, action, path="/d/image", image_id="image")  # type: ignore[arg-type]
            assert type(made) is expected
            assert (made.errno, made.path, made.image_id) == (number, "/d/image", "image")
            assert "/d/image" in str(made)


def syncs(tmp_path: Path, durability: str, source: str) -> list[str]:
    """The calls that make an upload durable, in their order, seen by strace."""
    code = (
        "import io, sys; from fastfs import Store\n"
        f"store = Store(datadir=sys.argv[1], durability={durability!r})\n"
        f"url = store.add('image', {source}).url\n"
        "print(open(sys.argv[2]).read() and '', flush=True)\n"
        "store.delete(url)\n"
    )
    log = tmp_path / "log"
    calls = "fsync,fdatasync,syncfs,linkat,link,rename,renameat,renameat2,unlink,unlinkat"
    command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", sys.executable, "-c", code]
    done = subprocess.run([*command, str(tmp_path / "images"), str(log)], check=False, capture_output=True, text=True)
    if "ptrace" in done.stderr.lower() and "not permitted" in done.stderr:
        pytest.skip("no right to trace")
    assert done.returncode == 0, done.stderr
    found = []
    for line in log.read_text().splitlines():
        if str(tmp_path / "images") in line and "(" in line:
            name, _, rest = line.partition(" ")[2].strip().partition("(")
            kind = {"li": "name", "re": "name", "un": "remove"}.get(name[:2])
            found.append(kind or ("sync directory" if f"<{tmp_path}/images>" in rest else "sync file"))
    return found


DURABLE = {
    "none": ["name", "remove"],
    "file": ["sync file", "name", "remove"],
    "full": ["sync file", "name", "sync directory", "remove", "sync directory"],
}
# The record is synced and named before its image, and removed after it.
DURABLE_WITH_RECORD = {
    "none": ["name", "name", "remove", "remove"],
    "file": ["sync file", "sync file", "name", "name", "remove", "remove"],
    "full": ["sync file", "sync file", "name", "name", "sync directory", "remove", "remove", "sync directory"],
}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("source", ["b'small'", "io.BytesIO(bytes(3000000))"], ids=["small", "large"])
@pytest.mark.parametrize("durability", DURABLE)
def test_a13_synced(durability: str, source: str, tmp_path: Path) -> None:
    """The file before it gets its name, the directory before `add` returns; and after a delete."""
    wanted = DURABLE if source == "b'small'" else DURABLE_WITH_RECORD
    assert syncs(tmp_path, durability, source) == wanted[durability]


@pytest.mark.parametrize("file_perm", [0, 0o600, 0o644])
def test_a14_not_readable_before_it_is_whole(file_perm: int, images: Path, unmasked: None) -> None:
    found: list[os.stat_result] = []
    with Store(datadir=str(images), file_perm=file_perm) as store:
        during(store, lambda: found.extend(writing(images)))
    assert len(found) == 1
    nameless = found[0].st_nlink == 0 and not file_perm  # nobody else can open it
    assert nameless or found[0].st_mode & 0o077 == 0
    assert stat.S_IMODE((images / "image").stat().st_mode) == (file_perm or 0o666)


def refused(*arguments: object, **options: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a15_failing_chmod_fails_the_add(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(datadir=str(images), file_perm=0o640) as store:
        monkeypatch.setattr(os, "fchmod", refused)
        before = descriptors()
        with pytest.raises(fastfs.StorageWriteDenied) as caught:
            during(store, lambda: None)
        assert caught.value.errno == errno.EPERM
        assert (visible(images), descriptors()) == ([], before)


def test_a21_size_may_be_left_out(store: Store) -> None:
    assert store.add("image", io.BytesIO(HUNDRED)).size == 100


def thin_store(images: Path) -> Store:
    return Store(datadir=str(images), durability="none", thin_provisioning=True)


SPARSE: dict[str, tuple[Callable[[], Any], int]] = {
    "zeroes": (lambda: bytes(4 * MIB), 0),
    "zeroes from a file": (lambda: io.BytesIO(bytes(4 * MIB)), 0),
    "one large piece": (lambda: iter([bytes(4 * MIB)]), 0),
    "small pieces": (lambda: iter([bytes(1000)] * 4194), 0),
    "one byte in 64 KiB": (lambda: io.BytesIO((bytes(CHUNK - 1) + b"x") * 64), 64 * 4096),
    "data, zeroes": (lambda: content(CHUNK) + bytes(4 * MIB - CHUNK), CHUNK),
    "zeroes, data": (lambda: bytes(4 * MIB - CHUNK) + content(CHUNK), CHUNK),
}


@pytest.mark.parametrize("name", SPARSE)
def test_a23_zeroes_take_no_room(name: str, images: Path) -> None:
    """Also hazard A22. Found page by page, however the bytes come."""
    make, needed = SPARSE[name]
    made = make()
    data = made if isinstance(made, bytes) else b"".join(made) if not hasattr(made, "getvalue") else made.getvalue()
    with thin_store(images) as store:
        result = store.add("image", make(), len(data))
        assert result.multihash == hashlib.sha512(data).hexdigest()
        assert read(store, result.url) == data
        status = (images / "image").stat()
        assert status.st_size == store.info("image").size == len(data)
        assert status.st_blocks * 512 == store.info("image").allocated <= needed + 16 * 4096


def test_thick_takes_all_its_room(store: Store, images: Path) -> None:
    """Thin provisioning is off by default."""
    assert store.config.thin_provisioning is False
    store.add("image", bytes(MIB))
    assert (images / "image").stat().st_blocks * 512 >= MIB


@pytest.mark.parametrize("algorithm", ["md5", "sha512"])
def test_a24_md5_is_made_once(algorithm: str, store: Store) -> None:
    made: list[str] = []

    def profile(frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in {"openssl_md5", "md5", "new"}:
            made.append(function.__name__)

    for image_id, source in (("first", HUNDRED), ("small", HUNDRED), ("large", iter([content(20 * CHUNK)]))):
        made.clear()
        sys.setprofile(profile)
        try:
            result = store.add(image_id, source, None, algorithm)
        finally:
            sys.setprofile(None)
        data = read(store, result.url)
        assert result.checksum == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert (result.checksum == result.multihash) is (algorithm == "md5")
        assert len(made) <= 1 or image_id == "first"  # which may have looked the algorithm up


def test_a26_what_cannot_be_removed_does_not_hinder() -> None:
    with unprivileged() as directory, Store(datadir=str(directory), durability="none") as store:

        def fail() -> None:
            directory.chmod(0o500)
            raise ValueError("broken off")

        with pytest.raises(ValueError, match="broken off"):
            during(store, fail)
        directory.chmod(0o700)
        during(store, lambda: None)
        store.sweep(0)
        assert visible(directory) == ["image"]


@pytest.mark.parametrize("source", [lambda: HUNDRED, lambda: iter([content(20 * CHUNK)])], ids=["small", "large"])
def test_a27_duplicate_in_another_datadir(source: Callable[[], Any], tmp_path: Path) -> None:
    with Store(datadirs=[f"{tmp_path}/a:1", f"{tmp_path}/b:2"]) as store:
        (tmp_path / "a" / "image").write_bytes(b"first")
        with pytest.raises(fastfs.Duplicate) as caught:
            store.add("image", source())
        assert caught.value.path == f"{tmp_path}/a/image"
        assert visible(tmp_path / "b") == []
        assert store.find("image") == f"file://{tmp_path}/a/image"


@pytest.mark.parametrize("source", [lambda: HUNDRED, lambda: iter([content(20 * CHUNK)])], ids=["small", "large"])
def test_a27_a_datadir_that_cannot_tell(source: Callable[[], Any]) -> None:
    """Whatever it may hold, no second image of that name is made elsewhere; and nobody is told that it is there."""
    with unprivileged() as base, Store(datadirs=[f"{base}/a:1", f"{base}/b:2"], durability="none") as store:
        (base / "a" / "image").write_bytes(b"first")
        (base / "b" / "other").write_bytes(b"second")
        (base / "a").chmod(0o600)
        refused = [outcome.error for outcome in store.add_many([("image", source())])]
        with pytest.raises(fastfs.StorageWriteDenied) as caught:
            store.add("image", source())
        for error in (caught.value, *refused):
            assert isinstance(error, fastfs.StorageWriteDenied)
            assert (error.errno, error.path, error.image_id) == (errno.EACCES, f"{base}/a/image", "image")
            assert str(error).startswith(f"cannot tell whether image image is stored in {base}/a already: ")
        assert visible(base / "b") == ["other"]
        assert store.find("other") == f"file://{base}/b/other"
        with pytest.raises(fastfs.Forbidden):
            store.find("image")
        with pytest.raises(fastfs.Duplicate):
            store.add("other", source())
        (base / "a").chmod(0o700)


@pytest.mark.parametrize("failing", ["a", "b"])
def test_a27_unknown_in_the_last_moment(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what is known when the name is given; of the target itself that call tells."""
    holds = DataDir.holds

    def fail(directory: DataDir, name: str) -> bool:
        if directory.path.endswith(failing):
            raise OSError(errno.EIO, "broken")
        return holds(directory, name)

    def source() -> Iterator[bytes]:
        yield content(20 * CHUNK)
        monkeypatch.setattr(DataDir, "holds", fail)

    with Store(datadirs=[f"{tmp_path}/a:1", f"{tmp_path}/b:2"], durability="none") as store:
        if failing == "b":
            assert store.add("image", source()).url == f"file://{tmp_path}/b/image"
        else:
            with pytest.raises(fastfs.StorageError, match="cannot tell whether") as caught:
                store.add("image", source())
            assert (caught.value.errno, caught.value.path) == (errno.EIO, f"{tmp_path}/a/image")
            assert visible(tmp_path / "b") == []


def test_a27_a_datadir_that_is_gone(tmp_path: Path) -> None:
    """It leaves no doubt; the others go on."""
    with Store(datadirs=[f"{tmp_path}/a:1", f"{tmp_path}/b:2"], durability="none") as store:
        (tmp_path / "a").rmdir()
        assert store.add("image", HUNDRED).url == f"file://{tmp_path}/b/image"


def test_a30_failure_after_the_last_byte_leaves_nothing(store: Store, images: Path) -> None:
    """The name is taken in the last moment; the verifier fails at the last piece."""

    def source() -> Iterator[bytes]:
        yield content(20 * CHUNK)
        (images / "image").symlink_to("nothing")

    before = descriptors()
    with pytest.raises(fastfs.Duplicate):
        store.add("image", source())
    assert (visible(images), descriptors()) == (["image"], before)


# Section 9. B: configuration.


def test_b3_no_traceback_without_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plain").write_bytes(b"")
    for options in ({"datadir": str(tmp_path / "plain")}, {"datadirs": [f"{tmp_path}:x"]}, {}):
        with pytest.raises(fastfs.BadStoreConfiguration):
            Store(**options)
    assert "NoneType: None" not in caplog.text


def test_b4_good_configuration_after_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration):
        Store(datadir=str(tmp_path), file_perm=0o7)
    with Store(datadir=str(tmp_path)) as store:
        store.delete(store.add("image", HUNDRED).url)


def test_b9_no_threads_stay(tmp_path: Path) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    for timeout in (0, 30):
        before = threads()
        for number in range(20):
            with Store(datadir=str(tmp_path), timeout=timeout) as store:
                store.add(f"{timeout}-{number}", HUNDRED)
                store.add(f"{timeout}-{number} large", iter([content(CHUNK)] * 20))
        ends = time.monotonic() + 10
        while threads() > before and time.monotonic() < ends:
            time.sleep(0.01)
        assert threads() <= before


def test_b9_closing_may_be_repeated(tmp_path: Path) -> None:
    store = Store(datadir=str(tmp_path), timeout=30)
    store.add("image", HUNDRED)
    store.close()
    store.close()


def test_b12_stores_know_nothing_of_each_other(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path / "a"), chunk_size=1) as one, Store(datadir=str(tmp_path / "b")) as other:
        url = one.add("image", HUNDRED).url
        assert other.config.chunk_size == CHUNK
        with pytest.raises(fastfs.NotFound):
            other.get(url)
        assert other.add("image", HUNDRED).url == f"file://{tmp_path}/b/image"


@pytest.mark.parametrize("option", ["datadir", "datadirs"])
def test_b17_what_glance_shows_of_a_store(option: str, tmp_path: Path) -> None:
    with Store(**{option: str(tmp_path) if option == "datadir" else [f"{tmp_path}:5"]}) as store:  # type: ignore[arg-type]
        assert (store.config.datadir, list(store.config.datadirs)) in (
            (str(tmp_path), []),
            (None, [f"{tmp_path}:5"]),
        )
        assert [usage.path for usage in store.usage()] == [str(tmp_path)]
        assert store.config.chunk_size == CHUNK


def test_mount_guard(tmp_path: Path) -> None:
    """Where the operator says that a file system is to be mounted, the root's is not the one."""
    if os.stat("/").st_dev != tmp_path.stat().st_dev:
        with Store(datadir=str(tmp_path), mount_guard=True) as store:
            store.add("image", HUNDRED)
    else:
        with pytest.raises(fastfs.BadStoreConfiguration, match="mount_guard"):
            Store(datadir=str(tmp_path), mount_guard=True)


def on_unmounted(base: Path) -> None:
    """The file system goes away while the store runs: nothing is written beneath its mountpoint."""
    with Store(datadirs=[f"{base}/small:2", f"{base}/large:1"], mount_guard=True) as store:
        store.add("first", HUNDRED)
        subprocess.run(["umount", f"{base}/small"], check=True)
        assert store.add("second", HUNDRED).url == f"file://{base}/large/second"
        subprocess.run(["umount", f"{base}/large"], check=True)
        for source in (HUNDRED, io.BytesIO(content(20 * CHUNK))):
            with pytest.raises(fastfs.StorageWriteDenied):
                store.add("third", source)
    assert visible(base / "small") == visible(base / "large") == []


def seems_to_have_none(directory: DataDir) -> bool:
    directory.nameless = False
    return False


def on_full_without_nameless_files(base: Path) -> None:
    fastfs.publish.has_nameless = seems_to_have_none
    on_full(base)


def on_unknown_size_without_nameless_files(base: Path) -> None:
    fastfs.publish.has_nameless = seems_to_have_none
    logging.basicConfig(level=logging.WARNING)  # what is logged comes out on stderr, which shall be empty
    on_unknown_size(base)


@NEEDS_MOUNT
@pytest.mark.parametrize(
    "function",
    [
        on_most_free_space,
        on_full,
        on_unknown_size,
        on_nothing_free,
        on_read_only,
        on_unmounted,
        on_full_without_nameless_files,
        on_unknown_size_without_nameless_files,
    ],
    ids=lambda function: function.__name__,
)
def test_small_file_system(function: Callable[[Path], None], tmp_path: Path) -> None:
    with_small_file_systems(function, tmp_path)


# Section 9. C: reading.


def test_c1_reader_that_is_dropped_lets_go(store: Store) -> None:
    url = store.add("image", content(3 * CHUNK)).url
    before = descriptors()
    for _ in range(50):
        reader, _ = store.get(url)
        next(reader)
        del reader
        iter(store.get(url)[0])
    gc.collect()
    assert descriptors() == before


def test_c2_second_iteration(store: Store) -> None:
    """It would look like an empty image, so it is an error; another `get` starts anew."""
    url = store.add("image", HUNDRED).url
    reader, _ = store.get(url)
    assert iter(reader) is reader
    assert b"".join(reader) == HUNDRED
    with pytest.raises(ValueError, match="image"):
        list(reader)
    assert read(store, url) == HUNDRED


@pytest.mark.filterwarnings("error")
def test_c8_refused_range_leaves_nothing_to_the_collector(store: Store) -> None:
    url = store.add("image", HUNDRED).url
    before = descriptors()
    with pytest.raises(fastfs.Invalid):
        store.get(url, -1)
    gc.collect()
    assert descriptors() == before


def test_c10_unreadable_image() -> None:
    with unprivileged() as directory, Store(datadir=str(directory)) as store:
        url = store.add("image", HUNDRED).url
        (directory / "image").chmod(0)
        with pytest.raises(fastfs.Forbidden) as caught:
            store.get(url)
        assert caught.value.path == f"{directory}/image"


READS: dict[str, Callable[[Any], object]] = {
    "iterating": list,
    "read": lambda reader: [reader.read(CHUNK) for _ in range(10)],
    "readinto": lambda reader: reader.readinto(bytearray(10 * CHUNK)),
}


@pytest.mark.parametrize("use", READS.values(), ids=READS.keys())
def test_c14_file_that_shrinks_is_an_error(use: Callable[[Any], object], store: Store, images: Path) -> None:
    reader, size = store.get(store.add("image", content(10 * CHUNK)).url)
    os.truncate(images / "image", 5 * CHUNK + 1)
    with reader, pytest.raises(fastfs.StorageError, match="image"):
        use(reader)
    assert size == 10 * CHUNK


# Section 9. D and E: deleting, timeouts.


def test_delete(store: Store, images: Path) -> None:
    url = store.add("image", HUNDRED).url
    reader, _ = store.get(url)
    store.delete(url)
    assert visible(images) == []
    with reader:
        assert reader.read() == HUNDRED
    for method in METHODS:
        with pytest.raises(fastfs.NotFound):
            getattr(store, method)(url)
    store.add("image", b"again")


class Gate:
    """Stands for a system call that hangs until it is opened, then does what it should."""

    def __init__(self, function: Callable[..., Any], which: Callable[..., bool] = lambda *_, **__: True) -> None:
        self.function = function
        self.which = which
        self.opened = threading.Event()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.which(*arguments, **options):
            assert self.opened.wait(60)
        return self.function(*arguments, **options)


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.005)


Settle = Callable[[Store, Gate], None]


@pytest.fixture
def settle() -> Settle:
    """Opens the gate and waits until everything that hung has ended."""
    ends = time.monotonic() + 2
    while threading.active_count() > 1 and time.monotonic() < ends:
        time.sleep(0.005)  # threads of the tests before are still ending
    threads = threading.active_count()

    def settled(store: Store, gate: Gate) -> None:
        gate.opened.set()
        store.close()
        until(lambda: threading.active_count() <= threads)

    return settled


def named(name: str) -> Callable[..., bool]:
    return lambda *arguments, **options: bool(arguments) and str(arguments[0]).rpartition("/")[2] == name


def on_hanging(base: Path) -> None:
    """C13: the file system of a data directory answers nothing any more, for whatever is asked."""
    with Store(datadir=f"{base}/small", timeout=60, thread_pool_size=30) as store:
        url = store.add("image", HUNDRED).url
        calls: dict[str, Callable[[], object]] = {
            "add small": lambda: store.add("other", HUNDRED),
            "add large": lambda: store.add("other", iter([content(20 * CHUNK)])),
            "get": lambda: store.get(url),
            "get_size": lambda: store.get_size(url),
            "delete": lambda: store.delete(url),
            "info": lambda: store.info("image"),
            "find": lambda: store.find("image"),
            "usage": store.usage,
            "images": lambda: list(store.images()),
            "sweep": store.sweep,
            "another store": lambda: Store(datadir=f"{base}/small", timeout=0.3),
        }
        before = descriptors()
        with hanging(base / "small"), impatient(store._guard):
            for name, call in calls.items():
                outcome = patiently(call)
                assert isinstance(outcome, fastfs.TimeoutError), f"{name}: {outcome!r}"
        until(lambda: descriptors() <= before)
        assert visible(base / "small") == ["image"]
        until(lambda: error_of(lambda: store.get_size(url)) is None)
        assert read(store, url) == HUNDRED


def error_of(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except BaseException as error:
        return error
    return None


def patiently(function: Callable[[], object]) -> BaseException | None:
    """`error_of`, on a thread that is left behind if it hangs."""
    outcome: list[BaseException | None] = [AssertionError("hangs")]
    thread = threading.Thread(target=lambda: outcome.append(error_of(function)), daemon=True)
    thread.start()
    thread.join(60)
    return outcome[-1]


@contextlib.contextmanager
def hanging(directory: Path) -> Iterator[None]:
    """Over `directory`, a FUSE file system whose server never answers; what hangs ends with an error."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    assert libc.mount(b"hanging", os.fsencode(directory), b"fuse", 0, options.encode()) == 0, ctypes.get_errno()
    try:
        yield
    finally:
        assert libc.umount2(os.fsencode(directory), 2) == 0  # MNT_DETACH
        os.close(server)


def on_exit_while_hanging(base: Path) -> None:
    """E7: the process ends although operations hang."""
    store = Store(datadir=f"{base}/small", timeout=60)
    url = store.add("image", HUNDRED).url
    for_good = hanging(base / "small")
    for_good.__enter__()
    store._guard.timeout = 0.1
    for call in (store.delete, store.get):
        outcome = patiently(lambda call=call: call(url))  # type: ignore[misc]
        assert isinstance(outcome, fastfs.TimeoutError), repr(outcome)


NEEDS_FUSE = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no FUSE here")


@NEEDS_MOUNT
@NEEDS_FUSE
def test_c13_every_operation_is_under_the_timeout(tmp_path: Path) -> None:
    with_small_file_systems(on_hanging, tmp_path)


@NEEDS_MOUNT
@NEEDS_FUSE
def test_e7_hung_operation_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    with_small_file_systems(on_exit_while_hanging, tmp_path)  # what hangs ends when the process does, not before


def test_reading_is_under_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle) -> None:
    with Store(datadir=str(tmp_path), timeout=60) as store:
        before = descriptors()
        reader, _ = store.get(store.add("image", HUNDRED).url)
        gate = Gate(os.pread)
        monkeypatch.setattr(os, "pread", gate)
        with impatient(store._guard), pytest.raises(fastfs.TimeoutError):
            next(reader)
        reader.close()
        settle(store, gate)
        assert descriptors() == before


def test_late_open_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle) -> None:
    """The descriptor that comes when nobody waits for it any more."""
    with Store(datadir=str(tmp_path), timeout=60) as store:
        url = store.add("image", HUNDRED).url
        before = descriptors()
        gate = Gate(_native.open_regular)
        monkeypatch.setattr(_native, "open_regular", gate)
        with impatient(store._guard), pytest.raises(fastfs.TimeoutError):
            store.get(url)
        settle(store, gate)
        monkeypatch.undo()
        gc.collect()
        assert descriptors() == before
        assert read(store, url) == HUNDRED


LARGE_SOURCE: Callable[[], Any] = lambda: iter([content(CHUNK)] * 20)  # noqa: E731
HANGS: dict[str, tuple[str, str, Callable[[], Any], Callable[..., bool]]] = {
    # what hangs, durability, source, which of its calls
    "opening": (
        "os.open",
        "none",
        LARGE_SOURCE,
        lambda path, flags, *_, **__: bool(flags & os.O_TMPFILE == os.O_TMPFILE),
    ),
    "syncing the file": ("os.fsync", "file", LARGE_SOURCE, lambda fd: stat.S_ISREG(os.fstat(fd).st_mode)),
    "syncing the directory": ("os.fsync", "full", LARGE_SOURCE, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)),
    "linking": ("fastfs._native.link_fd", "none", LARGE_SOURCE, lambda *_: True),
    "linking a small object": ("fastfs._native.link_fd", "none", lambda: HUNDRED, lambda *_: True),
}


@pytest.mark.parametrize("place", HANGS)
def test_upload_that_timed_out_is_never_published(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    target, durability, source, which = HANGS[place]
    with Store(datadir=str(tmp_path), timeout=60, durability=durability) as store:
        before = descriptors()
        module, _, name = target.rpartition(".")
        owner = sys.modules[module]
        gate = Gate(getattr(owner, name), which)
        monkeypatch.setattr(owner, name, gate)
        with impatient(store._guard), pytest.raises(fastfs.TimeoutError) as caught:
            store.add("image", source())
        assert isinstance(caught.value, TimeoutError)
        settle(store, gate)
        assert (visible(tmp_path), descriptors()) == ([], before)
        assert store.usage()[0].reserved == 0
        store.add("image", source())


def test_a_copy_that_hangs_when_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle) -> None:
    """It was told to be there, and stays."""
    images, target = tmp_path / "images", tmp_path / "copy"
    with Store(datadir=str(images), timeout=60, durability="none") as store:
        url = store.add("image", HUNDRED).url
        before = descriptors()
        gate = Gate(fastfs.reader.GuardedFile.close)
        monkeypatch.setattr(fastfs.reader.GuardedFile, "close", lambda reader: gate(reader))
        with impatient(store._guard, 1):
            assert store.copy_to(url, target) == len(HUNDRED)
        settle(store, gate)
        assert target.read_bytes() == HUNDRED
        assert descriptors() == before


def test_a_listing_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle) -> None:
    """The directory is read on another thread: it must not be closed by this one meanwhile (closedir(3))."""

    class Entries:
        def __init__(self, path: str) -> None:
            self.real = scandir(path)
            self.reading = False

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            self.reading = True
            gate()
            yield from self.real
            self.reading = False

        def close(self) -> None:
            closed.append(self.reading)
            self.real.close()

    scandir, gate = os.scandir, Gate(lambda: None)
    closed: list[bool] = []
    with Store(datadir=str(tmp_path), timeout=60) as store:
        store.add("image", HUNDRED)
        before = descriptors()
        monkeypatch.setattr(os, "scandir", Entries)
        with impatient(store._guard), pytest.raises(fastfs.TimeoutError):
            list(store.images())
        settle(store, gate)
        assert closed == [False]
        monkeypatch.undo()
        assert descriptors() == before


def test_upload_that_timed_out_in_its_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    """The thread has done its last step but not yet said so when its caller gives up."""
    with Store(datadir=str(tmp_path), timeout=60, durability="none") as store:
        before = descriptors()
        gate = Gate(lambda: None)
        real = fastfs.publish.Draft.sync_name

        def sync_name(draft: fastfs.publish.Draft) -> None:
            real(draft)
            gate()

        monkeypatch.setattr(fastfs.publish.Draft, "sync_name", sync_name)
        with impatient(store._guard), pytest.raises(fastfs.TimeoutError):
            store.add("image", LARGE_SOURCE())
        settle(store, gate)
        assert (visible(tmp_path), descriptors()) == ([], before)


def test_slow_source_is_not_the_stores_fault(tmp_path: Path) -> None:
    """The time limit is for the data directory; a source may take as long as it likes."""

    def slow() -> Iterator[bytes]:
        yield content(CHUNK)
        time.sleep(3.5)
        yield content(CHUNK)

    near, far = os.pipe()

    def send() -> None:
        with open(far, "wb", buffering=0) as writer:
            for piece in slow():
                writer.write(piece)

    thread = threading.Thread(target=send)
    with Store(datadir=str(tmp_path), timeout=3, durability="none") as store, open(near, "rb") as pipe:
        thread.start()
        with ThreadPoolExecutor(2) as pool:
            sizes = list(pool.map(lambda name, source: store.add(name, source).size, ("a", "b"), (slow(), pipe)))
        assert sizes == [2 * CHUNK, 2 * CHUNK]
    thread.join()


def test_e2_hung_threads_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, settle: Settle
) -> None:
    """A pool of two, both hung: one warning, and the calls after it time out, too."""
    with Store(datadir=str(tmp_path), timeout=60, thread_pool_size=2, threadpool_threshold=80) as store:
        url = store.add("image", HUNDRED).url
        gate = Gate(os.unlink, named("image"))
        monkeypatch.setattr(os, "unlink", gate)
        for _ in range(5):
            with impatient(store._guard, 1), pytest.raises(fastfs.TimeoutError):
                store.delete(url)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "100%" in warnings[0]
        settle(store, gate)
        store.add("other", HUNDRED)


@pytest.mark.parametrize("earlier", ["looked at", "queued"])
def test_e6_queued_delete_is_not_carried_out_late(
    earlier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    """Also E1: a delete whose system call was not yet under way when its caller got the TimeoutError."""
    with Store(datadir=str(tmp_path), timeout=60, thread_pool_size=1) as store:
        first, second = store.add("first", HUNDRED).url, store.add("second", HUNDRED).url
        gate = Gate(os.stat, named("first"))
        monkeypatch.setattr(os, "stat", gate)
        for url in (first, second) if earlier == "queued" else (first,):
            with impatient(store._guard, 1), pytest.raises(fastfs.TimeoutError):
                store.delete(url)
        settle(store, gate)
        assert visible(tmp_path) == ["first", "second"]


def test_e3_many_threads_under_the_timeout(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    before = sys.getswitchinterval()
    with Store(datadir=str(tmp_path), timeout=30, thread_pool_size=16) as store:
        url = store.add("image", HUNDRED).url

        def ask() -> None:
            for _ in range(100):
                if error := error_of(lambda: store.get_size(url)):
                    errors.append(error)

        asking = [threading.Thread(target=ask) for _ in range(24)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(60)
        finally:
            sys.setswitchinterval(before)
    assert errors == []


def on_frozen(base: Path) -> None:
    """A file system that stops writing (as a snapshot makes it) and goes on: nothing comes late."""
    images = base / "frozen"
    images.mkdir()
    with open(base / "disk", "wb") as disk:
        disk.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(base / "disk")], check=True)
    subprocess.run(["mount", "-o", "loop", str(base / "disk"), str(images)], check=True)
    shutil.rmtree(images / "lost+found")

    def freeze() -> None:
        subprocess.run(["fsfreeze", "--freeze", str(images)], check=True)

    guard = Guard(60, 10, 100)

    def frozen_midway() -> Iterator[bytes]:
        for number in range(40):
            if number == 20:
                freeze()
                guard.timeout = 0.4
            yield content(CHUNK)

    with Store(datadir=str(images), timeout=60, guard=guard) as store:
        sources: dict[str, Any] = {
            "small": HUNDRED,
            "large": iter([content(CHUNK)] * 20),
            "midway": frozen_midway(),
        }
        for name, source in sources.items():
            before = descriptors()
            if name != "midway":
                freeze()
                guard.timeout = 0.4
            try:
                error = error_of(lambda n=name, s=source: store.add(n, s))  # type: ignore[misc]
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", str(images)], check=True)
                guard.timeout = 60
            assert isinstance(error, fastfs.TimeoutError), f"{name}: {error!r}"
            until(lambda before=before: descriptors() <= before)  # type: ignore[misc]
            time.sleep(0.2)
            assert visible(images) == [], f"{name} came late"
        store.add("image", HUNDRED)


CAN_FREEZE = os.geteuid() == 0 and all(map(shutil.which, ("mkfs.ext4", "fsfreeze", "losetup")))


@NEEDS_MOUNT
@pytest.mark.skipif(not CAN_FREEZE or not Path("/dev/loop-control").exists(), reason="no file system to freeze")
def test_frozen_file_system(tmp_path: Path) -> None:
    with_small_file_systems(on_frozen, tmp_path)


def test_e10_store_goes_on_after_fork(tmp_path: Path) -> None:
    """In a fork of a process that has used the store with its time limit."""
    code = (
        "import os, sys; from fastfs import Store\n"
        "store = Store(datadirs=[sys.argv[1]], timeout=20)\n"
        "url = store.add('parent', bytes(3000000)).url\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    ok = store.get_size(url) == 3000000 and store.add('child', iter([bytes(3000000)])).size == 3000000\n"
        "    os._exit(0 if ok else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert store.add('after', b'').size == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert visible(tmp_path) == ["after", "child", "parent"]


# The document.


def test_every_hazard_is_in_the_document() -> None:
    """Each has a row, and each test that is named there exists."""
    hazards = [f"A{number}" for number in range(1, 31) if number != 25]
    hazards += [f"B{number}" for number in range(1, 18)] + [f"C{number}" for number in range(1, 15)] + ["D1"]
    hazards += ["E1", "E2", "E2b", "E3", "E4", "E5", "E6", "E7", "E10"]
    text = DOCUMENT.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    listed = {name for row in rows for name in re.findall(r"\b[A-E]\d+b?\b", row.split("|")[1])}
    assert sorted(set(hazards) - listed) == []
    named = re.findall(r"`(test_\w+)(?:\.py)?::(test_\w+)`", text)
    assert len(named) > 50
    for module, function in named:
        source = (Path(__file__).parent / f"{module}.py").read_text()
        assert f"def {function}(" in source, f"{module}::{function}"


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
