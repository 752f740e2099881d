# SPDX-License-Identifier: Apache-2.0
"""The driver: what is found as ``glance_store._drivers.filesystem`` where fastfs is switched on.

Everything that moves bytes is the business of `fastfs.Store`.  Here are the names, signatures, exceptions and rules
that glance_store and Glance expect.  Functions of `os` that others replace (glance_store's tests, for one) are looked
up when they are needed: while they are what they were when this was imported, the core does the work.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import fastfs
from fastfs.exceptions import BadStoreConfiguration, FastfsError, from_oserror
from fastfs.glance import errors, upstream, writer
from fastfs.glance.executor import TimeoutExecutor
from fastfs.glance.helpers import Helpers
from fastfs.glance.options import Options
from fastfs.glance.reader import ChunkedFile
from fastfs.glance.upstream import LOG, BaseLocation, BaseStore, back_compat_add, checked
from fastfs.location import SCHEMES, Location

__all__ = [
    "LOG",
    "MULTI_FILESYSTEM_METADATA_SCHEMA",
    "_FILESYSTEM_CONFIGS",
    "ChunkedFile",
    "Store",
    "StoreLocation",
    "TimeoutExecutor",
]

_FILESYSTEM_CONFIGS = upstream.OPTIONS
MULTI_FILESYSTEM_METADATA_SCHEMA = upstream.METADATA_SCHEMA

_getsize = os.path.getsize
_unlink = os.unlink

# Directories of the stores that have no group of their own.  Without ``enabled_backends`` Glance makes a store of its
# own for staging and lets the main one delete what lies there.
_ungrouped: dict[str, fastfs.Store] = {}
_ungrouped_lock = threading.Lock()


class StoreLocation(BaseLocation):
    """A ``file://`` or ``filesystem://`` URI; the rest is the path, byte for byte, so `?` and `#` are found again."""

    def parse_uri(self, uri: str) -> None:
        """:raises glance_store.exceptions.BadStoreUri: another scheme, or no path."""
        self.validate_schemas(uri, valid_schemas=tuple(sorted(SCHEMES)))
        scheme, _, path = uri.partition("://")
        if not path.strip():
            LOG.info("No path specified in URI")
            raise errors.bad_uri(f"No path specified in URI {uri!r}")
        self.scheme, self.path = scheme, path


