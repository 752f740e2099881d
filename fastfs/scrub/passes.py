# SPDX-License-Identifier: Apache-2.0
"""One pass of a scrub over a data directory: when it began is kept there, so that the next scrub can go on with it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import time
from typing import Any

from fastfs.datadirs import DataDir, close_quietly
from fastfs.publish import PREFIX, SUFFIX

LOG = logging.getLogger(__name__)

PASS_FILE = f"{PREFIX}scrub.json"
# More than that is none of ours.
_SIZE_MAX = 64 * 1024


class Pass:
    """A pass over one directory.

    :param what: what makes two passes the same: mode and filter.
    :param restart: begin anew in any case.
    """

    def __init__(self, directory: DataDir, what: dict[str, Any], restart: bool = False) -> None:
        self.directory = directory
        self.path = directory.file(PASS_FILE)
        self.started = 0 if restart else self._read(what)
        #: It was begun by an earlier scrub.
        self.resumed = bool(self.started)
        #: It is noted, so that it can be gone on with.
        self.noted = self.resumed
        if not self.started:
            self.started = time.time_ns()
            self.noted = self._write({**what, "started": self.started})

    def _read(self, what: dict[str, Any]) -> int:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return 0
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return 0
            found = json.loads(os.read(fd, _SIZE_MAX))
            started = found.pop("started")
        except (OSError, ValueError, AttributeError, KeyError):
            return 0
        finally:
            close_quietly(fd)
        return started if found == what and type(started) is int and 0 < started <= time.time_ns() else 0

    def _write(self, content: dict[str, Any]) -> bool:
        hidden = self.directory.file(f"{PREFIX}{secrets.token_hex(12)}{SUFFIX}")
        try:
            fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                os.rename(hidden, self.path)
            except BaseException:
                os.unlink(hidden)
                raise
        except OSError as error:
            LOG.warning("%s: a scrub that is broken off cannot be gone on with: %s", self.path, error.strerror)
            return False
        return True

    def finish(self) -> None:
        """Every image was looked at."""
        if self.noted and self._read_started() == self.started:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _read_started(self) -> int:
        try:
            with open(self.path, encoding="utf-8") as file:
                return int(json.load(file)["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
