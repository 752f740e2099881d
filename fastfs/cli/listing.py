# SPDX-License-Identifier: Apache-2.0
"""``ls``, ``info`` and ``df``: what is there, and how much room is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastfs.cli.errors import Tally
from fastfs.cli.output import exact_size, iso_time, octal, size
from fastfs.cli.settings import Settings, common_options, json_option

if TYPE_CHECKING:
    from fastfs import DatadirUsage, ImageInfo

__all__ = ["df_command", "info_command", "ls_command"]


def image_record(image: ImageInfo) -> dict[str, Any]:
    return {
        "id": image.image_id,
        "url": image.url,
        "size": image.size,
        "allocated": image.allocated,
        "modified": iso_time(image.mtime),
        "mode": octal(image.mode),
        "datadir": image.datadir,
    }


def usage_record(usage: DatadirUsage) -> dict[str, Any]:
    return {
        "datadir": usage.path,
        "priority": usage.priority,
        "filesystem": usage.filesystem,
        "total": usage.total,
        "used": usage.used,
        "free": usage.free,
        "reserved": usage.reserved,
        "writable": usage.writable,
    }


@click.command("ls", short_help="List the images.")
@click.option("-l", "--long", "long_", is_flag=True, help="Room on disk, mode and URL as well.")
@json_option
@common_options
@click.pass_obj
def ls_command(settings: Settings, long_: bool, as_json: bool) -> int:
    """List the stored images, sorted by id. With -q, only the ids."""
    output = settings.output(as_json)
    with settings.open_store(read_only=True) as store:
        images = sorted(store.images(), key=lambda image: (image.image_id, image.datadir))
    if as_json:
        for image in images:
            output.record(image_record(image))
    elif output.quiet:
        for image in images:
            output.line(image.image_id)
    elif not images:
        output.note("no images")
    elif long_:
        output.table(
            ("ID", "SIZE", "ON DISK", "MODIFIED", "MODE", "URL"),
            [(i.image_id, size(i.size), size(i.allocated), iso_time(i.mtime), octal(i.mode), i.url) for i in images],
            flush_right=("SIZE", "ON DISK"),
        )
    else:
        output.table(
            ("ID", "SIZE", "MODIFIED"),
            [(i.image_id, size(i.size), iso_time(i.mtime)) for i in images],
            flush_right=("SIZE",),
        )
    return 0


@click.command("info", short_help="Show one image, or several.")
@click.argument("images", metavar="ID|URL...", nargs=-1, required=True)
@json_option
@common_options
@click.pass_obj
def info_command(settings: Settings, images: tuple[str, ...], as_json: bool) -> int:
    """Show size, room on disk, time, mode and URL of images."""
    output = settings.output(as_json)
    tally = Tally()
    with settings.open_store(read_only=True) as store:
        for name in images:
            with output.going_on(name, tally):
                image = store.info(name)
                if as_json:
                    output.record(image_record(image))
                else:
                    output.fields(image.image_id, _described(image))
    return tally.code


def _described(image: ImageInfo) -> list[tuple[str, str]]:
    holes = " (sparse)" if image.allocated < image.size else ""
    return [
        ("size", exact_size(image.size)),
        ("on disk", f"{size(image.allocated)}{holes}"),
        ("modified", iso_time(image.mtime)),
        ("mode", octal(image.mode)),
        ("datadir", image.datadir),
        ("url", image.url),
    ]


@click.command("df", short_help="Show the room in each data directory.")
@json_option
@common_options
@click.pass_obj
def df_command(settings: Settings, as_json: bool) -> int:
    """Show the room in each data directory, in the order in which they are filled."""
    output = settings.output(as_json)
    with settings.open_store(read_only=True) as store:
        usages = store.usage()
    if as_json:
        for usage in usages:
            output.record(usage_record(usage))
        return 0
    output.table(
        ("DATADIR", "PRIORITY", "TYPE", "SIZE", "USED", "FREE", "RESERVED", "WRITABLE"),
        [
            (
                u.path,
                str(u.priority),
                u.filesystem,
                size(u.total),
                size(u.used),
                size(u.free),
                size(u.reserved),
                "yes" if u.writable else "no",
            )
            for u in usages
        ],
        flush_right=("PRIORITY", "SIZE", "USED", "FREE", "RESERVED"),
    )
    return 0
