# SPDX-License-Identifier: Apache-2.0
"""The only table that turns fastfs's exceptions into glance_store's.

Glance hands some messages on to whoever uploads (those of `StorageFull` and `StorageWriteDenied`, for two), so
those name no path.  What the operator needs is logged, and is the exception's ``__cause__``.  `StorageError`, which
glance_store has no name for, is an OSError and stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glance_store import exceptions

from fastfs import exceptions as ours
from fastfs.glance.upstream import LOG

if TYPE_CHECKING:

    class _GlanceStoreException(Exception):
        def __init__(self, message: str | None = None, **values: object) -> None: ...

    class _Invalid(_GlanceStoreException): ...

    class _UnknownHashingAlgo(_GlanceStoreException): ...

else:
    _GlanceStoreException = exceptions.GlanceStoreException
    _Invalid = exceptions.Invalid
    _UnknownHashingAlgo = exceptions.UnknownHashingAlgo


class UnknownHashingAlgo(_UnknownHashingAlgo, ValueError):
    """The ValueError that upstream raises, and that Glance answers with 400, under its proper name."""


class BadSource(_Invalid, TypeError):
    """The TypeError that upstream raises for what is no source of bytes."""


class InvalidArgument(_Invalid, ValueError):
    """The ValueError that some of upstream's callers may know, as glance_store's `Invalid`."""


class _TimedOut(_GlanceStoreException):
    """An operation of the file system took too long; for glance_store before 5.4, which has no name for that."""

    message = "Operation timed out after %(timeout)ds."


TimedOut: type[Exception] = getattr(exceptions, "TimeoutError", _TimedOut)


def translated(error: ours.FastfsError, timeout: float = 0) -> Exception:
    """The exception that a driver raises in place of `error`.

    :param timeout: the option, for the message.
    """
    text = str(error)
    if isinstance(error, ours.NotFound):
        found: Exception = exceptions.NotFound(image=error.path or error.image_id)
    elif isinstance(error, ours.Duplicate):
        found = exceptions.Duplicate(image=error.path or error.image_id)
    elif isinstance(error, ours.StorageFull):
        LOG.error(text)
        found = exceptions.StorageFull()
    elif isinstance(error, ours.StorageWriteDenied):
        LOG.error(text)
        found = exceptions.StorageWriteDenied()
    elif isinstance(error, ours.Forbidden):
        found = exceptions.Forbidden(text)
    elif isinstance(error, ours.TimeoutError):
        LOG.error(text)
        found = TimedOut(timeout=timeout)  # type: ignore[call-arg]
    elif isinstance(error, ours.BadStoreUri):
        found = exceptions.BadStoreUri(text)
    elif isinstance(error, ours.BadStoreConfiguration):
        found = exceptions.BadStoreConfiguration(store_name="filesystem", reason=text)
    elif isinstance(error, ours.UnknownHashingAlgo):
        found = UnknownHashingAlgo(text)
    elif isinstance(error, ours.BadSource):
        found = BadSource(text)
    elif isinstance(error, ours.Invalid):
        found = InvalidArgument(text)
    else:
        found = error
    return found


@contextmanager
def translating(timeout: float = 0) -> Iterator[None]:
    """Within this, fastfs's exceptions come out as glance_store's; all others are left alone."""
    try:
        yield
    except ours.FastfsError as error:
        other = translated(error, timeout)
        if other is error:
            raise
        raise other from error


def bad_uri(reason: str) -> Exception:
    """A `BadStoreUri`."""
    found: Exception = exceptions.BadStoreUri(reason)
    return found


def bad_configuration(reason: str) -> Exception:
    """A `BadStoreConfiguration`, logged."""
    LOG.error(reason)
    found: Exception = exceptions.BadStoreConfiguration(store_name="filesystem", reason=reason)
    return found
