# SPDX-License-Identifier: Apache-2.0
"""The options that every command takes, and the store that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.output import Output

if TYPE_CHECKING:
    from fastfs import Store, StoreConfig

__all__ = ["Settings", "common_options", "json_option", "voice_options"]

F = TypeVar("F", bound=Callable[..., Any])

NO_STORE = "no data directory is configured"
REMEDIES = "give --datadir DIR, or --config FILE with a [fastfs] table, or set FASTFS_DATADIR in the environment"


@dataclass
class Settings:
    """What one run was told, before or after the command's name."""

    datadirs: tuple[str, ...] = ()
    config_file: Path | None = None
    quiet: bool = False
    verbose: int = 0

    def output(self, as_json: bool = False) -> Output:
        return Output(as_json=as_json, quiet=self.quiet, verbose=self.verbose)

    def overrides(self) -> dict[str, Any]:
        """--datadir replaces whatever file and environment say about directories."""
        return {"datadirs": list(self.datadirs)} if self.datadirs else {}

    @property
    def names_a_store(self) -> bool:
        return bool(self.datadirs or self.config_file) or any(
            os.environ.get(name) for name in ("FASTFS_DATADIR", "FASTFS_DATADIRS")
        )

    def config(self, **more: Any) -> StoreConfig:
        """The configuration in effect: file, then environment, then command line."""
        from fastfs import StoreConfig
        from fastfs.config import misspelt_variables

        for name, meant in misspelt_variables().items():
            self.output().note(f"{name} in the environment is not used; {meant} is an option")
        if not self.names_a_store:
            raise CommandError(NO_STORE, REMEDIES)
        return StoreConfig.load(self.config_file, **self.overrides(), **more)

    def open_store(self, *, create: bool = False, read_only: bool = False, **more: Any) -> Store:
        """The store. Only ingest makes directories: a misspelt one must not look like an empty store.

        Commands that only look need no right to write.
        """
        from fastfs import Store

        config = self.config(**more)
        if not create:
            for path, _ in config.directories:
                if not os.path.isdir(path):
                    raise CommandError(
                        f"data directory {path} does not exist",
                        "'fastfs ingest' creates it; 'fastfs config' shows where the name came from",
                        ExitCode.NOT_FOUND,
                    )
        return Store(config, read_only=read_only)


def _set_datadirs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        ctx.ensure_object(Settings).datadirs = value


def _set_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).config_file = value


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).quiet = True


def _set_verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    settings = ctx.ensure_object(Settings)
    settings.verbose = max(settings.verbose, value)


def _decorated(command: F, decorators: Sequence[Callable[[F], F]]) -> F:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def voice_options(command: F) -> F:
    """-q and -v: as in `common_options`."""
    return _decorated(
        command,
        [
            click.option(
                "-q",
                "--quiet",
                is_flag=True,
                expose_value=False,
                callback=_set_quiet,
                help="No progress, no remarks: only results and errors.",
            ),
            click.option(
                "-v",
                "--verbose",
                count=True,
                expose_value=False,
                callback=_set_verbose,
                help="Say more; -vv adds tracebacks to errors.",
            ),
        ],
    )


def common_options(command: F) -> F:
    """--datadir, --config, -q and -v: the same before and after the command's name; the later one counts."""
    return _decorated(
        voice_options(command),
        [
            click.option(
                "--datadir",
                "datadirs",
                metavar="DIR[:PRIO]",
                multiple=True,
                expose_value=False,
                callback=_set_datadirs,
                help="A data directory; repeat for several. The highest priority with room is filled first.",
            ),
            click.option(
                "--config",
                metavar="FILE",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                expose_value=False,
                callback=_set_config,
                help="A TOML file with a [fastfs] table.",
            ),
        ],
    )


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line; sizes in bytes.")(command)