class Store(Helpers, BaseStore):
    """The filesystem store."""

    _CAPABILITIES = upstream.CAPABILITIES
    OPTIONS = upstream.OPTIONS
    FILESYSTEM_STORE_METADATA: list[dict[str, Any]] | None = None

    def __init__(self, conf: Any, backend: str | None = None) -> None:
        super().__init__(conf, backend=backend)
        self._options = Options(self.conf, self.backend_group)
        self.store_conf = self._options.values
        self.timeout_executor = None  # type: ignore[assignment]  # as in the original, until it is configured
        self._core: fastfs.Store | None = None
        self._config: fastfs.StoreConfig | None = None
        self._configured = False
        self._loaded_metadata: list[dict[str, Any]] | None = None

    def get_schemes(self) -> tuple[str, ...]:
        return ("file", "filesystem")

    # -- configuring ----------------------------------------------------------------------------------------

    def configure(self, re_raise_bsc: bool = False) -> None:
        """As the base class has it; and a good configuration gives back what a bad one took away."""
        if self._CAPABILITIES & upstream.WRITE_ACCESS:
            self.set_capabilities(upstream.WRITE_ACCESS)
        super().configure(re_raise_bsc=re_raise_bsc)

    def configure_add(self) -> None:
        """Take the options in; may be repeated.

        :raises glance_store.exceptions.BadStoreConfiguration: no image can be stored so.  Those that are stored can
            be read as far as the data directories are there.
        """
        options = self._options
        self._configured = True
        self._core = self._config = None
        self.thin_provisioning = options.get("filesystem_thin_provisioning", False)
        self.chunk_size = options.get("filesystem_store_chunk_size", 65536)
        self.READ_CHUNKSIZE = self.WRITE_CHUNKSIZE = self.chunk_size
        former, self.timeout_executor = (
            self.timeout_executor,
            TimeoutExecutor(
                options.get("filesystem_store_timeout", 0),
                options.get("filesystem_store_thread_pool_size", 10),
                options.get("filesystem_store_threadpool_threshold", 75),
            ),
        )
        if former is not None:
            former.shutdown(wait=False)

        datadir, datadirs = options.places()
        self.multiple_datadirs = datadir is None
        if datadir is not None:
            self.datadir = datadir if datadir.startswith("/") else os.path.abspath(datadir)
            entries = [(self.datadir, 0)]
        else:
            entries = [self._get_datadir_path_and_priority(entry) for entry in datadirs]
        with errors.translating():
            self._config = self._core_config(entries)
            self._core = self._open(self._config)
        if self.multiple_datadirs:
            self._note_datadirs(self._core)
        if self.backend_group:
            self._set_url_prefix()
        else:
            with _ungrouped_lock:
                _ungrouped.update((directory.path, self._core) for directory in self._core.datadirs.all)
        self._read_metadata()

    def _core_config(self, entries: list[tuple[str, int]]) -> fastfs.StoreConfig:
        executor = self.timeout_executor
        common: dict[str, Any] = {
            # A slash at the end would be doubled in the locations.
            "datadirs": [(path.rstrip("/") or "/", priority) for path, priority in entries],
            "chunk_size": self.chunk_size,
            "thin_provisioning": self.thin_provisioning,
            "timeout": executor.timeout,
            "thread_pool_size": executor.pool_size,
            "threadpool_threshold": executor.threshold,
        }
        # For reading, should what follows be wrong.
        self._config = fastfs.StoreConfig(**common)
        return fastfs.StoreConfig(**common, file_perm=self._options.file_perm(), **self._options.extra())

    def _open(self, config: fastfs.StoreConfig, read_only: bool = False) -> fastfs.Store:
        try:
            core = fastfs.Store(config, read_only=read_only, guard=self.timeout_executor.guard)
        except fastfs.TimeoutError as error:
            raise BadStoreConfiguration(str(error), path=error.path) from error
        if self.multiple_datadirs:
            for directory in core.datadirs.all:
                directory.free = _Free(self, directory.path)  # type: ignore[method-assign]
        return core

    def _note_datadirs(self, core: fastfs.Store) -> None:
        self.priority_data_map: dict[int, list[str]] = {}
        for directory in core.datadirs.all:
            self.priority_data_map.setdefault(directory.priority, []).append(directory.path)
        self.priority_list = sorted(self.priority_data_map, reverse=True)
        # Glance shows it, and asks every store for it.
        self.datadir = core.datadirs.all[0].path

    def _read_metadata(self) -> None:
        if self._loaded_metadata is not None and self.FILESYSTEM_STORE_METADATA is self._loaded_metadata:
            self.FILESYSTEM_STORE_METADATA = None
        path = self._options.get("filesystem_store_metadata_file", None)
        if path:
            self._validate_metadata(path)
            self._loaded_metadata = self.FILESYSTEM_STORE_METADATA

    def _ready(self) -> fastfs.Store:
        """The core; after a configuration that failed, one that only reads.

        :raises glance_store.exceptions.BadStoreConfiguration: the data directories cannot be used.
        """
        if self._core is None and not self._configured:
            self.configure()
        if self._core is None:
            if self._config is None:
                raise errors.bad_configuration("there is no data directory to look in")
            with errors.translating():
                self._core = self._open(self._config, read_only=True)
        return self._core

    # -- storing --------------------------------------------------------------------------------------------

    @back_compat_add
    @checked
    def add(
        self,
        image_id: object,
        image_file: Any,
        image_size: int | None,
        hashing_algo: str,
        context: object = None,
        verifier: Any = None,
    ) -> tuple[str, int, str, str, dict[str, Any]]:
        """Store an image: nothing is visible under its name until it is whole.

        :param image_size: bytes to come, enforced; 0 or None: unknown.
        :param hashing_algo: of the second digest, beside MD5.
        :param verifier: its ``update`` gets every byte, in order.
        :return: (location, bytes, MD5, the other digest, metadata of the location).
        :raises glance_store.exceptions.GlanceStoreException: see `fastfs.glance.errors`.  Whatever the source or the
            verifier raises comes out unchanged.
        """
        source = image_file.source if isinstance(image_file, ChunkedFile) else image_file
        core = self._ready()
        with errors.translating(core.config.timeout):
            if writer.open_is_replaced():
                done = writer.add(core, image_id, source, image_size, hashing_algo, verifier, self.WRITE_CHUNKSIZE)
            else:
                done = core.add(image_id, source, image_size, hashing_algo, verifier=verifier)
        if source is not image_file:
            image_file.close()
        try:
            metadata = self._location_metadata(done.url[len("file://") :])
        except BaseException:
            core.delete(done.url)  # nobody will be told of it
            raise
        return done.url, done.size, done.checksum, done.multihash, metadata

    def _location_metadata(self, path: str) -> dict[str, Any]:
        """A dictionary of the caller's own."""
        if not self.backend_group:
            return self._get_metadata(path)
        # The store's name is in what is returned and, which glance_store's tests demand, in what is kept.
        for entry in self.FILESYSTEM_STORE_METADATA or ():
            entry["store"] = self.backend_group
        return {**self._get_metadata(path), "store": self.backend_group}

    # -- reading --------------------------------------------------------------------------------------------

    @checked
    def get(
        self, location: Any, offset: int = 0, chunk_size: int | None = None, context: object = None
    ) -> tuple[ChunkedFile, int]:
        """Open an image.

        :param chunk_size: bytes wanted from `offset` on; None: all.
        :return: (iterator, bytes that it will give).
        :raises glance_store.exceptions.NotFound: there is no such image in this store.
        """
        core = self._ready()
        path = location.store_location.path
        with errors.translating(core.config.timeout):
            reader, size = core.get(Location(path), offset, chunk_size)
        reader.chunk_size = self.READ_CHUNKSIZE
        LOG.debug("reading %d bytes of %s", size, path)
        return ChunkedFile.of(reader, chunk_size is not None, core.config.timeout), size

    def get_size(self, location: Any, context: object = None) -> int:
        """The image's length in bytes.

        :raises glance_store.exceptions.NotFound: there is no such image in this store.
        """
        path, size = self._resolve_location(location)
        LOG.debug("%s has %d bytes", path, size)
        return size

    def _resolve_location(self, location: Any) -> tuple[str, int]:
        core = self._ready()
        path = location.store_location.path
        with errors.translating(core.config.timeout):
            if os.path.getsize is _getsize:
                return path, core.get_size(Location(path))
            core.datadirs.locate(path)
            try:
                return path, self.timeout_executor.execute(os.path.getsize, path)
            except OSError as error:
                raise _storage_error(error, "read", path) from error

    # -- deleting -------------------------------------------------------------------------------------------

    @checked
    def delete(self, location: Any, context: object = None) -> None:
        """Remove an image.

        :raises glance_store.exceptions.NotFound: there is no such image in this store.
        :raises glance_store.exceptions.Forbidden: it may not be removed.
        """
        path = location.store_location.path
        core = self._holding(path)
        with errors.translating(core.config.timeout):
            if os.unlink is _unlink:
                core.delete(Location(path))
                return
            core.datadirs.locate(path)
            try:
                self.timeout_executor.execute(os.unlink, path)
            except OSError as error:
                raise _storage_error(error, "delete", path) from error

    def _holding(self, path: str) -> fastfs.Store:
        """The core that has `path` in one of its directories: this store's, or see `_ungrouped`."""
        core = self._ready()
        if not self.backend_group:
            try:
                core.datadirs.locate(path)
            except fastfs.NotFound:
                with _ungrouped_lock:
                    return _ungrouped.get(os.path.dirname(path), core)
        return core


class _Free:
    """Asks a store for the free space of a directory by the method that others may have replaced."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path

    def __call__(self) -> int:
        return self.store._get_capacity_info(self.path)


def _storage_error(error: OSError, action: Any, path: str) -> OSError | FastfsError:
    return error if isinstance(error, FastfsError) else from_oserror(error, action, path=path)
