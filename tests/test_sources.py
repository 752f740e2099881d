"""Every kind of source an upload may come from, at every length that matters; and sources that lie."""

from __future__ import annotations

import array
import bz2
import contextlib
import functools
import gzip
import hashlib
import http.client
import importlib.util
import io
import itertools
import lzma
import mmap
import os
import pathlib
import socket
import subprocess
import tarfile
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import os_threads, settled

import fastfs
from fastfs import AddResult, Store, hashing, publish, sources
from fastfs.datadirs import DataDir

CHUNK = 65536
LENGTHS = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK - 1, 4 * CHUNK, 4 * CHUNK + 1)
LARGE = 64 * 1024 * 1024 + 7
HEAD = b"what stands before the image, not a part of it\n"
FLIP = bytes(255 - value for value in range(256))


@functools.lru_cache(maxsize=32)
def content(length: int) -> bytes:
    return hashlib.shake_128(str(length).encode()).digest(length)


@functools.lru_cache(maxsize=64)
def digest(name: str, data: bytes) -> str:
    return hashlib.new(name, data).hexdigest()


def stored_as(store: Store, result: AddResult, data: bytes, algorithm: str = "sha512") -> None:
    """The image is there under its URI, whole, with the digests that hashlib gives."""
    assert result.size == len(data)
    assert result.checksum == digest("md5", data)
    assert result.multihash == digest(algorithm, data)
    reader, size = store.get(result.url)
    with reader:
        assert b"".join(reader) == data
    assert size == store.get_size(result.url) == len(data)


class Footprint(NamedTuple):
    """What an upload that failed must leave as it was."""

    entries: list[str]
    descriptors: int

    @classmethod
    def of(cls, directory: Path) -> Footprint:
        entries = sorted(str(path) for path in directory.rglob("*"))
        return cls(entries, len(os.listdir("/proc/self/fd")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(images: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """With the parameter "hidden": on a file system that seems to have no nameless files."""
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request, "param", "nameless") == "hidden":
            patch.setattr(publish, "has_nameless", seems_to_have_none)
        with Store(datadir=str(images), durability="none") as made:
            yield made


def seems_to_have_none(directory: DataDir) -> bool:
    directory.nameless = False
    return False


WAYS = pytest.mark.parametrize("store", ["nameless", "hidden"], indirect=True)


@pytest.fixture
def unchanged(store: Store, images: Path) -> Iterator[None]:
    """Fails the test if it leaves a file, a descriptor or a thread behind."""
    store.add("neighbour", content(CHUNK))
    before, threads = Footprint.of(images), os_threads()
    yield
    assert settled(lambda: Footprint.of(images), before) == before
    assert settled(lambda: os_threads() - threads, set()) == set()


# Sources that behave, by name. Each gets the bytes that it shall deliver and a directory for its files.


@dataclass
class Opened:
    source: Any
    position: Callable[[], int] | None = None
    end: int = 0


Kind = Callable[[bytes, Path], AbstractContextManager[Opened]]
KINDS: dict[str, Kind] = {}


def kind(function: Callable[[bytes, Path], Iterator[Opened]]) -> Kind:
    made = contextlib.contextmanager(function)
    KINDS[function.__name__] = made
    return made


def written(directory: Path, data: bytes) -> Path:
    path = directory / "source"
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def fed(write: Callable[[bytes], object], finish: Callable[[], object], data: bytes) -> Iterator[None]:
    """Another thread sends `data` in pieces of an odd length, until the reader goes away."""

    def run() -> None:
        with contextlib.suppress(OSError):
            for start in range(0, len(data), 50021):
                write(data[start : start + 50021])
        with contextlib.suppress(OSError):  # closing flushes
            finish()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


@kind
def file_buffered(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, data), "rb") as file:
        yield Opened(file, file.tell, len(data))


@kind
def file_unbuffered(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, data), "rb", buffering=0) as file:
        yield Opened(file, lambda: os.lseek(file.fileno(), 0, os.SEEK_CUR), len(data))


@kind
def file_in_the_middle(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, HEAD + data), "rb") as file:
        file.seek(len(HEAD))
        yield Opened(file, file.tell, len(HEAD + data))


@kind
def file_half_read(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, HEAD + data), "rb") as file:
        assert file.readline() == HEAD  # the descriptor now stands further on than the file object
        yield Opened(file, file.tell, len(HEAD + data))


@kind
def file_unbuffered_in_the_middle(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, HEAD + data), "rb", buffering=0) as file:
        file.read(len(HEAD))
        yield Opened(file, file.tell, len(HEAD + data))


