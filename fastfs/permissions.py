# SPDX-License-Identifier: Apache-2.0
"""Modes of files and directories."""

from __future__ import annotations

import logging
import os
import stat

from fastfs.exceptions import BadStoreConfiguration

LOG = logging.getLogger(__name__)


def current_umask() -> int:
    """The process's umask, read without changing it (umask(2) can only be asked by setting it, which another
    thread might see): from Linux 4.7 on /proc/self/status tells it.  Elsewhere: 0o077, the careful answer.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o077


def check_file_perm(mode: int) -> None:
    """Refuse modes that make no sense for an image.

    :raises BadStoreConfiguration: bits beyond 0o777 (set-id, sticky), or not readable by the owner.
    """
    if mode < 0:
        raise BadStoreConfiguration(f"file_perm={mode} is negative; use 0 to let the umask decide")
    if mode & ~0o777:
        hint = f'; if you meant the octal number {mode}, write 0o{mode} or "{mode}"' if _octal_digits(mode) else ""
        raise BadStoreConfiguration(
            f"file_perm=0o{mode:o} has bits beyond 0o777 (set-id or sticky), which an image must not have{hint}"
        )
    if mode and not mode & stat.S_IRUSR:
        raise BadStoreConfiguration(
            f"file_perm=0o{mode:o} takes the owner's right to read, so no image could be read again; add 0o400"
        )


def _octal_digits(number: int) -> bool:
    return all(digit in "01234567" for digit in str(number)) and int(str(number), 8) <= 0o777


def open_up_directory(path: str, file_perm: int) -> None:
    """Let those whom `file_perm` lets read an image search its directory: g+x, o+x.

    A failure is only logged: the directory may belong to somebody who has set this up already.
    """
    wanted = (stat.S_IXGRP if file_perm & stat.S_IRWXG else 0) | (stat.S_IXOTH if file_perm & stat.S_IRWXO else 0)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        wanted |= mode
        if wanted != mode:
            os.chmod(path, wanted)
    except OSError as error:
        LOG.warning("cannot set mode 0%o of data directory %s: %s", wanted, path, error.strerror)
