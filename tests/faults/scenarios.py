"""What is tried under faults: every operation of a store, on every kind of source, in every setting that matters.

A scenario is a function of a `Place`.  What it does within ``with place.armed()`` is what faults strike; it calls
`Place.acknowledge` as soon as the store has told that an image is there (or gone).  To have a new operation
tried, write such a function and yield it from `scenarios`: `before` and `after` tell which images there are.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import mmap
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from shim import Option, Shim

SIZES = {"0": 0, "4K": 4096, "300K": 300 * 1024, "3M": 3 * 1024 * 1024}
SOURCES = ("path", "file", "pipe", "socket", "bytes", "bytesio", "mmap", "readinto", "read", "iterator")
DURABILITIES = ("none", "file", "full")
#: How a file comes into being and gets its name: nameless files; hidden ones; hidden ones, renamed the old way.
WAYS = {"nameless": 0, "hidden": Option.NO_TMPFILE, "linked": Option.NO_TMPFILE | Option.NO_NOREPLACE}
IMAGE = "image"
#: The hidden file of a writer that is gone.
REMAINS = ".fastfs-0123456789abcdef01234567.part"
OF_ANOTHER = ".fastfs-76543210fedcba9876543210.part"

Images = Mapping[str, bytes]


@lru_cache(maxsize=8)
def content(size: int, seed: int = 0) -> bytes:
    """Random bytes with zeroes in the middle and at the end, where a thin image has holes."""
    data = bytearray(random.Random(size + seed).randbytes(size))
    if size > 64 * 1024:
        third = size // 3
        data[third : 2 * third] = bytes(third)
        data[-20_000:] = bytes(20_000)
    return bytes(data)


class CommandFailed(Exception):
    """A command told that it failed."""


@dataclass
class Place:
    """The directories of one case, and what happens in them."""

    root: Path
    shim: Shim
    #: Makes the store under test; `fastfs.Store`, or one of `broken.py`.
    maker: Callable[..., Any]
    #: Starts counting calls.
    begin: Callable[[], None]
    #: Memory shared with the process that checks: names acknowledged, a byte each, in the order of `names`.
    acks: Any
    names: list[str]
    #: Called when the operation is over.
    over: Callable[[], object] = lambda: None
    #: How many calls had been made at each acknowledgement.
    acknowledged_at: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def other(self) -> Path:
        """A second data directory."""
        return self.root / "other"

    @property
    def outside(self) -> Path:
        """For sources; what lies there is watched as a source."""
        return self.root / "outside"

    @property
    def told(self) -> Path:
        """What a command prints."""
        return self.root / "told"

    def store(self, **options: Any) -> Any:
        if "datadirs" not in options:
            options["datadir"] = str(self.images)
        return self.maker(**options)

    def url(self, name: str = IMAGE) -> str:
        return f"file://{self.images}/{name}"

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.shim.disarm()
            self.over()

    def acknowledge(self, name: str = IMAGE) -> None:
        """From now on the operation on this image counts as done."""
        self.acks[self.names.index(name)] = 1
        self.acknowledged_at[name] = self.shim.count
        self.shim.mark()


@dataclass(frozen=True)
class Scenario:
    name: str
    run: Callable[[Place], None]
    before: Images = field(default_factory=dict)
    after: Images = field(default_factory=dict)
    #: `shim.Option`.
    options: int = 0
    #: What is synced before the acknowledgement; "" where nothing is stored.
    durability: str = ""
    #: It fails even without a fault, with an exception of this name.
    raises: str = ""
    #: An error may come after the image is gone already: an unlink cannot be undone.
    either: bool = False
    #: Hidden files that are there at the start, and that must stay: their writer lives.
    living: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()
    #: Errors come as an exit code.
    command: bool = False
    #: An error may pass without being told where another directory serves, or where nothing was to be done.
    forgiving: bool = False
    #: What fails is told by findings, by logs or by any exception.
    lenient: bool = False
    #: An image is changed in place: each of its bytes may be that of before or of after.
    in_place: bool = False
    #: Hidden files that may be there afterwards.
    kept: tuple[str, ...] = ()
    #: What a scrub may say of the image afterwards, beside clean and without a record.
    statuses: tuple[str, ...] = ()
    #: Bytes of an image that goes into quarantine or comes out of it: they must be in one of the places.
    quarantined: bytes | None = None

    @property
    def kind(self) -> str:
        return self.name.split()[0]


# -- sources ------------------------------------------------------------------------------------------------------


class Reader:
    """Nothing but ``read``."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self.file.read(size)


