"""Images that go out through a socket: what the sender takes, with a receiver in a process of its own.

glance_store's ChunkedFile is sent as a web server does it, piece by piece with ``sendall``; fastfs' by ``sendfile``.
A round ends when the receiver has had every byte and said so.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.stores import OpenStore
from bench.work import GetWork, Round

#: What the receiver does with the bytes: the first byte of a connection says so.
COUNT, DIGEST = b"c", b"d"


class SendWork(GetWork):
    """``send-unix``, ``send-tcp`` over the loopback interface; ``-discard``: a receiver that has the kernel throw the
    bytes away, so that only the sender's work shows, as when the receiver is another machine; ``-shifted``: one whose
    buffer begins 16 bytes behind a page, as memory from malloc does, where some processors copy at a fraction of their
    speed from the pages that sendfile hands on."""

    def _make(self) -> None:
        super()._make()
        _, family, *kind = self.case.work.split("-")
        near, far = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._receiver = context.Process(target=_receive, args=(far, family, *kind), daemon=True)
        self._receiver.start()
        self._answers = near
        self._address = near.recv()

    def close(self) -> None:
        self._receiver.terminate()
        self._receiver.join()
        super().close()

    def _connect(self, what: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET)
        sock.connect(self._address)
        sock.sendall(what)
        return sock

    def prepare(self, store: OpenStore) -> Round:
        return Round([(*job, self._connect(COUNT)) for job in super().prepare(store).jobs])

    def one(self, store: OpenStore) -> Callable[..., Any]:
        send = _by_sendfile if store.side.store == "fastfs" else _by_pieces

        def one(location: Any, sock: socket.socket) -> Any:
            send(store, location, sock)
            sock.shutdown(socket.SHUT_WR)
            return self._answers.recv()

        return one

    def finish(self, store: OpenStore, round_: Round) -> None:
        for job in round_.jobs:
            job[1].close()
        if store not in self._verified and self._material is not None:
            with self._connect(DIGEST) as sock:
                if self.one(store)(round_.jobs[0][0], sock) != hashlib.sha512(self._path().read_bytes()).hexdigest():
                    raise RuntimeError(f"{store.side}: other bytes were sent than were stored")
        super().finish(store, round_)

    def _path(self) -> Path:
        return self._stores[0].datadir / "image"


def _by_pieces(store: OpenStore, location: Any, sock: socket.socket) -> None:
    for piece in store.get(location)[0]:
        sock.sendall(piece)


def _by_sendfile(store: OpenStore, location: Any, sock: socket.socket) -> None:
    reader: Any = store.get(location)[0]
    with reader:
        reader.sendfile(sock)


def _receive(answers: Connection, family: str, kind: str = "") -> None:
    """Take connections one after the other; tell of each how many bytes came, or their digest."""
    with tempfile.TemporaryDirectory() as directory:
        if family == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(os.path.join(directory, "socket"))
        else:
            listener = socket.create_server(("127.0.0.1", 0))
        listener.listen()
        answers.send(listener.getsockname())
        shift = 16 if kind == "shifted" else 0
        buffer = memoryview(mmap.mmap(-1, 256 * 1024 + shift))[shift:]
        while True:
            sock, _ = listener.accept()
            with sock:
                digest = hashlib.sha512() if sock.recv(1) == DIGEST else None
                flags, total = socket.MSG_TRUNC if kind == "discard" and digest is None else 0, 0
                while n := sock.recv_into(buffer, len(buffer), flags):
                    total += n
                    if digest is not None:
                        digest.update(buffer[:n])
                answers.send(total if digest is None else digest.hexdigest())
