"""`ChunkedFile.sendfile`: its arguments, targets that take nothing now or at all, signals, how the way is chosen."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consumers import BUFFER, Certificate, Stopped, tcp_pair, unix_pair

import fastfs
from fastfs import Store, _native
from fastfs.targets import open_target

MIB = 1 << 20
SIZE = 8 * MIB + 11
CONTENT = random.Random(3).randbytes(SIZE)


@pytest.fixture(params=[0, pytest.param(60, marks=pytest.mark.slow)], ids=["plain", "timeout"])
def reader(request: Any, tmp_path: Path) -> Iterator[fastfs.ChunkedFile]:
    with Store(datadir=str(tmp_path / "images"), durability="none", timeout=request.param) as store:
        (tmp_path / "images" / "image").write_bytes(CONTENT)
        with store.get(store.find("image"), 100, SIZE - 200)[0] as reader:
            yield reader


RANGE = CONTENT[100:-100]


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, RANGE),
        (5, None, RANGE[5:]),
        (5, 7, RANGE[5:12]),
        (len(RANGE) - 1, 100, RANGE[-1:]),
        (len(RANGE), None, b""),
        (len(RANGE) + 1, 5, b""),
        (2**70, None, b""),
        (0, 0, b""),
        (0, 2**70, RANGE),
    ],
)
def test_part_of_a_range(offset: int, count: int | None, expected: bytes, reader: fastfs.ChunkedFile) -> None:
    target = io.BytesIO()
    assert reader.sendfile(target, offset, count) == len(expected)
    assert target.getvalue() == expected
    with tempfile.TemporaryFile() as file:
        assert reader.sendfile(file, offset, count) == len(expected)
        file.seek(0)
        assert file.read() == expected
    assert reader.tell() == 100, "the reader's position has moved"


@pytest.mark.parametrize(("offset", "count"), [(-1, None), (0, -1), (1.0, None), (0, "1")])
def test_no_part(offset: Any, count: Any, reader: fastfs.ChunkedFile) -> None:
    with pytest.raises(fastfs.Invalid, match="no number of bytes"):
        reader.sendfile(io.BytesIO(), offset, count)


@pytest.mark.parametrize("target", [None, 1.5, "path", io.StringIO(), object()], ids=lambda value: type(value).__name__)
def test_no_target(target: Any, reader: fastfs.ChunkedFile) -> None:
    with pytest.raises(fastfs.Invalid):
        reader.sendfile(target)


def test_other_targets_that_cannot_be(reader: fastfs.ChunkedFile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as file, pytest.raises(fastfs.Invalid, match="not open for writing"):
        reader.sendfile(file)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(fastfs.Invalid, match="no stream"):
        reader.sendfile(sock)
    gone = os.open(os.devnull, os.O_WRONLY)
    os.close(gone)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.sendfile(gone)
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space left"):
        reader.sendfile(full)


def test_closed_reader(reader: fastfs.ChunkedFile) -> None:
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.sendfile(io.BytesIO())


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
def test_partial_counts(pair: Any, reader: fastfs.ChunkedFile) -> None:
    """A target in non-blocking mode takes what it can, then nothing."""
    near, far = pair()
    with near, far:
        near.setblocking(False)
        done = 0
        with pytest.raises(BlockingIOError):  # noqa: PT012 - how many calls it takes is the kernel's to say
            while True:
                count = reader.sendfile(near, done)
                assert count > 0
                done += count
                assert done < len(RANGE)
        got = bytearray()
        while len(got) < done:
            got += far.recv(MIB)
        assert got == RANGE[:done]


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
def test_timeout(pair: Any, reader: fastfs.ChunkedFile) -> None:
    near, far = pair()
    with near, far:
        near.settimeout(0.05)
        with pytest.raises(TimeoutError):
            reader.sendfile(near)
        near.settimeout(None)


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
def test_signals(pair: Any, tmp_path: Path) -> None:
    """EINTR, some hundred times, loses nothing and sends nothing twice; a handler that raises ends it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image").write_bytes(CONTENT * 4)
    store = Store(datadir=str(tmp_path / "images"), durability="none")
    near, far = pair()
    got, seen = bytearray(), []

    def receive() -> None:
        while piece := far.recv(BUFFER):
            got.extend(piece)

    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    thread = threading.Thread(target=receive)
    try:
        thread.start()
        with store.get(store.find("image"))[0] as reader:
            assert reader.sendfile(near) == len(CONTENT) * 4
        near.close()
        thread.join()
        assert got == CONTENT * 4
        assert seen
        signal.setitimer(signal.ITIMER_REAL, 0)
        near, other = pair()
        signal.signal(signal.SIGALRM, _stop)
        with near, other, store.get(store.find("image"))[0] as reader, pytest.raises(Stopped):  # noqa: PT012
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            reader.sendfile(near)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        far.close()


