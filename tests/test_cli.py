# SPDX-License-Identifier: Apache-2.0
"""The command, as a script and as a person at a terminal use it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

click = pytest.importorskip("click", reason="the command needs the extra 'cli'")
pytest.importorskip("rich", reason="the command needs the extra 'cli'")

from click.testing import CliRunner  # noqa: E402

import fastfs  # noqa: E402
from fastfs import hashing  # noqa: E402
from fastfs.cli import output, plan, ranges  # noqa: E402
from fastfs.cli.errors import CommandError, ExitCode, Tally  # noqa: E402
from fastfs.cli.program import cli  # noqa: E402

COMMAND = [sys.executable, "-m", "fastfs.cli"]
DEADLINE = 30.0  # seconds for anything that a slow machine may take


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FASTFS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A test runner in the background ignores SIGINT, and its children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory, configured as a user would."""
    path = tmp_path / "store"
    path.mkdir()
    monkeypatch.setenv("FASTFS_DATADIR", str(path))
    monkeypatch.setenv("FASTFS_DURABILITY", "none")
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(300_007))
    return path


@dataclass
class Shown:
    """What one run in this process gave; a Result of click, whose versions differ in where stderr goes."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(*args: object) -> Shown:
    before_8_2 = "mix_stderr" in inspect.signature(CliRunner).parameters
    options: dict[str, Any] = {"mix_stderr": False} if before_8_2 else {}
    result = CliRunner(**options).invoke(cli, [str(arg) for arg in args])
    return Shown(result.exit_code, result.stdout, result.stderr)


def run(*args: object, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, timeout=DEADLINE, check=False, **more)


def lines_of(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def contents(folder: Path) -> list[str]:
    """Every name, the hidden ones too."""
    return sorted(os.listdir(folder))


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


# The pieces


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert output.size(count) == text


def test_times_for_people_and_scripts() -> None:
    assert output.iso_time(0) == "1970-01-01T00:00:00Z"
    assert [output.duration(s) for s in (0.5, 12.34, 75, 3700)] == [
        "0.50 s",
        "12.3 s",
        "1 min 15 s",
        "1 h 1 min",
    ]


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", os.fsdecode(b"a\xff")])
def test_hostile_names_do_not_reach_the_terminal(name: str) -> None:
    assert output.printable(name).isprintable()


def test_names_of_people_stay_as_they_are() -> None:
    assert output.printable("Über 画像.img") == "Über 画像.img"


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("0-0", 10, (0, 1)),
        ("2-5", 10, (2, 4)),
        ("2-99", 10, (2, 8)),
        ("9-", 10, (9, 1)),
        ("-3", 10, (7, 3)),
        ("-99", 10, (0, 10)),
        ("-0", 10, (10, 0)),
        ("-5", 0, (0, 0)),
        ("bytes=1-2", 10, (1, 2)),
    ],
)
def test_ranges(text: str, size: int, expected: tuple[int, int]) -> None:
    assert ranges.resolve_range(ranges.parse_range(text), size) == expected


@pytest.mark.parametrize("text", ["", "-", "x", "1", "5-2", "1-2-3", "1.5-2", "10-", "10-12"])
def test_bad_ranges(text: str) -> None:
    with pytest.raises(CommandError):
        ranges.resolve_range(ranges.parse_range(text), 10)


def test_one_kind_of_failure_gives_its_code_and_several_give_1() -> None:
    tally = Tally()
    codes = [tally.code]
    for failure in (ExitCode.DUPLICATE, ExitCode.DUPLICATE, ExitCode.FULL):
        tally.add(failure)
        codes.append(tally.code)
    assert codes == [ExitCode.OK, ExitCode.DUPLICATE, ExitCode.DUPLICATE, ExitCode.FAILED]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files, and what must be left out."""
    root = tmp_path / "disks"
    (root / "web").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "empty").mkdir()
    for name in ("b.img", "web/a.img", ".hidden", ".git/config"):
        (root / name).write_bytes(name.encode())
    os.mkfifo(root / "fifo")
    (root / "again").symlink_to(root / "web")
    (root / "link.img").symlink_to(root / "b.img")
    return root


def test_ids_of_a_folder(folder: Path) -> None:
    made = plan.make_plan([str(folder)], None, False, [])
    assert [item.image_id for item in made.items] == ["b.img", "link.img", "web-a.img"]
    assert sorted(os.path.basename(path) for path, _ in made.skipped) == [".git", ".hidden", "again", "fifo"]
    assert not made.failures


