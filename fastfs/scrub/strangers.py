# SPDX-License-Identifier: Apache-2.0
"""Whose bytes are these?  For a file in which nothing is as its record says."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from xxhash import xxh3_128_digest

from fastfs import record as rec
from fastfs import sidecar
from fastfs.datadirs import close_quietly
from fastfs.scrub.finding import Finding, Status

_POSSIBLE = (Status.ROT, Status.TRUNCATED, Status.GROWN, Status.STALE_RECORD)


class Strangers:
    """Knows the records of some data directories by size and first block; reads them when first asked."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._known: dict[tuple[int, int, bytes], tuple[str, str]] | None = None
        self._block_sizes: set[int] = set()

    def recognise(self, finding: Finding) -> Finding:
        """A finding that is the better one if the file is another image of these directories."""
        if not finding.foreign or finding.status not in _POSSIBLE or not finding.size:
            return finding
        other = ""
        with contextlib.suppress(OSError, rec.Damaged):
            other = self._whose(finding)
        if not other:
            return finding
        return dataclasses.replace(finding, status=Status.WRONG_FILE, detail=f"it is image {other}")

    def _whose(self, finding: Finding) -> str:
        known = self._load()
        fd = os.open(f"{finding.datadir}/{finding.image_id}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            for block_size in sorted(self._block_sizes):
                first = xxh3_128_digest(os.pread(fd, min(size, block_size), 0))
                path, other = known.get((size, block_size, first), ("", ""))
                if other and other != finding.image_id and _same(fd, path, other):
                    return other
        finally:
            close_quietly(fd)
        return ""

    def _load(self) -> dict[tuple[int, int, bytes], tuple[str, str]]:
        if self._known is None:
            self._known = {}
            for path in self._paths:
                with contextlib.suppress(OSError), os.scandir(path) as entries:
                    for entry in entries:
                        if sidecar.is_sidecar_name(entry.name):
                            self._add(path, entry.name)
        return self._known

    def _add(self, path: str, name: str) -> None:
        assert self._known is not None
        with contextlib.suppress(OSError, rec.Damaged), sidecar.open_sidecar(path, name) as found:
            if found.table is not None and found.table.record.size:
                record = found.table.record
                self._block_sizes.add(record.block_size)
                key = (record.size, record.block_size, found.table.digest(0))
                self._known[key] = (f"{path}/{name}", record.image_id)


def _same(fd: int, path: str, image_id: str) -> bool:
    """Is the file `fd` what the record `path` describes?"""
    folder, _, name = path.rpartition("/")
    with sidecar.open_sidecar(folder, name) as found:
        if found.table is None:
            return False
        record = found.table.record
        for block in range(record.blocks):
            data = os.pread(fd, record.block_length(block), block * record.block_size)
            if xxh3_128_digest(data) != found.table.digest(block):
                return False
        return record.image_id == image_id
