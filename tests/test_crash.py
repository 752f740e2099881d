"""SIGKILL in the middle of uploads: under a final name there is nothing, or the whole image.

Run as a script, this file forks uploading children and kills them at random moments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fastfs import Duplicate, NotFound, Store, StoreConfig, publish
from fastfs.datadirs import DataDir

KILLS = 200
PIECE = 16 * 1024
SIZES = (0, 1, 4096, 65537, 300_001, 1_048_576, 3_000_001)


def content(image_id: str) -> bytes:
    """Every image's bytes follow from its id, so that anybody can tell whether it is whole."""
    generator = random.Random(image_id)
    return generator.randbytes(generator.choice(SIZES))


def pieces(data: bytes, killed_at: int = -1) -> Iterator[bytes]:
    """`data` in pieces; before that of number `killed_at` the process dies."""
    for number, start in enumerate(range(0, len(data), PIECE)):
        if number == killed_at:
            die()
        yield data[start : start + PIECE]
    if killed_at * PIECE >= len(data):
        die()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Uploads:
    """fastfs, as a writer for the children."""

    def __init__(self, directory: Path, durability: str) -> None:
        self.store = Store(datadir=str(directory), durability=durability)

    def __call__(self, image_id: str, data: Any) -> None:
        self.store.add(image_id, data)


class Many(Uploads):
    """By the way of many at once, where small ones are stored in packs."""

    def __call__(self, image_id: str, data: Any) -> None:
        (outcome,) = self.store.add_many([(image_id, data)])
        assert outcome.error is None, outcome.error


class Hidden(Uploads):
    """fastfs on a file system that seems to have no nameless files."""

    def __init__(self, directory: Path, durability: str) -> None:
        publish.has_nameless = seems_to_have_none
        super().__init__(directory, durability)


def seems_to_have_none(directory: DataDir) -> bool:
    directory.nameless = False
    return False


class Straight:
    """A writer that must not pass: it writes under the final name, as glance_store does."""

    def __init__(self, directory: Path, durability: str) -> None:
        self.directory = directory

    def __call__(self, image_id: str, data: Any) -> None:
        with open(self.directory / image_id, "xb", buffering=0) as file:
            for piece in pieces(data) if isinstance(data, bytes) else data:
                file.write(piece)


WRITERS: dict[str, Callable[[Path, str], Any]] = {
    "fastfs": Uploads,
    "hidden": Hidden,
    "many": Many,
    "straight": Straight,
}


def upload_until_killed(write: Callable[[str, Any], None], turn: int, started: int, answers: int) -> NoReturn:
    """In a child: announce an image, store it, acknowledge it; and the next."""
    source = random.Random(turn)
    number = 0
    while True:
        image_id = f"image-{turn}-{number}"
        data = content(image_id)
        deliver: Callable[[bytes], Any] = source.choice((bytes, pieces, opened))
        os.write(started, image_id.encode() + b"\n")
        write(image_id, deliver(data))
        os.write(answers, image_id.encode() + b"\n")
        number += 1


def opened(data: bytes) -> Any:
    """A real file, for the way that goes through the extension alone."""
    descriptor = os.memfd_create("source")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return open(descriptor, "rb")