def test_a_store_in_the_folder_is_walked_around(folder: Path) -> None:
    made = plan.make_plan([str(folder)], None, False, [str(folder / "web")])
    assert [item.image_id for item in made.items] == ["b.img", "link.img"]


def test_a_failure_while_planning_is_kept_for_later(folder: Path) -> None:
    (folder / "dangling").symlink_to("nowhere")
    made = plan.make_plan([str(folder), "missing"], None, False, [])
    assert [os.path.basename(path) for path, _ in made.failures] == ["dangling", "missing"]


def test_uuids_are_uuids(folder: Path) -> None:
    ids = [item.image_id for item in plan.make_plan([str(folder)], None, True, []).items]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) for name in ids)


# Help, versions, configuration


def test_help_of_every_command_has_no_surprises() -> None:
    for name, command in cli.commands.items():
        shown = invoke(name, "--help")
        assert shown.exit_code == 0
        assert f"Usage: fastfs {name}" in shown.output
        assert command.short_help
        assert max(map(len, shown.output.splitlines())) <= 80


def test_help_tells_the_exit_codes() -> None:
    shown = invoke("--help").output
    for code in (0, 1, 2, 3, 4, 5, 6, 130, 141, 143):
        assert re.search(rf"\b{code}  ", shown), code


def test_nothing_given_is_a_usage_error_with_help() -> None:
    shown = run()
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert b"Commands:" in shown.stderr


def test_version() -> None:
    shown = invoke("--version")
    assert shown.exit_code == 0
    assert re.fullmatch(r"fastfs \S.*\n", shown.output)


