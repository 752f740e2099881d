# SPDX-License-Identifier: Apache-2.0
"""``fastfs quarantine``: what a scrub has moved out of the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from fastfs.cli.errors import CommandError, Tally
from fastfs.cli.output import exact_size, iso_time, size
from fastfs.cli.settings import Settings, common_options, json_option

if TYPE_CHECKING:
    from fastfs import Store
    from fastfs.scrub.quarantine import Entry

__all__ = ["quarantine_command"]

EPILOG = """\b
Examples:
  fastfs scrub --quarantine
  fastfs quarantine list
  fastfs quarantine show debian-12.iso
  fastfs quarantine restore debian-12.iso      back under its id
  fastfs quarantine drop --yes debian-12.iso   delete it for good

\b
ENTRY is a name as 'quarantine list' shows it, or the id of the image where
there is only one of it.
"""


@click.group("quarantine", epilog=EPILOG, short_help="List, show, restore or drop damaged images.")
def quarantine_command() -> None:
    """What 'fastfs scrub --quarantine' has moved out of the way."""


@quarantine_command.command("list", short_help="List what is in quarantine.")
@json_option
@common_options
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> int:
    """List what is in quarantine, the oldest first."""
    from fastfs.scrub.quarantine import Quarantine

    output = settings.output(as_json)
    with settings.open_store(read_only=True) as store:
        entries = [entry for directory in store.datadirs.all for entry in Quarantine(directory.path).entries()]
    if as_json:
        for entry in entries:
            output.record(entry.as_dict())
    elif output.quiet:
        for entry in entries:
            output.line(entry.name)
    elif not entries:
        output.note("nothing is in quarantine")
    else:
        rows = [(e.name, e.image_id or "?", e.status or "?", size(e.size), iso_time(e.moved)) for e in entries]
        output.table(("ENTRY", "ID", "STATUS", "SIZE", "MOVED"), rows, flush_right=("SIZE",))
    return 0


@quarantine_command.command("show", short_help="Show what was found of an image.")
@click.argument("entry", metavar="ENTRY")
@json_option
@common_options
@click.pass_obj
def show_command(settings: Settings, entry: str, as_json: bool) -> int:
    """Show where a quarantined image lies and what was found."""
    output = settings.output(as_json)
    with settings.open_store(read_only=True) as store:
        found = _find(store, entry)
    if as_json:
        output.record(found.as_dict())
        return 0
    report = found.report
    block_size = report.get("block_size") or 0
    runs = [f"{first * block_size} to {(last + 1) * block_size - 1}" for first, last in report.get("bad", [])]
    pairs = [
        ("id", found.image_id or "? (its report cannot be read)"),
        ("status", found.status or "?"),
        ("detail", str(report.get("detail", ""))),
        ("size", exact_size(found.size)),
        ("bad blocks", str(report.get("bad_blocks", "?"))),
        ("bad bytes", ", ".join(runs[:8]) + (", ..." if len(runs) > 8 else "")),
        ("moved", iso_time(found.moved)),
        ("datadir", found.datadir),
        ("file", f"{found.path}/image"),
    ]
    output.fields(found.name, [pair for pair in pairs if pair[1]])
    return 0


@quarantine_command.command("restore", short_help="Put images back under their ids.")
@click.argument("entries", metavar="ENTRY...", nargs=-1, required=True)
@json_option
@common_options
@click.pass_obj
def restore_command(settings: Settings, entries: tuple[str, ...], as_json: bool) -> int:
    """Put images back under their ids, as they are; what has the id meanwhile is not touched."""
    from fastfs.scrub.quarantine import Quarantine

    return _each(settings, entries, as_json, "restored", lambda entry: Quarantine(entry.datadir).restore(entry))


@quarantine_command.command("drop", short_help="Delete images for good.")
@click.argument("entries", metavar="ENTRY...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where stdin is no terminal.")
@json_option
@common_options
@click.pass_obj
def drop_command(settings: Settings, entries: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Delete quarantined images for good."""
    from fastfs.scrub.quarantine import Quarantine

    if not yes:
        if not sys.stdin.isatty():
            raise CommandError("stdin is no terminal to ask on", "--yes drops without asking")
        click.confirm(f"Drop {len(entries)} images for good?", abort=True, err=True)
    return _each(settings, entries, as_json, "dropped", lambda entry: Quarantine(entry.datadir).drop(entry))


def _each(
    settings: Settings, names: tuple[str, ...], as_json: bool, word: str, action: Callable[[Entry], object]
) -> int:
    output = settings.output(as_json)
    tally = Tally()
    with settings.open_store() as store:
        for name in dict.fromkeys(names):
            with output.going_on(name, tally):
                entry = _find(store, name)
                action(entry)
                if as_json:
                    output.record({"entry": entry.name, "id": entry.image_id, "datadir": entry.datadir, word: True})
                else:
                    output.detail(f"{word} {entry.image_id}")
    return tally.code


def _find(store: Store, key: str) -> Entry:
    from fastfs.scrub.quarantine import find

    return find([directory.path for directory in store.datadirs.all], key)
