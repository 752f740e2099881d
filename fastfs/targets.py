# SPDX-License-Identifier: Apache-2.0
"""What can the target of a `ChunkedFile.sendfile` do, and what moves bytes there with the least work.

* Pipes, Unix sockets, TCP to another machine: sendfile(2), the kernel hands on its own pages.
* TCP to this machine: send(2) out of the mapped file.  Pages of sendfile are copied by the reader, who finds them cold;
  here the sender copies, on a processor of its own: 512 MiB took 160 ms, not 184, where glance_store's loop took 300.
* Files: shared blocks where the file system has them, else pread and write, which is twice as fast as sendfile.
* TLS, anything with ``sendall`` or ``write``: pread, then that.
"""

from __future__ import annotations

import _socket
import fcntl
import io
import math
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastfs import _native
from fastfs.exceptions import BadTarget
from fastfs.sources import unwrap


@dataclass
class Target:
    """Where bytes go."""

    #: The descriptor; -1: use `put`.
    fd: int = -1
    socket: bool = False
    #: The descriptor's file type is that of a regular file.
    file: bool = False
    #: ``_native.BY_...``
    way: int = _native.BY_SENDFILE
    #: How long to wait for it in milliseconds; -1: for ever, 0: not at all.
    wait_ms: int = -1
    #: Takes all or some of a piece and returns how many bytes, None if it cannot take any now.
    put: Callable[[bytes], int | None] | None = None
    #: A Python file over the descriptor, whose idea of its position must follow.
    owner: Any = None

    def settle(self) -> None:
        """Bytes have gone to the descriptor."""
        if self.owner is not None and self.owner.seekable():
            self.owner.seek(0, os.SEEK_CUR)


def open_target(target: Any, descriptors: bool = True) -> Target:
    """Find the way out.

    :param descriptors: False: by `put` only, because every byte is read in Python.
    :raises BadTarget: nothing that bytes can be sent to.
    :raises OSError: a descriptor that is not open.
    """
    if isinstance(target, int) and not isinstance(target, bool):
        return _descriptor(target) if descriptors else Target(put=_to_descriptor(target), wait_ms=_patience(target))
    target = unwrap(target)
    if isinstance(target, io.TextIOBase):
        raise BadTarget(f"{target!r} takes text, not bytes: open it in binary mode ('wb')")
    if isinstance(target, io.IOBase) and not target.writable():
        raise BadTarget(f"{target!r} is not open for writing")
    if _plain_socket(target):
        if target.type != socket.SOCK_STREAM:
            raise BadTarget(f"{target!r} is no stream socket")
        if descriptors:
            timeout = target.gettimeout()
            return _of_socket(target.fileno(), -1 if timeout is None else math.ceil(timeout * 1000))
    elif _plain_file(target) and descriptors:
        target.flush()
        found = _descriptor(target.fileno())
        found.owner = target if isinstance(target, io.BufferedIOBase) else None
        return found
    if hasattr(target, "sendall"):
        blocking = getattr(target, "gettimeout", lambda: None)() != 0
        return Target(put=_sending(target) if blocking else target.send, wait_ms=-1 if blocking else 0)
    if hasattr(target, "write"):
        return Target(put=_writing(target))
    if hasattr(target, "fileno"):
        return open_target(target.fileno(), descriptors)
    raise BadTarget(
        f"target is {type(target).__name__!r}; give a socket, a file open in binary mode, a descriptor or anything "
        "with write()"
    )


def _plain_socket(target: Any) -> bool:
    """Do the descriptor's bytes and the socket's mean the same?  Not with TLS, or where an event loop sends."""
    cls = type(target)
    return (
        isinstance(target, _socket.socket) and cls.send is _socket.socket.send and cls.sendall is _socket.socket.sendall
    )


def _plain_file(target: Any) -> bool:
    kind = type(target)
    return kind is io.FileIO or (kind in (io.BufferedWriter, io.BufferedRandom) and type(target.raw) is io.FileIO)


def _of_socket(fd: int, wait_ms: int) -> Target:
    way = _native.BY_MAPPING if _native.is_local(fd) else _native.BY_SENDFILE
    return Target(fd, socket=True, way=way, wait_ms=wait_ms)


def _patience(fd: int) -> int:
    return 0 if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK else -1


def _descriptor(fd: int) -> Target:
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _of_socket(fd, _patience(fd))
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return Target(fd, file=stat.S_ISREG(mode), way=_native.BY_MEMORY)
    return Target(fd, wait_ms=_patience(fd))


def _to_descriptor(fd: int) -> Callable[[bytes], int | None]:
    return lambda piece: os.write(fd, piece)


def _sending(target: Any) -> Callable[[bytes], int | None]:
    def put(piece: bytes) -> int:
        target.sendall(piece)
        return len(piece)

    return put


def _writing(target: Any) -> Callable[[bytes], int | None]:
    def put(piece: bytes) -> int | None:
        count = target.write(piece)
        if isinstance(count, int) and 0 <= count <= len(piece):
            return count
        # None is "cannot take any now" for raw streams, and nothing at all for those that take everything.
        return None if isinstance(target, io.RawIOBase) else len(piece)

    return put
