# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and the only table that turns an errno into an exception.

The names are glance_store's.  Each class is also the builtin that a caller would expect (`NotFound` is a
`FileNotFoundError`, `Invalid` a `ValueError`), and each instance tells ``path``, ``image_id`` and ``errno``
(None where there is none).  What the caller's own source or verifier raises is never turned into one of
these: it comes out as it is.
"""

from __future__ import annotations

import builtins
import errno as _errno
import os
from typing import Any, Literal

__all__ = [
    "BadSource",
    "BadStoreConfiguration",
    "BadStoreUri",
    "BadTarget",
    "Duplicate",
    "FastfsError",
    "Forbidden",
    "IntegrityError",
    "Invalid",
    "InvalidImageId",
    "NotFound",
    "SizeMismatch",
    "StorageError",
    "StorageFull",
    "StorageWriteDenied",
    "TimeoutError",
    "UnknownHashingAlgo",
    "Unverifiable",
    "from_oserror",
]


class FastfsError(Exception):
    """The root of every exception of fastfs.

    :param message: what happened, where, and what to do about it.
    :param path: the file or directory concerned.
    :param image_id: the image concerned.
    :param errno: the operating system's error number.
    """

    path: str | None
    image_id: str | None
    errno: int | None
    filename: Any
    default_errno: int | None = None

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        image_id: str | None = None,
        errno: int | None = None,
    ) -> None:
        errno = self.default_errno if errno is None else errno
        if isinstance(self, OSError):
            # OSError keeps its own copies in C, for str(), pickle and `except OSError as e: e.errno`.
            OSError.__init__(self, errno, message)
        else:
            super().__init__(message)
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.image_id = image_id
        self.errno = errno
        if isinstance(self, OSError) and self.path is not None:
            self.filename = self.path

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.path, self.image_id, self.errno)


def _rebuild(
    cls: type[FastfsError], message: str, path: str | None, image_id: str | None, errno: int | None
) -> FastfsError:
    return cls(message, path=path, image_id=image_id, errno=errno)


class NotFound(FastfsError, FileNotFoundError):
    """There is no such image, or the location is not below a data directory."""

    default_errno = _errno.ENOENT


class Duplicate(FastfsError, FileExistsError):
    """An image of that id is stored already; it was not touched."""

    default_errno = _errno.EEXIST

    @classmethod
    def of(cls, image_id: str | None, path: str) -> Duplicate:
        return cls(f"image {image_id} is stored already: {path}", path=path, image_id=image_id, errno=_errno.EEXIST)


class StorageFull(FastfsError, OSError):
    """No data directory has room (ENOSPC), a quota (EDQUOT) or a file size limit (EFBIG) is reached."""

    default_errno = _errno.ENOSPC


class StorageWriteDenied(FastfsError, PermissionError):
    """The data directory may not be written to (EACCES, EPERM, EROFS, or its filesystem is not mounted)."""

    default_errno = _errno.EACCES


class Forbidden(FastfsError, PermissionError):
    """The image may not be read or deleted (EACCES, EPERM, EROFS)."""

    default_errno = _errno.EACCES


class StorageError(FastfsError, OSError):
    """Any other error of the storage: EIO, ESTALE, EMFILE, ..."""

    default_errno = _errno.EIO


class IntegrityError(FastfsError, OSError):
    """Stored bytes are not those that went in.

    :param block: number of the first block that is wrong.
    :param offset: where it begins, in bytes.
    """

    default_errno = _errno.EBADMSG

    block: int | None
    offset: int | None

    def __init__(self, message: str, *, block: int | None = None, offset: int | None = None, **more: Any) -> None:
        super().__init__(message, **more)
        self.block = block
        self.offset = offset

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_integrity, (self.message, self.path, self.image_id, self.errno, self.block, self.offset)


def _rebuild_integrity(
    message: str, path: str | None, image_id: str | None, errno: int | None, block: int | None, offset: int | None
) -> IntegrityError:
    return IntegrityError(message, path=path, image_id=image_id, errno=errno, block=block, offset=offset)


class Unverifiable(FastfsError):
    """The image has no record, or one that cannot be used, so that its bytes cannot be checked."""


class TimeoutError(FastfsError, builtins.TimeoutError):
    """A data directory did not answer within the option `timeout`."""

    default_errno = _errno.ETIMEDOUT


class BadStoreUri(FastfsError, ValueError):
    """Not a ``file://`` or ``filesystem://`` URI with an absolute path."""