@kind
def file_written_not_flushed(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, b"?" * len(HEAD) + data), "r+b") as file:
        file.write(HEAD)
        yield Opened(file, file.tell, len(HEAD + data))


@kind
def path_as_str(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(str(written(directory, data)))


@kind
def path_like(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(pathlib.PurePath(written(directory, data)))


@kind
def fifo_path(data: bytes, directory: Path) -> Iterator[Opened]:
    path = directory / "fifo"
    os.mkfifo(path)

    def send() -> None:
        with contextlib.suppress(OSError), open(path, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield Opened(str(path))
    finally:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a writer still waiting goes on
        thread.join(30)
        path.unlink()


@kind
def bytes_io(data: bytes, directory: Path) -> Iterator[Opened]:
    source = io.BytesIO(data)
    yield Opened(source, source.tell, len(data))


@kind
def bytes_io_in_the_middle(data: bytes, directory: Path) -> Iterator[Opened]:
    source = io.BytesIO(HEAD + data)
    source.seek(len(HEAD))
    yield Opened(source, source.tell, len(HEAD + data))


class DecodingBytesIO(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).translate(FLIP)


class DecodingFileIO(io.FileIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return (super().read(size) or b"").translate(FLIP)


class DecodingReader(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).translate(FLIP)


@kind
def bytes_io_with_own_read(data: bytes, directory: Path) -> Iterator[Opened]:
    source = DecodingBytesIO(data.translate(FLIP))
    yield Opened(source, source.tell, len(data))


@kind
def bytes_io_with_replaced_read(data: bytes, directory: Path) -> Iterator[Opened]:
    source = io.BytesIO(data.translate(FLIP))
    setattr(source, "read", lambda size=-1: io.BytesIO.read(source, size).translate(FLIP))  # noqa: B010
    yield Opened(source)


@kind
def file_io_with_own_read(data: bytes, directory: Path) -> Iterator[Opened]:
    with DecodingFileIO(written(directory, data.translate(FLIP))) as source:
        yield Opened(source)


@kind
def reader_with_own_read(data: bytes, directory: Path) -> Iterator[Opened]:
    with DecodingReader(io.FileIO(written(directory, data.translate(FLIP)))) as source:
        yield Opened(source)


class Wrapper:
    """Changes what is read and hands every other attribute through, the descriptor too."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size).translate(FLIP)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@kind
def wrapper_with_descriptor(data: bytes, directory: Path) -> Iterator[Opened]:
    with open(written(directory, data.translate(FLIP)), "rb") as file:
        yield Opened(Wrapper(file))


class RawSource(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        piece = self.rest[: min(len(buffer), 30011)]
        buffer[: len(piece)] = piece
        self.rest = self.rest[len(piece) :]
        return len(piece)


@kind
def raw_io(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(RawSource(data))


@kind
def buffered_raw_io(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(io.BufferedReader(RawSource(data)))


@kind
def mapped(data: bytes, directory: Path) -> Iterator[Opened]:
    with (
        open(written(directory, data), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source,
    ):
        yield Opened(source, source.tell, len(data))


@kind
def mapped_in_the_middle(data: bytes, directory: Path) -> Iterator[Opened]:
    with (
        open(written(directory, HEAD + data), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source,
    ):
        source.seek(len(HEAD))
        yield Opened(source, source.tell, len(HEAD + data))


@kind
def plain_bytes(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(data)


@kind
def byte_array(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(bytearray(data))


@kind
def memory_view(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(memoryview(data))


@kind
def memory_view_of_numbers(data: bytes, directory: Path) -> Iterator[Opened]:
    code = next(code for code, width in (("Q", 8), ("I", 4), ("H", 2), ("b", 1)) if len(data) % width == 0)
    view: Any = memoryview(data)
    yield Opened(view.cast(code))


@kind
def memory_view_with_gaps(data: bytes, directory: Path) -> Iterator[Opened]:
    spread = bytearray(2 * len(data))
    spread[::2] = data
    yield Opened(memoryview(spread)[::2])


@kind
def array_of_numbers(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(array.array("H" if len(data) % 2 == 0 else "B", data))


@kind
def socket_pair(data: bytes, directory: Path) -> Iterator[Opened]:
    near, far = socket.socketpair()
    with fed(far.sendall, far.close, data), near:
        yield Opened(near)


@kind
def socket_with_timeout(data: bytes, directory: Path) -> Iterator[Opened]:
    near, far = socket.socketpair()
    near.settimeout(20)  # which makes its descriptor non-blocking
    with fed(far.sendall, far.close, data), near:
        yield Opened(near)


@kind
def socket_makefile(data: bytes, directory: Path) -> Iterator[Opened]:
    near, far = socket.socketpair()
    with fed(far.sendall, far.close, data), near, near.makefile("rb") as source:
        yield Opened(source)


@kind
def socket_makefile_half_read(data: bytes, directory: Path) -> Iterator[Opened]:
    near, far = socket.socketpair()
    with fed(far.sendall, far.close, HEAD + data), near, near.makefile("rb") as source:
        assert source.readline() == HEAD
        yield Opened(source)


@kind
def socket_makefile_unbuffered(data: bytes, directory: Path) -> Iterator[Opened]:
    near, far = socket.socketpair()
    with fed(far.sendall, far.close, data), near, near.makefile("rb", buffering=0) as source:
        yield Opened(source)


def piped(data: bytes, buffering: int) -> Iterator[io.BufferedReader]:
    near, far = os.pipe()
    with (
        open(far, "wb") as writer,
        fed(writer.write, writer.close, data),
        open(near, "rb", buffering=buffering) as reader,
    ):
        yield reader  # type: ignore[misc]


@kind
def pipe(data: bytes, directory: Path) -> Iterator[Opened]:
    yield from map(Opened, piped(data, -1))


@kind
def pipe_unbuffered(data: bytes, directory: Path) -> Iterator[Opened]:
    yield from map(Opened, piped(data, 0))


@kind
def pipe_half_read(data: bytes, directory: Path) -> Iterator[Opened]:
    for source in piped(HEAD + data, -1):
        assert source.readline() == HEAD  # more than this line is in the file object's buffer
        yield Opened(source)


@kind
def subprocess_output(data: bytes, directory: Path) -> Iterator[Opened]:
    path = written(directory, data)
    with subprocess.Popen(["cat", os.fspath(path)], stdout=subprocess.PIPE) as child:
        yield Opened(child.stdout)


@kind
def gzip_file(data: bytes, directory: Path) -> Iterator[Opened]:
    with gzip.open(written(directory, gzip.compress(data, 1)), "rb") as source:
        yield Opened(source, source.tell, len(data))


@kind
def bz2_file(data: bytes, directory: Path) -> Iterator[Opened]:
    with bz2.open(written(directory, bz2.compress(data, 1)), "rb") as source:
        yield Opened(source, source.tell, len(data))


@kind
def lzma_file(data: bytes, directory: Path) -> Iterator[Opened]:
    with lzma.open(written(directory, lzma.compress(data, preset=0)), "rb") as source:
        yield Opened(source, source.tell, len(data))


@kind
def zip_member(data: bytes, directory: Path) -> Iterator[Opened]:
    path = directory / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("before", HEAD)
        archive.writestr("image", data)
        archive.writestr("after", HEAD)
    with zipfile.ZipFile(path) as archive, archive.open("image") as source:
        yield Opened(source, source.tell, len(data))


@kind
def tar_member(data: bytes, directory: Path) -> Iterator[Opened]:
    path = directory / "source.tar"
    with tarfile.open(path, "w") as archive:
        for name, body in (("before", HEAD), ("image", data), ("after", HEAD)):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    with tarfile.open(path) as archive:
        source = archive.extractfile("image")
        assert source is not None
        with source:
            yield Opened(source, source.tell, len(data))


@contextlib.contextmanager
def http_server(answer: bytes) -> Iterator[int]:
    """One answer to one request on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                with peer:
                    asked = b""
                    while b"\r\n\r\n" not in asked:
                        asked += peer.recv(CHUNK)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(30)
            assert not thread.is_alive()


def plain_answer(data: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(data) + data


def chunked_answer(data: bytes) -> bytes:
    pieces = [data[start : start + 40009] for start in range(0, len(data), 40009)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body + b"0\r\n\r\n"


def http_response(answer: bytes) -> Iterator[Opened]:
    with http_server(answer) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/image")
        with contextlib.closing(connection), connection.getresponse() as source:
            yield Opened(source)


@kind
def http_client_response(data: bytes, directory: Path) -> Iterator[Opened]:
    yield from http_response(plain_answer(data))


@kind
def http_client_response_chunked(data: bytes, directory: Path) -> Iterator[Opened]:
    yield from http_response(chunked_answer(data))


if importlib.util.find_spec("urllib3") is not None:
    import urllib3

    def urllib3_answer(answer: bytes) -> Iterator[Opened]:
        with http_server(answer) as port, urllib3.PoolManager(timeout=30, retries=False) as pool:
            response = pool.request("GET", f"http://127.0.0.1:{port}/image", preload_content=False)
            try:
                yield Opened(response)
            finally:
                response.close()

    @kind
    def urllib3_response(data: bytes, directory: Path) -> Iterator[Opened]:
        yield from urllib3_answer(plain_answer(data))

    @kind
    def urllib3_response_chunked(data: bytes, directory: Path) -> Iterator[Opened]:
        yield from urllib3_answer(chunked_answer(data))


def filled(source: Any, data: bytes) -> Opened:
    source.write(data)
    source.seek(0)
    return Opened(source, source.tell, len(data))


@kind
def temporary_file(data: bytes, directory: Path) -> Iterator[Opened]:
    with tempfile.TemporaryFile(dir=directory) as source:
        yield filled(source, data)


@kind
def named_temporary_file(data: bytes, directory: Path) -> Iterator[Opened]:
    with tempfile.NamedTemporaryFile(dir=directory) as source:
        yield filled(source, data)


@kind
def spooled_file_in_memory(data: bytes, directory: Path) -> Iterator[Opened]:
    with tempfile.SpooledTemporaryFile(max_size=0, dir=str(directory)) as source:
        yield filled(source, data)


@kind
def spooled_file_on_disk(data: bytes, directory: Path) -> Iterator[Opened]:
    with tempfile.SpooledTemporaryFile(max_size=1, dir=str(directory)) as source:
        source.rollover()
        yield filled(source, data)


class OnlyRead:
    """`read(n)` with n required, as the readers of web servers have it; gives less than asked for if told."""

    def __init__(self, data: bytes, lengths: Iterable[int] = ()) -> None:
        self.rest = memoryview(data)
        self.lengths = iter(lengths)
        self.taken = 0

    def read(self, size: int) -> bytes:
        assert size > 0
        piece = bytes(self.rest[: min(size, max(1, next(self.lengths, size)))])
        self.rest = self.rest[len(piece) :]
        self.taken += len(piece)
        return piece


class OnlyReadInto:
    def __init__(self, data: bytes, lengths: Iterable[int] = ()) -> None:
        self.inner = OnlyRead(data, lengths)

    def readinto(self, buffer: Any) -> int:
        piece = self.inner.read(len(buffer))
        memoryview(buffer)[: len(piece)] = piece
        return len(piece)


@kind
def only_read(data: bytes, directory: Path) -> Iterator[Opened]:
    source = OnlyRead(data)
    yield Opened(source, lambda: source.taken, len(data))


@kind
def only_readinto(data: bytes, directory: Path) -> Iterator[Opened]:
    source = OnlyReadInto(data)
    yield Opened(source, lambda: source.inner.taken, len(data))


def pieces_of(data: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for length in lengths:
        yield data[start : start + length]
        start += length
        if start >= len(data):
            return
    yield data[start:]


@kind
def list_of_pieces(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(list(pieces_of(data, itertools.cycle((0, 1, 4096, 70000, 0)))))


@kind
def iterator_of_pieces(data: bytes, directory: Path) -> Iterator[Opened]:
    makers = itertools.cycle((bytes, bytearray, memoryview))
    yield Opened(make(piece) for make, piece in zip(makers, pieces_of(data, itertools.repeat(33331)), strict=False))


@kind
def one_large_piece(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(iter([data]))


@kind
def generator(data: bytes, directory: Path) -> Iterator[Opened]:
    yield Opened(pieces_of(data, itertools.repeat(CHUNK)))


@kind
def image_of_a_store(data: bytes, directory: Path) -> Iterator[Opened]:
    with Store(datadir=str(directory / "other"), durability="none") as other:
        reader, _ = other.get(other.add("original", data).url)
        with reader:
            yield Opened(reader)


NOT_EMPTY = {"mapped"}  # an empty file cannot be mapped
FOR_LARGE = ("file_buffered", "bytes_io", "only_read", "generator", "pipe")
CASES = [(name, length) for name in KINDS for length in LENGTHS if length or name not in NOT_EMPTY]
LARGE_CASES = [pytest.param(name, LARGE, marks=pytest.mark.slow) for name in FOR_LARGE]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(("name", "length"), [*CASES, *LARGE_CASES])
def test_source(name: str, length: int, known: bool, store: Store, tmp_path: Path) -> None:
    data = content(length)
    with KINDS[name](data, tmp_path) as opened:
        result = store.add("image", opened.source, length if known else None)
        if opened.position is not None:
            assert opened.position() == opened.end
    stored_as(store, result, data)


@pytest.mark.parametrize("store", ["hidden"], indirect=True)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["file_buffered", "bytes_io", "only_read", "generator"])
def test_source_where_files_need_a_name(name: str, length: int, store: Store, tmp_path: Path) -> None:
    with KINDS[name](content(length), tmp_path) as opened:
        stored_as(store, store.add("image", opened.source), content(length))
    with KINDS[name](content(length), tmp_path) as opened, pytest.raises(fastfs.Duplicate):
        store.add("image", opened.source)
    found = {path.name for path in (tmp_path / "images").iterdir()}
    assert found - {".fastfs-image.rec"} == {"image"}


def test_memory_is_not_gathered_for_a_look() -> None:
    """A large BytesIO that was read from: that it is none of the small ones is told without a copy of the rest."""
    source = io.BytesIO(bytes(128 * CHUNK))
    source.read(1)
    tracemalloc.start()
    try:
        assert sources.small_object(source) is None
        assert tracemalloc.get_traced_memory()[1] < CHUNK
    finally:
        tracemalloc.stop()


def test_source_stays_open(store: Store, tmp_path: Path) -> None:
    with open(written(tmp_path, content(CHUNK)), "rb") as file:
        store.add("image", file)
        assert not file.closed
        file.seek(0)
        assert file.read() == content(CHUNK)


def test_file_without_a_size(store: Store) -> None:
    """Files of /proc are regular and say that they have 0 bytes."""
    path = Path("/proc/version")
    stored_as(store, store.add("image", path), path.read_bytes())


def test_sparse_source(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(3 * 1024 * 1024 + 5)
        file.seek(1024 * 1024 + 77)
        file.write(HEAD)
    for thin in (False, True):
        with Store(datadir=str(tmp_path / f"thin {thin}"), durability="none", thin_provisioning=thin) as other:
            stored_as(other, other.add("image", path), path.read_bytes())


# Any length, any chunking.

LENGTH = st.one_of(
    st.integers(0, 300_000),
    st.sampled_from((4096, CHUNK, 2 * CHUNK, 4 * CHUNK)).flatmap(lambda middle: st.integers(middle - 2, middle + 2)),
)
CUTS = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 9000), st.integers(60_000, 140_000)), max_size=12)
DELIVERIES: dict[str, Callable[[bytes, list[int]], Any]] = {
    "generator": pieces_of,
    "read": OnlyRead,
    "readinto": OnlyReadInto,
    "raw": lambda data, lengths: RawSource(data),
}
IDS = map("image-{}".format, itertools.count())


@pytest.fixture(scope="module")
def shared_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Store]]:
    with contextlib.ExitStack() as stack:
        yield {
            thin: stack.enter_context(
                Store(datadir=str(tmp_path_factory.mktemp("any")), durability="none", thin_provisioning=thin)
            )
            for thin in (False, True)
        }


@pytest.mark.parametrize("delivery", DELIVERIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(length=LENGTH, cuts=CUTS, known=st.booleans(), thin=st.booleans())
def test_any_chunking(
    *, delivery: str, length: int, cuts: list[int], known: bool, thin: bool, shared_stores: dict[bool, Store]
) -> None:
    data, store = content(length), shared_stores[thin]
    result = store.add(next(IDS), DELIVERIES[delivery](data, cuts), length if known else 0)
    stored_as(store, result, data)
    store.delete(result.url)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(0, 70_000)), max_size=8),
    cuts=CUTS,
    delivery=st.sampled_from(["generator", "read", "readinto"]),
)
def test_zeroes_anywhere(
    runs: list[tuple[bool, int]], cuts: list[int], delivery: str, shared_stores: dict[bool, Store]
) -> None:
    data = b"".join(bytes(length) if zero else content(length) for zero, length in runs)
    store = shared_stores[True]
    result = store.add(next(IDS), DELIVERIES[delivery](data, cuts), None)
    stored_as(store, result, data)
    store.delete(result.url)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    length=LENGTH,
    start=st.integers(0, 300_000),
    read=st.integers(0, 20_000),
    buffering=st.sampled_from([-1, 0]),
)
def test_any_position(
    *, length: int, start: int, read: int, buffering: int, shared_stores: dict[bool, Store], tmp_path: Path
) -> None:
    data = content(length)
    with open(written(tmp_path, data), "rb", buffering=buffering) as file:
        file.seek(start)
        file.read(read)
        expected = data[start + read :] if start <= length else b""
        result = shared_stores[False].add(next(IDS), file)
        assert file.tell() == max(length, start)
    stored_as(shared_stores[False], result, expected)
    shared_stores[False].delete(result.url)


# Verifier, progress, algorithms.


class Verifier:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def update(self, piece: Any) -> None:
        self.kept.append(piece)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", sorted(KINDS.keys() - NOT_EMPTY))
def test_verifier_gets_every_byte_and_may_keep_it(name: str, length: int, store: Store, tmp_path: Path) -> None:
    verifier = Verifier()
    with KINDS[name](content(length), tmp_path) as opened:
        stored_as(store, store.add("image", opened.source, length, verifier=verifier), content(length))
    store.add("another", bytes(4 * CHUNK))  # goes through the same buffers
    assert b"".join(bytes(piece) for piece in verifier.kept) == content(length)


@pytest.mark.parametrize("name", ["plain_bytes", "file_buffered", "only_read", "generator", "list_of_pieces", "pipe"])
@pytest.mark.parametrize("length", [0, 1, CHUNK])
def test_verifier_gets_no_empty_piece(length: int, name: str, store: Store, tmp_path: Path) -> None:
    verifier = Verifier()
    with KINDS[name](content(length), tmp_path) as opened:
        store.add("image", opened.source, verifier=verifier)
    assert all(len(piece) for piece in verifier.kept)


@pytest.mark.parametrize("thin", [False, True], ids=["thick", "thin"])
def test_verifier_gets_the_zeroes_of_a_sparse_file(thin: bool, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(HEAD)
        file.truncate(1024 * 1024)
    verifier = Verifier()
    with Store(datadir=str(tmp_path / "images"), durability="none", thin_provisioning=thin) as store:
        store.add("image", path, verifier=verifier)
    assert b"".join(bytes(piece) for piece in verifier.kept) == path.read_bytes()


class FalseVerifier(Verifier):
    def __bool__(self) -> bool:
        return False


def test_false_verifier_is_not_called(store: Store) -> None:
    verifier = FalseVerifier()
    store.add("image", b"image", verifier=verifier)
    assert not verifier.kept


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["file_buffered", "only_read", "only_readinto", "generator", "plain_bytes"])
def test_progress_rises_to_the_size(name: str, length: int, store: Store, tmp_path: Path) -> None:
    told: list[int] = []
    with KINDS[name](content(length), tmp_path) as opened:
        store.add("image", opened.source, length, progress=told.append)
    assert told == sorted(told)
    assert told[-1:] == [length] or (length == 0 and not told)


def usable(name: str) -> bool:
    """Whether hashlib makes digests of a fixed length with this algorithm here."""
    try:
        return hashlib.new(name).digest_size > 0
    except ValueError:  # listed, but switched off in this OpenSSL
        return False


@pytest.mark.parametrize("algorithm", sorted(filter(usable, hashlib.algorithms_available)))
def test_algorithm(algorithm: str, store: Store) -> None:
    data = content(4 * CHUNK + 1)
    assert algorithm in hashing.available()
    for image_id, source in (("bytes", data), ("pieces", pieces_of(data, [5, CHUNK]))):
        stored_as(store, store.add(image_id, source, len(data), algorithm), data, algorithm)


def test_available_is_sorted_and_true() -> None:
    names = hashing.available()
    assert list(names) == sorted(names)
    assert {"md5", "sha256", "sha512", "blake2b", "sha3_256"} <= set(names)
    assert all(map(usable, names))


REFUSED = sorted({name for name in hashlib.algorithms_available if not usable(name)} | {"shake_128", "nonsense", ""})


@pytest.mark.parametrize("algorithm", REFUSED)
def test_algorithm_refused_before_the_first_byte(algorithm: str, store: Store, unchanged: None) -> None:
    source = io.BytesIO(b"image")
    with pytest.raises(fastfs.UnknownHashingAlgo) as caught:
        store.add("image", source, 5, algorithm)
    assert isinstance(caught.value, fastfs.Invalid)
    assert source.tell() == 0
    assert algorithm not in hashing.available()


# Sources that lie.


class Scripted:
    """`read` or `readinto` gives one block of data, then what the script says."""

    def __init__(self, then: Callable[[Any], Any]) -> None:
        self.then = then
        self.begun = False

    def step(self, argument: Any) -> Any:
        if self.begun:
            return self.then(argument)
        self.begun = True
        return None

    def read(self, size: int) -> Any:
        return content(CHUNK)[:size] if not self.begun and self.step(size) is None else self.step(size)


class ScriptedInto(Scripted):
    read = None  # type: ignore[assignment]

    def readinto(self, buffer: Any) -> Any:
        if self.begun:
            return self.step(buffer)
        self.step(buffer)
        length = min(CHUNK, len(buffer))
        buffer[:length] = content(CHUNK)[:length]
        return length


def then_yields(value: object) -> Iterator[Any]:
    yield content(CHUNK)
    yield value


BAD_SOURCES: dict[str, Callable[[], Any]] = {
    "read gives None": lambda: Scripted(lambda size: None),
    "read gives str": lambda: Scripted(lambda size: "text"),
    "read gives an empty str": lambda: Scripted(lambda size: ""),
    "read gives an int": lambda: Scripted(lambda size: 7),
    "readinto gives None": lambda: ScriptedInto(lambda buffer: None),
    "readinto gives str": lambda: ScriptedInto(lambda buffer: "7"),
    "readinto gives a negative number": lambda: ScriptedInto(lambda buffer: -1),
    "readinto gives more than there is room": lambda: ScriptedInto(lambda buffer: len(buffer) + 1),
    "readinto gives a huge number": lambda: ScriptedInto(lambda buffer: 2**70),
    "iterator gives None": lambda: then_yields(None),
    "iterator gives str": lambda: then_yields("text"),
    "iterator gives an int": lambda: then_yields(7),
    "text file": lambda: io.StringIO("text"),
    "iterable of str": lambda: ["text"],
    "nothing": lambda: None,
    "a number": lambda: 7.5,
    "an object": object,
}


@pytest.mark.parametrize("known", [0, 3 * CHUNK], ids=["unknown", "known"])
@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_source(name: str, known: int, store: Store, unchanged: None) -> None:
    with pytest.raises(fastfs.BadSource) as caught:
        store.add("image", BAD_SOURCES[name](), known)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, fastfs.Invalid)
    with pytest.raises(fastfs.NotFound):
        store.find("image")


