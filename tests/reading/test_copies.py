"""`Store.copy_to`, ``fastfs get -o`` and `sendfile` into files: whole or not at all, holes kept, blocks shared."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import filesystems
import pytest

import fastfs
from fastfs import Store

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(3 * MIB + 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(datadir=str(tmp_path / "images"), durability="none")


def sparse(path: Path) -> bytes:
    """1 MiB of data, 30 of hole, 1 of data, a hole at the end."""
    with path.open("wb") as file:
        file.write(CONTENT[:MIB])
        file.seek(31 * MIB)
        file.write(CONTENT[MIB : 2 * MIB])
        file.truncate(40 * MIB)
    return path.read_bytes()


def test_copy(store: Store, tmp_path: Path) -> None:
    url = store.add("image", CONTENT).url
    told: list[int] = []
    assert store.copy_to(url, tmp_path / "copy", progress=told.append) == len(CONTENT)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)


def test_empty(store: Store, tmp_path: Path) -> None:
    assert store.copy_to(store.add("image", b"").url, tmp_path / "copy") == 0
    assert (tmp_path / "copy").read_bytes() == b""


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    content = sparse(tmp_path / "images" / "image")
    store.copy_to(store.find("image"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert os.stat(tmp_path / "copy").st_blocks * 512 <= 3 * MIB


def test_what_is_there_stays(store: Store, tmp_path: Path) -> None:
    url = store.add("image", CONTENT).url
    (tmp_path / "copy").write_bytes(b"there")
    with pytest.raises(fastfs.Duplicate):
        store.copy_to(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"there"
    store.copy_to(url, tmp_path / "copy", replace=True)
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOENT])
def test_a_rename_whose_answer_is_lost(
    error: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done: ENOENT is what a repeated call meets, anything else an error, after which nothing is there."""
    url = store.add("image", CONTENT).url
    target = tmp_path / "copy"
    target.write_bytes(b"old")
    real = os.replace

    def replace(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "replace", replace)
    if error == errno.ENOENT:
        assert store.copy_to(url, target, replace=True) == len(CONTENT)
        assert target.read_bytes() == CONTENT
    else:
        with pytest.raises(fastfs.StorageError):
            store.copy_to(url, target, replace=True)
        assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_only_files_are_replaced(kind: str, store: Store, tmp_path: Path) -> None:
    url = store.add("image", CONTENT).url
    (os.mkdir if kind == "directory" else os.mkfifo)(tmp_path / "copy")
    with pytest.raises(fastfs.Invalid, match="no regular file"):
        store.copy_to(url, tmp_path / "copy", replace=True)


def test_command(store: Store, tmp_path: Path) -> None:
    content = sparse(tmp_path / "images" / "image")
    command = [sys.executable, "-m", "fastfs.cli", "get", "--datadir", str(tmp_path / "images"), "image", "-o"]
    subprocess.run([*command, str(tmp_path / "copy")], check=True, capture_output=True)
    assert (tmp_path / "copy").read_bytes() == content
    assert os.stat(tmp_path / "copy").st_blocks * 512 <= 3 * MIB


def used(place: Path) -> int:
    os.sync()
    info = os.statvfs(place)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared(kind: str, tmp_path: Path) -> None:
    if why := filesystems.missing(kind):
        pytest.skip(why)

    def share(scratch: Path) -> None:
        with filesystems.made(kind, scratch, 400 * MIB) as place:
            (place / "images").mkdir()
            image = CONTENT * 15
            (place / "images" / "image").write_bytes(image)
            with Store(datadir=str(place / "images"), durability="file") as store:
                before = used(place)
                store.copy_to(store.find("image"), place / "copy")
                with store.get(store.find("image"))[0] as reader, (place / "sent").open("wb") as file:
                    assert reader.sendfile(file) == len(image)
                    assert file.tell() == len(image)
                # Not on a block's boundary: blocks cannot be shared then, and bytes are copied.
                with store.get(store.find("image"), 1, 2 * MIB)[0] as reader, (place / "part").open("wb") as file:
                    reader.sendfile(file)
                assert used(place) - before < len(image) // 4
                assert (place / "copy").read_bytes() == (place / "sent").read_bytes() == image
                assert (place / "part").read_bytes() == image[1 : 2 * MIB + 1]
                store.delete(store.find("image"))
                assert (place / "copy").read_bytes() == image

    filesystems.isolated(share, tmp_path)
