# SPDX-License-Identifier: Apache-2.0
"""Where damaged images are put: out of the way, with a report beside them, to come back or to be dropped.

An entry is a directory ``.fastfs-quarantine/ENTRY`` of the data directory with up to three files: ``report.json``,
``record`` and ``image``.  It is made with the first two, hidden by a dot; then one rename moves the image in, and
another gives the entry its name.  One that was broken off in between holds no image, and is removed by the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from fastfs import _native, sidecar
from fastfs.datadirs import close_quietly
from fastfs.exceptions import Duplicate, NotFound, StorageError
from fastfs.publish import PREFIX, sync_directory
from fastfs.scrub.finding import Finding

FOLDER = f"{PREFIX}quarantine"
IMAGE, RECORD, REPORT = "image", "record", "report.json"

# An entry without an image is one that is being made, or, after this many seconds, one that a dead process left.
ABANDONED = 3600.0
# More than that is no report of ours.
_REPORT_MAX = 1 << 20


@dataclasses.dataclass(frozen=True)
class Entry:
    """A quarantined image."""

    name: str
    image_id: str
    datadir: str
    path: str
    size: int
    #: When it was moved, seconds since the epoch.
    moved: float
    #: What was found; empty if the report cannot be read.
    report: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.report.get("status", ""))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        moved = datetime.fromtimestamp(self.moved, timezone.utc).isoformat(timespec="seconds")
        return {
            "entry": self.name,
            "id": self.image_id,
            "datadir": self.datadir,
            "path": self.path,
            "size": self.size,
            "status": self.status,
            "moved": moved.replace("+00:00", "Z"),
            "report": self.report,
        }


class Quarantine:
    """That of one data directory."""

    def __init__(self, datadir: str) -> None:
        self.datadir = datadir
        self.path = f"{datadir}/{FOLDER}"

    def put(self, finding: Finding) -> str:
        """Move the image out of the way; the name of the entry.

        :raises OSError: it was not moved; ENOENT: the file that was checked is not there any more.
        """
        name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        with self._directory(self.datadir) as top:
            with contextlib.suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=top)
            os.mkdir(f"{FOLDER}/{name}", 0o700, dir_fd=top)
            try:
                self._write_report(top, name, finding)
                record = sidecar.sidecar_name(finding.image_id)
                kept = self._keep_record(top, record, name)
                self._move(top, finding, name)
            except BaseException:
                self._discard(top, name)
                raise
            if kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(record, dir_fd=top)
            self._sync(top, name)
        return name

    def _move(self, top: int, finding: Finding, name: str) -> None:
        """The one step that counts."""
        target = f"{FOLDER}/{name}/{IMAGE}"
        if _identity(top, finding.image_id) != finding.file:
            raise FileNotFoundError(errno.ENOENT, "another file has its name now")
        os.rename(finding.image_id, target, src_dir_fd=top, dst_dir_fd=top)
        if _identity(top, target) != finding.file:  # it was replaced just before that
            _native.rename_noreplace(top, os.fsencode(target), os.fsencode(finding.image_id))
            raise FileNotFoundError(errno.ENOENT, "another file has its name now")

    def _write_report(self, top: int, name: str, finding: Finding) -> None:
        report = {**finding.as_dict(), "moved": time.time(), "fastfs": 1}
        fd = os.open(
            f"{FOLDER}/{name}/{REPORT}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=top
        )
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.flush()
            os.fsync(fd)

    @staticmethod
    def _keep_record(top: int, record: str, name: str) -> bool:
        try:
            os.link(record, f"{FOLDER}/{name}/{RECORD}", src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def entries(self) -> Iterator[Entry]:
        """All of them, the oldest first; what dead processes left is removed on the way."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return
        for name in names:
            path = f"{self.path}/{name}"
            try:
                info = os.stat(f"{path}/{IMAGE}", follow_symlinks=False)
            except FileNotFoundError:
                self._clean(path, name)
                continue
            except NotADirectoryError:
                continue
            report = self._report(f"{path}/{REPORT}")
            yield Entry(
                name=name,
                image_id=str(report.get("id", "")),
                datadir=self.datadir,
                path=path,
                size=info.st_size,
                moved=float(report.get("moved", info.st_ctime)),
                report=report,
            )

    def _clean(self, path: str, name: str) -> None:
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path, follow_symlinks=False).st_mtime > ABANDONED:
                with self._directory(self.datadir) as top:
                    self._discard(top, name)

    @staticmethod
    def _report(path: str) -> dict[str, Any]:
        try:
            with open(path, "rb") as file:
                found = json.loads(file.read(_REPORT_MAX))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def restore(self, entry: Entry) -> str:
        """Put an image back under its name, with its record; its path.

        :raises Duplicate: something has that name.
        :raises OSError: it stays where it is.
        """
        image_id = entry.image_id
        if not image_id:
            raise StorageError(
                f"{entry.path}: its report cannot be read, so its name is not known; move {IMAGE} by hand",
                path=entry.path,
            )
        path = f"{self.datadir}/{image_id}"
        folder = f"{FOLDER}/{entry.name}"
        with self._directory(self.datadir) as top:
            with sidecar.returned(top, f"{folder}/{RECORD}", image_id):
                try:
                    _native.rename_noreplace(top, os.fsencode(f"{folder}/{IMAGE}"), os.fsencode(image_id))
                except FileExistsError:
                    raise Duplicate.of(image_id, path) from None
            self._discard(top, entry.name)
            self._sync(top, None)
        return path

    def drop(self, entry: Entry) -> None:
        """Delete an image for good.

        :raises OSError: it could not be deleted.
        """
        with self._directory(self.datadir) as top:
            os.unlink(f"{FOLDER}/{entry.name}/{IMAGE}", dir_fd=top)
            self._discard(top, entry.name)
            self._sync(top, None)

    def _discard(self, top: int, name: str) -> None:
        """Remove an entry that holds no image, and the folder if it was the last one.  Never raises."""
        for file in (RECORD, REPORT):
            with contextlib.suppress(OSError):
                os.unlink(f"{FOLDER}/{name}/{file}", dir_fd=top)
        for path in (f"{FOLDER}/{name}", FOLDER):
            with contextlib.suppress(OSError):
                os.rmdir(path, dir_fd=top)

    def _sync(self, top: int, name: str | None) -> None:
        """Names on the disk, the new place first."""
        for path in (f"{self.path}/{name}", self.path) if name else (self.path,):
            with contextlib.suppress(FileNotFoundError), self._directory(path) as fd:
                sync_directory(fd)
        sync_directory(top)

    @staticmethod
    @contextlib.contextmanager
    def _directory(path: str) -> Iterator[int]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            close_quietly(fd)


def _identity(top: int, name: str) -> tuple[int, int]:
    info = os.stat(name, dir_fd=top, follow_symlinks=False)
    return info.st_ino, info.st_mtime_ns


def find(datadirs: list[str], key: str) -> Entry:
    """The entry of that name, or the only one of an image of that id.

    :raises NotFound: there is none, or there are several.
    """
    entries = [entry for path in datadirs for entry in Quarantine(path).entries()]
    found = [entry for entry in entries if entry.name == key] or [e for e in entries if e.image_id == key]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found)
        raise NotFound(f"there are {len(found)} quarantined images {key}: {names}; name the entry", image_id=key)
    raise NotFound(f"nothing of the name {key} is in quarantine", image_id=key)
