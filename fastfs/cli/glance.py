# SPDX-License-Identifier: Apache-2.0
"""``fastfs glance``: have Glance use fastfs as its filesystem driver, or not."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.output import Output
from fastfs.cli.settings import Settings, json_option

__all__ = ["glance_command"]


@click.group("glance", short_help="Be the filesystem driver of OpenStack Glance.")
def glance_command() -> None:
    """Be the filesystem driver of OpenStack Glance.

    \b
    fastfs glance enable              for this virtual environment
    fastfs glance run -- uwsgi ...    for one command and what it starts
    fastfs glance status              what a service started now would use

    No file of glance_store's is changed; 'disable' ends it, and images stored by either driver serve the other.
    """


@glance_command.command(
    "run",
    short_help="Run a command with fastfs switched on.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("command", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(command: tuple[str, ...]) -> None:
    """Run a command with fastfs switched on, for it and for all that it starts.

    The command takes the place of this one. Works for whatever starts a Python that imports site: uwsgi, gunicorn,
    python.
    """
    from fastfs.glance import pth

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, pth.environment(dict(os.environ)))
    except OSError as error:
        raise CommandError(f"cannot run {command[0]}: {error.strerror}", None, ExitCode.NOT_FOUND) from error


@glance_command.command("enable", short_help="Switch fastfs on for this virtual environment.")
@click.option("--system", is_flag=True, help="Also where this is no virtual environment.")
@click.pass_obj
def enable_command(settings: Settings, system: bool) -> int:
    """Switch fastfs on for this virtual environment.

    Writes one .pth file. Services take it up when they are started the next time.
    """
    from fastfs.glance import pth

    if not system and not pth.in_virtual_environment():
        raise CommandError(
            "this is no virtual environment", "run the fastfs of Glance's environment, or give --system", ExitCode.USAGE
        )
    output = settings.output()
    try:
        path = pth.enable()
    except OSError as error:
        raise CommandError(f"{pth.pth_file()}: {error.strerror}", None, ExitCode.DENIED) from error
    output.note(f"wrote {path}")
    return _report(output, gather(), wanted=True)


@glance_command.command("disable", short_help="Switch it off again.")
@click.pass_obj
def disable_command(settings: Settings) -> int:
    """Switch it off again: removes the .pth file.

    Services go on as they are until they are started the next time.
    """
    from fastfs.glance import pth

    try:
        removed = pth.disable()
    except OSError as error:
        raise CommandError(f"{pth.pth_file()}: {error.strerror}", None, ExitCode.DENIED) from error
    settings.output().note(f"removed {pth.pth_file()}" if removed else "it was not enabled")
    return ExitCode.OK


@glance_command.command("status", short_help="Show which driver a service would use.")
@json_option
@click.pass_obj
def status_command(settings: Settings, as_json: bool) -> int:
    """Show which driver a service started now, in this environment, would use.

    Starts an interpreter and looks. Ends with 1 if fastfs is enabled and something keeps it from being used.
    """
    output = settings.output(as_json)
    found = gather()
    if as_json:
        output.record(found)
        return ExitCode.FAILED if found["enabled"] and found["driver"] != "fastfs" else ExitCode.OK
    return _report(output, found, wanted=found["enabled"])


def gather() -> dict[str, Any]:
    """What is the case, as ``status --json`` tells it."""
    from fastfs.glance import pth

    found = pth.probe()
    problem = found.get("error") or found.get("problem", "")
    return {
        "driver": found.get("driver", ""),
        "enabled": pth.is_enabled(),
        "fits": not problem,
        "problem": problem,
        "glance_store": found.get("glance_store", ""),
        "fastfs": found.get("fastfs", ""),
        "strict": found.get("strict", False),
        "file": str(pth.pth_file()),
    }


def _report(output: Output, found: dict[str, Any], wanted: bool) -> int:
    fits = "yes" if found["fits"] else f"no: {found['problem']}"
    names = {"fastfs": "fastfs", "glance_store": "glance_store's own", "": "none"}
    output.fields(
        "glance",
        [
            ("driver", names.get(found["driver"], found["driver"])),
            ("enabled here", "yes" if found["enabled"] else "no"),
            ("glance_store", found["glance_store"] or "not installed"),
            ("fastfs", found["fastfs"]),
            ("all fits", fits),
        ],
    )
    if wanted and found["driver"] != "fastfs":
        raise CommandError(f"fastfs is not used: {found['problem'] or 'it was not found'}", None, ExitCode.FAILED)
    return ExitCode.OK
