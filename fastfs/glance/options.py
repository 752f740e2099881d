# SPDX-License-Identifier: Apache-2.0
"""The options of a store: glance_store's, and those of fastfs's own that Glance's files have no place for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from fastfs import config
from fastfs.exceptions import BadStoreConfiguration
from fastfs.glance import upstream
from fastfs.glance.upstream import LOG

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Names a TOML file with `OWN` options: ``[fastfs]`` for all stores, ``[stores.NAME]`` for one.
CONFIG = "FASTFS_CONFIG"
OWN = ("durability", "records", "record_block_size", "cache", "hash_engine", "mount_guard")

# Glance's stores for staging and tasks lie where they lie; a mount guard meant for the images is not for them.
RESERVED_PREFIX = "os_glance_"

_DATADIR, _DATADIRS = "filesystem_store_datadir", "filesystem_store_datadirs"


def register(conf: Any, group: str) -> None:
    """Register every option that is not there yet.

    glance_store's base class stops at the first one that is there already with other texts.
    """
    for where in (group, upstream.SHARED_GROUP):
        for option in upstream.OPTIONS:
            try:
                conf.register_opt(option, group=where)
            except upstream.DuplicateOptError:
                continue


def own_defaults(conf: Any, group: str) -> dict[str, Any]:
    """Defaults that somebody gave to options of this one group (Glance does, for its reserved stores)."""
    found = {}
    for option in upstream.OPTIONS:
        try:
            value = getattr(conf[group], option.name)
            if value is not None and value != option.default and not is_set(conf, option.name, group):
                found[option.name] = value
        except (upstream.NoSuchOptError, upstream.NoSuchGroupError):
            continue
    return found


def is_set(conf: Any, name: str, group: str) -> bool:
    """Has somebody given the option a value, in a file or a program?"""
    found = conf.get_location(name, group)
    return found is not None and found.location not in upstream.DEFAULTS


class Options:
    """The options in effect for one store.

    :param conf: the ``oslo.config`` object.
    :param group: the store's own group; None for a store alone.
    """

    def __init__(self, conf: Any, group: str | None) -> None:
        self.conf = conf
        self.group = group
        register(conf, group or upstream.SINGLE_GROUP)
        self.own: dict[str, Any] = {}
        if group is None:
            self.values = conf[upstream.SINGLE_GROUP]
            return
        self.own = own_defaults(conf, group)
        # This overwrites the defaults of all options of the group, to see which ones are set.
        self.values = upstream.group_configuration(conf, group)
        for name, value in self.own.items():
            conf.set_default(name, value, group=group)

    def get(self, name: str, default: Any) -> Any:
        """The value of an option; `default` if it is empty, or not known to this version of glance_store."""
        try:
            value = getattr(self.values, name)
        except upstream.NoSuchOptError:
            return default
        return default if value is None else value

    def places(self) -> tuple[str | None, list[str]]:
        """`filesystem_store_datadir` and `filesystem_store_datadirs`, at most one of them given.

        What is set nearer to the store puts the other one out of force: the default of datadir need not be emptied
        for the sake of datadirs.

        :raises glance_store.exceptions.BadStoreConfiguration: both are set at the same place, or none is.
        """
        datadir: str | None = self.get(_DATADIR, None) or None
        datadirs: list[str] = self.get(_DATADIRS, None) or []
        if datadir and datadirs:
            one, several = self._nearness(_DATADIR), self._nearness(_DATADIRS)
            if one == several:
                raise _bad(f"Specify either '{_DATADIR}' or '{_DATADIRS}' option")
            if one > several:
                datadirs = []
            else:
                datadir = None
        if not datadir and not datadirs:
            raise _bad(f"Specify at least '{_DATADIR}' or '{_DATADIRS}' option")
        return datadir, datadirs

    def _nearness(self, name: str) -> int:
        """2: set for this store, 1: for all stores, 0: a default."""
        groups = [self.group, upstream.SHARED_GROUP] if self.group else [upstream.SINGLE_GROUP]
        for distance, group in enumerate(groups):
            if distance == 0 and name in self.own:
                return 2
            if is_set(self.conf, name, group):
                return 2 - distance
        return 0

    def file_perm(self) -> int:
        """The mode of stored images; 0: the umask's.

        The option's decimal digits are those of the octal number.

        :raises glance_store.exceptions.BadStoreConfiguration: they are not, or the owner could not read.
        """
        number = self.get("filesystem_store_file_perm", 0)
        if number <= 0:
            return 0
        try:
            mode = int(str(number), 8)
        except ValueError:
            raise _bad(
                f"filesystem_store_file_perm={number} has digits that an octal number cannot have; use 640, for one"
            ) from None
        if mode & ~0o777:
            LOG.warning(
                "filesystem_store_file_perm=%s: set-id and sticky bits are left out, images get mode 0%o",
                number,
                mode & 0o777,
            )
            mode &= 0o777
        if not mode & 0o400:
            raise _bad(f"filesystem_store_file_perm={number} would not let the owner read; add 400")
        return mode

    def extra(self) -> dict[str, Any]:
        """`OWN` options: of the file `CONFIG` names, then of the environment, then of the file for this store.

        :raises fastfs.BadStoreConfiguration: the file cannot be used.
        """
        general, stores = _read(os.environ.get(CONFIG, ""))
        # Only on demand: upstream's driver, which may take over again, would leave the records of what it deletes.
        general.setdefault("records", "none")
        general.update({name: value for name, value in config.read_env().items() if name in OWN})
        if (self.group or "").startswith(RESERVED_PREFIX):
            general.pop("mount_guard", None)
            general["records"] = "none"  # what lies there is read once, and removed by Glance itself
        return {**general, **stores.get(self.group or "", {})}


def _read(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options for all stores, and by store.  Other options, which the command knows, are passed over."""
    if not path:
        return {}, {}
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise BadStoreConfiguration(f"{CONFIG}={path}: {error}", path=path) from error
    stores = found.get("stores", {})
    if not isinstance(stores, dict):
        raise BadStoreConfiguration(f"{CONFIG}={path}: [stores] is no table", path=path)
    return _own(found.get(config.TOML_TABLE, {}), path), {name: _own(stores[name], path, name) for name in stores}


def _own(table: Any, path: str, store: str = "") -> dict[str, Any]:
    where = f"[stores.{store}]" if store else f"[{config.TOML_TABLE}]"
    if not isinstance(table, Mapping):
        raise BadStoreConfiguration(f"{CONFIG}={path}: {where} is no table", path=path)
    known = OWN if store else config.SCHEMA["properties"]
    unknown = [name for name in table if name not in known]
    if unknown:
        raise BadStoreConfiguration(
            f"{CONFIG}={path}: {where} has the unknown option {unknown[0]!r}; there are: {', '.join(OWN)}", path=path
        )
    return {name: table[name] for name in OWN if name in table}


def _bad(reason: str) -> Exception:
    from fastfs.glance.errors import bad_configuration

    return bad_configuration(reason)
