# SPDX-License-Identifier: Apache-2.0
"""The command ``fastfs``: the only room that knows click and rich. Both come with the extra ``cli``."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

NEEDED = ("click", "rich")


def main() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"fastfs: error: the command needs {' and '.join(missing)}, which this Python does not have\n"
            "fastfs: hint: pip install 'fastfs-store[cli]'\n"
        )
        return 2
    try:
        from fastfs.cli.program import run

        return run()
    except KeyboardInterrupt:  # before our own handlers are in place
        return 130
