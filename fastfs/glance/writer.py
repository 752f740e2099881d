# SPDX-License-Identifier: Apache-2.0
"""Storing through ``builtins.open``, for processes in which somebody has replaced that.

glance_store's tests do, and count the calls of ``write`` and ``truncate``; so the bytes go, chunk by chunk, through
what the replacement returns.  As in the fast way, the image has no name until it is whole.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Iterator
from typing import Any

from fastfs import AddResult, Store, _native, hashing
from fastfs.exceptions import Duplicate, FastfsError, Invalid, SizeMismatch, from_oserror
from fastfs.location import check_image_id
from fastfs.publish import Draft
from fastfs.sources import check_piece


def open_is_replaced() -> bool:
    return builtins.open is not io.open


def pieces(image_file: Any, size: int, chunk: int) -> Iterator[bytes | memoryview]:
    """The source in chunks; no read crosses the declared size, and one more looks for what comes behind it."""
    if not hasattr(image_file, "read"):
        for item in image_file:
            yield check_piece(item, "the iterator")
        return
    taken = 0
    while True:
        left = size - taken
        piece = check_piece(image_file.read(min(chunk, left) if left > 0 else chunk), "read()")
        if not piece:
            return
        taken += len(piece)
        yield piece


def add(
    store: Store, image_id: object, image_file: Any, image_size: int | None, algorithm: str, verifier: Any, chunk: int
) -> AddResult:
    """As `fastfs.Store.add`.  Where the replacement gives no real file, nothing is stored."""
    name = check_image_id(image_id)
    new = hashing.algorithm(algorithm)
    size = image_size or 0
    if size < 0:
        raise Invalid(f"image_size={image_size} is negative")
    holder = store.datadirs.holding(name)
    if holder is not None:
        raise Duplicate(f"image {name} is stored already", path=holder.file(name), image_id=name)
    directory, claim = store.datadirs.choose(size or None)
    path = directory.file(name)
    draft = Draft(directory, name, store.config.file_perm, store.config.durability)
    stored = False
    try:
        with _ours(path, name):
            draft.open()
            file = builtins.open(draft.fd, "wb", closefd=False)  # noqa: SIM115
        md5, digest, count = hashing.md5(), new.new(), 0
        with file as target:
            for piece in pieces(image_file, size, chunk):
                count += len(piece)
                if size and count > size:
                    raise _mismatch("exceeds", size, count)
                md5.update(piece)
                digest.update(piece)
                if verifier:
                    verifier.update(bytes(piece))
                with _ours(path, name):
                    if store.config.thin_provisioning and _native.is_zero(piece):
                        target.truncate(count)
                        target.seek(0, os.SEEK_END)
                    else:
                        target.write(piece)
        if size and count != size:
            raise _mismatch("mismatch", size, count)
        if isinstance(target, io.IOBase):
            with _ours(path, name):
                draft.seal(count)
                with store.datadirs.publishing():
                    other = store.datadirs.holding(name, directory)
                    if other is not None:
                        raise Duplicate(f"image {name} is stored already", path=other.file(name), image_id=name)
                    draft.link()
                draft.sync_name()
            stored = True
    finally:
        draft.release(keep=stored)
        claim.release()
    return AddResult(f"file://{path}", count, md5.hexdigest(), digest.hexdigest(), {})


class _ours:
    """Errors within are the storage's, not the source's."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FastfsError):
            raise from_oserror(error, "write", path=self.path, image_id=self.name) from error


def _mismatch(word: str, size: int, count: int) -> SizeMismatch:
    return SizeMismatch(f"Size {word}: expected {size} bytes, got {count} bytes")
