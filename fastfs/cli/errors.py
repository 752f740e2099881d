# SPDX-License-Identifier: Apache-2.0
"""What the command says about an exception, and which exit code it ends with."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

__all__ = ["CommandError", "ExitCode", "Problem", "Tally", "explain"]


class ExitCode(enum.IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DUPLICATE = 4
    FULL = 5
    DENIED = 6
    DAMAGED = 7
    INCOMPLETE = 8
    BROKEN_PIPE = 141


class CommandError(Exception):
    """A failure found by the command itself: one line, perhaps a remedy, and an exit code."""

    def __init__(self, message: str, hint: str | None = None, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@dataclass(frozen=True)
class Problem:
    """An exception in the words of the command."""

    message: str
    hint: str | None
    code: ExitCode
    type: str


HINTS = {
    "NotFound": "'fastfs ls' lists the images of this store",
    "Duplicate": "'fastfs rm ID' removes the stored one; --id or --uuid stores this one under another id",
    "StorageFull": "'fastfs df' shows the room in each data directory",
    "StorageWriteDenied": "'fastfs doctor' shows owner, mode and mount of each data directory",
    "Forbidden": "'fastfs doctor' shows owner, mode and mount of each data directory",
    "InvalidImageId": "an id has 1 to 255 bytes, no slash, no leading dot; choose one with --id or --uuid",
    "UnknownHashingAlgo": "sha512, sha256, blake2b and sha3_256 are always there",
    "SizeMismatch": "was the source being written meanwhile? Nothing was stored; try again when it rests",
    "IntegrityError": "'fastfs scrub ID' looks at all of it; 'fastfs repair --from GOOD_COPY ID' mends it",
    "Unverifiable": "'fastfs adopt ID' makes a record of what is there",
    "BadStoreUri": "'fastfs ls --long' shows the URL of each image",
    "BadStoreConfiguration": "'fastfs config' shows each value and where it came from",
}


DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _code_of(exc: BaseException) -> ExitCode:
    """The store's exceptions are builtins too, so the source's own errors find the same codes."""
    if isinstance(exc, CommandError):
        return exc.code
    from fastfs import exceptions

    if isinstance(exc, exceptions.IntegrityError):
        return ExitCode.DAMAGED
    if isinstance(exc, exceptions.Unverifiable):
        return ExitCode.INCOMPLETE
    number = getattr(exc, "errno", None)
    if number in DENIED:
        return ExitCode.DENIED  # a data directory that may not be written is a bad configuration, too
    if number in FULL:
        return ExitCode.FULL
    if isinstance(exc, FileNotFoundError):
        return ExitCode.NOT_FOUND
    if isinstance(exc, FileExistsError):
        return ExitCode.DUPLICATE
    usage = (exceptions.BadStoreConfiguration, exceptions.BadStoreUri, exceptions.InvalidImageId)
    if isinstance(exc, (*usage, exceptions.UnknownHashingAlgo)):
        return ExitCode.USAGE
    return ExitCode.FAILED


def _message_of(exc: BaseException) -> str:
    from fastfs.exceptions import FastfsError

    text = str(exc)
    if isinstance(exc, OSError) and not isinstance(exc, FastfsError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror
    elif not isinstance(exc, (FastfsError, CommandError, OSError)):
        text = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return " ".join(text.split()) or type(exc).__name__


def explain(exc: BaseException) -> Problem:
    """Message (one line), remedy and exit code of an exception."""
    name, code = type(exc).__name__, _code_of(exc)
    hint = exc.hint if isinstance(exc, CommandError) else HINTS.get(name)
    if name == "BadStoreConfiguration" and code is ExitCode.DENIED:
        hint = HINTS["StorageWriteDenied"]
    elif str(exc).startswith("FASTFS_"):
        hint = None  # the message says it all: these variables are no options
    return Problem(_message_of(exc), hint, code, name)


class Tally:
    """Counts the failures of a command that goes on after one; knows the exit code at the end."""

    def __init__(self) -> None:
        self._codes: list[ExitCode] = []

    def add(self, code: ExitCode) -> None:
        self._codes.append(code)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def code(self) -> ExitCode:
        kinds = set(self._codes)
        if not kinds:
            return ExitCode.OK
        return kinds.pop() if len(kinds) == 1 else ExitCode.FAILED
