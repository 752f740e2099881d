# SPDX-License-Identifier: Apache-2.0
"""``rm`` and ``sweep``: what goes away."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING

import click

from fastfs.cli.errors import CommandError, ExitCode, Tally
from fastfs.cli.output import printable, size
from fastfs.cli.settings import Settings, common_options, json_option

if TYPE_CHECKING:
    from fastfs import ImageInfo

__all__ = ["rm_command", "sweep_command"]

LOOK_UP = 200  # milliseconds


@click.command("rm", short_help="Remove images.")
@click.argument("images", metavar="ID|URL...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where stdin is no terminal.")
@json_option
@common_options
@click.pass_obj
def rm_command(settings: Settings, images: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Remove images for good.

    On a terminal it asks once for all of them; elsewhere it wants --yes.
    """
    output = settings.output(as_json)
    if not yes and not sys.stdin.isatty():
        raise CommandError("stdin is no terminal to ask on", "--yes removes without asking")
    tally = Tally()
    with settings.open_store() as store:
        found: list[ImageInfo] = []
        for name in dict.fromkeys(images):
            with output.going_on(name, tally):
                found.append(store.info(name))
        if found and not yes and not _agreed(found):
            output.note("nothing removed")
            return ExitCode.FAILED
        for image in found:
            with output.going_on(image.image_id, tally):
                store.delete(image.url)
                if as_json:
                    output.record({"id": image.image_id, "url": image.url, "size": image.size, "removed": True})
                else:
                    output.detail(f"removed {image.image_id}")
    return tally.code


def _agreed(images: list[ImageInfo]) -> bool:
    total = size(sum(image.size for image in images))
    what = printable(images[0].image_id) if len(images) == 1 else f"{len(images)} images"
    click.echo(f"Remove {what} ({total}) for good? [y/N]: ", nl=False, err=True)
    # A Ctrl-C just before read() would only be noticed after the next key; this looks up several times a second.
    answers = select.poll()
    answers.register(sys.stdin, select.POLLIN)
    while not answers.poll(LOOK_UP):
        pass
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@click.command("sweep", short_help="Remove unfinished data that dead writers left.")
@json_option
@common_options
@click.pass_obj
def sweep_command(settings: Settings, as_json: bool) -> int:
    """Remove unfinished data whose writer is gone.

    Opening a store for writing does so, too, but where there are nameless files, which leave nothing but records.
    """
    output = settings.output(as_json)
    with settings.open_store() as store:
        removed = store.swept + store.sweep()
    for path in removed:
        if as_json:
            output.record({"path": path, "removed": True})
        else:
            output.line(printable(path))
    if not removed:
        output.note("nothing to sweep")
    return 0
