# SPDX-License-Identifier: Apache-2.0
"""The commands that look at what is stored: scrub, quarantine, repair, adopt, du, and --verify."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the command needs the extra 'cli'")
pytest.importorskip("rich", reason="the command needs the extra 'cli'")

import fastfs
from fastfs.cli.adopt import read_expectations
from fastfs.cli.errors import CommandError, ExitCode

COMMAND = [sys.executable, "-m", "fastfs.cli"]
DATA = {name: name.encode() * 50_000 for name in ("alpha", "beta", "gamma")}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FASTFS_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "store"
    monkeypatch.setenv("FASTFS_DATADIR", str(path))
    monkeypatch.setenv("FASTFS_DURABILITY", "none")
    monkeypatch.setenv("FASTFS_RECORD_BLOCK_SIZE", "65536")
    with fastfs.Store(datadir=str(path), durability="none", record_block_size=65536) as store:
        for name, data in DATA.items():
            store.add(name, data)
    return path


def run(*words: object, code: int = 0, data: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, words)], input=data, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(b"!")


def test_exit_codes_of_scrub(images: Path) -> None:
    assert "3 clean, 0 damaged" in run("scrub").stderr
    damage(images / "beta")
    shown = run("scrub", code=ExitCode.DAMAGED)
    assert "bit-rot" in shown.stdout
    assert "beta" in shown.stdout
    assert "alpha" not in shown.stdout
    assert "alpha" in run("scrub", "-v", code=ExitCode.DAMAGED).stdout
    run("scrub", "alpha", "gamma")
    run("scrub", "--match", "*a", "--deep", code=ExitCode.DAMAGED)
    run("scrub", "--match", "alp*")
    run("scrub", "nothing", code=ExitCode.NOT_FOUND)
    run("scrub", "alpha", "--match", "x", code=ExitCode.USAGE)
    run("scrub", "--for", "never", code=ExitCode.USAGE)
    run("scrub", "--rate", "0", code=ExitCode.USAGE)
    (images / ".fastfs-beta.rec").unlink()
    run("scrub", "--restart", code=ExitCode.INCOMPLETE)


def test_lines_of_scrub(images: Path) -> None:
    damage(images / "gamma")
    *found, last = lines(run("scrub", "--json", "--io", "idle", "--rate", "1G", "--for", "1h", code=7).stdout)
    assert {one["id"]: one["status"] for one in found} == {"alpha": "clean", "beta": "clean", "gamma": "bit-rot"}
    bad = next(one for one in found if one["id"] == "gamma")
    assert (bad["bad"], bad["offset"], bad["block_size"]) == ([[1, 1]], 65536, 65536)
    assert (last["summary"]["damaged"], last["summary"]["complete"]) == (1, True)


def test_time_is_up(images: Path) -> None:
    shown = run("scrub", "--json", "--rate", "100K", "--for", "1s", "--jobs", "1", code=ExitCode.INCOMPLETE)
    assert lines(shown.stdout)[-1]["summary"]["complete"] is False


def test_scrub_is_interrupted(images: Path) -> None:
    child = subprocess.Popen(
        [*COMMAND, "scrub", "--json", "--rate", "100K", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "summary" in out
    assert "Traceback" not in err
    rest = lines(run("scrub", "--json").stdout)
    assert rest[-1]["summary"]["resumed"] >= 1
    assert json.loads(first)["id"] not in [one.get("id") for one in rest]


def test_quarantine(images: Path) -> None:
    assert "nothing is in quarantine" in run("quarantine", "list").stderr
    for name in ("alpha", "beta"):
        damage(images / name)
    run("scrub", "--quarantine", code=ExitCode.DAMAGED)
    assert run("ls", "-q").stdout.split() == ["gamma"]
    entries = lines(run("quarantine", "list", "--json").stdout)
    assert {one["id"] for one in entries} == {"alpha", "beta"}
    assert run("quarantine", "list", "-q").stdout.split() == [one["entry"] for one in entries]
    assert "ENTRY" in run("quarantine", "list").stdout
    shown = run("quarantine", "show", "alpha").stdout
    assert "bit-rot" in shown
    assert "65536 to 131071" in shown
    assert lines(run("quarantine", "show", "--json", "alpha").stdout)[0]["report"]["bad_blocks"] == 1
    run("quarantine", "show", "gamma", code=ExitCode.NOT_FOUND)
    run("quarantine", "restore", "alpha")
    assert (images / "alpha").exists()
    run("quarantine", "drop", "beta", code=ExitCode.USAGE)
    run("quarantine", "drop", "--yes", "beta", "nothing", code=ExitCode.NOT_FOUND)
    assert run("quarantine", "list", "-q").stdout == ""
    assert not (images / ".fastfs-quarantine").exists()
    with fastfs.Store(datadir=str(images)) as store:
        store.add("beta", b"again")
    damage(images / "gamma")
    run("scrub", "--quarantine", "gamma", code=ExitCode.DAMAGED)
    (images / "gamma").write_bytes(b"something else")
    run("quarantine", "restore", "gamma", code=ExitCode.DUPLICATE)
    assert (images / "gamma").read_bytes() == b"something else"


def test_repair(images: Path, tmp_path: Path) -> None:
    damage(images / "alpha")
    (tmp_path / "bad").write_bytes(DATA["beta"])
    (tmp_path / "alpha").write_bytes(DATA["alpha"])
    assert "still bit-rot" in run("repair", "--from", tmp_path / "bad", "alpha", code=ExitCode.DAMAGED).stdout
    (told,) = lines(run("repair", "--json", "--from", tmp_path, "alpha").stdout)
    assert (told["before"], told["after"], told["blocks"], told["repaired"]) == ("bit-rot", "clean", 1, True)
    assert "was whole" in run("repair", "--from", tmp_path, "alpha").stderr
    assert (images / "alpha").read_bytes() == DATA["alpha"]
    run("repair", "--from", tmp_path / "none", "alpha", code=ExitCode.NOT_FOUND)
    (images / ".fastfs-alpha.rec").unlink()
    run("repair", "--from", tmp_path, "alpha", code=ExitCode.INCOMPLETE)


def test_adopt(images: Path, tmp_path: Path) -> None:
    for name in DATA:
        (images / f".fastfs-{name}.rec").unlink()
        os.removexattr(images / name, "user.fastfs.tag")
    table = tmp_path / "expected.csv"
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "os_hash_algo", "os_hash_value", "checksum"])
        rows.writerow(["alpha", "sha512", hashlib.sha512(DATA["alpha"]).hexdigest(), "NULL"])
        rows.writerow(["beta", "sha512", hashlib.sha512(b"").hexdigest(), hashlib.md5(DATA["beta"]).hexdigest()])
        rows.writerow(["gone", "", "", hashlib.md5(b"").hexdigest()])
    dry = lines(run("adopt", "--json", "--dry-run", "--expect", table, code=ExitCode.DAMAGED).stdout)
    assert {one["id"]: one["result"] for one in dry[:-1]} == {
        "alpha": "match",
        "beta": "mismatch",
        "gamma": "unknown",
        "gone": "missing",
    }
    assert not list(images.glob(".fastfs-*.rec"))
    shown = run("adopt", "--expect", table, code=ExitCode.DAMAGED)
    assert "mismatch  beta" in shown.stdout
    assert "2 records made" in shown.stderr
    expected = json.dumps({"id": "beta", "algorithm": "md5", "digest": hashlib.md5(DATA["beta"]).hexdigest()})
    run("adopt", "beta", "--expect", "-", data=expected + "\n")
    assert "3 clean" in run("scrub").stderr
    run("adopt", "--expect", tmp_path / "none", code=ExitCode.NOT_FOUND)
    run("adopt", "--expect", "-", code=ExitCode.USAGE, data="name,size\na,1\n")
    table.write_text("id,algorithm,digest\nalpha,md5,zz\n")
    assert f"{table}: expected of image alpha: 'zz' is no md5" in run("adopt", "--expect", table, code=2).stderr
    run("adopt", "gone", code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize(
    "text", ["id,size\na,1\n", '{"id": 1}\n', '{"id": "a", "digest": \n', "[1]\n", '{"id": "a"}\n[1]\n', "a,b\n,\n"]
)
def test_expectations_that_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        list(read_expectations(text.splitlines(True), "file"))


def test_expectations_that_are_empty() -> None:
    assert list(read_expectations([], "file")) == []
    assert list(read_expectations(["id,algorithm,digest\n", "a,,\n"], "file")) == []


def test_du(images: Path) -> None:
    (told,) = lines(run("du", "--json").stdout)
    assert told["logical"] == sum(map(len, DATA.values()))
    assert told["images"] == 3
    assert told["records"] > 0
    assert "LOGICAL" in run("du").stdout


def test_verify(images: Path, tmp_path: Path) -> None:
    run("get", "--verify", "alpha", "-o", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA["alpha"]
    assert run("cat", "--verify", "alpha").stdout.encode() == DATA["alpha"]
    damage(images / "alpha")
    shown = run("get", "--verify", "alpha", "-o", tmp_path / "bad", code=ExitCode.DAMAGED)
    assert "block 1" in shown.stderr
    assert not (tmp_path / "bad").exists()
    assert len(run("cat", "--verify", "alpha", code=ExitCode.DAMAGED).stdout) <= 65536
    assert len(run("cat", "--verify", "--range", "-100", "alpha").stdout) == 100
    (images / ".fastfs-alpha.rec").unlink()
    run("get", "--verify", "alpha", "-o", tmp_path / "bad", code=ExitCode.INCOMPLETE)
