# SPDX-License-Identifier: Apache-2.0
"""Hashing for its own sake: one file, many files, and the command."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import descriptors, our_threads, settled

import fastfs
from fastfs import _native, checksum, hash_file, hash_files, hashing
from fastfs.sources import SMALL

BIG = SMALL + 7
ALGORITHMS = ["md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"]


def content(seed: object, length: int) -> bytes:
    return hashlib.shake_128(repr(seed).encode()).digest(length)


def expected(data: bytes, names: list[str]) -> dict[str, str]:
    return {name: hashlib.new(name, data).hexdigest() for name in names}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert settled(descriptors, before) == before
    assert settled(our_threads, []) == []


def files(directory: Path, sizes: list[int]) -> list[Path]:
    paths = []
    for number, size in enumerate(sizes):
        paths.append(directory / f"{number:05d}")
        paths[-1].write_bytes(content(number, size))
    return paths


# One file


@pytest.mark.parametrize("count", range(1, len(ALGORITHMS) + 1))
@pytest.mark.parametrize("size", [0, 1, BIG, 3_000_000])
def test_any_number_of_algorithms(count: int, size: int, tmp_path: Path) -> None:
    (path,) = files(tmp_path, [size])
    names = ALGORITHMS[:count]
    assert hash_file(path, names) == expected(path.read_bytes(), names)
    assert list(hash_file(str(path), names)) == names


def test_names(tmp_path: Path) -> None:
    (path,) = files(tmp_path, [10])
    data = path.read_bytes()
    assert hash_file(path) == expected(data, ["md5", "sha512"])
    assert hash_file(path, "sha256") == expected(data, ["sha256"])
    assert hash_file(path, iter(["sha1", "sha1", "md5"])) == expected(data, ["sha1", "md5"])


@pytest.mark.parametrize("names", ["nonsense", ["md5", "shake_128"], [None]])
def test_unknown_algorithms(names: Any, tmp_path: Path) -> None:
    with pytest.raises(fastfs.UnknownHashingAlgo):
        hash_file(tmp_path, names)
    with pytest.raises(fastfs.UnknownHashingAlgo):
        hash_files([], names)  # at once, not when it is used


def test_no_algorithm(tmp_path: Path) -> None:
    with pytest.raises(fastfs.Invalid, match="no algorithm"):
        hash_file(tmp_path, [])


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        return self._file.read(n)


@pytest.mark.parametrize("kind", ["bytes", "BytesIO", "read", "iterator", "open", "memoryview", "sparse"])
def test_other_sources(kind: str, tmp_path: Path) -> None:
    data = content(kind, 700_001)
    source: Any
    if kind == "sparse":
        with open(tmp_path / "sparse", "wb") as file:
            file.seek(1_000_000)
            file.write(b"end")
            file.truncate(2_000_000)
        data = (tmp_path / "sparse").read_bytes()
        source = tmp_path / "sparse"
    elif kind == "open":
        (tmp_path / "file").write_bytes(data)
        source = (tmp_path / "file").open("rb")
    else:
        source = {
            "bytes": data,
            "memoryview": memoryview(data),
            "BytesIO": io.BytesIO(data),
            "read": OnlyRead(data),
            "iterator": iter([data[:100], b"", data[100:]]),
        }[kind]
    names = ALGORITHMS[:5]
    assert hash_file(source, names) == expected(data, names)
    if kind == "open":
        assert source.tell() == len(data)
        source.close()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        hash_file(tmp_path / "missing")
    assert missing.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError) as directory:
        hash_file(tmp_path)
    assert directory.value.filename == str(tmp_path)
    with pytest.raises(fastfs.BadSource):
        hash_file(42)
    with pytest.raises(fastfs.BadSource):
        hash_file(iter(["text"]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(st.binary(max_size=300), max_size=20), names=st.permutations(ALGORITHMS))
def test_many_small_pieces_at_once(pieces: list[bytes], names: list[str]) -> None:
    for count in (1, 2, len(names)):
        found = hashing.digest_many([memoryview(piece) for piece in pieces], names[:count])
        assert found == [tuple(expected(piece, names[:count]).values()) for piece in pieces]


# Many files


SIZES = [0, 1, 4096, SMALL, BIG, 300_001]


@pytest.mark.parametrize("jobs", [1, 2, None])
def test_in_the_order_of_the_paths(jobs: int | None, tmp_path: Path) -> None:
    paths = files(tmp_path, [SIZES[n * 5 % 6] for n in range(200)])
    found = list(hash_files(iter(paths), ["sha256", "md5"], jobs=jobs))
    assert [one.path for one in found] == paths
    for one in found:
        data = one.path.read_bytes()
        assert (one.size, one.digests, one.error) == (len(data), expected(data, ["sha256", "md5"]), None)


def test_one_failure_does_not_stop_the_rest(tmp_path: Path) -> None:
    paths = files(tmp_path, [10, BIG])
    sources: list[Any] = [
        tmp_path / "missing",
        paths[0],
        tmp_path,
        paths[1],
        "a\0b",
        OnlyRead(b"x"),
        42,
        "/proc/self/stat",
    ]
    found = list(hash_files(sources))
    kinds = [type(one.error).__name__ for one in found]
    assert kinds == [
        "FileNotFoundError",
        "NoneType",
        "IsADirectoryError",
        "NoneType",
        "ValueError",
        "NoneType",
        "BadSource",
        "NoneType",
    ]
    assert [one.size for one in found[:6]] == [None, 10, None, BIG, None, 1]
    assert found[0].digests == {}
    assert found[7].size


def test_small_files_that_are_not_small_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, [10, 10])
    monkeypatch.setattr(checksum, "size_of_path", lambda path: 10)
    paths[0].write_bytes(content("grown", BIG))
    assert [one.digests for one in hash_files(paths, "md5")] == [expected(path.read_bytes(), ["md5"]) for path in paths]


@pytest.mark.parametrize("jobs", [0, -3, "2", 1.0, True])
def test_jobs_are_checked_at_once(jobs: Any) -> None:
    with pytest.raises(fastfs.Invalid, match="jobs"):
        hash_files([], jobs=jobs)


def test_closing_half_way(tmp_path: Path) -> None:
    """Prompt, even in the middle of a file that does not end."""
    taken = 0
    (path,) = files(tmp_path, [BIG])
    begun = threading.Event()

    class Endless:
        def read(self, n: int) -> bytes:
            begun.set()
            return b"x" * min(n, 4096)

    def sources() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield Endless() if taken == 3 else path

    with contextlib.closing(hash_files(sources(), jobs=2)) as found:
        assert next(found).size == BIG
        assert next(found).size == BIG
        assert begun.wait(30)
    assert our_threads() == []
    assert taken < 5000


def test_paths_that_raise(tmp_path: Path) -> None:
    paths = files(tmp_path, [10, BIG])

    def sources() -> Iterator[Path]:
        yield from paths
        raise LookupError("no more")

    found: list[Any] = []
    with pytest.raises(LookupError, match="no more"):
        found.extend(hash_files(sources()))
    assert [one.path for one in found] == paths


def test_what_waits_for_a_slow_one_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "WAITING", 50)
    paths = files(tmp_path, [BIG])
    go_on = threading.Event()
    taken = 0

    class Slow:
        def read(self, n: int) -> bytes:
            assert go_on.wait(30)
            return b""

    def sources() -> Iterator[Any]:
        nonlocal taken
        yield Slow()
        for _ in range(3000):
            taken += 1
            yield paths[0]

    def release() -> None:
        before = -1
        while before != taken or not taken:
            before = taken
            time.sleep(0.3)
        most.append(taken)
        go_on.set()

    most: list[int] = []
    releasing = threading.Thread(target=release)
    releasing.start()
    assert sum(1 for _ in hash_files(sources(), "md5", jobs=4)) == 3001
    releasing.join()
    assert most[0] < 50 + 1024 + 64


# The command


COMMAND = [sys.executable, "-m", "fastfs.cli", "hash"]


def run(*args: str | bytes, **more: Any) -> subprocess.CompletedProcess[bytes]:
    pytest.importorskip("click", reason="the command needs the extra 'cli'")
    return subprocess.run(
        [*COMMAND, *args],
        capture_output=True,
        timeout=60,
        check=False,
        **more,
    )


ODD_NAMES = [
    b"plain",
    b"with space",
    b"back\\slash",
    b"new\nline",
    b"carriage\rreturn",
    b"\xff no utf8",
    "ümlaut".encode(),
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content(name, 1000))
    return tmp_path


@pytest.mark.parametrize("tag", [False, True])
@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512", "blake2b"])
def test_the_format_is_that_of_coreutils(algorithm: str, tag: bool, odd: Path) -> None:
    tool = {"blake2b": "b2sum"}.get(algorithm, f"{algorithm}sum")
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    options = ["--tag"] if tag else []
    ours = run("--algorithm", algorithm, *options, *ODD_NAMES, cwd=odd)
    theirs = subprocess.run([tool, *options, *ODD_NAMES], cwd=odd, capture_output=True, check=True)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == theirs.stdout
    checked = subprocess.run([tool, "-c"], cwd=odd, input=ours.stdout, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_several_algorithms_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    done = run("-a", "md5", "-a", "sha3_256", "-a", "md5", "a", cwd=tmp_path)
    assert done.stdout.decode() == (
        f"MD5 (a) = {hashlib.md5(b'abc').hexdigest()}\nSHA3-256 (a) = {hashlib.sha3_256(b'abc').hexdigest()}\n"
    )


def test_the_default_is_sha512_in_the_order_given(tmp_path: Path) -> None:
    paths = files(tmp_path, [BIG, 3, 300_000, 0])
    done = run(*[path.name for path in paths], cwd=tmp_path)
    lines = [f"{hashlib.sha512(path.read_bytes()).hexdigest()}  {path.name}" for path in paths]
    assert done.stdout.decode().splitlines() == lines


def test_json(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    done = run("--json", "-a", "md5", "-a", "sha1", "a", "missing", cwd=tmp_path)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0] == {"path": "a", "size": 3, "digests": expected(b"abc", ["md5", "sha1"])}
    assert told[1]["source"] == "missing"
    assert told[1]["type"] == "FileNotFoundError"
    assert done.returncode == 3


def test_failures_are_told_and_the_rest_is_done(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    done = run("missing", "a", ".", cwd=tmp_path)
    assert done.stdout.decode() == f"{hashlib.sha512(b'abc').hexdigest()}  a\n"
    assert b"missing: No such file" in done.stderr
    assert b". : " in done.stderr or b".: Is a directory" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("args", [[], ["-a", "sha51", "x"], ["-", "-"], ["--jobs", "0", "x"]])
def test_wrong_usage(args: list[str]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_stdin_and_a_fifo(tmp_path: Path) -> None:
    data = content(0, 300_000)
    os.mkfifo(tmp_path / "fifo")

    def write() -> None:
        with open(tmp_path / "fifo", "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    done = run("-", "fifo", cwd=tmp_path, input=b"abc")
    writer.join()
    assert done.stdout.decode().splitlines() == [
        f"{hashlib.sha512(b'abc').hexdigest()}  -",
        f"{hashlib.sha512(data).hexdigest()}  fifo",
    ], done.stderr


def test_ctrl_c_while_nobody_writes(tmp_path: Path) -> None:
    pytest.importorskip("click", reason="the command needs the extra 'cli'")
    os.mkfifo(tmp_path / "fifo")

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    args = [*COMMAND, "-", str(tmp_path / "fifo")]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(args, preexec_fn=hear, **options) as process:
        deadline = time.monotonic() + 30
        while len(os.listdir(f"/proc/{process.pid}/task")) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"fastfs: error: interrupted\n"


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """The command does not hang on the stream behind it."""
    pytest.importorskip("click", reason="the command needs the extra 'cli'")
    (tmp_path / "quick").write_bytes(b"x")
    read_end, write_end = os.pipe()
    os.close(read_end)
    stdin, held = os.pipe()
    args = [*COMMAND, str(tmp_path / "quick"), "-"]
    done = subprocess.run(args, stdin=stdin, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    for fd in (write_end, stdin, held):
        os.close(fd)
    assert (done.returncode, done.stderr) == (141, b"")


def test_small_files_with_more_algorithms_than_the_engine_takes_at_once(tmp_path: Path) -> None:
    names = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    paths = [tmp_path / str(n) for n in range(9)]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    for path, one in zip(paths, fastfs.hash_files(paths, names), strict=True):
        assert one.error is None
        assert one.digests == {name: hashlib.new(name, path.read_bytes()).hexdigest() for name in names}


# Many files at once, on two processors: hashed where they lie in the page cache

WINDOW = 8 << 20


@pytest.fixture
def side_by_side(tmp_path: Path) -> Iterator[list[Path]]:
    if not hashing.engine_algorithms():
        pytest.skip("no kernel with wide vectors on this machine: hashlib is used")
    _native.limit_cores(2)
    data = content("side by side", 2 * WINDOW + 300_007)
    paths = []
    for number, size in enumerate(
        [WINDOW, WINDOW - 1, WINDOW + 1, WINDOW + 127, len(data), 300_000, 2 * WINDOW, len(data)]
    ):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data[-size:])
    yield paths
    _native.limit_cores(0)


def bytes_read() -> int:
    """By system calls of this process."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def same(paths: list[Path], names: list[str]) -> None:
    for found in hash_files(paths, names):
        assert found.error is None
        assert found.digests == expected(found.path.read_bytes(), names), found.path