@pytest.mark.parametrize("name", ["read gives None", "iterator gives str", "nothing"])
def test_bad_source_names_the_image(name: str, store: Store) -> None:
    with pytest.raises(fastfs.BadSource) as caught:
        store.add("image", BAD_SOURCES[name]())
    assert caught.value.image_id == "image"


@pytest.mark.parametrize("text", [True, False], ids=["opened as text", "non-blocking, empty"])
def test_bad_file(text: bool, store: Store, tmp_path: Path, unchanged: None) -> None:
    near, far = os.pipe()
    os.set_blocking(near, False)
    with (
        open(far, "wb", buffering=0),
        open(near, "rb", buffering=0) as empty,
        open(written(tmp_path, b"text"), encoding="ascii") as file,
        pytest.raises(fastfs.BadSource),
    ):
        store.add("image", file if text else OnlyReadNamed(empty.read))


def test_read_that_gives_more_than_asked_for(store: Store, unchanged: None) -> None:
    """More than asked for is still the source's data, or an error; it is never cut off in silence."""
    given: list[int] = []

    def read(size: int) -> bytes:
        piece = b"" if len(given) > 1 else content(size + 7)
        given.append(len(piece))
        return piece

    try:
        result = store.add("image", OnlyReadNamed(read))
    except fastfs.BadSource:
        return
    assert result.size == sum(given)
    store.delete(result.url)


