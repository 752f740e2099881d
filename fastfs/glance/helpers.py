# SPDX-License-Identifier: Apache-2.0
"""The methods with an underscore that the original driver's class offers, for classes derived from it.

Those that the driver itself works with are looked up on the instance, as in the original: replacing
`_get_capacity_info` or `_get_metadata` has the effect that it has there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastfs import metadata
from fastfs.config import parse_datadir
from fastfs.datadirs import DataDir
from fastfs.exceptions import BadStoreConfiguration
from fastfs.glance.errors import bad_configuration, translating
from fastfs.glance.upstream import LOG
from fastfs.permissions import open_up_directory

if TYPE_CHECKING:
    import fastfs
    from fastfs.glance.executor import TimeoutExecutor
    from fastfs.glance.options import Options


class Helpers:
    """Part of the driver's `Store`."""

    if TYPE_CHECKING:
        FILESYSTEM_STORE_METADATA: list[dict[str, Any]] | None
        READ_CHUNKSIZE: int
        backend_group: str | None
        datadir: str
        timeout_executor: TimeoutExecutor
        _options: Options
        _url_prefix: str | None

        def _ready(self) -> fastfs.Store: ...

    # -- configuring ----------------------------------------------------------------------------------------

    def _get_datadir_path_and_priority(self, datadir: str) -> tuple[str, int]:
        """An entry of ``filesystem_store_datadirs``, taken apart."""
        try:
            parse_datadir(datadir)
        except BadStoreConfiguration as error:
            raise bad_configuration(str(error)) from error
        path, colon, priority = datadir.rpartition(":")
        if not colon:
            path, priority = datadir, ""
        return path.strip(), int(priority.strip() or 0)

    def _check_directory_paths(self, datadir_path: str, directory_paths: Any, priority_paths: Any) -> None:
        """Refuse a directory listed before with another priority."""
        if datadir_path not in directory_paths:
            return
        if datadir_path not in priority_paths:
            raise bad_configuration(f"filesystem_store_datadirs lists {datadir_path} with two priorities")
        LOG.warning("filesystem_store_datadirs lists %s twice", datadir_path)

    def _create_image_directories(self, directory_paths: Any) -> None:
        """Make directories, check that they can be written, open them up for those who may read images."""
        for path in directory_paths:
            with translating():
                DataDir(path, 0).prepare(self._options.file_perm(), False)

    def _check_write_permission(self, datadir: str) -> None:
        if not os.access(datadir, os.W_OK):
            raise bad_configuration(f"Permission to write in {datadir} denied")

    def _set_exec_permission(self, datadir: str) -> None:
        if mode := self._options.file_perm():
            open_up_directory(datadir, mode)

    def _validate_metadata(self, metadata_file: str) -> None:
        """Read the metadata file and keep what it holds."""
        try:
            self.FILESYSTEM_STORE_METADATA = metadata.load(metadata_file)
        except BadStoreConfiguration as error:
            raise bad_configuration(str(error)) from error

    def _set_url_prefix(self) -> None:
        """What Glance tells locations of this store by: of several directories, the one with the highest priority."""
        self._url_prefix = f"file://{self.datadir}"

    # -- storing --------------------------------------------------------------------------------------------

    def _find_best_datadir(self, image_size: int) -> str:
        """The directory for an image of that size.

        :raises glance_store.exceptions.StorageFull: none has room.
        """
        core = self._ready()
        if core.datadirs.single is not None:
            return self.datadir
        with translating():
            directory, claim = core.datadirs.choose(image_size or None)
        claim.release()
        return directory.path

    def _get_capacity_info(self, mount_point: str) -> int:
        """Bytes free below `mount_point`."""
        found = self.timeout_executor.execute(os.statvfs, mount_point)
        return max(0, found.f_bavail * found.f_bsize)

    def _get_metadata(self, filepath: str) -> dict[str, Any]:
        """A copy of the entry of the metadata file for the storage that `filepath` lies on, or {}."""
        entries = self.FILESYSTEM_STORE_METADATA
        if not entries:
            return {}
        found = metadata.match(entries, filepath)
        if not found:
            LOG.error("no mountpoint of the metadata file is above %s; the image gets no metadata", filepath)
        return found

    @staticmethod
    def _delete_partial(filepath: str, iid: str) -> None:
        """Remove what is left of an image that could not be stored; the driver itself leaves nothing."""
        try:
            os.unlink(filepath)
        except OSError as error:
            LOG.error("image %s: its unfinished data could not be removed: %s", iid, error)