def _stop(*_: object) -> None:
    raise Stopped


def test_several_threads_share_a_reader(reader: fastfs.ChunkedFile) -> None:
    results: list[bytes] = []

    def send() -> None:
        target = io.BytesIO()
        reader.sendfile(target)
        results.append(target.getvalue())

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [RANGE] * 4


def test_closed_by_another_thread(tmp_path: Path) -> None:
    """The descriptor is given back when the last that uses it has ended, and not before."""
    with Store(datadir=str(tmp_path), durability="none") as store:
        (tmp_path / "image").write_bytes(CONTENT)
        reader = store.get(store.find("image"))[0]
        near, far = tcp_pair()
        sent: list[int] = []
        thread = threading.Thread(target=lambda: sent.append(reader.sendfile(near)))
        thread.start()
        got = bytearray(far.recv(1))
        reader.close()
        while len(got) < SIZE:
            got += far.recv(MIB)
        thread.join()
        assert (bytes(got), sent, reader.closed) == (CONTENT, [SIZE], True)
        near.close()
        far.close()


async def connected(near: Any, far: Any, kind: str, tls: bool) -> tuple[Any, Any, Any]:
    """(What is sent to, its transport, the other end of it.)"""
    server, client = Certificate.contexts()
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(stream)
    peer = loop.run_in_executor(None, client.wrap_socket, far) if tls else None
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, near, ssl=server if tls else None)
    target = transport if kind == "transport" else asyncio.StreamWriter(transport, protocol, stream, loop)
    return target, transport, await peer if peer else far


CONNECTIONS = pytest.mark.parametrize(
    ("kind", "tls"),
    [("transport", False), ("transport", True), ("writer", False), ("writer", True)],
    ids=["transport", "tls transport", "writer", "tls writer"],
)


@pytest.mark.parametrize("known", [True, False])
@CONNECTIONS
def test_connection_lost_before(kind: str, tls: bool, known: bool, reader: fastfs.ChunkedFile) -> None:
    """Told, whatever the loop calls it: RuntimeError of sendfile, AttributeError of TLS in CPython 3.10, or nothing."""

    async def send() -> int:
        target, transport, peer = await connected(*tcp_pair(), kind, tls)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset
        if known:
            await asyncio.sleep(0.05)
        try:
            return await reader.asendfile(target, 0, 100_000)
        finally:
            transport.close()

    with pytest.raises(ConnectionError):
        asyncio.run(send())


@CONNECTIONS
def test_closed_meanwhile(kind: str, tls: bool, reader: fastfs.ChunkedFile) -> None:
    """By the sender itself, while its receiver takes nothing: asyncio's own sendfile waits for ever."""

    async def send() -> int:
        near, far = tcp_pair()
        target, transport, peer = await connected(near, far, kind, tls)
        with peer:
            asyncio.get_running_loop().call_later(0.05, transport.abort)
            return await asyncio.wait_for(reader.asendfile(target), 30)

    with pytest.raises(ConnectionError):
        asyncio.run(send())


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "paused"])
@pytest.mark.parametrize("kind", ["transport", "writer"])
def test_peer_shuts_down(kind: str, reading: bool, reader: fastfs.ChunkedFile) -> None:
    """TLS that has heard the end of what comes may throw away what is to go; then that is told."""
    got = bytearray()

    def receive(peer: Any) -> None:
        with socket.socket(fileno=os.dup(peer.fileno())) as plain:
            plain.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        peer.settimeout(30)
        with peer, contextlib.suppress(OSError):
            while piece := peer.recv(65536):
                got.extend(piece)

    async def send() -> int:
        target, transport, peer = await connected(*tcp_pair(), kind, True)
        if not reading:
            transport.pause_reading()
        thread = asyncio.get_running_loop().run_in_executor(None, receive, peer)
        try:
            count = await asyncio.wait_for(reader.asendfile(target), 30)
            transport.close()
            return count
        except BaseException:
            transport.abort()
            raise
        finally:
            await thread

    try:
        count = asyncio.run(send())
    except ConnectionError:
        return
    assert bytes(got) == RANGE[:count]


def test_the_way_of_each_target(tmp_path: Path) -> None:
    near, far = unix_pair()
    with near, far:
        assert open_target(near).way == _native.BY_SENDFILE
    for address in ("127.0.0.1", "::1"):
        near, far = tcp_pair(address)
        with near, far:
            assert open_target(near).way == open_target(near.fileno()).way == _native.BY_MAPPING
    with (tmp_path / "file").open("wb") as file:
        assert open_target(file).way == _native.BY_MEMORY
        assert open_target(file, descriptors=False).put is not None
    far_fd, near_fd = os.pipe()
    assert open_target(near_fd).way == _native.BY_SENDFILE
    os.close(near_fd)
    os.close(far_fd)
    assert open_target(io.BytesIO()).put is not None
