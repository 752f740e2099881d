"""Everybody who takes an image: one function each, from a reader to the bytes that arrived.

A consumer calls ``meanwhile`` once, when the first bytes have come (or before any, where all come at one go), and gives
up right after that if ``stop`` is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

from fastfs import ChunkedFile

Meanwhile = Callable[[], object]
Consumer = Callable[[ChunkedFile, Meanwhile, bool], bytes]

#: Much less than the images that are sent, so that a sender has to wait for its receiver.
BUFFER = 64 * 1024

# What a sender may be told when its receiver has gone.
GONE = (ConnectionError, ssl.SSLError)


class Stopped(Exception):
    """A target that takes no more."""


# -- by hand ------------------------------------------------------------------------------------------------


def iterate(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    """Drops the reader half-way, without closing it."""
    got = bytearray()
    for n, piece in enumerate(reader):
        got += piece
        if n == 0:
            meanwhile()
            if stop:
                break
    return bytes(got)


def read_pieces(reader: Any, meanwhile: Meanwhile, stop: bool) -> bytes:
    got = bytearray()
    with reader:
        while piece := reader.read(100_000):
            if not got:
                meanwhile()
            got += piece
            if stop:
                break
    return bytes(got)


def read_all(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    meanwhile()
    with reader:
        return reader.read(10) if stop else reader.read()


def readinto(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    got, buffer = bytearray(), bytearray(100_001)
    with reader:
        while n := reader.readinto(buffer):
            if not got:
                meanwhile()
            got += buffer[:n]
            if stop:
                break
    return bytes(got)


def copyfileobj(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    with reader:
        target = Collector(meanwhile, stop)
        shutil.copyfileobj(reader, target)
    return bytes(target.got)


def wsgi_file_wrapper(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    """A server whose wrapper reads, as that of wsgiref and uWSGI without offloading."""
    wrapper: Any = FileWrapper(reader, 65536)  # type: ignore[arg-type]
    try:
        return iterate(wrapper, meanwhile, stop)
    finally:
        wrapper.close()


# -- out through Python -------------------------------------------------------------------------------------


class Collector:
    """Nothing but ``write``."""

    def __init__(self, meanwhile: Meanwhile, stop: bool) -> None:
        self.got = bytearray()
        self.meanwhile = meanwhile
        self.stop = stop

    def write(self, data: Any) -> None:
        first = not self.got
        self.got += data
        if first:
            self.meanwhile()
            if self.stop:
                raise Stopped


class Sender:
    """Nothing but ``sendall``."""

    def __init__(self, meanwhile: Meanwhile, stop: bool) -> None:
        target = Collector(meanwhile, stop)
        self.collector = target
        self.sendall = target.write


def to_write(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    target = Collector(meanwhile, stop)
    with reader:
        count = reader.sendfile(target)
    assert count == len(target.got)
    return bytes(target.got)


def to_sendall(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    target = Sender(meanwhile, stop)
    with reader:
        count = reader.sendfile(target)
    assert count == len(target.collector.got)
    return bytes(target.collector.got)


def to_bytesio(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    target = io.BytesIO()
    meanwhile()
    with reader:
        count = reader.sendfile(target, 0, 10 if stop else None)
    assert count == len(target.getvalue())
    return target.getvalue()


# -- out through descriptors --------------------------------------------------------------------------------


@contextlib.contextmanager
def receiving(take: Callable[[int], bytes], end: Callable[[], object], meanwhile: Meanwhile, stop: bool) -> Any:
    """Take bytes on another thread until there are none; gives the buffer they are collected in."""
    got = bytearray()
    failed: list[BaseException] = []

    def receive() -> None:
        try:
            first = True
            while piece := take(1 << 20):
                got.extend(piece)
                if first:
                    first = False
                    meanwhile()
                    if stop:
                        return
        except ssl.SSLError:
            pass  # a sender that gave up without a farewell
        except BaseException as error:
            failed.append(error)
        finally:
            end()

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield got
    finally:
        thread.join()
        if failed:
            raise failed[0]


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair(address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        far = socket.socket(family)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return near, far


def through(
    pair: Callable[[], Any], send: Callable[[ChunkedFile, Any], int | None], *, slowly: bool = False
) -> Consumer:
    def consume(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
        near, far = pair()

        def receive(size: int) -> bytes:
            if slowly:
                time.sleep(0.0005)
            return bytes(far.recv(size))

        with reader, receiving(receive, far.close, meanwhile, stop) as got:
            try:
                count = send(reader, near)
            finally:
                near.close()
        assert count in (None, len(got)), "what was told to be sent is not what came"
        return bytes(got)

    return consume


def blocking(reader: ChunkedFile, near: Any) -> int:
    return reader.sendfile(near)


def with_timeout(reader: ChunkedFile, near: Any) -> int:
    near.settimeout(60)
    return reader.sendfile(near)


def non_blocking(reader: ChunkedFile, near: Any) -> int:
    near.setblocking(False)
    done = 0
    while done < reader.length:
        try:
            count = reader.sendfile(near, done)
            assert count > 0
            done += count
        except BlockingIOError:
            select.select([], [near], [])
    return done


def by_descriptor(reader: ChunkedFile, near: Any) -> int:
    return reader.sendfile(near.fileno())


def by_standard_library(reader: ChunkedFile, near: Any) -> int | None:
    """What gunicorn does with a ``wsgi.file_wrapper``."""
    position = os.lseek(reader.fileno(), 0, os.SEEK_CUR)
    if not reader.length:
        return 0
    count: int = near.sendfile(reader, offset=position, count=reader.length)
    # It stops without a word at the end of a file: that less was sent than announced is the server's to tell.
    if count < reader.length:
        raise EOFError(f"{count} bytes were sent, not {reader.length}")
    return count


class Pipe:
    """A pipe with the face of a socket."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def recv(self, size: int) -> bytes:
        return os.read(self.fd, size)

    def close(self) -> None:
        os.close(self.fd)