def test_help_imports_little() -> None:
    """Beyond what the package itself imports: no rich, no schema."""
    code = (
        "import sys, fastfs; before = set(sys.modules); sys.argv = ['fastfs', '--help']; import fastfs.cli\n"
        "assert fastfs.cli.main() == 0\n"
        "late = {'rich', 'jsonschema', 'fastfs._native', 'psutil'} & (set(sys.modules) - before)\n"
        "assert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["click", "rich"])
def test_without_its_extra_the_command_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; from fastfs.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert name in done.stderr.decode()
    assert "pip install 'fastfs-store[cli]'" in done.stderr.decode()


@pytest.mark.parametrize("args", [("ls",), ("ingest", "README"), ("info", "x"), ("df",), ("config",), ("sweep",)])
def test_no_store_named(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2
    for remedy in (b"--datadir", b"--config", b"FASTFS_DATADIR"):
        assert remedy in done.stderr
    assert done.stderr.count(b"\n") == 2


@pytest.mark.parametrize("place", ["before", "after"])
def test_common_options_stand_before_or_after_the_command(tmp_path: Path, image: Path, place: str) -> None:
    option = ("--datadir", tmp_path / "other")
    args = (*option, "ingest", image) if place == "before" else ("ingest", image, *option)
    assert invoke(*args).exit_code == 0
    assert (tmp_path / "other" / "a.img").read_bytes() == image.read_bytes()


def test_a_configuration_file(tmp_path: Path, image: Path) -> None:
    file = tmp_path / "fastfs.toml"
    file.write_text(f'[fastfs]\ndatadir = "{tmp_path}/s"\nfile_perm = "600"\n')
    assert invoke("ingest", image, "--config", file).exit_code == 0
    assert (tmp_path / "s" / "a.img").stat().st_mode & 0o777 == 0o600


def test_config_tells_where_values_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fastfs.toml"
    file.write_text('[fastfs]\ndatadir = "/nowhere"\nchunk_size = 4096\n')
    monkeypatch.setenv("FASTFS_DURABILITY", "none")
    shown = invoke("config", "--json", "--config", file, "--datadir", f"{tmp_path}:7")
    assert shown.exit_code == 0, shown.output
    (told,) = lines_of(shown.stdout)
    assert told["datadirs"]["from"] == "command line"
    assert not told["datadir"]["value"]
    assert told["chunk_size"] == {"value": 4096, "from": str(file)}
    assert told["durability"] == {"value": "none", "from": "FASTFS_DURABILITY"}
    assert told["mount_guard"]["from"] == "default"
    assert "command line" in invoke("config", "--config", file, "--datadir", tmp_path).output


def test_a_misspelt_variable_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFS_DURABILTY", "full")
    note = "fastfs: FASTFS_DURABILTY in the environment is not used; FASTFS_DURABILITY is an option\n"
    assert invoke("ls").stderr.startswith(note)
    assert note not in invoke("ls", "--quiet").stderr


def test_what_is_missing_is_named_once(store: Path) -> None:
    assert invoke("info", "nope").stderr.splitlines()[0] == f"fastfs: error: no image nope in {store}"


def test_hints_do_not_repeat_what_failed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFS_DURABILITY", "bad")
    assert "'fastfs config'" not in invoke("config", "--datadir", image.parent).stderr
    monkeypatch.setenv("FASTFS_KERNEL", "nonsense")
    hashing.engine_algorithms.cache_clear()
    try:
        shown = invoke("hash", image)
    finally:
        monkeypatch.delenv("FASTFS_KERNEL")
        hashing.engine_algorithms.cache_clear()
    assert shown.exit_code == 2
    assert "unset it" in shown.stderr
    assert "fastfs: hint" not in shown.stderr


def test_a_bad_configuration_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "fastfs.toml"
    file.write_text('[fastfs]\ndatadir = "/nowhere"\nchunk_size = "many"\n')
    done = run("ls", "--config", file)
    assert done.returncode == 2
    assert b"chunk_size" in done.stderr
    assert b"Traceback" not in done.stderr


def test_looking_does_not_create_a_store(tmp_path: Path) -> None:
    for args in (("ls",), ("info", "x"), ("df",), ("sweep",), ("doctor",), ("config",), ("rm", "--yes", "x")):
        done = invoke(*args, "--datadir", tmp_path / "typo")
        assert done.exit_code == {"doctor": 1, "config": 0}.get(args[0], 3), args
        assert not (tmp_path / "typo").exists()


# Storing


def test_digests_are_those_of_the_system_tools(store: Path, image: Path) -> None:
    shown = invoke("ingest", image)
    assert shown.exit_code == 0
    for tool in ("md5sum", "sha512sum"):
        if shutil.which(tool):
            digest = subprocess.run([tool, image], capture_output=True, check=True).stdout.split()[0].decode()
            assert digest in shown.output
    assert (store / "a.img").read_bytes() == image.read_bytes()


def test_json_of_an_image(store: Path, image: Path) -> None:
    shown = invoke("ingest", image, "--json", "--hash", "sha256")
    (told,) = lines_of(shown.stdout)
    data = image.read_bytes()
    assert told.pop("seconds") > 0
    assert isinstance(told.pop("metadata"), dict)
    assert told == {
        "id": "a.img",
        "url": f"file://{store}/a.img",
        "size": len(data),
        "checksum": hashlib.md5(data).hexdigest(),
        "algorithm": "sha256",
        "multihash": hashlib.sha256(data).hexdigest(),
        "source": str(image),
    }


def test_warnings_of_the_library_are_shown(tmp_path: Path, image: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    shown = invoke("ls", "--datadir", tmp_path, "--datadir", tmp_path / "link")
    assert shown.exit_code == 0
    assert "fastfs: warning: " in shown.stderr


def test_a_folder(store: Path, folder: Path) -> None:
    shown = invoke("ingest", folder, "-v")
    assert shown.exit_code == 0
    assert [name for name in contents(store) if not name.startswith(".")] == [
        "b.img",
        "link.img",
        "web-a.img",
    ]
    assert (store / "web-a.img").read_bytes() == b"web/a.img"
    assert "left out" in shown.output


def test_an_empty_folder_is_no_failure(store: Path, folder: Path) -> None:
    shown = invoke("ingest", folder / "empty")
    assert shown.exit_code == 0
    assert "no files" in shown.output


def test_a_collision_is_refused_before_anything_is_stored(store: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.img").write_bytes(b"x")
    (tmp_path / "first.img").write_bytes(b"x")
    shown = invoke("ingest", tmp_path / "first.img", tmp_path / "one", tmp_path / "two")
    assert shown.exit_code == 2
    assert "same.img" in shown.output
    assert "--uuid" in shown.output
    assert not [name for name in contents(store) if not name.startswith(".")]


def test_one_failure_does_not_stop_the_rest(store: Path, folder: Path, image: Path) -> None:
    (store / "b.img").write_bytes(b"was here")
    shown = invoke("ingest", "--json", folder, image)
    told = lines_of(shown.stdout)
    assert shown.exit_code == ExitCode.DUPLICATE
    (failed,) = [record for record in told if "error" in record]
    assert failed["type"] == "Duplicate"
    assert failed["source"] == str(folder / "b.img")
    assert failed["path"] == str(store / "b.img")
    assert failed["id"] == "b.img"
    assert sorted(record["id"] for record in told if "url" in record) == ["a.img", "link.img", "web-a.img"]
    assert (store / "b.img").read_bytes() == b"was here"


def test_different_failures_give_1(store: Path, image: Path) -> None:
    (store / "a.img").write_bytes(b"")
    assert invoke("ingest", image, image.parent / "missing").exit_code == 1


def test_resuming(store: Path, folder: Path) -> None:
    """What holds the same bytes is skipped and told; what holds others is a duplicate."""
    assert invoke("ingest", folder / "b.img").exit_code == 0
    (store / "web-a.img").write_bytes(b"other/img")
    shown = invoke("ingest", folder, "--resume", "--json")
    assert shown.exit_code == ExitCode.DUPLICATE
    told = {line["id"]: line for line in lines_of(shown.stdout)}
    assert {name: line.get("skipped") for name, line in told.items()} == {
        "b.img": True,
        "link.img": False,
        "web-a.img": None,
    }
    assert told["b.img"]["multihash"] == hashlib.sha512(b"b.img").hexdigest()
    assert told["web-a.img"]["type"] == "Duplicate"
    assert "(stored already)" in invoke("ingest", folder / "b.img", "--resume").stdout


def test_many_in_batches(store: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(300):
        (tmp_path / "many" / f"{number}").write_bytes(b"%d" % number * number)
    shown = invoke("ingest", tmp_path / "many", "--durability", "batch", "--json")
    assert shown.exit_code == 0
    assert len(lines_of(shown.stdout)) == 300
    for number in range(300):
        assert (store / str(number)).read_bytes() == b"%d" % number * number


@pytest.mark.parametrize("use", ["--id", "--uuid"])
def test_chosen_ids(store: Path, image: Path, use: str) -> None:
    shown = invoke("ingest", "--json", image, use, *(["chosen"] if use == "--id" else []))
    (told,) = lines_of(shown.stdout)
    assert told["id"] == "chosen" if use == "--id" else len(told["id"]) == 36
    assert (store / told["id"]).read_bytes() == image.read_bytes()


def test_options_reach_the_store(store: Path, tmp_path: Path) -> None:
    zeroes = tmp_path / "zeroes"
    zeroes.write_bytes(bytes(1 << 20))
    done = invoke("ingest", zeroes, "--thin", "--file-perm", "604", "--durability", "file", "--jobs", "1")
    assert done.exit_code == 0, done.output
    assert (store / "zeroes").stat().st_mode & 0o777 == 0o604
    assert (store / "zeroes").stat().st_size == 1 << 20
    assert (store / "zeroes").stat().st_blocks == 0


@pytest.mark.parametrize(
    "args",
    [
        ("ingest",),
        ("ingest", "-"),
        ("ingest", "-", "-", "--uuid"),
        ("ingest", "a", "--id", "x", "--uuid"),
        ("ingest", "a", "b", "--id", "x"),
        ("ingest", ".", "--id", "x"),
        ("ingest", "a", "--hash", "sha-512"),
        ("ingest", "a", "--hash", "shake_128"),
        ("ingest", "a", "--durability", "some"),
        ("ingest", "a", "--file-perm", "888"),
        ("ingest", "a", "--file-perm", "4755"),
        ("ingest", "a", "--jobs", "0"),
        ("ingest", "-", "--id", "x", "--size", "lots"),
        ("ingest", "--no-such-option"),
        ("no-such-command",),
        ("cat", "a", "--range", "zzz"),
        ("get", "a"),
        ("ls", "--config", "/does/not/exist"),
    ],
)
def test_wrong_usage(store: Path, args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(b"fastfs: error: ")
    assert b"fastfs: hint: " in done.stderr
    assert done.stdout == b""
    assert not contents(store)


def test_a_size_that_does_not_hold(store: Path) -> None:
    done = run("ingest", "-", "--id", "x", "--size", "11", input=b"ten bytes.")
    assert done.returncode == 1
    assert not [name for name in contents(store) if not name.startswith(".")]
    assert run("ingest", "-", "--id", "x", "--size", "10", input=b"ten bytes.").returncode == 0
    assert run("ingest", __file__, "--size", "10").returncode == 2


@pytest.mark.parametrize("kind", ["pipe", "file", "positioned"])
def test_stdin(store: Path, image: Path, kind: str) -> None:
    data = image.read_bytes()
    if kind == "pipe":
        done = run("ingest", "-", "--id", "x", "--json", input=data)
    else:
        with open(image, "rb", buffering=0) as file:
            if kind == "positioned":
                file.seek(1000)
                data = data[1000:]
            done = run("ingest", "-", "--id", "x", "--json", stdin=file)
    assert done.returncode == 0, done.stderr
    (told,) = lines_of(done.stdout)
    assert told["source"] == "-"
    assert told["checksum"] == hashlib.md5(data).hexdigest()
    assert (store / "x").read_bytes() == data


def test_a_fifo_by_name(store: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"z" * 3_000_000,))
    writer.start()
    done = run("ingest", fifo, "--id", "x")
    writer.join()
    assert done.returncode == 0, done.stderr
    assert (store / "x").read_bytes() == b"z" * 3_000_000


def test_quiet_where_stderr_is_no_terminal(store: Path, folder: Path) -> None:
    assert run("ingest", folder).stderr == b""


def test_a_name_that_is_no_utf8(store: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff\x1b[31mname")
    (tmp_path / name).write_bytes(b"x")
    done = run("ingest", tmp_path / name, "--id", "x", "--json")
    assert (done.returncode, lines_of(done.stdout)[0]["source"]) == (0, str(tmp_path / name))
    done = run("ingest", tmp_path / (name + "2"), "--id", "x")
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr


# Codes of failures that need help to happen


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotFound", 3),
        ("Duplicate", 4),
        ("StorageFull", 5),
        ("StorageWriteDenied", 6),
        ("Forbidden", 6),
        ("InvalidImageId", 2),
        ("BadStoreUri", 2),
        ("SizeMismatch", 1),
        ("StorageError", 1),
        ("TimeoutError", 1),
    ],
)
def test_the_code_of_each_exception(
    store: Path, image: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    def add(*args: object, **kwargs: object) -> None:
        raise getattr(fastfs, name)("it went wrong")

    monkeypatch.setattr(fastfs.Store, "add", add)
    shown = invoke("ingest", image, "--json")
    assert shown.exit_code == code
    assert lines_of(shown.stdout)[0]["type"] == name


@pytest.mark.parametrize(("error", "code"), [(PermissionError(13, "no"), 6), (ValueError("odd"), 1)])
def test_a_failing_store_ends_without_a_traceback(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def images(*args: object) -> None:
        raise error

    monkeypatch.setattr(fastfs.Store, "images", images)
    assert invoke("ls").exit_code == code
    assert "Traceback" not in invoke("ls").output
    assert "Traceback" in invoke("-vv", "ls").output
    monkeypatch.setenv("FASTFS_DEBUG", "1")
    assert "Traceback" in invoke("ls").output


MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.parametrize(("options", "code"), [("size=1m", 5), ("size=9m,ro", 6)])
def test_a_full_and_a_read_only_filesystem(tmp_path: Path, image: Path, options: str, code: int) -> None:
    if not shutil.which("unshare") or subprocess.run([*MOUNT, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    (tmp_path / "m").mkdir()
    image.write_bytes(os.urandom(2 << 20))
    script = 'mount -t tmpfs -o "$1" none "$2" || exit 77; shift 2; exec "$@"'
    args = [options, tmp_path / "m", *COMMAND, "ingest", "--datadir", tmp_path / "m", image]
    done = subprocess.run([*MOUNT, "sh", "-c", script, "sh", *map(str, args)], capture_output=True, check=False)
    if done.returncode == 77:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(b"fastfs: error: ")


# Looking, fetching, removing


@pytest.fixture
def stored(store: Path, image: Path) -> bytes:
    assert invoke("ingest", image).exit_code == 0
    return image.read_bytes()


def test_ls(store: Path, stored: bytes) -> None:
    shown = invoke("ls")
    assert shown.output.splitlines()[0].split() == ["ID", "SIZE", "MODIFIED"]
    assert "a.img  293.0 KiB  20" in shown.output
    assert f"file://{store}/a.img" in invoke("ls", "--long").output
    assert invoke("ls", "-q").output == "a.img\n"
    (told,) = lines_of(invoke("ls", "--json").stdout)
    assert (told["id"], told["size"], told["datadir"]) == ("a.img", len(stored), str(store))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["modified"])


def test_ls_of_nothing(store: Path) -> None:
    done = run("ls")
    assert (done.returncode, done.stdout) == (0, b"")
    assert run("ls", "--json").stdout == b""


def test_info(store: Path, stored: bytes) -> None:
    assert f"{len(stored)} bytes" in invoke("info", "a.img").output
    shown = invoke("info", "--json", f"file://{store}/a.img", "missing")
    assert shown.exit_code == 3
    there, missing = lines_of(shown.stdout)
    assert there["id"] == "a.img"
    assert (missing["type"], missing["source"]) == ("NotFound", "missing")


def test_df(store: Path) -> None:
    (told,) = lines_of(invoke("df", "--json").stdout)
    assert told["datadir"] == str(store)
    assert 0 < told["free"] <= told["total"]
    assert "DATADIR" in invoke("df").output


@pytest.mark.parametrize("range_", [None, "0-0", "5-99999", "1000-", "-1000", "300006-", "0-999999999"])
@pytest.mark.parametrize("where", ["pipe", "file", "append"])
def test_cat(store: Path, tmp_path: Path, stored: bytes, range_: str | None, where: str) -> None:
    expected = stored
    if range_:
        offset, length = ranges.resolve_range(ranges.parse_range(range_), len(stored))
        expected = stored[offset : offset + length]
    args = ["cat", "a.img", *(["--range", range_] if range_ else [])]
    if where == "pipe":
        done = run(*args)
        assert (done.returncode, done.stdout) == (0, expected)
        return
    out = tmp_path / "out"
    out.write_bytes(b"before" if where == "append" else b"")
    with open(out, "ab" if where == "append" else "wb") as file:
        code = subprocess.run([*COMMAND, *args], stdout=file, timeout=DEADLINE, check=False).returncode
    assert (code, out.read_bytes()) == (0, b"before" + expected if where == "append" else expected)


def test_cat_of_an_empty_image(store: Path) -> None:
    assert run("ingest", "-", "--id", "x", input=b"").returncode == 0
    assert run("cat", "x").returncode == 0
    assert run("cat", "x", "--range", "0-").returncode == 2


@pytest.mark.parametrize("target", ["copy", "folder", "relative"])
def test_get(store: Path, tmp_path: Path, stored: bytes, target: str) -> None:
    (tmp_path / "folder").mkdir()
    given = target if target == "relative" else tmp_path / target
    done = run("get", "a.img", "-o", given, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    got = tmp_path / ("folder/a.img" if target == "folder" else target)
    assert got.read_bytes() == stored
    assert not [name for name in contents(got.parent) if name.startswith(".")]


def test_get_replaces_only_by_force(store: Path, tmp_path: Path, stored: bytes) -> None:
    (tmp_path / "copy").write_bytes(b"mine")
    assert invoke("get", "a.img", "-o", tmp_path / "copy").exit_code == 4
    assert (tmp_path / "copy").read_bytes() == b"mine"
    shown = invoke("get", "a.img", "-o", tmp_path / "copy", "--force", "--json")
    assert lines_of(shown.stdout)[0]["path"] == str(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == stored


def test_get_does_not_replace_a_device(store: Path, stored: bytes) -> None:
    shown = invoke("get", "a.img", "-o", os.devnull, "--force")
    assert shown.exit_code == 2
    assert "fastfs cat" in shown.output


def test_get_keeps_the_sparse_sparse(store: Path, tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    assert invoke("ingest", "--thin", tmp_path / "sparse").exit_code == 0
    assert invoke("get", "sparse", "-o", tmp_path / "copy").exit_code == 0
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("args", [("info",), ("cat",), ("get", "-o", "never"), ("rm", "--yes")])
@pytest.mark.parametrize("name", ["missing", "file:///etc/passwd"])
def test_not_found(store: Path, tmp_path: Path, args: tuple[str, ...], name: str) -> None:
    done = run(args[0], name, *args[1:], cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(b"fastfs: error: ")
    assert done.stdout == b""
    assert contents(tmp_path) == ["store"]


def test_rm_needs_yes_in_scripts(store: Path, stored: bytes) -> None:
    assert run("rm", "a.img", stdin=subprocess.DEVNULL).returncode == 2
    assert (store / "a.img").exists()
    done = run("rm", "--yes", "a.img", "missing", "--json", stdin=subprocess.DEVNULL)
    assert done.returncode == 3
    missing, removed = lines_of(done.stdout)
    assert missing["source"] == "missing"
    assert removed["removed"] is True
    assert not (store / "a.img").exists()


def test_sweep(store: Path) -> None:
    done = run("sweep")
    assert done.returncode == 0
    assert run("sweep", "--json").stdout == b""


def test_doctor(store: Path, tmp_path: Path) -> None:
    before = contents(store)
    shown = invoke("doctor", "--json")
    assert shown.exit_code == 0, shown.output
    (told,) = lines_of(shown.stdout)
    assert told["hashes"]["sha512"] > 1e6
    assert told["system"]["cores_usable"] >= 1
    (datadir,) = told["datadirs"]
    assert datadir["type"]
    assert datadir["mountpoint"]
    assert all(isinstance(works, bool) for works in datadir["can"].values())
    assert contents(store) == before
    assert str(store) in invoke("doctor").output


def test_doctor_without_a_store() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert b"sha512" in done.stdout


# Pipes, signals, terminals


def test_a_reader_that_goes_away(store: Path, stored: bytes) -> None:
    for args in (("cat", "a.img"), ("ls", "--json")):
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run([*COMMAND, *args], stdout=write_end, stderr=subprocess.PIPE, check=False)
        os.close(write_end)
        assert done.returncode == 141, args
        assert done.stderr == b"", args


def test_a_reader_that_goes_away_from_ingest(store: Path, tmp_path: Path) -> None:
    """The image in flight leaves nothing, and the command does not hang on the stream behind it."""
    (tmp_path / "quick").write_bytes(b"x")
    os.mkfifo(tmp_path / "slow")
    read_end, write_end = os.pipe()
    os.close(read_end)
    holder = os.open(tmp_path / "slow", os.O_RDWR)
    args = ["ingest", str(tmp_path / "slow"), str(tmp_path / "quick"), "--jobs", "2"]
    done = subprocess.run([*COMMAND, *args], stdout=write_end, stderr=subprocess.PIPE, timeout=DEADLINE, check=False)
    os.close(write_end)
    os.close(holder)
    assert done.returncode == 141
    assert [name for name in contents(store) if not name.startswith(".")] == ["quick"]


@contextlib.contextmanager
def slow_ingest(store: Path, fifo: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """An ingest that has read some of a FIFO, and waits for more."""
    os.mkfifo(fifo)
    args = [*COMMAND, "ingest", str(fifo), "--id", "slow"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, **more) as process:
        writer = os.open(fifo, os.O_WRONLY)
        try:
            os.write(writer, b"x" * 4096)
            until(lambda: unread(writer) == 0, "the first bytes to be taken")
            yield process
        finally:
            os.close(writer)
            process.kill()


def unread(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing(store: Path, tmp_path: Path, signum: int, code: int) -> None:
    before = contents(store)
    with slow_ingest(store, tmp_path / "fifo", stderr=subprocess.PIPE) as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, err
    assert out == b""
    assert b"Traceback" not in err
    assert [name for name in contents(store) if name not in before] in ([], [".fastfs"])


def test_a_signal_before_anybody_writes(store: Path, tmp_path: Path) -> None:
    """Opening a FIFO must not be the place where no signal is heard."""
    os.mkfifo(tmp_path / "fifo")
    args = [*COMMAND, "ingest", str(tmp_path / "fifo"), "--id", "x"]
    with subprocess.Popen(args, stderr=subprocess.PIPE) as process:
        until(lambda: threads_of(process.pid) > 1, "the worker")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130


def threads_of(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0


def test_what_was_done_before_the_signal_stays(store: Path, tmp_path: Path, image: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    args = [
        *COMMAND,
        "ingest",
        "--json",
        "--jobs",
        "1",
        str(image),
        str(tmp_path / "fifo"),
        str(tmp_path / "never"),
    ]
    (tmp_path / "never").write_bytes(b"x")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, rest) == (130, b"")
    assert told["id"] == "a.img"
    assert b"2 not stored" in err
    assert [name for name in contents(store) if not name.startswith(".")] == ["a.img"]


class Terminal:
    """A pseudo-terminal with a process on it."""

    def __init__(self, *args: object, stdout: Any = None, **environment: str) -> None:
        self.screen, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        self.text = b""
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(inner), *COMMAND, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=inner if stdout is None else stdout,
            stderr=inner,
            env=env,
            start_new_session=True,  # the first terminal that it opens becomes its own: Ctrl-C reaches it
        )
        os.close(inner)

    def type(self, text: bytes) -> None:
        os.write(self.screen, text)

    def read(self, wanted: bytes | None = None) -> bytes:
        """What the screen got, up to `wanted` or to the end of the process."""
        end = time.monotonic() + DEADLINE
        while wanted is None or wanted not in self.text:
            assert time.monotonic() < end, self.text
            if not select.select([self.screen], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(self.screen, 65536)
            except OSError:  # nobody has the other side open
                piece = b""
            if not piece:
                assert wanted is None, self.text
                break
            self.text += piece
        return self.text

    def wait(self) -> int:
        self.read()
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def terminal() -> Iterator[Any]:
    opened: list[Terminal] = []

    def make(*args: object, **more: Any) -> Terminal:
        opened.append(Terminal(*args, **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_progress_on_a_terminal(store: Path, tmp_path: Path, image: Path, terminal: Any) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shown = terminal("ingest", "--jobs", "2", fifo, image)
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, b"x" * 4096)
    shown.read(b"1 of 2 files")
    assert b"4.0 KiB" in shown.read(b"4.0 KiB")
    os.close(writer)
    assert shown.wait() == 0
    for word in (b"fifo", b"a.img", b"sha512", b"stored 2 images"):
        assert word in shown.text


def test_results_stay_on_stdout_below_the_bars(store: Path, image: Path, tmp_path: Path, terminal: Any) -> None:
    with open(tmp_path / "out", "wb") as out:
        shown = terminal("ingest", "--json", image, stdout=out)
        assert shown.wait() == 0
    assert lines_of((tmp_path / "out").read_bytes())[0]["id"] == "a.img"
    assert b"stored 1 image," in shown.text


@pytest.mark.parametrize("how", ["-q", "dumb"])
def test_no_bars_where_they_are_not_wanted(store: Path, image: Path, terminal: Any, how: str) -> None:
    shown = terminal("ingest", image, "-q") if how == "-q" else terminal("ingest", image, TERM="dumb")
    assert shown.wait() == 0
    assert b"\x1b[?25l" not in shown.text
    assert (b"stored" in shown.text) == (how == "dumb")


def test_ctrl_c_on_a_terminal(store: Path, tmp_path: Path, terminal: Any) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shown = terminal("ingest", fifo)
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, b"x" * 4096)
    shown.read(b"4.0 KiB")
    shown.type(b"\x03")
    assert shown.wait() == 130
    os.close(writer)
    assert b"interrupted" in shown.text
    assert shown.text.rfind(b"\x1b[?25h") > shown.text.rfind(b"\x1b[?25l"), "the cursor is back"
    assert not [name for name in contents(store) if not name.startswith(".")]


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"\n", 1), (b"\x03", 130)])
def test_rm_asks_on_a_terminal(stored: bytes, store: Path, terminal: Any, answer: bytes, code: int) -> None:
    shown = terminal("rm", "a.img")
    shown.read(b"[y/N]")
    shown.type(answer)
    assert shown.wait() == code
    assert (store / "a.img").exists() == (code != 0)


def test_cat_refuses_a_terminal(store: Path, terminal: Any) -> None:
    assert run("ingest", "-", "--id", "x", input=b"some text").returncode == 0
    shown = terminal("cat", "x")
    assert shown.wait() == 2
    assert b"some text" not in shown.text
    shown = terminal("cat", "x", "--force")
    assert shown.wait() == 0
    assert b"some text" in shown.text


def test_get_shows_progress_and_nothing_else(store: Path, stored: bytes, tmp_path: Path, terminal: Any) -> None:
    shown = terminal("get", "a.img", "-o", tmp_path / "copy")
    assert shown.wait() == 0
    assert (tmp_path / "copy").read_bytes() == stored
    assert shown.text.endswith(b"\x1b[2K"), "the bar is wiped away, and nothing follows"
