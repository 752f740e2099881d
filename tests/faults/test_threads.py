"""ThreadSanitizer on the C core alone: in a program that is instrumented as a whole, without an interpreter's lock."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from shim import HERE, cc

EXT = HERE.parent.parent / "ext"


def program(scratch: Path, chains: str) -> Path:
    compiler = cc("gcc")
    if shutil.which(compiler[0]) is None:
        pytest.skip("there is no gcc")
    (scratch / "chains.c").write_text(chains)
    sources = [
        HERE / "fuzz" / "main.c",
        HERE / "fuzz" / "pump.c",
        EXT / "pump.c",
        EXT / "cores.c",
        scratch / "chains.c",
    ]
    target = scratch / "threads"
    flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=thread", "-pthread", f"-I{EXT}"]
    done = subprocess.run([*compiler, *flags, "-o", target, *sources], stderr=subprocess.PIPE, text=True)
    if "libtsan" in done.stderr or ("tsan" in done.stderr.lower() and done.returncode):
        pytest.skip("the compiler has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    return target


def run(target: Path, runs: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66"}
    return subprocess.run(
        [target, str(runs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, env=environment
    )


def test_no_data_race(tmp_path: Path) -> None:
    done = run(program(tmp_path, (EXT / "chains.c").read_text()), 300)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Done 300 runs" in done.stdout


SEEDS = {
    "a result is noted without the lock": (
        "pthread_mutex_lock(&c->lock);\n    pick->busy = false;\n    pick->next++;",
        "pick->busy = false;\n    pick->next++;\n    pthread_mutex_lock(&c->lock);",
    ),
    "a block is posted without the lock": (
        "c->block[t % c->depth] = (struct block){ data, len };\n    c->posted = t;",
        "pthread_mutex_unlock(&c->lock);\n    c->block[t % c->depth] = (struct block){ data, len };\n"
        "    c->posted = t;\n    pthread_mutex_lock(&c->lock);",
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_race_is_found(seed: str, tmp_path: Path) -> None:
    good, bad = SEEDS[seed]
    text = (EXT / "chains.c").read_text()
    assert text.count(good) == 1, "chains.c has changed: seed the race anew"
    target = program(tmp_path, text.replace(good, bad))
    for runs in (300, 3000, 30_000):  # how soon the threads meet depends on what else the machine does
        if (done := run(target, runs)).returncode != 0:
            break
    assert done.returncode != 0, "not found"
    assert "data race" in done.stdout
