# SPDX-License-Identifier: Apache-2.0
"""Which bytes of an image: ranges on the command line."""

from __future__ import annotations

import re

from fastfs.cli.errors import CommandError

__all__ = ["parse_range", "resolve_range"]

Range = tuple["int | None", "int | None"]  # first and last byte; (None, n): the last n bytes


def parse_range(text: str) -> Range:
    """'A-B', 'A-' or '-N', as in HTTP: both ends are included."""
    found = re.fullmatch(r"(?:bytes=)?(\d*)-(\d*)", text.strip())
    if not found or not (found[1] or found[2]):
        raise CommandError(
            f"{text!r} is no range", "write A-B (both included), A- (to the end) or -N (the last N bytes)"
        )
    first = int(found[1]) if found[1] else None
    last = int(found[2]) if found[2] else None
    if first is not None and last is not None and last < first:
        raise CommandError(f"the range {text} ends before it begins")
    return first, last


def resolve_range(wanted: Range, size: int) -> tuple[int, int]:
    """Offset and length within `size` bytes. A range that begins behind the end is an error, as in HTTP."""
    first, last = wanted
    if first is None:
        length = min(last or 0, size)
        return size - length, length
    if first >= size:
        raise CommandError(f"the range begins at byte {first}, and the image has {size}")
    return first, min(size, size if last is None else last + 1) - first