class Filler(io.RawIOBase):
    """Nothing but ``readinto``."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(memoryview(buffer)[:100_000])


@contextlib.contextmanager
def feeding(fd: int, data: bytes) -> Iterator[None]:
    """Write `data` to the far end of a stream, and close it."""

    def feed() -> None:
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while view:
                view = view[os.write(fd, view) :]
        os.close(fd)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def source(kind: str, data: bytes, place: Place) -> Iterator[Any]:
    """`data` as a source of that kind."""
    if kind in ("path", "file", "mmap"):
        path = place.outside / "source"
        path.write_bytes(data)
        if kind == "path":
            yield path
        elif kind == "file" or not data:  # nothing cannot be mapped
            with open(path, "rb") as file:
                yield file
        else:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            try:
                yield mapped
            finally:
                with contextlib.suppress(BufferError):  # what was given up has it, or the exception that tells so
                    mapped.close()
    elif kind == "pipe":
        near, far = os.pipe()
        fcntl.fcntl(far, fcntl.F_SETPIPE_SZ, 1024 * 1024)
        place.shim.watch_fd(near)
        with feeding(far, data), open(near, "rb") as file:
            yield file
    elif kind == "socket":
        one, two = socket.socketpair()
        place.shim.watch_fd(one.fileno())
        with feeding(two.detach(), data), one:
            yield one
    else:
        in_memory: dict[str, Callable[[], Any]] = {
            "bytes": lambda: data,
            "bytesio": lambda: io.BytesIO(data),
            "readinto": lambda: Filler(data),
            "read": lambda: Reader(data),
            "iterator": lambda: iter([data[i : i + 100_000] for i in range(0, len(data), 100_000)]),
        }
        yield in_memory[kind]()


# -- the operations -----------------------------------------------------------------------------------------------


def add(place: Place, kind: str, size: int, declared: bool, **options: Any) -> None:
    data = content(size)
    with place.store(**options) as store, source(kind, data, place) as file, place.armed():
        store.add(IMAGE, file, size if declared else None)
        place.acknowledge()


def add_again(place: Place, kind: str, size: int, **options: Any) -> None:
    """An image that is there already, with other bytes."""
    with place.store(**options) as store, source(kind, content(size, 1), place) as file, place.armed():
        store.add(IMAGE, file)


def add_to_two(place: Place, kind: str, size: int, declared: bool, **options: Any) -> None:
    """Two data directories: where one is full the other one may do."""
    directories = [f"{place.images}:2", f"{place.other}:1"]
    add(place, kind, size, declared, datadirs=directories, **options)


def delete(place: Place, **options: Any) -> None:
    with place.store(**options) as store, place.armed():
        store.delete(place.url())
        place.acknowledge()


def get(place: Place, how: str, **options: Any) -> None:
    data = (place.images / IMAGE).read_bytes()
    with place.store(**options) as store, place.armed():
        offset, length = (len(data) // 3, len(data) // 3) if how == "range" else (0, None)
        reader, size = store.get(place.url(), offset, length)
        expected = data[offset : offset + size]
        with reader:
            if how == "readinto":
                buffer = bytearray(size)
                got = bytes(buffer[: reader.readinto(buffer)])
            else:
                got = reader.read() if how == "read" else b"".join(reader)
        if got != expected:
            raise AssertionError(f"wrong bytes: {len(got)} of {len(expected)}")


def get_verified(place: Place, how: str) -> None:
    data = (place.images / IMAGE).read_bytes()
    with place.store(record_block_size=BLOCK) as store:
        recorded(place, store, data)
        with place.armed():
            if how == "copy":
                copy_out(place, store, data, verify=True)
                return
            reader, _ = store.get(place.url(), verify=True)
            with reader:
                got = reader.read() if how == "read" else b"".join(reader)
    if got != data:
        raise AssertionError(f"wrong bytes: {len(got)} of {len(data)}")


def copy_out(place: Place, store: Any, data: bytes, **options: Any) -> None:
    """The copy is whole, or not there."""
    target = place.outside / "copy"
    try:
        store.copy_to(place.url(), target, **options)
    finally:
        place.shim.disarm()
        there = [path for path in place.outside.iterdir() if path.read_bytes() != data]
        if there:
            raise AssertionError(f"a part of a copy: {there}")


def copy(place: Place, **options: Any) -> None:
    data = (place.images / IMAGE).read_bytes()
    with place.store(**options) as store, place.armed():
        copy_out(place, store, data)


def send(place: Place, how: str) -> None:
    """What the receiver has is the image, or, after an error, its beginning."""
    data, got = (place.images / IMAGE).read_bytes(), bytearray()
    with contextlib.ExitStack() as stack:
        if how == "file":
            target = stack.enter_context(open(place.root / "sent", "w+b", buffering=0))
            receiver = None
        else:
            one, two = os.pipe() if how == "pipe" else (end.detach() for end in socket.socketpair())
            target = stack.enter_context(open(two, "wb", buffering=0))
            receiver = threading.Thread(target=_receive, args=(one, got))
            receiver.start()
        sent, failed = 0, True
        try:
            with place.store() as store, place.armed(), store.get(place.url())[0] as reader:
                sent = reader.sendfile(target.fileno())
            failed = False
        finally:
            if receiver is None:
                got += os.pread(target.fileno(), len(data) + 1, 0)
            target.close()
            if receiver is not None:
                receiver.join()
            if bytes(got) != data[: len(got)] or (not failed and (sent, len(got)) != (len(data), len(data))):
                raise AssertionError(f"wrong bytes: {len(got)} of {len(data)}, told {sent}")


def _receive(fd: int, got: bytearray) -> None:
    with open(fd, "rb", buffering=0) as end:
        while piece := end.read(65536):
            got += piece


def add_batch(place: Place, sizes: Mapping[str, int]) -> None:
    """Many at once, acknowledged together."""
    items = [(name, content(size)) for name, size in sizes.items()]
    failed: BaseException | None = None
    with place.store(durability="batch") as store, place.armed():
        for outcome in store.add_many(items, jobs=1):
            if outcome.error is None:
                place.acknowledge(outcome.image_id)
            else:
                failed = outcome.error
    if failed is not None:
        raise failed


def look(place: Place) -> None:
    with place.store() as store, place.armed():
        found = list(store.images())
        size = store.get_size(store.find(IMAGE))
        info = store.info(IMAGE)
        store.usage()
    if [image.image_id for image in found] != [IMAGE] or info.size != size:
        raise AssertionError(f"wrong: {found}, {info}, {size}")


SCRUB_PASS = ".fastfs-scrub.json"
BLOCK = 65536


def damaged(data: bytes) -> bytes:
    """With a wrong byte at the beginning and at the end of a block."""
    changed = bytearray(data)
    for at in (BLOCK, 2 * BLOCK - 1):
        changed[at] ^= 1
    return bytes(changed)


def recorded(place: Place, store: Any, data: bytes) -> None:
    """Give the image a record, that of `data`."""
    path = place.images / IMAGE
    there = path.read_bytes()
    path.write_bytes(data)
    if [str(one.record) for one in store.adopt()] != ["made"]:
        raise AssertionError("there is no record")
    if there != data:
        with open(path, "r+b") as file:
            file.write(there)


def delete_recorded(place: Place, **options: Any) -> None:
    with place.store(**options) as store:
        recorded(place, store, content(300 * 1024))
        with place.armed():
            store.delete(place.url())
            place.acknowledge()


def scrub(place: Place, mode: str, **options: Any) -> None:
    with place.store(record_block_size=BLOCK, **options) as store:
        recorded(place, store, content(300 * 1024))
        with place.armed():
            found = [finding.status.value for finding in store.scrub(mode=mode, jobs=1)]
    if found != ["clean"]:
        raise CommandFailed(f"found {found}")


def quarantine(place: Place) -> None:
    with place.store(record_block_size=BLOCK) as store:
        recorded(place, store, content(300 * 1024))
        with place.armed():
            for finding in store.scrub(quarantine=True, jobs=1):
                if not finding.quarantined:
                    raise CommandFailed(finding.detail)
                place.acknowledge()


def out_of_quarantine(place: Place, action: str) -> None:
    from fastfs.scrub.quarantine import Quarantine

    with place.store(record_block_size=BLOCK) as store:
        path = place.images / IMAGE
        path.write_bytes(damaged(content(300 * 1024)))
        recorded(place, store, content(300 * 1024))
        store.scrub(quarantine=True, jobs=1).all()
        there = Quarantine(str(place.images))
        (entry,) = there.entries()
        with place.armed():
            getattr(there, action)(entry)
            if action == "restore":
                place.acknowledge()


def repair(place: Place) -> None:
    (place.outside / "good").write_bytes(content(300 * 1024))
    with place.store(record_block_size=BLOCK) as store:
        recorded(place, store, content(300 * 1024))
        with place.armed():
            done = store.repair(IMAGE, place.outside / "good")
            if not done.mended:
                raise CommandFailed(done.after.detail)
            place.acknowledge()


def adopt(place: Place, **options: Any) -> None:
    with place.store(**options) as store, place.armed():
        for one in store.adopt(jobs=1):
            if str(one.record) != "made":
                raise CommandFailed(one.detail)


def sweep(place: Place) -> None:
    with place.store() as store, place.armed():
        store.sweep()
        place.acknowledge(REMAINS)


def start(place: Place, **options: Any) -> None:
    with place.armed():
        place.store(**options).close()
        place.acknowledge(REMAINS)


def start_anew(place: Place) -> None:
    """The data directory does not exist yet."""
    with place.armed():
        place.store(datadirs=[str(place.images / "new" / "deep")], file_perm=0o644).close()


def command(place: Place, *arguments: str, expected: str = "") -> None:
    """The command ``fastfs``, whose every line of JSON is an acknowledgement."""
    import fastfs.cli

    before, sys.argv = sys.argv, ["fastfs", *arguments]
    out = os.open(place.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    saved = [os.dup(1), os.dup(2)]
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        with place.armed():
            code = fastfs.cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, number in zip(saved, (1, 2), strict=True):
            os.dup2(fd, number)
            os.close(fd)
        os.close(out)
        sys.argv = before
    told(place)
    if code:
        raise CommandFailed(f"exit code {code}: {place.told.read_text()[-2000:]}")
    if expected and expected not in place.told.read_text():
        raise AssertionError(f"{expected!r} is not told")


def told(place: Place) -> None:
    """Acknowledge what a command has printed; also of one that was killed."""
    for line in place.told.read_text().splitlines() if place.told.exists() else ():
        with contextlib.suppress(ValueError):
            name = json.loads(line).get("id")
            if name in place.names and "url" in json.loads(line):
                place.acks[place.names.index(name)] = 1


def ingest(place: Place, sizes: Mapping[str, int], *options: str) -> None:
    folder = place.outside / "folder"
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(content(size))
    command(place, "ingest", "--json", "--jobs", "1", "--datadir", str(place.images), *options, str(folder))


def ingest_stdin(place: Place, size: int) -> None:
    with source("pipe", content(size), place) as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            command(place, "ingest", "--json", "--datadir", str(place.images), "--id", IMAGE, "-")
        finally:
            os.dup2(saved, 0)
            os.close(saved)


# -- the list -------------------------------------------------------------------------------------------------------


def _adds() -> Iterator[Scenario]:
    every = itertools.product(SOURCES, SIZES.items(), DURABILITIES, WAYS.items(), (False, True), (False, True))
    for kind, (size_name, size), durability, (way, options), thin, declared in every:
        if way == "linked" and (thin or declared):
            continue  # they differ in their last step only
        words = ["add", kind, size_name, durability, way, "thin" * thin, "declared" * declared]
        body = partial(add, kind=kind, size=size, declared=declared, durability=durability, thin_provisioning=thin)
        yield Scenario(
            " ".join(filter(None, words)),
            body,
            after={IMAGE: content(size)},
            options=options | (Option.AS_EXT4 if declared else 0),
            durability=durability,
        )


def _records(there: Images) -> Iterator[Scenario]:
    """What has to do with records.  What fails there is told by findings and logs, not always by an exception."""
    lenient: dict[str, Any] = {"forgiving": True, "lenient": True}
    for size in (4096, 300 * 1024):
        after = {IMAGE: content(size)}
        for way, options in WAYS.items():
            body = partial(add, kind="bytes", size=size, declared=True, records="all")
            yield Scenario(f"add-all {size} {way}", body, after=after, options=options, durability="full")
    for durability in DURABILITIES:
        body = partial(delete_recorded, durability=durability)
        yield Scenario(f"delete recorded {durability}", body, there, {}, durability=durability, either=True)
    for mode in ("fast", "deep"):
        body = partial(scrub, mode=mode)
        yield Scenario(f"scrub {mode}", body, there, there, kept=(SCRUB_PASS,), **lenient)
    bad = {name: damaged(data) for name, data in there.items()}
    rotten: dict[str, Any] = {"statuses": ("bit-rot",), "kept": (SCRUB_PASS,), **lenient}
    moved = {**rotten, "quarantined": bad[IMAGE], "either": True}
    yield Scenario("quarantine", quarantine, bad, {}, **moved)
    yield Scenario("restore", partial(out_of_quarantine, action="restore"), {}, bad, **moved)
    yield Scenario("drop", partial(out_of_quarantine, action="drop"), {}, {}, either=True, **rotten)
    yield Scenario("repair", repair, bad, there, in_place=True, either=True, **rotten)
    for durability, (way, options) in itertools.product(DURABILITIES, WAYS.items()):
        body = partial(adopt, durability=durability)
        yield Scenario(f"adopt {durability} {way}", body, there, there, options, **lenient)


def scenarios() -> Iterator[Scenario]:
    """All of them; the names are unique."""
    yield from _adds()
    for kind, size in itertools.product(("file", "bytes", "read"), (4096, 300 * 1024)):
        after = {IMAGE: content(size)}
        for mode in (0o640, 0):
            body = partial(add, kind=kind, size=size, declared=False, file_perm=mode, mount_guard=False)
            yield Scenario(f"add-perm {kind} {size} {mode:o}", body, after=after, durability="full")
        for way, options in WAYS.items():
            # Every operation on a thread of its own.
            body = partial(add, kind=kind, size=size, declared=True, timeout=60)
            yield Scenario(f"add-timed {kind} {size} {way}", body, after=after, options=options, durability="full")
            old = {IMAGE: content(size)}
            body = partial(add_again, kind=kind, size=size)
            yield Scenario(f"add-again {kind} {size} {way}", body, old, old, options, raises="Duplicate")
            for declared in (False, True):
                body = partial(add_to_two, kind=kind, size=size, declared=declared)
                name = f"add-two {kind} {size} {way} {declared}"
                yield Scenario(name, body, after=after, options=options, durability="full", forgiving=True)
    there = {IMAGE: content(300 * 1024)}
    for durability in DURABILITIES:
        body = partial(delete, durability=durability)
        yield Scenario(f"delete {durability}", body, there, {}, durability=durability, either=True)
    yield Scenario("delete timed", partial(delete, timeout=60), there, {}, durability="full", either=True)
    for how in ("read", "readinto", "iterate", "range"):
        yield Scenario(f"get {how}", partial(get, how=how), there, there)
        yield Scenario(f"get {how} timed", partial(get, how=how, timeout=60), there, there)
    for how in ("read", "iterate", "copy"):
        yield Scenario(f"get-verified {how}", partial(get_verified, how=how), there, there)
    for how in ("file", "pipe", "socket"):
        yield Scenario(f"send {how}", partial(send, how=how), there, there, forgiving=True)
    for durability in DURABILITIES:
        yield Scenario(f"copy {durability}", partial(copy, durability=durability), there, there)
    yield Scenario("look", look, there, there, forgiving=True)
    yield from _records(there)
    left: dict[str, Any] = {"living": (OF_ANOTHER,), "remains": (REMAINS,), "forgiving": True}
    yield Scenario("sweep", sweep, there, there, **left)
    for name, options in list(WAYS.items())[1:]:
        yield Scenario(f"start {name}", start, there, there, options, **left)
        yield Scenario(f"start {name} timed", partial(start, timeout=60), there, there, options, **left)
    yield Scenario("start anew", start_anew, forgiving=True)
    several = {"a": 4096, "b": 0, "c": 60_000, "d": 300 * 1024}
    after = {name: content(size) for name, size in several.items()}
    for way, options in WAYS.items():
        body = partial(add_batch, sizes=several)
        # Synced together after they have their names: the order is not that of one image.
        yield Scenario(
            f"add-batch {way}", body, after=after, options=options, durability="none", forgiving=True, either=True
        )
    for way, options in WAYS.items():
        three = {"a": 4096, "b": 300 * 1024, "c": 0}
        after = {name: content(size) for name, size in three.items()}
        body = partial(ingest, sizes=three)
        # Small files go as a pack; when that fails they are stored one by one, so one error may not show.
        yield Scenario(
            f"ingest folder {way}", body, after=after, options=options, durability="full", command=True, forgiving=True
        )
        for size in (4096, 3 * 1024 * 1024):
            body = partial(ingest_stdin, size=size)
            after = {IMAGE: content(size)}
            name = f"ingest stdin {size} {way}"
            yield Scenario(name, body, after=after, options=options, durability="full", command=True)
