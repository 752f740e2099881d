# SPDX-License-Identifier: Apache-2.0
"""``fastfs repair``: damaged blocks from a good copy."""

from __future__ import annotations

import click

from fastfs.cli.errors import ExitCode
from fastfs.cli.output import printable, size
from fastfs.cli.settings import Settings, common_options, json_option

__all__ = ["repair_command"]

EPILOG = """\b
Examples:
  fastfs repair --from /backup/debian-12.iso debian-12.iso
  fastfs repair --from https://mirror.example/debian-12.iso debian-12.iso
  fastfs repair --from /backup debian-12.iso     a folder that holds its file

\b
Only blocks that are not as recorded are asked for, and one is written only if
the copy's is as recorded: a bad copy can do no harm. Then all digests are
checked. An image in quarantine is put back first ('quarantine restore').

\b
Exit codes: 0 whole now, or was so; 7 still damaged; 8 no record to go by.
"""


@click.command("repair", epilog=EPILOG, short_help="Replace damaged blocks from a good copy.")
@click.argument("image", metavar="ID|URL")
@click.option("--from", "place", metavar="PATH|URL", required=True, help="The good copy.")
@json_option
@common_options
@click.pass_obj
def repair_command(settings: Settings, image: str, place: str, as_json: bool) -> int:
    """Replace the damaged blocks of an image with those of a good copy, and prove the result."""
    output = settings.output(as_json)
    with settings.open_store() as store:
        done = store.repair(image, place)
    if as_json:
        output.record(done.as_dict())
    else:
        name = printable(done.image_id)
        if not done.blocks and done.mended and not done.before.damaged:
            output.note(f"{name}: was whole, and is")
        elif done.mended:
            output.line(f"{name}: {done.before.status.value}, repaired: {_blocks(done.blocks)}, {size(done.bytes)}")
        else:
            detail = f" ({printable(done.after.detail)})" if done.after.detail else ""
            output.line(f"{name}: still {done.after.status.value}{detail} after {_blocks(done.blocks)} of the copy")
    return ExitCode.OK if done.mended else ExitCode.DAMAGED


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count} blocks"