def pipe() -> tuple[Pipe, Pipe]:
    far, near = os.pipe()
    return Pipe(near), Pipe(far)


class Certificate:
    """Made when it is first needed."""

    _contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None

    @classmethod
    def contexts(cls) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        if cls._contexts is None:
            with tempfile.TemporaryDirectory() as directory:
                key, certificate = Path(directory, "key"), Path(directory, "certificate")
                command = [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "1",
                    "-subj",
                    "/CN=here",
                ]
                command += ["-keyout", str(key), "-out", str(certificate)]
                subprocess.run(command, check=True, capture_output=True)
                server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                server.load_cert_chain(certificate, key)
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.check_hostname = False
            client.verify_mode = ssl.CERT_NONE
            cls._contexts = server, client
        return cls._contexts


def tls_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    server, client = Certificate.contexts()
    near, far = tcp_pair()
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: accepted.append(server.wrap_socket(near, server_side=True)))
    thread.start()
    wrapped = client.wrap_socket(far, suppress_ragged_eofs=True)
    thread.join()
    return accepted[0], wrapped


def tls_pair_to_be() -> tuple[socket.socket, ssl.SSLSocket]:
    """The near end is still plain; the far one shakes hands when it receives."""
    near, far = tcp_pair()
    _, client = Certificate.contexts()
    return near, client.wrap_socket(far, do_handshake_on_connect=False, suppress_ragged_eofs=True)