class BadStoreConfiguration(FastfsError, ValueError):
    """An option has no sense; the message names it, its value and the remedy."""


class Invalid(FastfsError, ValueError):
    """An argument or the data handed over is not acceptable."""


class InvalidImageId(Invalid):
    """The id cannot be the name of a file in a data directory."""


class UnknownHashingAlgo(Invalid):
    """hashlib has no such algorithm, or its digest has no fixed length."""


class SizeMismatch(Invalid):
    """The source holds more or fewer bytes than were declared."""

    @classmethod
    def of(cls, expected: int, size: int) -> SizeMismatch:
        """The words are glance_store's, which its tests look for."""
        word = "exceeds" if size > expected else "mismatch"
        return cls(f"Size {word}: expected {expected} bytes, got {size} bytes")


class BadSource(Invalid, TypeError):
    """The source is not one, or gave something else than bytes."""


class BadTarget(Invalid, TypeError):
    """Nothing that bytes can be sent to."""


Action = Literal["write", "read", "delete"]

_FULL = {_errno.ENOSPC, _errno.EDQUOT, _errno.EFBIG}
_DENIED = {_errno.EACCES, _errno.EPERM, _errno.EROFS}
# What a path that leads nowhere can give; O_NOFOLLOW says ELOOP, openat2 EXDEV for one that leaves.
_NOWHERE = {_errno.ENOENT, _errno.ENOTDIR, _errno.ELOOP, _errno.ENAMETOOLONG, _errno.EXDEV}

_REMEDY = {
    _errno.ENOSPC: "free some space or add a data directory",
    _errno.EDQUOT: "raise the quota or add a data directory",
    _errno.EFBIG: "the file system or the process (ulimit -f) does not allow files of this size",
    _errno.EROFS: "the file system is mounted read-only",
    _errno.EMFILE: "raise the limit of open files (ulimit -n)",
    _errno.ENFILE: "raise fs.file-max",
    _errno.ESTALE: "the file system was replaced; check its mount",
    _errno.EIO: "check the storage (dmesg)",
}


def from_oserror(
    error: OSError,
    action: Action,
    *,
    path: str | os.PathLike[str] | None = None,
    image_id: str | None = None,
) -> FastfsError:
    """Turn an error of the store's own system calls into the exception that the API documents.

    :param action: ``"write"`` while storing, ``"read"`` while opening or reading, ``"delete"``.
    """
    number = error.errno
    cls: type[FastfsError]
    if action == "write":
        if number in _FULL:
            cls = StorageFull
        elif number in _DENIED:
            cls = StorageWriteDenied
        elif number == _errno.EEXIST:
            cls = Duplicate
        else:
            cls = StorageError
    elif number in _NOWHERE:
        cls = NotFound
    elif number in _DENIED:
        cls = Forbidden
    else:
        cls = StorageError
    if cls is Duplicate and path is not None:
        return Duplicate.of(image_id, os.fspath(path))
    where = "" if path is None else f" {os.fspath(path)}"
    if cls is NotFound:
        message = f"no image found at{where}"
    else:
        reason = os.strerror(number) if number else str(error)
        message = f"cannot {action}{where}: {reason}"
        if number in _REMEDY:
            message += f" ({_REMEDY[number]})"
    return cls(message, path=path, image_id=image_id, errno=number)
