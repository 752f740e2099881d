"""The direction of imports: a module knows only what stands below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastfs

PACKAGE = Path(fastfs.__file__).parent
EXTENSION = PACKAGE.parent / "ext"

# From the bottom to the top; between those of one floor there is no circle. The rooms of later issues are
# on the drawing already.
FLOORS = (
    {"_native"},
    {"exceptions"},
    {"location", "permissions", "metadata", "config", "hashing", "timeouts"},
    {"datadirs", "sources", "targets", "publish", "record", "sidecar", "conveyor"},
    {"reader", "upload", "smallfiles", "copies", "verified"},
    {"checksum"},
    {"ingest", "scrub"},
    {"store"},
    {"filesystem"},
    {"cli", "glance"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What only one room may know.
FOREIGN = {
    "click": {"cli"},
    "rich": {"cli"},
    "glance_store": {"glance"},
    "oslo_config": {"glance"},
    "oslo_utils": {"glance"},
    "stevedore": {"glance"},
    "futurist": {"glance"},
    "fsspec": {"filesystem"},
}


def room_of(parts: tuple[str, ...]) -> str:
    """`fastfs.cli.main` is in the room `cli`; the package itself is `__init__`."""
    return parts[1] if len(parts) > 1 else "__init__"


def imported(source: str, module: tuple[str, ...], is_package: bool = False) -> Iterator[tuple[str, ...]]:
    """Dotted names of all that `source` imports, wherever in it, those under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield tuple(name.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base: tuple[str, ...] = ()
            if node.level:
                base = module[: len(module) - node.level + is_package]
            base += tuple(node.module.split(".")) if node.module else ()
            for name in node.names:
                yield (*base, name.name)


def faults(source: str, module: tuple[str, ...], is_package: bool = False) -> list[str]:
    """What in `source`, the text of `module`, goes against the drawing."""
    room, found = room_of(module), []
    for name in imported(source, module, is_package):
        if name[0] in FOREIGN and room not in FOREIGN[name[0]]:
            found.append(f"{'.'.join(module)} imports {name[0]}")
        if name[0] != "fastfs" or room == "__init__":
            continue
        other = room_of(name)
        if other == room:
            continue
        if other not in FLOOR:
            # The package's own names may be used from above the store only: its __init__ imports the store.
            if FLOOR[room] <= FLOOR["store"]:
                found.append(f"{'.'.join(module)} imports {'.'.join(name)}, which is the whole package")
        elif FLOOR[other] > FLOOR[room]:
            found.append(f"{'.'.join(module)} imports {other}, which does not stand below it")
    return found


def modules() -> Iterator[tuple[Path, tuple[str, ...]]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield path, parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {".".join(module): (path, module) for path, module in modules()}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name: str) -> None:
    path, module = MODULES[name]
    assert module == ("fastfs",) or room_of(module) in FLOOR or room_of(module) == "__main__", (
        f"{name} has no place on the drawing"
    )
    if room_of(module) != "__main__":
        assert faults(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("fastfs.location", "from fastfs import store", "store"),
        ("fastfs.location", "from fastfs.store import Store", "store"),
        ("fastfs.location", "import fastfs.store", "store"),
        ("fastfs.location", "from . import store", "store"),
        ("fastfs.location", "from .store import Store", "store"),
        ("fastfs.location", "def later():\n    from .publish import publish", "publish"),
        (
            "fastfs.exceptions",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .config import x",
            "config",
        ),
        ("fastfs.store", "from fastfs import Store", "whole package"),
        ("fastfs.store", "from fastfs.cli.main import run", "cli"),
        ("fastfs.store", "import rich.progress", "rich"),
        ("fastfs.config", "import glance_store", "glance_store"),
        ("fastfs._native", "from .exceptions import NotFound", "exceptions"),
    ],
)
def test_a_wrong_import_is_noticed(module: str, source: str, expected: str) -> None:
    (found,) = faults(source, tuple(module.split(".")))
    assert expected in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastfs.store", "from .reader import ChunkedFile\nfrom . import exceptions\nimport os"),
        ("fastfs.publish", "from fastfs import _native, exceptions"),
        (
            "fastfs.cli.main",
            "import rich\nfrom .. import Store\nfrom .bars import bar\nfrom fastfs.store import x",
        ),
    ],
)
def test_a_right_import_is_let_through(module: str, source: str) -> None:
    assert faults(source, tuple(module.split("."))) == []


def test_relative_imports_of_a_package() -> None:
    assert faults("from . import bars\nfrom .. import store", ("fastfs", "cli"), is_package=True) == []
    assert faults("from ..cli import bars", ("fastfs", "store"), is_package=True) != []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Rooms that, one by one, import the next, and the last the first; none if there is no such circle."""
    done: set[str] = set()

    def walk(room: str, path: list[str]) -> list[str]:
        if room in path:
            return path[path.index(room) :]
        if room in done:
            return []
        for other in sorted(graph.get(room, ())):
            if found := walk(other, [*path, room]):
                return found
        done.add(room)
        return []

    return next(filter(None, (walk(room, []) for room in sorted(graph))), [])


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path, module in MODULES.values():
        room = room_of(module)
        if room != "__init__":
            names = imported(path.read_text(), module, path.name == "__init__.py")
            known = {room_of(name) for name in names if name[0] == "fastfs"} - {room, "__init__"}
            graph.setdefault(room, set()).update(known & FLOOR.keys())
    assert circle(graph) == []


def test_a_circle_is_noticed() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


NEEDS_SOURCES = pytest.mark.skipif(not EXTENSION.is_dir(), reason="the extension's sources are not beside it")


@NEEDS_SOURCES
def test_c_knows_nothing_of_python() -> None:
    paths = [path for path in EXTENSION.rglob("*") if path.suffix in {".c", ".h"}]
    sources = [path for path in paths if "Generated by Cython" not in path.read_text()[:200]]
    assert sources
    assert not [path.name for path in sources if "Python.h" in without_comments(path.read_text())]


@NEEDS_SOURCES
def test_the_extension_knows_nothing_of_the_package() -> None:
    for path in EXTENSION.rglob("*.py[xd]"):
        assert not re.search(r"^\s*(from|import|cimport)\s+\.*fastfs\b", path.read_text(), re.MULTILINE), path.name
