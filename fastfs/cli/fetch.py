# SPDX-License-Identifier: Apache-2.0
"""``get`` and ``cat``: images out of the store, into a file or a pipe."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from typing import TYPE_CHECKING

import click

import fastfs
from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.jobs import TICK, Job
from fastfs.cli.plan import Item
from fastfs.cli.progress import display
from fastfs.cli.ranges import parse_range, resolve_range
from fastfs.cli.settings import Settings, common_options, json_option

if TYPE_CHECKING:
    from fastfs import ChunkedFile

__all__ = ["cat_command", "get_command"]

CAT_EPILOG = """\b
Examples:
  fastfs cat debian-12.iso | sha512sum
  fastfs cat --range 0-511 disk.img | xxd      the first 512 bytes
  fastfs cat --range -4096 disk.img > tail     the last 4096
  fastfs cat disk.img > /dev/sdx               onto a device
"""
GET_EPILOG = """\b
Examples:
  fastfs get debian-12.iso -o copy.iso
  fastfs get debian-12.iso -o /tmp             under its id in a folder

The file appears when it is complete. Holes stay holes; xfs and btrfs share the blocks.
With --verify every byte is read and checked; holes stay holes then, too.
"""


@click.command("cat", epilog=CAT_EPILOG, short_help="Write an image, or a part of it, to stdout.")
@click.argument("image", metavar="ID|URL")
@click.option("--range", "range_", metavar="A-B", help="Bytes A to B, both included; A- to the end; -N the last N.")
@click.option("--verify", is_flag=True, help="Check each block against the image's record before it is written.")
@click.option("--force", is_flag=True, help="Even to a terminal.")
@common_options
@click.pass_obj
def cat_command(settings: Settings, image: str, range_: str | None, verify: bool, force: bool) -> int:
    """Write the bytes of an image to stdout."""
    wanted = parse_range(range_) if range_ is not None else None
    if sys.stdout.isatty() and not force:
        raise CommandError("this would write an image to the terminal", "redirect stdout, or use --force")
    with settings.open_store(read_only=True) as store:
        info = store.info(image)
        offset, length = resolve_range(wanted, info.size) if wanted else (0, info.size)
        if not length:
            return 0
        reader, _ = store.get(info.url, offset, length, verify=verify)
        with reader:
            sys.stdout.flush()
            try:
                target = sys.stdout.fileno()
            except (OSError, ValueError):  # captured by an embedding program
                reader.sendfile(sys.stdout.buffer)
            else:
                _send_all(reader, target)
    return 0


def _send_all(reader: ChunkedFile, target: int) -> None:
    """Also to a descriptor that somebody has put into non-blocking mode."""
    done = 0
    while done < reader.length:
        try:
            done += reader.sendfile(target, done)
        except BlockingIOError:
            select.select([], [target], [])


@click.command("get", epilog=GET_EPILOG, short_help="Copy an image into a file.")
@click.argument("image", metavar="ID|URL")
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    required=True,
    help="Where to; a folder takes it under its id.",
)
@click.option("--verify", is_flag=True, help="Check each block against the image's record before it is written.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
@common_options
@click.pass_obj
def get_command(settings: Settings, image: str, target: str, *, verify: bool, force: bool, as_json: bool) -> int:
    """Copy an image into a file."""
    output = settings.output(as_json)
    started = time.monotonic()
    with settings.open_store(read_only=True) as store:
        info = store.info(image)
        if os.path.isdir(target):
            target = os.path.join(target, info.image_id)
        _check_target(target, force)
        job = Job(Item(info.url, info.image_id, info.size), info.size, started=started)
        with display(not output.quiet, 1, info.size) as bars:
            shown = 0.0

            def progress(done: int) -> None:
                nonlocal shown
                job.done = done
                if (now := time.monotonic()) - shown >= TICK:
                    shown = now
                    bars.refresh([job])

            try:
                store.copy_to(info.url, target, replace=force, progress=progress, verify=verify)
            except fastfs.Duplicate:
                raise _exists(target) from None
    if as_json:
        seconds = round(time.monotonic() - started, 6)
        path = os.path.abspath(target)
        output.record({"id": info.image_id, "url": info.url, "path": path, "size": info.size, "seconds": seconds})
    return 0


def _exists(target: str) -> CommandError:
    return CommandError(f"{target} exists", "--force replaces it", ExitCode.DUPLICATE)


def _check_target(target: str, force: bool) -> None:
    """Say no before copying, in the words of the command."""
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise CommandError(f"{target} is not a regular file", f"write into it with 'fastfs cat ID > {target}'")
    if not force:
        raise _exists(target)