def to_file(mode: str, buffering: int = -1, descriptor: bool = False) -> Consumer:
    def consume(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
        with tempfile.TemporaryDirectory() as directory, reader:
            path = Path(directory, "copy")
            with open(path, mode, buffering) as file:
                file.write(b"before")
                if descriptor:
                    file.flush()
                meanwhile()
                target = file.fileno() if descriptor else file
                count = reader.sendfile(target, 0, 10 if stop else None)
                assert file.tell() == 6 + count
                file.write(b"after")
            got = path.read_bytes()
        assert (got[:6], got[-5:], len(got)) == (b"before", b"after", count + 11)
        return got[6:-5]

    return consume


# -- in an event loop ---------------------------------------------------------------------------------------


def async_for(reader: ChunkedFile, meanwhile: Meanwhile, stop: bool) -> bytes:
    async def consume() -> bytes:
        got = bytearray()
        async with reader:
            async for piece in reader:
                first = not got
                got += piece
                if first:
                    meanwhile()
                    if stop:
                        break
        return bytes(got)

    return asyncio.run(consume())


class Bare(asyncio.SelectorEventLoop):
    """A loop that has no sendfile, as uvloop."""

    async def sendfile(self, *_: Any, **__: Any) -> int:
        raise NotImplementedError

    sock_sendfile = sendfile


def run(work: Coroutine[Any, Any, int], kind: type[asyncio.AbstractEventLoop]) -> int:
    loop = kind()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def by_loop_socket(
    reader: ChunkedFile, near: Any, kind: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
) -> int:
    near.setblocking(False)
    return run(reader.asendfile(near), kind)


def by_loop_transport(
    reader: ChunkedFile, near: Any, kind: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
) -> int:
    async def send() -> int:
        _, writer = await asyncio.open_connection(sock=near)
        try:
            return await reader.asendfile(writer)
        finally:
            writer.close()
            with contextlib.suppress(*GONE):
                await writer.wait_closed()

    return run(send(), kind)


def by_bare_transport(reader: ChunkedFile, near: Any, tls: bool = False) -> int:
    """One whose protocol is not asyncio's."""

    async def send() -> int:
        loop = asyncio.get_running_loop()
        context = Certificate.contexts()[0] if tls else None
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, near, ssl=context)
        try:
            return await reader.asendfile(transport)
        finally:
            transport.close()
            while near.fileno() >= 0:
                await asyncio.sleep(0.001)

    return run(send(), asyncio.SelectorEventLoop)


def _consumers() -> Iterator[tuple[str, Consumer]]:
    for function in (iterate, read_pieces, read_all, readinto, copyfileobj, wsgi_file_wrapper, async_for):
        yield function.__name__, function
    for function in (to_write, to_sendall, to_bytesio):
        yield function.__name__, function
    for kind, pair in {"unix": unix_pair, "tcp": tcp_pair, "tcp6": lambda: tcp_pair("::1")}.items():
        yield f"{kind}", through(pair, blocking)
    for kind, pair in {"unix": unix_pair, "tcp": tcp_pair}.items():
        yield f"{kind}, timeout", through(pair, with_timeout)
        yield f"{kind}, non-blocking", through(pair, non_blocking)
        yield f"{kind}, descriptor", through(pair, by_descriptor)
        yield f"{kind}, socket.sendfile", through(pair, by_standard_library)
        yield f"{kind}, loop.sock_sendfile", through(pair, by_loop_socket)
        yield f"{kind}, loop.sendfile", through(pair, by_loop_transport)
        yield f"{kind}, loop.sendfile, slowly", through(pair, by_loop_transport, slowly=True)
        yield f"{kind}, bare transport, slowly", through(pair, by_bare_transport, slowly=True)
    yield "unix, loop without sendfile", through(unix_pair, lambda reader, near: by_loop_socket(reader, near, Bare))
    yield "tcp, loop without sendfile", through(tcp_pair, lambda reader, near: by_loop_transport(reader, near, Bare))
    yield "pipe", through(pipe, by_descriptor)
    yield "tls", through(tls_pair, blocking)
    yield "tls, transport", through(tls_pair_to_be, lambda reader, near: by_bare_transport(reader, near, tls=True))
    yield "file", to_file("wb")
    yield "file, update", to_file("w+b")
    yield "file, unbuffered", to_file("wb", 0)
    yield "file, descriptor", to_file("wb", descriptor=True)


CONSUMERS = dict(_consumers())

#: They come to an end by having asked for less, not by being told.
QUIET = {"iterate", "read_pieces", "read_all", "readinto", "wsgi_file_wrapper", "async_for", "to_bytesio"} | {
    name for name in CONSUMERS if name.startswith("file")
}
