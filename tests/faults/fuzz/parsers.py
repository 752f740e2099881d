"""Atheris target: all that parses what users, operators and clients write.  Only our own exceptions may come out.

    python tests/faults/fuzz/parsers.py -runs=100000          # arguments as libFuzzer has them

Without atheris the same functions run on bytes of a random generator: ``parsers.py --plain 100000``.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastfs import FastfsError, StoreConfig, metadata
from fastfs.cli.errors import CommandError
from fastfs.cli.ranges import parse_range, resolve_range
from fastfs.config import SCHEMA, parse_datadir, read_env, read_toml
from fastfs.location import Location, check_image_id

SCRATCH = Path(tempfile.mkdtemp(prefix="fastfs-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
OPTIONS = list(SCHEMA["properties"])
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    float("nan"),
    float("inf"),
    [],
    {},
    "",
    "0o644",
    "nan",
    b"x",
    ("a", 1),
]


def uri(text: str) -> None:
    location = Location.parse(text)
    assert Location.of(location.uri) == location
    assert location.path.startswith("/")


def image_id(text: str) -> None:
    name = check_image_id(text)
    assert name == text
    assert "/" not in name
    assert name[0] != "."
    assert len(os.fsencode(name)) <= 255


def byte_range(text: str) -> None:
    for size in (0, 1, 1000, 2**63 - 1):
        offset, length = resolve_range(parse_range(text), size)
        assert offset >= 0
        assert length >= 0
        assert offset + length <= size


def datadir(text: str) -> None:
    path, priority = parse_datadir(text)
    assert path.startswith("/")
    assert isinstance(priority, int)


def environment(text: str) -> None:
    options = {f"FASTFS_{name.upper()}": text for name in OPTIONS if len(name) % 2 == len(text) % 2}
    StoreConfig.from_mapping(read_env({**options, "FASTFS_DATADIR": text}))


def option(text: str) -> None:
    chance = random.Random(repr(text))
    value = chance.choice([*VALUES, text, [text]])
    config = StoreConfig.from_mapping({"datadir": "/x", chance.choice(OPTIONS): value})
    assert 0 <= config.file_perm <= 0o777
    assert config.timeout >= 0


def toml(text: str) -> None:
    path = SCRATCH / "toml"
    path.write_text("[fastfs]\n" + text, encoding="utf-8", errors="surrogatepass")
    StoreConfig.from_mapping({"datadir": "/x", **read_toml(path)})


def metadata_file(text: str) -> None:
    path = SCRATCH / "metadata"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    entries = metadata.load(str(path))
    metadata.match(entries, "/a/b" + text)


TARGETS: list[Callable[[str], None]] = [
    uri, image_id, byte_range, datadir, environment, option, toml, metadata_file,
]  # fmt: skip
PREFIXES = [
    "",
    "file://",
    "file:///",
    "filesystem:///a",
    "bytes=",
    '{"id": "a", "mountpoint": "',
    "chunk_size = ",
    "/a:",
    "-",
    "0x",
]


def one(data: bytes) -> None:
    if not data:
        return
    text = data[2:].decode("utf-8", errors="surrogateescape")
    if len(data) > 1:
        text = PREFIXES[data[1] % len(PREFIXES)] + text
    with contextlib.suppress(FastfsError, CommandError):
        TARGETS[data[0] % len(TARGETS)](text)


def plain(count: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    alphabet = b'/:.-=0123456789"{}[],\\ \n\t\0%#?aefilxo\xff\xc3\xa4'
    for _ in range(count):
        size = int(chance.expovariate(0.05))
        tail = bytes(chance.choice(alphabet) if chance.random() < 0.8 else chance.randrange(256) for _ in range(size))
        one(chance.randbytes(2) + tail)


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--plain"]:
            plain(int(sys.argv[2]))
            print(f"{sys.argv[2]} runs")
        else:
            import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

            atheris.instrument_all()
            atheris.Setup(sys.argv, one)
            atheris.Fuzz()
    finally:
        for leftover in SCRATCH.iterdir():
            leftover.unlink()
        SCRATCH.rmdir()
