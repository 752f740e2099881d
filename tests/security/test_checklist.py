"""The security checklist.  Where permission bits matter a test becomes somebody else, since root passes them."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import fastfs
from fastfs import Store, datadirs, metadata, publish
from fastfs.location import Location

NOBODY = 65534
SMALL, LARGE = b"small", b"large" * 100_000
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root can become somebody else or make devices")
WAYS = pytest.mark.parametrize("hidden", [False, True], ids=["nameless", "hidden"])
SIZES = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


@contextmanager
def limited(seconds: int = 20) -> Iterator[None]:
    """What hangs is ended."""

    def fail(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach."""
    path = Path(tempfile.mkdtemp(prefix="fastfs-security-"))
    path.chmod(0o755)
    (path / "images").mkdir()
    yield path
    shutil.rmtree(path)


def make(place: Path, hidden: bool = False, **options: Any) -> Store:
    store = Store(datadir=str(place / "images"), durability="none", **options)
    if hidden:
        store.datadirs.all[0].nameless = False
    return store


def as_nobody(function: Callable[[], object]) -> int:
    """Its exit status, in a child that is nobody; 1 where it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = function()
            code = answer if isinstance(answer, int) else 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- image ids -----------------------------------------------------------------------------------------------

BAD_IDS = [
    "", ".", "..", "a/b", "/a", "a/", "../a", "a\0b", "x" * 256, "ä" * 128, ".hidden", ".fastfs-0123456789ab.part",
    "\udc80" * 300, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("image_id", BAD_IDS, ids=ascii)
def test_bad_ids_are_refused(image_id: str, place: Path) -> None:
    with make(place) as store:
        for data in (SMALL, LARGE, iter([LARGE])):
            with pytest.raises(fastfs.InvalidImageId):
                store.add(image_id, data)
        with pytest.raises(fastfs.InvalidImageId):
            store.find(image_id)
    assert os.listdir(place / "images") == []


@pytest.mark.parametrize(
    "image_id", ["x" * 255, "ä" * 127, "a b", "a\nb", "%2e%2e", "-rf", "~", "...x"[3:], "\udc80"], ids=ascii
)
def test_odd_ids_stay_what_they_are(image_id: str, place: Path) -> None:
    with make(place) as store:
        url = store.add(image_id, SMALL).url
        assert os.listdir(os.fsencode(place / "images")) == [os.fsencode(image_id)]
        assert store.get(url)[0].read() == SMALL
        store.delete(url)


# -- locations outside ---------------------------------------------------------------------------------------


def operations(store: Store) -> list[Callable[[str], object]]:
    return [store.get, store.get_size, store.delete]


def outside(place: Path) -> list[str]:
    (place / "secret").write_bytes(b"secret")
    (place / "images-of-others").mkdir()
    (place / "images-of-others" / "a").write_bytes(b"secret")
    images = place / "images"
    (images / "link").symlink_to(place / "secret")
    (images / "relative").symlink_to("../secret")
    (images / "way").symlink_to(place)
    (images / "sub").mkdir()
    (images / "sub" / "link").symlink_to(place / "secret")
    return [
        f"{place}/secret", f"{images}/../secret", f"{images}/./../secret", f"{images}//../secret", f"{images}/link",
        f"{images}/relative", f"{images}/way/secret", f"{images}/sub/../../secret", f"{images}/sub/link", f"{images}",
        f"{images}/", f"{images}/.", f"{images}/..", f"{images}/sub", f"{place}/images-of-others/a", "/etc/passwd",
        "/proc/self/environ", "/proc/version", f"/proc/self/root{place}/secret", f"/proc/self/cwd/../../{place}/secret",
        "/dev/zero", "/dev/null", f"{images}/\0/secret", f"{images}/a\0b", "/" + "x" * 5000,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(3), ids=["get", "get_size", "delete"])
def test_what_is_outside_is_not_found(number: int, place: Path) -> None:
    with make(place) as store, limited():
        for path in outside(place):
            for scheme in ("file", "filesystem"):
                with pytest.raises((fastfs.NotFound, fastfs.StorageError)) as caught:
                    operations(store)[number](f"{scheme}://{path}")
                assert isinstance(caught.value, fastfs.NotFound) or caught.value.errno in (
                    errno.ELOOP,
                    errno.ENAMETOOLONG,
                )
    assert (place / "secret").read_bytes() == b"secret"
    assert (place / "images-of-others" / "a").exists()


def test_files_of_proc_are_not_images(place: Path) -> None:
    """They are regular and have the size 0, so that alone says nothing; even where somebody links to them."""
    (place / "images" / "a").symlink_to("/proc/version")
    with make(place) as store:
        for operation in operations(store):
            with pytest.raises(fastfs.FastfsError):
                operation(f"file://{place}/images/a")


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "a").write_bytes(b"secret")
    with make(place) as store:
        (place / "images" / "sub").symlink_to(place / "elsewhere")
        for operation in operations(store):
            with pytest.raises(fastfs.FastfsError):
                operation(f"file://{place}/images/sub/a")
    assert (place / "elsewhere" / "a").exists()


# -- FIFOs, devices, sockets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", pytest.param("device", marks=only_root)])
def test_what_is_no_file_neither_hangs_nor_is_read(kind: str, place: Path) -> None:
    path = place / "images" / "odd"
    with make(place) as store, limited(), socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        elif kind == "directory":
            path.mkdir()
        else:
            listener.bind(str(path))
        for operation in operations(store):
            with pytest.raises(fastfs.NotFound):
                operation(f"file://{path}")
        with pytest.raises(fastfs.Duplicate):
            store.add("odd", SMALL)
        assert list(store.images()) == []
        assert store.sweep() == []
    assert path.exists()


def test_a_hidden_fifo_does_not_stop_the_sweep(place: Path) -> None:
    os.mkfifo(place / "images" / f"{publish.PREFIX}0123456789abcdef01234567{publish.SUFFIX}")
    with make(place) as store, limited():
        assert store.sweep() == []


# -- links at the final name ---------------------------------------------------------------------------------


@WAYS
@SIZES
@pytest.mark.parametrize("target", ["victim", "/nonexistent/x", "image"])
def test_a_dangling_link_is_not_written_through(target: str, data: bytes, hidden: bool, place: Path) -> None:
    link = place / "images" / "image"
    link.symlink_to(target if target != "victim" else place / "victim")
    with make(place, hidden) as store, pytest.raises(fastfs.Duplicate):
        store.add("image", data)
    assert link.is_symlink()
    assert not (place / "victim").exists()
    assert os.listdir(place / "images") == ["image"]


@WAYS
@SIZES
def test_a_file_of_the_same_inode_is_not_changed(data: bytes, hidden: bool, place: Path) -> None:
    (place / "secret").write_bytes(b"secret")
    os.link(place / "secret", place / "images" / "image")
    with make(place, hidden) as store, pytest.raises(fastfs.Duplicate):
        store.add("image", data)
    assert (place / "secret").read_bytes() == b"secret"


@only_root
def test_a_temporary_cannot_be_laid_in_wait_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a name that was guessed: it is made anew, or not at all."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 24)
    (place / "victim").write_bytes(b"victim")
    (place / "images" / f"{publish.PREFIX}{'0' * 24}{publish.SUFFIX}").symlink_to(place / "victim")
    with make(place, hidden=True) as store, pytest.raises(fastfs.FastfsError):
        store.add("image", LARGE)
    assert (place / "victim").read_bytes() == b"victim"


# -- modes ---------------------------------------------------------------------------------------------------


@only_root
@WAYS
@pytest.mark.parametrize("mode", [0, 0o644, 0o666])
def test_others_cannot_read_what_is_unfinished(mode: int, hidden: bool, place: Path) -> None:
    """Neither by name nor by way of /proc, in the middle of the upload; with the final mode they can."""
    (place / "images").chmod(0o777)
    uploader = os.getpid()

    def try_to_read() -> int:
        opened = 0
        candidates = list((place / "images").iterdir())
        candidates += [Path(f"/proc/{uploader}/fd/{number}") for number in range(3, 64)]
        for path in candidates:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            opened += stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, 10) != b""
            os.close(fd)
        return 42 if opened else 43

    def pieces() -> Iterator[bytes]:
        yield LARGE
        assert as_nobody(try_to_read) == 43
        yield LARGE

    before = os.umask(0o022)
    try:
        with make(place, hidden, file_perm=mode) as store:
            store.add("image", pieces())
            assert as_nobody(try_to_read) == 42
    finally:
        os.umask(before)


@WAYS
@SIZES
@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644, 0o777])
def test_the_mode_is_what_was_asked_for(mode: int, data: bytes, hidden: bool, place: Path) -> None:
    before = os.umask(0o077)
    try:
        with make(place, hidden, file_perm=mode) as store:
            store.add("image", data)
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "images" / "image").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o7777, 0o10644, -1, 644])
def test_set_id_bits_are_refused(mode: int, place: Path) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration):
        make(place, file_perm=mode)


@WAYS
def test_a_set_group_id_directory_gives_no_set_group_id_file(hidden: bool, place: Path) -> None:
    (place / "images").chmod(0o2777)
    with make(place, hidden, file_perm=0o755) as store:
        store.add("image", LARGE)
    assert not (place / "images" / "image").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


# -- the metadata file ---------------------------------------------------------------------------------------


def write(place: Path, text: str | bytes) -> str:
    path = place / "metadata.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        " " * (metadata.MAX_BYTES + 1),
        "[" * 100_000,
        json.dumps({"id": "a", "mountpoint": "/", "x": "y"})[:-1] + ', "deep": ' + "[" * 50 + "]" * 50 + "}",
        "",
        "null",
        "[1]",
        '{"id": 1, "mountpoint": "/"}',
        '{"id": "a"}',
        '{"id": "a", "mountpoint": "/", "x": 1}',
        b"\xff\xfe",
        "{",
    ],
)
def test_metadata_is_bounded(text: str | bytes, place: Path) -> None:
    with limited(), pytest.raises(fastfs.BadStoreConfiguration):
        make(place, metadata_file=write(place, text))


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "fifo", "directory", "missing"])
def test_metadata_comes_from_a_regular_file(path: str, place: Path) -> None:
    os.mkfifo(place / "fifo")
    (place / "directory").mkdir()
    with limited(), pytest.raises(fastfs.BadStoreConfiguration):
        make(place, metadata_file=str(place / path))


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o600, False), (0o666, True), (0o602, True)])
def test_metadata_that_anybody_may_write_is_told(
    mode: int, warned: bool, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(place, '{"id": "a", "mountpoint": "/"}')
    os.chmod(path, mode)
    with caplog.at_level(logging.WARNING):
        make(place, metadata_file=path)
    assert ("metadata file" in caplog.text) is warned


@only_root
def test_metadata_of_somebody_else_is_told(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(place, '{"id": "a", "mountpoint": "/"}')
    os.chown(path, NOBODY, NOBODY)
    make(place, metadata_file=path)
    assert "metadata file" in caplog.text


def test_mountpoints_end_where_names_end(place: Path) -> None:
    entries = [
        {"id": name, "mountpoint": mountpoint}
        for name, mountpoint in (("root", "/"), ("a", "/a"), ("ab", "/a/b/"), ("near", "/a/b/c-1"))
    ]
    for path, expected in {
        "/a/x": "a", "/a/b/x": "ab", "/a/bc/x": "a", "/ab/x": "root", "/a/b/c/x": "ab", "/a/b/c-1/x": "near",
        "/a/b/c-11/x": "ab", "/x": "root",
    }.items():  # fmt: skip
        assert metadata.match(entries, path)["id"] == expected
        assert metadata.match(entries[::-1], path)["id"] == expected


# -- sizes that lie ------------------------------------------------------------------------------------------


class Claims:
    """A file that claims to be of another size than it is."""

    def __init__(self, data: bytes, size: int) -> None:
        self.pieces = [data, b""]
        self.len = self.size = self.length = size

    def __len__(self) -> int:
        return self.size

    def read(self, size: int = -1) -> bytes:
        return self.pieces.pop(0)


@WAYS
@pytest.mark.parametrize(
    "size", [-1, -(2**63), 2**63, 2**64, 2**63 - 1, 2**62, 10**30, 1, 4, 6, True, 5.0, "5", b"5"], ids=repr
)
def test_declared_sizes_that_lie(size: Any, hidden: bool, place: Path) -> None:
    free = shutil.disk_usage(place).free
    with make(place, hidden) as store:
        for source in (lambda: SMALL, lambda: iter([SMALL]), lambda: Claims(SMALL, 2**40)):
            with pytest.raises((fastfs.Invalid, fastfs.StorageFull, fastfs.SizeMismatch)):
                store.add("image", source(), size)
            assert os.listdir(place / "images") == []
            assert len(datadirs._claims) == 0
    assert abs(shutil.disk_usage(place).free - free) < 512 * 1024 * 1024, "reserved something absurd"


@pytest.mark.parametrize("size", [2**40, 0, 1, -1])
def test_lengths_that_sources_claim_are_only_hints(size: int, place: Path) -> None:
    with make(place) as store:
        assert store.add("image", Claims(SMALL, max(size, 0))).size == len(SMALL)


def test_a_sparse_source_of_absurd_size(place: Path) -> None:
    with open(place / "huge", "wb") as file:
        file.truncate(2**43)
    with make(place) as store, limited(), pytest.raises(fastfs.StorageFull):
        store.add("image", place / "huge")
    assert os.listdir(place / "images") == []


# -- URIs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image_id",
    [
        "a?b",
        "a#b",
        "%2e",
        "%2E%2e",
        "%00",
        "%2F",
        "a b",
        "a\nb",
        "a\rb",
        "a\tb",
        ";",
        "&",
        "a:b@c",
        "http:",
        "ä",
        "\\",
        "?",
        "#",
        "*",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_stored_is_found_again(image_id: str, place: Path) -> None:
    with make(place) as store:
        url = store.add(image_id, SMALL).url
        assert store.find(image_id) == url
        for location in (url, Location.parse(url), url.replace("file:", "filesystem:", 1)):
            assert store.get(location)[0].read() == SMALL
            assert store.get_size(location) == len(SMALL)
        store.delete(url)
        with pytest.raises(fastfs.NotFound):
            store.get(url)


@pytest.mark.parametrize(
    "uri",
    [
        "", "file:", "file:/", "file://", "file:/a", "file://host/a", "file://localhost/a", "FILE:///a", "http:///a",
        "file://../a", "filesystem://a", "swift+https://x/a", "/a", "\0", " file:///a", "file ://a",
    ],
)  # fmt: skip
def test_other_uris_are_refused(uri: str, place: Path) -> None:
    with make(place) as store:
        for operation in operations(store):
            with pytest.raises(fastfs.BadStoreUri):
                operation(uri)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(image_id=st.text(min_size=1, max_size=80))
def test_any_id_comes_back_or_is_refused(image_id: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    with Store(datadir=str(directory), durability="none") as store:
        try:
            url = store.add(image_id, SMALL).url
        except fastfs.InvalidImageId:
            assert os.listdir(directory) == []
            return
        assert store.get(url)[0].read() == SMALL
        store.delete(url)
        assert os.listdir(directory) == []


# -- as somebody else ----------------------------------------------------------------------------------------


@only_root
def test_nobody_stores_reads_and_deletes_without_any_privilege(place: Path) -> None:
    """Nameless files get their name another way without CAP_DAC_READ_SEARCH."""
    os.chown(place / "images", NOBODY, NOBODY)

    def work() -> None:
        for hidden in (False, True):
            with make(place, hidden, file_perm=0o640) as store:
                for data in (SMALL, LARGE):
                    url = store.add("image", data).url
                    assert store.get(url)[0].read() == data
                    with pytest.raises(fastfs.Duplicate):
                        store.add("image", data)
                    store.delete(url)

    assert as_nobody(work) == 0
    assert os.listdir(place / "images") == []


@only_root
def test_what_may_not_be_read_is_forbidden(place: Path) -> None:
    with make(place, file_perm=0o600) as store:
        url = store.add("image", SMALL).url

        def read() -> None:
            with pytest.raises(fastfs.Forbidden) as caught:
                store.get(url)
            assert caught.value.errno == errno.EACCES
            with pytest.raises(fastfs.Forbidden):
                store.delete(url)
            with pytest.raises(fastfs.StorageWriteDenied):
                store.add("other", SMALL)

        assert as_nobody(read) == 0
    assert os.listdir(place / "images") == ["image"]