def killing(writer: str, directory: Path, durability: str, kills: int) -> None:
    """Kill that many children; print what was announced ("?") and what was acknowledged ("+")."""
    StoreConfig(datadir=str(directory))  # loads what every child would have to load
    chance = random.Random()
    for turn in range(kills):
        started, far_started = os.pipe()
        answers, far_answers = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                upload_until_killed(WRITERS[writer](directory, durability), turn, far_started, far_answers)
            except BaseException as error:
                print(f"! {error!r}", flush=True)
            finally:
                os._exit(1)
        os.close(far_started)
        os.close(far_answers)
        begun = os.read(started, 4096)  # the child has its store
        told = os.read(answers, 4096) if turn % 10 == 0 else b""  # some live until one is acknowledged, on any disk
        time.sleep(chance.choice((0.0005, 0.004, 0.04)) * chance.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        for mark, near, rest in (("?", started, begun), ("+", answers, told)):
            with open(near, "rb") as file:
                for image_id in (rest + file.read()).decode().split():
                    print(mark, image_id)


def check(directory: Path, announced: set[str], acknowledged: set[str]) -> None:
    """Each name that can be seen holds its whole image, and none that was acknowledged is missing."""
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    partial = [name for name in names if (directory / name).read_bytes() != content(name)]
    assert not partial, f"partial: {partial}"
    assert names <= announced
    assert acknowledged <= names, f"lost: {acknowledged - names}"


def killed(writer: str, directory: Path, durability: str, kills: int) -> tuple[set[str], set[str]]:
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, writer, str(directory), durability, str(kills)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    told: dict[str, set[str]] = {"?": set(), "+": set()}
    for line in done.stdout.splitlines():
        mark, _, name = line.partition(" ")
        assert mark in told, line
        told[mark].add(name)
    assert len({name.split("-")[1] for name in told["?"]}) == kills
    return told["?"], told["+"]


def hidden(directory: Path) -> list[str]:
    """What lies beside the images, but for the records of those that are there."""
    names = {path.name for path in directory.iterdir()}
    return [name for name in names if name.startswith(".") and name[len(".fastfs-") : -len(".rec")] not in names]


@pytest.mark.parametrize(
    ("writer", "durability"),
    [
        ("fastfs", "none"),
        ("fastfs", "full"),
        ("hidden", "none"),
        ("hidden", "full"),
        ("many", "none"),
        ("many", "batch"),
    ],
)
def test_killed_at_random(writer: str, durability: str, tmp_path: Path) -> None:
    announced, acknowledged = killed(writer, tmp_path, durability, KILLS // 2)
    check(tmp_path, announced, acknowledged)
    # The last one may have left an image and its record; a record that has its name, but no image, waits for `sweep`
    # where a new store need not look at every name.
    unnamed = [name for name in hidden(tmp_path) if name.endswith(".part")]
    assert len(unnamed) <= 2 * (writer == "hidden"), "every new store sweeps up what the last one left"
    assert acknowledged, "every child was killed in its first upload"
    assert announced - acknowledged, "no kill came in the middle of an upload"
    with Store(datadir=str(tmp_path), durability="none") as store:
        store.sweep()
        assert hidden(tmp_path) == []
        check(tmp_path, announced, acknowledged)
        there = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
        assert {image.image_id for image in store.images()} == there
        for image_id in announced - acknowledged:  # may be tried again
            with contextlib.suppress(Duplicate):
                store.add(image_id, content(image_id))
    check(tmp_path, announced, announced)


def test_the_check_notices_a_writer_that_is_not_safe(tmp_path: Path) -> None:
    def kill_and_check() -> None:
        for kills in (40, 160, 640):  # which moment a kill meets depends on what else the machine does
            announced, acknowledged = killed("straight", tmp_path / str(kills), "none", kills)
            check(tmp_path / str(kills), announced, acknowledged)

    with pytest.raises(AssertionError, match="partial"):
        kill_and_check()


def test_the_check_notices_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "image-0-0").write_bytes(content("image-0-0"))
    check(tmp_path, {"image-0-0"}, {"image-0-0"})
    with pytest.raises(AssertionError, match="lost"):
        check(tmp_path, {"image-0-0", "image-0-1"}, {"image-0-0", "image-0-1"})


LONG = next(name for name in map("long-{}".format, range(1000)) if len(content(name)) == max(SIZES))
LAST = -(-max(SIZES) // PIECE)
PLACES = [0, 1, 15, 16, 17, LAST // 2, LAST - 1, LAST]


def die_at(writer: str, directory: Path, killed_at: int) -> None:
    """In a child of its own: an upload whose source dies at a certain piece."""
    child = os.fork()
    if child == 0:
        try:
            WRITERS[writer](directory, "none")(LONG, pieces(content(LONG), killed_at))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status


def killed_at_places(writer: str, directory: Path, places: list[int]) -> dict[int, Path]:
    """For each place a directory of its own, in which an upload died there."""
    directories = {place: directory / str(place) for place in places}
    for path in directories.values():
        path.mkdir()
    command = [sys.executable, __file__, writer, str(directory), "places", *map(str, places)]
    subprocess.run(command, check=True, timeout=60)
    return directories


@pytest.mark.parametrize("writer", ["fastfs", "hidden"])
def test_killed_by_its_source(writer: str, tmp_path: Path) -> None:
    """Whether the last byte is read or none: the image is not there, and can be stored afterwards."""
    for directory in killed_at_places(writer, tmp_path, PLACES).values():
        check(directory, set(), set())
        assert len(hidden(directory)) == (writer == "hidden")
        assert not [name for name in hidden(directory) if (directory / name).stat().st_mode & 0o077]
        with Store(datadir=str(directory)) as store:
            store.sweep()
            assert os.listdir(directory) == []
            with pytest.raises(NotFound):
                store.find(LONG)
            store.add(LONG, pieces(content(LONG)))
        check(directory, {LONG}, {LONG})


def test_remains_on_a_file_system_with_nameless_files(tmp_path: Path) -> None:
    """From an older kernel, say.  A new store does not look at every image for that; `sweep` does."""
    directory = killed_at_places("hidden", tmp_path, [1])[1]
    assert len(hidden(directory)) == 1
    with Store(datadir=str(directory)) as store:
        assert len(store.swept + store.sweep()) == 1
    assert hidden(directory) == []


def test_only_what_is_ours_is_swept(tmp_path: Path) -> None:
    """Regular files of our own name whose writer is gone; nothing else, be it named like ours or not."""
    directory = killed_at_places("hidden", tmp_path, [1])[1]
    (ours,) = hidden(directory)
    others = [directory / name for name in (".hidden", f"{ours}.orig", f"x{ours}", "image")]
    for path in others:
        path.write_bytes(b"keep")
    (directory / f"{ours[:-9]}0000.part").mkdir()
    (directory / f"{ours[:-9]}1111.part").symlink_to("image")
    with Store(datadir=str(directory)) as store:
        store.sweep()
    assert not (directory / ours).exists()
    assert [path.read_bytes() for path in others] == [b"keep"] * 4
    assert len(hidden(directory)) == 4


def test_the_unsafe_writer_fails_at_a_place(tmp_path: Path) -> None:
    directory = killed_at_places("straight", tmp_path, [LAST // 2])[LAST // 2]
    with pytest.raises(AssertionError, match="partial"):
        check(directory, {LONG}, set())


if __name__ == "__main__":
    if sys.argv[3] == "places":
        for place in map(int, sys.argv[4:]):
            die_at(sys.argv[1], Path(sys.argv[2]) / str(place), place)
    else:
        killing(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))


def test_where_there_are_no_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    old, young = (tmp_path / f"{publish.PREFIX}{number:024x}{publish.SUFFIX}" for number in (1, 2))
    for path in (old, young):
        path.write_bytes(b"unfinished")
    long_ago = time.time() - publish.LOCKLESS_GRACE - 60
    os.utime(old, (long_ago, long_ago))
    monkeypatch.setattr(publish, "has_nameless", lambda directory: False)
    monkeypatch.setattr("fcntl.flock", refuse)
    with Store(datadir=str(tmp_path)) as store:
        assert store.swept == [str(old)]
        assert young.exists()
        assert store.sweep() == []
        assert store.sweep(grace=0) == [str(young)]
    assert not young.exists()
