"""What must hold on NFS; run in a guest (guest.py), which has one export mounted twice, as by two hosts.

    python on_nfs.py [--writer NAME] [--only REGEX]

Prints a line of JSON for each check and version of the protocol: its name, and a traceback unless it held.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import broken
import pytest

VERSIONS = ("4.2", "3")
FORK = multiprocessing.get_context("fork")
#: Where the server keeps it.
DISK = Path("/mnt/disk/images")


class Hosts:
    """One directory as two hosts see it, and a writer."""

    def __init__(self, version: str, name: str, maker: Callable[..., Any]) -> None:
        folder = f"{name}-{version}"
        self.served = DISK / folder
        self.a, self.b = (Path(f"/mnt/{version}/{host}/images/{folder}") for host in "ab")
        self.maker = maker
        self.served.mkdir()

    def store(self, host: str = "a", **options: Any) -> Any:
        return self.maker(**{"datadir": str(getattr(self, host)), "durability": "none", **options})

    def files(self) -> list[str]:
        """What is there, but for records."""
        for _ in range(100):
            names = os.listdir(self.served)
            # What was removed while it was open or being written the client itself removes later.
            if not any(name.startswith(".nfs") for name in names):
                break
            time.sleep(0.1)
        return sorted(name for name in names if not name.endswith(".rec"))


def content(size: int, seed: int = 0) -> bytes:
    return (b"%015d " % (size * 7 + seed)) * (size // 16 + 1)


def pieces(data: bytes, piece: int = 70_000) -> Iterator[bytes]:
    return iter([data[at : at + piece] for at in range(0, len(data), piece)])


def into_file(data: bytes) -> Any:
    path = "/dev/shm/source"
    Path(path).write_bytes(data)
    return open(path, "rb")


SOURCES: dict[str, Callable[[bytes], Any]] = {"bytes": bytes, "iterator": pieces, "file": into_file}


def what_goes_in_comes_out(hosts: Hosts) -> None:
    for durability in ("none", "file", "full"):
        with hosts.store(durability=durability) as store:
            for size in (0, 4096, 300_000, 3_000_001):
                for kind, source in SOURCES.items():
                    # Another name each time: the other host may take a new file for the old one for some seconds.
                    name, data = f"{kind}-{size}-{durability}", content(size)[:size]
                    store.add(name, source(data))
                    assert (hosts.a / name).read_bytes() == data
                    assert (hosts.b / name).read_bytes() == data
                    url = store.find(name)
                    assert b"".join(store.get(url)[0]) == data
                    assert hosts.files() == [name]
                    store.delete(url)
                    assert hosts.files() == []
    assert os.listdir(hosts.served) == []


def one_of_two_hosts_wins(hosts: Hosts) -> None:
    turns, size = 150, 20_000
    start = [FORK.Barrier(2) for _ in range(2)]

    def host(number: int, answers: Any) -> None:
        from fastfs import Duplicate

        won = []
        with hosts.store("ab"[number]) as store:
            for turn in range(turns):
                start[turn % 2].wait()
                with contextlib.suppress(Duplicate):
                    store.add(str(turn), pieces(content(size, number), 5000))
                    won.append(turn)
        answers.put((number, won))

    answers = FORK.Queue()
    children = [FORK.Process(target=host, args=(number, answers)) for number in range(2)]
    for child in children:
        child.start()
    winners = dict(answers.get(timeout=300) for _ in children)
    for child in children:
        child.join()
    assert sorted(winners[0] + winners[1]) == list(range(turns)), "each image has one winner"
    for number, won in winners.items():
        for turn in won:
            assert (hosts.served / str(turn)).read_bytes() == content(size, number)
    assert len(hosts.files()) == turns


def a_reader_of_what_is_deleted(hosts: Hosts) -> None:
    data = content(3_000_000)
    for deleter in "ab":
        with hosts.store("a") as store, hosts.store(deleter) as other:
            store.add("image", data)
            reader, _ = store.get(store.find("image"))
            got = bytearray(next(reader))
            other.delete(other.find("image"))
            # Where another host deleted it, the server may have no file for this one any more.
            assert error_of(collect, reader, got) in ((0,) if deleter == "a" else (0, errno.ESTALE))
            assert data.startswith(got)
            reader.close()
            assert list(store.images()) == []
        assert hosts.files() == [], "no silly name is left"


def collect(reader: Iterator[bytes], got: bytearray) -> None:
    for piece in reader:
        got += piece


def error_of(function: Callable[..., object], *arguments: object) -> int:
    """The errno of our error that a call raises; 0: none."""
    from fastfs import FastfsError

    try:
        function(*arguments)
    except FastfsError as error:
        return error.errno or -1
    return 0


def no_room(hosts: Hosts) -> None:
    size = 400 << 20
    block = bytes(1 << 20)
    for durability in ("none", "full"):
        for declared in (None, size):
            with hosts.store(durability=durability) as store:
                number = error_of(store.add, "large", (block for _ in range(size >> 20)), declared)
            assert number in (errno.ENOSPC, errno.EDQUOT)
            assert hosts.files() == []
    while shutil.disk_usage(DISK).free < 100 << 20:  # the server still has them open
        time.sleep(0.1)


def a_killed_writer_is_swept_and_a_living_one_is_not(hosts: Hosts) -> None:
    data = content(1_000_000)

    def upload() -> None:
        def slow() -> Iterator[bytes]:
            yield data[:500_000]
            while not (hosts.served / "go").exists():
                time.sleep(0.02)
            yield data[500_000:]

        with hosts.store("a") as store:
            store.add("image", slow())

    def begin() -> Any:
        child = FORK.Process(target=upload)
        child.start()
        for _ in range(500):
            if [name for name in hosts.files() if name.startswith(".")]:
                return child
            time.sleep(0.02)
        raise AssertionError("it does not begin")

    child = begin()
    hosts.store("b").close()  # a start on another host
    (hosts.served / "go").touch()
    child.join()
    assert child.exitcode == 0
    (hosts.served / "go").unlink()
    assert (hosts.served / "image").read_bytes() == data
    (hosts.served / "image").unlink()

    child = begin()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with hosts.store("b") as store:
        assert hosts.files() == []
        assert list(store.images()) == []


def the_directory_is_replaced_on_the_server(hosts: Hosts) -> None:
    data = content(3_000_000)
    with hosts.store() as store:
        store.add("image", data)
        url = store.find("image")
        reader, _ = store.get(url)
        got = bytearray(next(reader))
        os.rename(hosts.served, f"{hosts.served}.old")
        hosts.served.mkdir()
        shutil.rmtree(f"{hosts.served}.old")
        assert error_of(collect, reader, got) in (0, errno.ESTALE)
        assert data.startswith(got)
        reader.close()
        for _ in range(200):  # until the client notices
            number = error_of(store.add, "new", data)
            assert number in (0, errno.ESTALE, errno.ENOENT)
            if number == 0:
                break
            time.sleep(0.1)
        assert (hosts.served / "new").read_bytes() == data
        assert error_of(store.get, url) == errno.ENOENT
    assert hosts.files() == ["new"]


def the_network_fails(hosts: Hosts) -> None:
    """A time limit is kept, another directory goes on, and what was given up is not published later."""
    from fastfs import TimeoutError as TimedOut

    other = Path("/dev/shm") / hosts.served.name
    other.mkdir()
    data = content(2_000_000)
    # A process that is started in the middle would inherit the descriptors, and hang when it closes them.
    shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def network(state: str) -> None:
        assert shell.stdin
        assert shell.stdout
        print(f"ip link set lo {state} && echo done", file=shell.stdin, flush=True)
        assert shell.stdout.readline() == "done\n"

    def source() -> Iterator[bytes]:
        yield data[:1_000_000]
        network("down")
        yield data[1_000_000:]

    try:
        with hosts.store(timeout=2, durability="full") as store, hosts.store(datadir=str(other), timeout=2) as well:
            begun = time.monotonic()
            with pytest.raises(TimedOut, match=re.escape(str(hosts.a))):
                store.add("image", source())
            assert time.monotonic() - begun < 20
            well.add("image", data)
            assert b"".join(well.get(well.find("image"))[0]) == data
            network("up")
            for _ in range(40):
                with contextlib.suppress(TimedOut):
                    assert list(store.images()) == [], "it was published"
                    break
            else:
                raise AssertionError("it does not come back")
    finally:
        network("up")
        shell.communicate()
    for _ in range(100):
        hosts.store("b").close()
        if hosts.files() == []:
            break
        time.sleep(0.2)
    assert hosts.files() == [], "what was given up is neither published nor left behind"
    shutil.rmtree(other)


def records_and_scrub(hosts: Hosts) -> None:
    data = content(3_000_000)
    with hosts.store(records="all", record_block_size=65536) as store:
        store.add("small", b"small")
        store.add("image", data)
        assert store.scrub().all().clean == 2
    with hosts.store("b", records="all") as store:
        assert b"".join(store.get(store.find("image"), verify=True)[0]) == data
        with open(hosts.served / "image", "r+b") as file:
            file.seek(1_000_000)
            file.write(b"!")
        os.sync()
        summary = store.scrub(restart=True, quarantine=True).all()
        assert summary.damaged == 1, summary
        assert hosts.files() == [".fastfs-quarantine", "small"]
        assert len(os.listdir(hosts.served / ".fastfs-quarantine")) == 1
        store.delete(store.find("small"))


CHECKS = (
    what_goes_in_comes_out,
    one_of_two_hosts_wins,
    a_reader_of_what_is_deleted,
    no_room,
    a_killed_writer_is_swept_and_a_living_one_is_not,
    the_directory_is_replaced_on_the_server,
    records_and_scrub,
    the_network_fails,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--writer", default="fastfs", choices=broken.WRITERS)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for check in CHECKS:
        for version in VERSIONS:
            if not re.search(arguments.only, check.__name__):
                continue
            begun = time.monotonic()
            trouble = ""
            try:
                check(Hosts(version, f"{check.__name__}-{arguments.writer}", broken.WRITERS[arguments.writer]))
            except Exception:
                trouble = traceback.format_exc()
            told = {
                "writer": arguments.writer,
                "check": check.__name__,
                "version": version,
                "trouble": trouble,
                "seconds": round(time.monotonic() - begun, 1),
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
