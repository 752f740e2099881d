# SPDX-License-Identifier: Apache-2.0
"""``fastfs du``: what the images take."""

from __future__ import annotations

import dataclasses

import click

from fastfs.cli.output import size
from fastfs.cli.settings import Settings, common_options, json_option

__all__ = ["du_command"]

EPILOG = """\b
LOGICAL    the lengths of the images, as 'fastfs ls' shows them
ALLOCATED  what the file system has given them: without holes
SHARED     of that, blocks that an image shares with other files (clones)
ON DISK    shared blocks counted once
RECORDS    what is kept to check images by
"""


@click.command("du", epilog=EPILOG, short_help="Show the space that images take.")
@json_option
@common_options
@click.pass_obj
def du_command(settings: Settings, as_json: bool) -> int:
    """Show the logical, allocated and shared bytes of each data directory."""
    output = settings.output(as_json)
    with settings.open_store(read_only=True) as store:
        spaces = store.space()
    if as_json:
        for space in spaces:
            output.record(dataclasses.asdict(space))
        return 0
    header = ("DATADIR", "IMAGES", "LOGICAL", "ALLOCATED", "SHARED", "ON DISK", "RECORDS", "QUARANTINE")
    rows = [
        (
            s.datadir,
            str(s.images),
            size(s.logical),
            size(s.allocated),
            size(s.shared),
            size(s.disk),
            size(s.records),
            size(s.quarantine),
        )
        for s in spaces
    ]
    output.table(header, rows, flush_right=header[1:])
    return 0
