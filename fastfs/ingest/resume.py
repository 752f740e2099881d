# SPDX-License-Identifier: Apache-2.0
"""What is stored already, compared with what was to be stored."""

from __future__ import annotations

import os
from typing import Any

from fastfs import hashing
from fastfs.checksum import digest_source
from fastfs.config import NAME_DURABLE
from fastfs.exceptions import Duplicate, NotFound, SizeMismatch
from fastfs.ingest.items import Item, Storing
from fastfs.location import Location, check_image_id
from fastfs.publish import sync_directory
from fastfs.sources import open_source
from fastfs.upload import AddResult


def compared(store: Storing, item: Item, image_file: Any, size: int | None) -> AddResult | None:
    """The image as it is stored already; None: it is not.

    :raises Duplicate: it holds other bytes.
    """
    name = check_image_id(item.image_id)
    names = hashing.algorithm(item.algorithm).names
    try:
        url = store.find(name)
    except NotFound:
        return None
    source = open_source(image_file)
    try:
        _check_length(store, name, url, size or source.size_hint)
        count, digests = digest_source(source, names, size or None, engine=store.config.hash_engine)
        if size and count == size:
            count += source.excess(store.config.chunk_size)
    finally:
        source.close()
    if size and count != size:
        raise SizeMismatch.of(size, count)
    return same(store, name, url, count, tuple(digests[one] for one in names), names)


def _check_length(store: Storing, name: str, url: str, size: int | None) -> None:
    reader, stored = store.get(url)
    reader.close()
    if size is not None and size != stored:
        raise other_bytes(name, url)


def same(store: Storing, name: str, url: str, size: int, digests: tuple[str, ...], names: tuple[str, ...]) -> AddResult:
    """What is stored, if it has these digests.

    :raises Duplicate: it has not.
    """
    reader, stored = store.get(url)
    with reader:
        if stored != size:
            raise other_bytes(name, url)
        source = open_source(reader)
        _, found = digest_source(source, names, engine=store.config.hash_engine)
    path = Location.parse(url).path
    if tuple(found[one] for one in names) != digests:
        raise other_bytes(name, url)
    _settle(store, path)
    return store.result_of(path, size, digests[0], digests[-1])


def _settle(store: Storing, path: str) -> None:
    """Whoever stored it may have been stopped before it was on the disk."""
    durability = store.config.durability
    if durability == "none":
        return
    with store.datadirs.parent(path) as (top, _):
        fd, _ = store.datadirs.open_file(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if durability in NAME_DURABLE:
            sync_directory(top)


def other_bytes(name: str, url: str) -> Duplicate:
    path = Location.parse(url).path
    return Duplicate(f"image {name} is stored already, with other bytes: {path}", path=path, image_id=name)
