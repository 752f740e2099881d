# SPDX-License-Identifier: Apache-2.0
"""The metadata file: which storage an image lies on, for those who mount it themselves (Nova, for one).

JSON: one object or a list of objects, each with the strings ``id`` and ``mountpoint``; other keys may hold
strings, lists or objects down to strings.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import stat
from typing import Any

from fastfs.exceptions import BadStoreConfiguration

LOG = logging.getLogger(__name__)

# A file that lists a thousand mountpoints is some 100 KiB.
MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16

Metadata = dict[str, Any]


def load(path: str) -> list[Metadata]:
    """Read and check the file.

    :raises BadStoreConfiguration: it cannot be read, is over 1 MiB, nested deeper than 16, or not as described.
    """

    def wrong(reason: str) -> BadStoreConfiguration:
        return BadStoreConfiguration(f"metadata_file={path!r}: {reason}", path=path)

    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise wrong("not a regular file")
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadStoreConfiguration(
            f"metadata_file={path!r} could not be accessed: {error.strerror}; correct the path or its permissions",
            path=path,
            errno=error.errno,
        ) from error
    if len(text) > MAX_BYTES:
        raise wrong(f"larger than {MAX_BYTES} bytes")
    if info.st_mode & stat.S_IWOTH or info.st_uid not in (0, os.geteuid()):
        LOG.warning(
            "metadata file %s is owned by uid %d with mode 0%o; only root and this process's user should be able to "
            "write it",
            path,
            info.st_uid,
            stat.S_IMODE(info.st_mode),
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"not valid JSON: {error}") from error
    entries = value if isinstance(value, list) else [value]
    for number, entry in enumerate(entries):
        reason = _fault(entry)
        if reason:
            raise wrong(f"entry {number}: {reason}")
    return entries


def _fault(entry: object) -> str:
    if not isinstance(entry, dict):
        return "not an object with the strings 'id' and 'mountpoint'"
    for key in ("id", "mountpoint"):
        if not isinstance(entry.get(key), str):
            return f"{key!r} is missing or not a string"
    return "" if _strings(entry, 0) else "values may be strings, lists and objects of strings only"


def _strings(value: object, depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return all(_strings(item, depth + 1) for item in value.values())
    if isinstance(value, list):
        return all(_strings(item, depth + 1) for item in value)
    return isinstance(value, str)


def match(entries: list[Metadata], path: str) -> Metadata:
    """A copy of the entry whose mountpoint is the nearest directory above `path`; {} if none is.

    An empty mountpoint is above everything.
    """
    best: Metadata | None = None
    length = -1
    for entry in entries:
        mountpoint = entry["mountpoint"]
        above = mountpoint.rstrip("/") + "/" if mountpoint else ""
        if path.startswith(above) and len(above) > length:
            best, length = entry, len(above)
    return {} if best is None else copy.deepcopy(best)
