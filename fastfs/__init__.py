# SPDX-License-Identifier: Apache-2.0
"""Put large files into a filesystem fast, hashed and safely.

::

    from fastfs import Store

    store = Store(datadir="/images")
    url, size, md5, sha512, metadata = store.add("8f3c", open("disk.img", "rb"))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfs.checksum import FileDigests, hash_file, hash_files
    from fastfs.config import StoreConfig
    from fastfs.exceptions import (
        BadSource,
        BadStoreConfiguration,
        BadStoreUri,
        BadTarget,
        Duplicate,
        FastfsError,
        Forbidden,
        IntegrityError,
        Invalid,
        InvalidImageId,
        NotFound,
        SizeMismatch,
        StorageError,
        StorageFull,
        StorageWriteDenied,
        TimeoutError,
        UnknownHashingAlgo,
        Unverifiable,
    )
    from fastfs.ingest import Item, Outcome
    from fastfs.location import Location
    from fastfs.reader import ChunkedFile
    from fastfs.scrub import Finding
    from fastfs.store import DatadirUsage, ImageInfo, Store
    from fastfs.upload import AddResult

__all__ = [
    "AddResult",
    "BadSource",
    "BadStoreConfiguration",
    "BadStoreUri",
    "BadTarget",
    "ChunkedFile",
    "DatadirUsage",
    "Duplicate",
    "FastfsError",
    "FileDigests",
    "Finding",
    "Forbidden",
    "ImageInfo",
    "IntegrityError",
    "Invalid",
    "InvalidImageId",
    "Item",
    "Location",
    "NotFound",
    "Outcome",
    "SizeMismatch",
    "StorageError",
    "StorageFull",
    "StorageWriteDenied",
    "Store",
    "StoreConfig",
    "TimeoutError",
    "UnknownHashingAlgo",
    "Unverifiable",
    "__version__",
    "hash_file",
    "hash_files",
]

_HOME = {
    "fastfs.config": ["StoreConfig"],
    "fastfs.location": ["Location"],
    "fastfs.reader": ["ChunkedFile"],
    "fastfs.checksum": ["FileDigests", "hash_file", "hash_files"],
    "fastfs.ingest": ["Item", "Outcome"],
    "fastfs.scrub": ["Finding"],
    "fastfs.store": ["DatadirUsage", "ImageInfo", "Store"],
    "fastfs.upload": ["AddResult"],
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): the command's ``--help`` needs neither the extension nor psutil."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("fastfs-store")
        except PackageNotFoundError:  # imported from a source tree
            value = "0+unknown"
    elif name in __all__:
        home = next((module for module, names in _HOME.items() if name in names), "fastfs.exceptions")
        value = getattr(importlib.import_module(home), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