class OnlyReadNamed:
    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read


SIZES = {"one more": 1, "one chunk more": CHUNK, "one less": -1, "one chunk less": -CHUNK, "far more": 10**9}


@WAYS
@pytest.mark.parametrize("difference", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", [name for name in KINDS if name != "fifo_path"])
def test_wrong_size(
    name: str, difference: int, store: Store, tmp_path: Path, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SOCKET_GRACE_MS", 30_000)  # the other side may be late on a busy machine
    with KINDS[name](content(3 * CHUNK), tmp_path) as opened, pytest.raises(fastfs.SizeMismatch) as caught:
        store.add("image", opened.source, 3 * CHUNK + difference)
    assert isinstance(caught.value, fastfs.Invalid)
    assert isinstance(caught.value, ValueError)
    assert str(3 * CHUNK + difference) in str(caught.value)


@pytest.mark.parametrize("size", [-1, -(2**63), 1.5, "5", b"5", [5]], ids=repr)
def test_size_that_is_no_size(size: Any, store: Store, unchanged: None) -> None:
    source = io.BytesIO(b"image")
    with pytest.raises(fastfs.Invalid):
        store.add("image", source, size)
    assert source.tell() == 0


@pytest.mark.parametrize(
    "size", [2**62, 2**63 - 1, 2**63, 2**64, 2**200], ids=["2^62", "2^63-1", "2^63", "2^64", "2^200"]
)
def test_absurd_size(size: int, store: Store, unchanged: None) -> None:
    with pytest.raises((fastfs.Invalid, fastfs.StorageFull)):
        store.add("image", io.BytesIO(b"image"), size)


@pytest.mark.parametrize("declared", [1, 1000, CHUNK, 3 * CHUNK + 1])
def test_source_is_not_read_across_the_declared_size(declared: int, store: Store, unchanged: None) -> None:
    """Not one `read` asks for bytes on both sides of the declared size: what comes next may not be ours."""
    asked: list[tuple[int, int]] = []
    inner = OnlyRead(content(20 * CHUNK))

    def read(size: int) -> bytes:
        asked.append((inner.taken, inner.taken + size))
        return inner.read(size)

    with pytest.raises(fastfs.SizeMismatch):
        store.add("image", OnlyReadNamed(read), declared)
    assert all(end <= declared or start >= declared for start, end in asked)
    assert inner.taken <= declared + 4 * CHUNK


ERRORS: dict[str, BaseException] = {
    "ENOSPC": OSError(28, "the source's disk is full"),
    "EACCES": PermissionError(13, "the source is not readable"),
    "EIO": OSError(5, "the source is broken"),
    "no errno": OSError("no errno"),
    "FileExistsError": FileExistsError(17, "the source's own"),
    "TimeoutError": TimeoutError(110, "the source is late"),
    "ValueError": ValueError("the source's own"),
    "AttributeError": AttributeError("the source's own"),
    "MemoryError": MemoryError(),
    "NotFound": fastfs.NotFound("from another store"),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "SystemExit": SystemExit(3),
    "GeneratorExit": GeneratorExit(),
}


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*arguments: object) -> Any:
        raise error

    return function


class RaisingVerifier:
    def __init__(self, error: BaseException) -> None:
        self.update = raising(error)


def then_raises(error: BaseException) -> Iterator[bytes]:
    yield content(CHUNK)
    raise error


RAISERS: dict[str, Callable[[BaseException], dict[str, Any]]] = {
    "read at once": lambda error: {"image_file": OnlyReadNamed(raising(error))},
    "read in the middle": lambda error: {"image_file": Scripted(raising(error))},
    "readinto in the middle": lambda error: {"image_file": ScriptedInto(raising(error))},
    "iterator in the middle": lambda error: {"image_file": then_raises(error)},
    "verifier": lambda error: {"image_file": content(CHUNK), "verifier": RaisingVerifier(error)},
    "verifier of a file": lambda error: {"image_file": Path(__file__), "verifier": RaisingVerifier(error)},
    "progress": lambda error: {"image_file": content(CHUNK), "progress": raising(error)},
    "progress of a file": lambda error: {"image_file": Path(__file__), "progress": raising(error)},
}


@WAYS
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("place", RAISERS)
def test_error_of_the_caller_comes_out_unchanged(
    place: str, error: BaseException, store: Store, unchanged: None
) -> None:
    before = (repr(error), dict(vars(error)))
    with pytest.raises(type(error)) as caught:
        store.add("image", **RAISERS[place](error))
    assert caught.value is error
    assert (repr(error), dict(vars(error))) == before
    error.__traceback__ = None
    with pytest.raises(fastfs.NotFound):
        store.find("image")


@pytest.mark.parametrize("path", ["/nonexistent/image", "/proc", ""], ids=["missing", "directory", "empty"])
def test_path_that_cannot_be_read(path: str, store: Store, unchanged: None) -> None:
    with pytest.raises((FileNotFoundError, IsADirectoryError)) as caught:
        store.add("image", path)
    assert not isinstance(caught.value, (fastfs.StorageFull, fastfs.StorageWriteDenied, fastfs.StorageError))


@pytest.mark.parametrize("state", ["closed", "write-only"])
def test_file_that_cannot_be_read(state: str, store: Store, tmp_path: Path, unchanged: None) -> None:
    with open(written(tmp_path, b"image"), "rb" if state == "closed" else "wb") as file:
        if state == "closed":
            file.close()
        with pytest.raises((ValueError, OSError)):
            store.add("image", file)


def test_source_that_uses_the_same_store(store: Store) -> None:
    def source() -> Iterator[bytes]:
        yield content(CHUNK)
        store.add("inner", content(1))
        yield content(1)

    stored_as(store, store.add("outer", source()), content(CHUNK) + content(1))
    assert store.get_size(store.find("inner")) == 1


def test_source_that_stores_the_same_image(store: Store, images: Path) -> None:
    def source() -> Iterator[bytes]:
        yield content(CHUNK)
        store.add("image", content(1))

    with pytest.raises(fastfs.Duplicate):
        store.add("image", source())
    assert [path.name for path in images.iterdir() if not path.name.startswith(".")] == ["image"]
    assert (images / "image").read_bytes() == content(1)


def test_copying_an_image_within_a_store(store: Store) -> None:
    url = store.add("original", content(4 * CHUNK + 1)).url
    reader, size = store.get(url)
    with reader:
        stored_as(store, store.add("copy", reader, size), content(4 * CHUNK + 1))
