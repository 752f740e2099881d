# SPDX-License-Identifier: Apache-2.0
"""The root of the command: its help, its sub-commands, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from fastfs.cli.adopt import adopt_command
from fastfs.cli.config import config_command
from fastfs.cli.doctor import doctor_command
from fastfs.cli.errors import ExitCode, Problem
from fastfs.cli.fetch import cat_command, get_command
from fastfs.cli.glance import glance_command
from fastfs.cli.hash import hash_command
from fastfs.cli.ingest import ingest_command
from fastfs.cli.listing import df_command, info_command, ls_command
from fastfs.cli.quarantine import quarantine_command
from fastfs.cli.remove import rm_command, sweep_command
from fastfs.cli.repair import repair_command
from fastfs.cli.scrub import scrub_command
from fastfs.cli.settings import Settings, common_options
from fastfs.cli.signals import Interrupted, raising
from fastfs.cli.space import du_command

__all__ = ["cli", "run"]

EPILOG = """\b
Examples:
  fastfs ingest --datadir /srv/images debian-12.iso disks/
  export FASTFS_DATADIR=/srv/images
  fastfs ls
  fastfs get debian-12.iso -o copy.iso
  fastfs cat --range 0-511 debian-12.iso | xxd

\b
Which store: --datadir counts first, then FASTFS_* variables, then --config.
An ID is a name as 'fastfs ls' shows it; a file:// URL will do as well.

\b
Exit codes:
  0    done                         6    access denied
  1    failed, or in several ways   7    an image is damaged
  2    wrong usage, configuration   8    not all could be verified
  3    not found                    130  interrupted (Ctrl-C)
  4    duplicate                    141  the reader of our output went away
  5    storage full                 143  terminated
  One image that fails does not stop the others. The code is that of the
  failure if all failed alike, else 1.
"""


class OutputClosed(BaseException):
    """Nobody reads stdout any more (``fastfs ls | head -1``)."""


class Program(click.Group):
    """A click group that ends every run with one of our exit codes and never with a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a newcomer's day, not of the alphabet

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as exc:
            raise OutputClosed from exc

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "fastfs",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        settings = Settings()
        extra.update(args=args, prog_name=prog_name or "fastfs", complete_var=complete_var, obj=settings)
        sys.exit(self._outcome(settings, extra))

    def _outcome(self, settings: Settings, extra: dict[str, Any]) -> int:
        try:
            with raising(), settings.output().warnings():
                code = super().main(standalone_mode=False, **extra)
            return int(code or 0)
        except click.ClickException as exc:
            message = " ".join(exc.format_message().split())
            settings.output().problem(Problem(message, _usage_hint(exc), ExitCode.USAGE, type(exc).__name__))
            return ExitCode.USAGE
        except (click.Abort, Interrupted) as exc:
            code = exc.code if isinstance(exc, Interrupted) else 128 + signal.SIGINT
            word = "terminated" if code == 128 + signal.SIGTERM else "interrupted"
            settings.output().problem(Problem(word, None, ExitCode.FAILED, "Interrupted"))
            return code
        except OutputClosed:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            return ExitCode.BROKEN_PIPE
        except Exception as exc:
            return settings.output().failure(exc).code


def _usage_hint(exc: click.ClickException) -> str | None:
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    return f"'{context.command_path} --help' shows usage and examples" if context else None


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from fastfs.cli.doctor import version

    click.echo(f"fastfs {version()}")
    ctx.exit()


@click.group(
    cls=Program,
    name="fastfs",
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Store disk images in directories: fast, whole, and hashed.

    An image appears under its id when it is complete, and not before; nothing is ever overwritten.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


for command in (
    ingest_command,
    ls_command,
    info_command,
    get_command,
    cat_command,
    rm_command,
    df_command,
    du_command,
    scrub_command,
    quarantine_command,
    repair_command,
    adopt_command,
    sweep_command,
    hash_command,
    config_command,
    doctor_command,
    glance_command,
):
    cli.add_command(command)


def run() -> int:
    """The command on ``sys.argv``; returns the exit code."""
    try:
        cli.main()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
