# SPDX-License-Identifier: Apache-2.0
"""``fastfs config``: each option's value, and who set it."""

from __future__ import annotations

from typing import Any

import click

from fastfs.cli.errors import CommandError
from fastfs.cli.output import octal
from fastfs.cli.settings import Settings, common_options, json_option

__all__ = ["config_command"]

DIRECTORIES = ("datadir", "datadirs")  # the later of the two puts the earlier out of force


@click.command("config", short_help="Show the configuration and where each value came from.")
@json_option
@common_options
@click.pass_obj
def config_command(settings: Settings, as_json: bool) -> int:
    """Show the configuration in effect, and where each value came from.

    Later ones count: default, --config FILE, FASTFS_* in the environment, command line.
    """
    from fastfs import BadStoreConfiguration

    output = settings.output(as_json)
    try:
        config = settings.config()
    except BadStoreConfiguration as error:
        raise CommandError(
            str(error), "the value comes from --config FILE, FASTFS_* in the environment, or --datadir"
        ) from error
    origins = _origins(settings)
    rows = [(name, value, origins.get(name, "default")) for name, value in config.as_dict().items()]
    if as_json:
        output.record({name: {"value": value, "from": origin} for name, value, origin in rows})
        return 0
    output.table(("OPTION", "VALUE", "FROM"), [(name, _shown(name, value), origin) for name, value, origin in rows])
    return 0


def _origins(settings: Settings) -> dict[str, str]:
    """Which of the layers set an option last; layered as StoreConfig.load() does."""
    from fastfs.config import ENV_PREFIX, read_env, read_toml

    file = settings.config_file
    layers = (
        {name: str(file) for name in (read_toml(file) if file else ())},
        {name: f"{ENV_PREFIX}{name.upper()}" for name in read_env()},
        dict.fromkeys(settings.overrides(), "command line"),
    )
    origins: dict[str, str] = {}
    for layer in layers:
        if not layer.keys().isdisjoint(DIRECTORIES):
            for name in DIRECTORIES:
                origins.pop(name, None)
        origins.update(layer)
    return origins


def _shown(name: str, value: Any) -> str:
    if value is None or value == ():
        return "-"
    if name == "file_perm":
        return octal(value) if value else "umask"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value)
