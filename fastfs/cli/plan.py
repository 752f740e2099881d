# SPDX-License-Identifier: Apache-2.0
"""Which files to store, and under which ids: all of it decided before the first byte is stored."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fastfs.cli.errors import CommandError

__all__ = ["STDIN", "Item", "Plan", "make_plan"]

STDIN = "-"


@dataclass(frozen=True)
class Item:
    """One image to be: `size` is what the file says now, None for a stream."""

    source: str
    image_id: str
    size: int | None

    @property
    def name(self) -> str:
        """What people call the source."""
        return "stdin" if self.source == STDIN else os.path.basename(self.source)


@dataclass
class Plan:
    items: list[Item] = field(default_factory=list)
    failures: list[tuple[str, OSError]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def make_plan(paths: Iterable[str], image_id: str | None, use_uuid: bool, stores: Iterable[str]) -> Plan:
    """Look at every path. `stores` are the data directories: a folder that holds one is walked around it."""
    plan = Plan()
    naming = _naming(image_id, use_uuid)
    keep_out = {identity for path in stores if (identity := _identity(path)) is not None}
    for path in paths:
        if path == STDIN:
            plan.items.append(Item(STDIN, naming(""), None))
            continue
        try:
            found = os.stat(path)
        except OSError as exc:
            plan.failures.append((path, exc))
            continue
        if not stat.S_ISDIR(found.st_mode):
            plan.items.append(Item(path, naming(os.path.basename(path)), _size(path, found)))
        elif image_id is not None:
            raise CommandError(f"--id names one image, and {path} is a folder", "leave --id away, or use --uuid")
        else:
            _walk(path, plan, naming, keep_out)
    _refuse_collisions(plan.items)
    return plan


def _naming(image_id: str | None, use_uuid: bool) -> Callable[[str], str]:
    """The rule for ids: --id, --uuid, or the name; a path inside a folder with '-' for '/'."""

    def name(relative: str) -> str:
        if use_uuid:
            return str(uuid.uuid4())
        return image_id if image_id is not None else relative.replace("/", "-")

    return name


def _walk(folder: str, plan: Plan, naming: Callable[[str], str], keep_out: set[tuple[int, int]]) -> None:
    """Add the regular files below `folder`, sorted. Hidden names, devices and linked folders are left out."""

    def denied(exc: OSError) -> None:
        plan.failures.append((str(exc.filename), exc))

    for parent, folders, files in os.walk(folder, onerror=denied):
        folders.sort()
        for name in list(folders):
            path = os.path.join(parent, name)
            reason = "hidden" if name.startswith(".") else "a linked folder" if os.path.islink(path) else None
            if reason is None and _identity(path) in keep_out:
                reason = "a data directory"
            if reason:
                plan.skipped.append((path, reason))
                folders.remove(name)
        for name in sorted(files):
            path = os.path.join(parent, name)
            if name.startswith("."):
                plan.skipped.append((path, "hidden"))
                continue
            try:
                found = os.stat(path)
            except OSError as exc:
                plan.failures.append((path, exc))
                continue
            if stat.S_ISREG(found.st_mode):
                plan.items.append(Item(path, naming(os.path.relpath(path, folder)), found.st_size))
            else:
                plan.skipped.append((path, "not a regular file"))


def _refuse_collisions(items: Iterable[Item]) -> None:
    first: dict[str, str] = {}
    for item in items:
        if item.image_id in first:
            raise CommandError(
                f"{first[item.image_id]} and {item.source} would both be {item.image_id}; nothing was stored",
                "store them one by one with --id, or all with --uuid",
            )
        first[item.image_id] = item.source


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: str, found: os.stat_result) -> int | None:
    """Bytes to come, where that can be known without reading: files and block devices."""
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    if not stat.S_ISBLK(found.st_mode):
        return None
    try:
        with open(path, "rb", buffering=0) as device:
            return device.seek(0, os.SEEK_END)
    except OSError:
        return None