@pytest.mark.parametrize("names", [["md5", "sha512"], ["md5", "sha256"], ["md5"], ["sha512", "md5", "blake2b"]])
def test_side_by_side(names: list[str], side_by_side: list[Path]) -> None:
    same(side_by_side, names)


def test_what_is_in_the_page_cache_is_not_copied(side_by_side: list[Path]) -> None:
    total = sum(path.stat().st_size for path in side_by_side)
    same(side_by_side, ["md5", "sha512"])
    before = bytes_read()
    for found in hash_files(side_by_side):
        assert found.error is None
    assert bytes_read() - before < total / 2


def test_what_is_not_in_the_page_cache(side_by_side: list[Path]) -> None:
    for path in side_by_side:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 1 << 20, 5 << 20, os.POSIX_FADV_DONTNEED)
    same(side_by_side, ["md5", "sha512"])


def test_threads_that_block_sigbus(side_by_side: list[Path]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    try:
        same(side_by_side, ["md5", "sha512"])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_files_of_somebody_else(side_by_side: list[Path]) -> None:
    """mincore(2) does not tell whether they are in the page cache."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    total = sum(path.stat().st_size for path in side_by_side)
    files = [path.open("rb") for path in side_by_side]
    before = bytes_read()
    os.seteuid(65534)
    try:
        digests = [found.digests for found in hash_files(files)]
    finally:
        os.seteuid(0)
    assert bytes_read() - before > total / 2
    for file, found in zip(files, digests, strict=True):
        file.close()
        assert found == expected(Path(file.name).read_bytes(), ["md5", "sha512"])


def test_files_that_are_cut_short_meanwhile(side_by_side: list[Path]) -> None:
    """Nobody dies of SIGBUS.

    Of what is read at that very moment the kernel may give zeroes, by read(2), too.  That otherwise only its bytes
    are hashed is for crew_stress.c to show, which chooses the moment.
    """
    full = {path: path.read_bytes() for path in side_by_side}
    for turn in range(12):
        for path, data in full.items():
            path.write_bytes(data)
        lengths = {path: len(full[path]) * (number + turn) // 20 for number, path in enumerate(side_by_side)}

        def cut(turn: int = turn, lengths: dict[Path, int] = lengths) -> None:
            time.sleep(turn / 2000)
            for path, length in lengths.items():
                os.truncate(path, length)

        thread = threading.Thread(target=cut)
        thread.start()
        for found in hash_files(side_by_side):
            assert found.error is None
            assert found.size is not None
            assert lengths[found.path] <= found.size <= len(full[found.path])
        thread.join()
    same(side_by_side, ["md5", "sha512"])
