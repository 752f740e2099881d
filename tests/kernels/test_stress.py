# SPDX-License-Identifier: Apache-2.0
"""The engine in a program of its own, where every access can be watched: engine_stress.c."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from kernels import EXT, HERE, Driver

COMMON = ["-std=gnu11", "-g", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-tsan", f"-I{EXT}"]
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


def program(
    scratch: Path, objects: list[Path], options: list[str], text: str | None = None, main: str = "engine_stress.c"
) -> Path:
    """The engine instrumented; the kernels, which share nothing, as they are."""
    compiler = shutil.which(os.environ.get("CC", "gcc").split()[-1])
    if compiler is None:
        pytest.skip("there is no gcc")
    (scratch / "engine.c").write_text(text or (EXT / "engine.c").read_text())
    (scratch / "stress.c").write_text((HERE / main).read_text())
    sources = [scratch / "stress.c", EXT / "ways.c", EXT / "objects.c", EXT / "cores.c"]
    target = scratch / "stress"
    command = [compiler, *COMMON, *options, f"-I{scratch}", *map(str, [*sources, *objects]), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and re.search("cannot find .*(tsan|asan|ubsan)", done.stderr):
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return target


def stress(target: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "exitcode=66"}
    return subprocess.run(
        [target, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_many_streams_in_many_threads(sanitizer: str, driver: Driver, objects: list[Path], tmp_path: Path) -> None:
    target = program(tmp_path, objects, SANITIZERS[sanitizer])
    for name in driver.names:
        if driver.take(name) is not None:
            continue
        for threads, streams, stride in ((2, 40, 1), (9, 25, 101), (40, 6, 101)):
            done = stress(target, threads, streams, threads, stride, name)
            assert done.returncode == 0, done.stdout[-5000:]
            assert f"kernel {name}" in done.stdout


def test_a_lone_block_has_its_turn(objects: list[Path], tmp_path: Path) -> None:
    """Streams that only wait for their sources do not make others wait for lanes to fill."""
    done = stress(program(tmp_path, objects, SANITIZERS["address"], main="engine_turns.c"))
    assert done.returncode == 0, done.stdout


def test_an_unfair_engine_is_found(objects: list[Path], tmp_path: Path) -> None:
    text = (EXT / "engine.c").read_text()
    assert text.count("PATIENCE * active") == 1, "engine.c has changed: seed the fault anew"
    text = text.replace("PATIENCE * active", "PATIENCE * (active + engine.stats.live)")
    done = stress(program(tmp_path, objects, SANITIZERS["address"], text, main="engine_turns.c"))
    assert (done.returncode, done.stdout[-19:]) == (1, "blocks went before\n"), done.stdout


SEEDS = {
    "a strand is run without having been taken from the queue": (
        "thread",
        "    pthread_mutex_unlock(&engine.lock);\n    step(k->ways, w, task, n);\n"
        "    pthread_mutex_lock(&engine.lock);",
        "    for (unsigned i = 0; i < n; i++)\n"
        "        if (task[i].strand->at == 0)\n            enqueue(task[i].strand);\n"
        "    pthread_mutex_unlock(&engine.lock);\n    step(k->ways, w, task, n);\n"
        "    pthread_mutex_lock(&engine.lock);\n"
        "    for (unsigned i = 0; i < n; i++)\n"
        "        if (task[i].strand->queued)\n            dequeue(task[i].strand);",
    ),
    "a stream is freed while somebody works on it": (
        "address",
        "    while (any_running(s))\n",
        "    while (false && any_running(s))\n",
    ),
    "the tail of a pair stays as long as it was": ("address", "    shorten_tail(t);\n", ""),
    "a pair that is split loses its second state": (
        "address",
        "    other->state[0] = t->state[1];\n",
        "",
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_fault_is_found(seed: str, objects: list[Path], tmp_path: Path) -> None:
    sanitizer, good, bad = SEEDS[seed]
    text = (EXT / "engine.c").read_text()
    assert text.count(good) == 1, "engine.c has changed: seed the fault anew"
    target = program(tmp_path, objects, SANITIZERS[sanitizer], text.replace(good, bad))
    results = (stress(target, 12, 25, turn, 7) for turn in range(1, 9))
    assert any(done.returncode in (66, -signal.SIGSEGV) or "wrong:" in done.stdout for done in results), "not found"
