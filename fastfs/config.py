# SPDX-License-Identifier: Apache-2.0
"""`StoreConfig`: the options, their defaults and bounds, and where values come from."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from fastfs.exceptions import BadStoreConfiguration
from fastfs.permissions import check_file_perm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Durability = Literal["none", "file", "full", "batch"]
Records = Literal["none", "large", "all"]

#: The durabilities that have a name, too, on the disk before it is acknowledged.
NAME_DURABLE = frozenset({"full", "batch"})

ENV_PREFIX = "FASTFS_"
TOML_TABLE = "fastfs"

# JSON Schema 2020-12.  `remedy` is ours: the end of the message when the option is wrong.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "fastfs store configuration",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "datadir": {
            "type": ["string", "null"],
            "minLength": 1,
            "description": "The directory that holds the images.",
            "remedy": "give the path of a directory",
        },
        "datadirs": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'Several directories, each "path" or "path:priority"; higher priorities are filled first.',
            "remedy": 'give a list of "path" or "path:priority"',
        },
        "metadata_file": {
            "type": ["string", "null"],
            "description": "A JSON file that tells the mountpoint and id of the storage below a directory.",
            "remedy": "give the path of a JSON file",
        },
        "file_perm": {
            "type": "integer",
            "minimum": 0,
            "description": "Mode of stored images; 0 leaves it to the umask.",
            "remedy": 'give a mode such as 0o640, or "640" where numbers cannot be octal',
        },
        "chunk_size": {
            "type": "integer",
            "minimum": 1,
            "maximum": sys.maxsize,
            "description": "Size in bytes of the pieces that reading an image yields.",
            "remedy": "give a positive number of bytes",
        },
        "thin_provisioning": {
            "type": "boolean",
            "description": "Leave holes instead of writing pages of zeroes.",
            "remedy": "use true or false",
        },
        "timeout": {
            "type": "number",
            "minimum": 0,
            "maximum": 1_000_000_000,
            "description": "Seconds after which an operation of a data directory that hangs is given up; 0: never.",
            "remedy": "give a number of seconds, 0 to switch it off",
        },
        "thread_pool_size": {
            "type": "integer",
            "minimum": 1,
            "maximum": 10_000,
            "description": "How many operations may be under way at once when there is a timeout.",
            "remedy": "give a positive number of threads",
        },
        "threadpool_threshold": {
            "type": "integer",
            "minimum": 0,
            "maximum": 100,
            "description": "Share of those threads, in percent, from which on a warning is logged.",
            "remedy": "give a percentage, 0 to 100",
        },
        "durability": {
            "enum": ["none", "file", "full", "batch"],
            "description": 'What is on the disk when add() returns: "none", the "file", or its name, too ("full"); '
            '"batch" is "full", for which the small objects of add_many() share their syncs.',
            "remedy": 'use "none", "file", "full" or "batch"',
        },
        "records": {
            "enum": ["none", "large", "all"],
            "description": 'Which images get a record of block digests: "none", "large" ones (over 64 KiB) or "all".',
            "remedy": 'use "none", "large" or "all"',
        },
        "record_block_size": {
            "type": "integer",
            "minimum": 65536,
            "maximum": 1 << 30,
            "multipleOf": 4096,
            "description": "Bytes of a block, for each of which a record has a digest.",
            "remedy": "give a multiple of 4096 from 65536 to 1073741824",
        },
        "cache": {
            "enum": ["keep", "drop", "direct"],
            "description": 'The page cache: "keep" what is stored, "drop" it when it is on the disk, or pass it by.',
            "remedy": 'use "keep", "drop" or "direct"',
        },
        "hash_engine": {
            "enum": ["auto", "hashlib"],
            "description": 'Who hashes: "auto" chooses the fastest on this machine, "hashlib" is the system\'s.',
            "remedy": 'use "auto" or "hashlib"',
        },
        "mount_guard": {
            "type": "boolean",
            "description": "Refuse to write to a data directory whose file system is not mounted.",
            "remedy": "use true or false",
        },
    },
}


@lru_cache(maxsize=1)
def _validator() -> Validator:
    # Importing jsonschema takes 60 ms, so it is not done at the top.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(SCHEMA)


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Everything that can be set about a `Store`; checked once, when it is made.

    One of `datadir` and `datadirs` must be given.  Strings are understood for every option, as environment
    variables bring them; a string for `file_perm` is octal.

    :raises BadStoreConfiguration: an option has no sense; the message names it, its value and the remedy.
    """

    datadir: str | None = None
    datadirs: tuple[str, ...] = ()
    metadata_file: str | None = None
    file_perm: int = 0
    chunk_size: int = 65536
    thin_provisioning: bool = False
    timeout: float = 0
    thread_pool_size: int = 10
    threadpool_threshold: int = 75
    durability: Durability = "full"
    records: Records = "large"
    record_block_size: int = 1 << 20
    cache: str = "keep"
    hash_engine: str = "auto"
    mount_guard: bool = False

    #: The data directories as (absolute path, priority), in the order given.
    directories: tuple[tuple[str, int], ...] = field(init=False, repr=False, compare=False)

    if TYPE_CHECKING:
        # What the generated __init__ takes is more than what the fields hold afterwards.
        def __init__(
            self,
            *,
            datadir: str | os.PathLike[str] | None = None,
            datadirs: Iterable[str | os.PathLike[str] | tuple[str | os.PathLike[str], int]] = (),
            metadata_file: str | os.PathLike[str] | None = None,
            file_perm: int | str = 0,
            chunk_size: int | str = 65536,
            thin_provisioning: bool | str = False,
            timeout: float | str = 0,
            thread_pool_size: int | str = 10,
            threadpool_threshold: int | str = 75,
            durability: str = "full",
            records: str = "large",
            record_block_size: int | str = 1 << 20,
            cache: str = "keep",
            hash_engine: str = "auto",
            mount_guard: bool | str = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        values = {name: _normal(name, getattr(self, name)) for name in SCHEMA["properties"]}
        for error in _validator().iter_errors(values):
            name = str(error.absolute_path[0])
            remedy = SCHEMA["properties"][name]["remedy"]
            raise BadStoreConfiguration(f"{name}={getattr(self, name)!r} is refused: {error.message}; {remedy}")
        for name, value in values.items():
            object.__setattr__(self, name, tuple(value) if name == "datadirs" else value)
        check_file_perm(self.file_perm)
        object.__setattr__(self, "directories", self._directories())

    def _directories(self) -> tuple[tuple[str, int], ...]:
        if self.datadir is not None and self.datadirs:
            raise BadStoreConfiguration(
                f"datadir={self.datadir!r} and datadirs={list(self.datadirs)!r} exclude each other; keep one of them"
            )
        if self.datadir is not None:
            return ((_absolute("datadir", self.datadir), 0),)
        if self.datadirs:
            return tuple(parse_datadir(entry) for entry in self.datadirs)
        raise BadStoreConfiguration(
            "there is no data directory; set datadir or datadirs (--datadir, FASTFS_DATADIR or a configuration file)"
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> StoreConfig:
        """Take options by name; an unknown name is refused."""
        return cls(**_known(dict(mapping), "option"))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> StoreConfig:
        """Take options from the table ``[fastfs]`` of a TOML file."""
        return cls.from_mapping(read_toml(path))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> StoreConfig:
        """Take options from variables such as ``FASTFS_DATADIR``; see `read_env`."""
        return cls.from_mapping(read_env(environ))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> StoreConfig:
        """A TOML file if one is named, then ``FASTFS_*`` variables, then `overrides`: the last one wins.

        A later `datadir` also puts an earlier `datadirs` out of force, and the other way round.
        """
        values: dict[str, Any] = {}
        for layer in ({} if path is None else read_toml(path), read_env(environ), overrides):
            if layer.get("datadir") is not None or layer.get("datadirs"):
                values.pop("datadir", None)
                values.pop("datadirs", None)
            values.update(layer)
        return cls.from_mapping(values)

    def as_dict(self) -> dict[str, Any]:
        """The options as `from_mapping` takes them."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table ``[fastfs]`` of a TOML file, checked for unknown names only.

    :raises BadStoreConfiguration: the file cannot be read, is not TOML, or has no such table.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            table = tomllib.load(file).get(TOML_TABLE)
    except OSError as error:
        raise BadStoreConfiguration(
            f"configuration file {name}: {error.strerror}", path=name, errno=error.errno
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadStoreConfiguration(f"configuration file {name} is not TOML: {error}", path=name) from error
    if not isinstance(table, dict):
        raise BadStoreConfiguration(f"configuration file {name} has no table [{TOML_TABLE}]", path=name)
    return _known(table, f"option of {name}")


def read_env(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The options among the environment variables: ``FASTFS_`` and the option's name in capitals.

    ``FASTFS_DATADIRS`` holds several entries separated by commas.  Empty variables count as not set.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for name in SCHEMA["properties"]:
        text = environ.get(ENV_PREFIX + name.upper(), "")
        if text:
            values[name] = text.split(",") if name == "datadirs" else text
    return values


#: Variables that are no options.
OTHER_VARIABLES = ("CONFIG", "DEBUG", "GLANCE_DISABLE", "GLANCE_STRICT", "HASH_THREADS", "KERNEL")


def misspelt_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that are nearly called like those of `read_env`, and what was probably meant."""
    names = [name.upper() for name in SCHEMA["properties"]]
    found = {}
    for name in os.environ if environ is None else environ:
        rest = name.removeprefix(ENV_PREFIX)
        if rest == name or rest in names or rest in OTHER_VARIABLES:
            continue
        from difflib import get_close_matches

        near = get_close_matches(rest, names, n=1, cutoff=0.8)
        if near:
            found[name] = ENV_PREFIX + near[0]
    return found


def parse_datadir(entry: str) -> tuple[str, int]:
    """Split ``path[:priority]`` at the last colon; the priority is 0 unless given.

    :return: (absolute path, priority)
    :raises BadStoreConfiguration: no path, or a priority that is no whole number.
    """
    path, colon, priority = entry.rpartition(":")
    if not colon:
        path, priority = entry, ""
    path, priority = path.strip(), priority.strip()
    try:
        number = int(priority) if priority else 0
    except ValueError:
        raise BadStoreConfiguration(
            f"datadirs: {entry!r} has the priority {priority!r}, which is not a whole number; "
            'write "path" or "path:priority"'
        ) from None
    return _absolute(f"datadirs entry {entry!r}", path), number


def _absolute(what: str, path: str) -> str:
    if not path.strip():
        raise BadStoreConfiguration(f"{what} names no directory; give a path")
    if "\0" in path:
        raise BadStoreConfiguration(f"{what} holds a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise BadStoreConfiguration(f"{what}={path!r} cannot be encoded as a path; name another one") from None
    # Not normalised further: "..", behind a link, is not what it looks like.
    return os.path.join(os.getcwd(), path) if not path.startswith("/") else path


def _known(values: dict[str, Any], what: str) -> dict[str, Any]:
    for name in values:
        if name not in SCHEMA["properties"]:
            from difflib import get_close_matches

            near = get_close_matches(str(name), SCHEMA["properties"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SCHEMA['properties'])}"
            raise BadStoreConfiguration(f"unknown {what}: {name!r}; {hint}")
    return values


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _normal(name: str, value: Any) -> Any:
    """The value as JSON has it.  What has no sense is left for the schema to refuse."""
    kind = SCHEMA["properties"][name].get("type")
    if name == "datadirs":
        if value is None:
            return []
        # Of a mapping or a set the order would be lost, or the priorities.
        if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
            return value
        return [_entry(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        text = value.strip()
        if name == "metadata_file" and not text:
            return None
        if kind == "boolean":
            return True if text.lower() in _TRUE else False if text.lower() in _FALSE else value
        if kind in ("integer", "number"):
            try:
                if name == "file_perm":
                    return int(text.lower().removeprefix("0o"), 8)
                value = int(text) if kind == "integer" else float(text)
            except ValueError:
                return value
    if isinstance(value, float):
        if kind == "integer" and value.is_integer():
            return int(value)
        if math.isnan(value):
            return "nan"  # no bound would catch it
    return value


def _entry(item: Any) -> Any:
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], int):
        return f"{os.fspath(item[0])}:{item[1]}"
    return os.fspath(item) if isinstance(item, os.PathLike) else item
