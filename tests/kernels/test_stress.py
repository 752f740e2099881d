# SPDX-License-Identifier: Apache-2.0
"""The engine and the crew in programs where every access can be watched: engine_stress.c, crew_stress.c."""

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
    changed = {"engine.c": text or (EXT / "engine.c").read_text()}
    return build(scratch, objects, options, main, ["ways", "objects", "cores"], changed)


def build(
    scratch: Path, objects: list[Path], options: list[str], main: str, parts: list[str], changed: dict[str, str]
) -> Path:
    """`main` with parts of the extension, some of them, or what it includes, as given in `changed`."""
    compiler = shutil.which(os.environ.get("CC", "gcc").split()[-1])
    if compiler is None:
        pytest.skip("there is no gcc")
    for name, text in changed.items():
        (scratch / name).write_text(text)
    (scratch / "stress.c").write_text((HERE / main).read_text())
    places = [(scratch if f"{part}.c" in changed else EXT) / f"{part}.c" for part in parts]
    target = scratch / "stress"
    sources = [scratch / "stress.c", *places, *objects]
    command = [compiler, *COMMON, *options, f"-I{scratch}", f"-I{HERE}", *map(str, sources), "-o", str(target)]
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


def is_faulty(target: Path, *arguments: object) -> bool:
    try:
        done = stress(target, *arguments)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode in (66, -signal.SIGSEGV) or "wrong:" in done.stdout


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
    assert any(is_faulty(target, 12, 25, turn, 7) for turn in range(1, 9)), "not found"


CREW = ["engine", "pump", "fsops", "tee", "chains", "blocks", "ways", "objects", "cores", "window", "busguard"]


def crew(scratch: Path, objects: list[Path], sanitizer: str, file: str = "", good: str = "", bad: str = "") -> Path:
    """crew_stress.c with a crew that streams join whether it pays or not."""
    changed = {"crew.c": (EXT / "crew.c").read_text()}
    if file:
        changed[file] = (EXT / file).read_text()
        assert changed[file].count(good) == 1, f"{file} has changed: seed the fault anew"
        changed[file] = changed[file].replace(good, bad)
    assert ">= 1.3 *" in changed["crew.c"], "crew.c has changed: say anew that joining always pays"
    changed["crew.c"] = changed["crew.c"].replace(">= 1.3 *", ">= 0 *")
    return build(scratch, objects, SANITIZERS[sanitizer], "crew_stress.c", CREW, changed)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_a_crew_of_many_threads(sanitizer: str, driver: Driver, objects: list[Path], tmp_path: Path) -> None:
    target = crew(tmp_path, objects, sanitizer)
    for name in driver.names:
        if driver.take(name) is not None:
            continue
        for threads, streams in ((9, 10), (40, 6)):
            done = stress(target, tmp_path, threads, streams, threads, name)
            assert done.returncode == 0, done.stdout[-5000:]
            assert f"kernel {name}" in done.stdout
    if name.startswith("avx"):
        assert float(done.stdout.split("lanes ")[1].split()[0]) > 1.05, "nobody shared lanes"


CREW_SEEDS = {
    "a stream is driven by two": (
        "thread",
        "crew.c",
        "    TAILQ_REMOVE(&c->waiting, r, link);\n    r->waits = false;\n",
        "    TAILQ_REMOVE(&c->waiting, r, link);\n",
    ),
    "a part of a unit counts as hashed": ("address", "crew.c", "        len -= len % k->unit;\n", ""),
    "what is hashed is hashed again": ("address", "pump.c", "data + hashed, len - hashed, ticket", "data, len, ticket"),
    "zeroes in the place of missing pages count": (
        "address",
        "crew.c",
        "    if (!is_intact(r)) {\n",
        "    if (false) {\n",
    ),
    "the others miss something": (
        "address",
        "pump.c",
        "post(p->others, data, len, ticket)",
        "post(p->others, data, 0, ticket)",
    ),
    "a block that a digest needs is filled anew": (
        "address",
        "pump.c",
        "    if (p->fill == 0 && p->others != NULL && "
        "p->others->ops->done(p->others) < p->ticket[p->slot])\n        return -EBUSY;\n",
        "",
    ),
}


@pytest.mark.parametrize("seed", CREW_SEEDS)
def test_a_fault_seeded_in_the_crew_is_found(seed: str, objects: list[Path], tmp_path: Path) -> None:
    sanitizer, file, good, bad = CREW_SEEDS[seed]
    target = crew(tmp_path, objects, sanitizer, file, good, bad)
    assert any(is_faulty(target, tmp_path, 30, 8, turn) for turn in range(1, 41)), "not found"


def blockread(scratch: Path, objects: list[Path], sanitizer: str, good: str = "", bad: str = "") -> Path:
    """blockread_stress.c with a helper for everybody who wants one."""
    text = (EXT / "blockread.c").read_text()
    limit = "2 * (atomic_fetch_add(&helpers, 1) + 1)"
    assert limit in text, "blockread.c has changed: say anew that there are processors enough"
    text = text.replace(limit, "0 * (atomic_fetch_add(&helpers, 1) + 1)")
    if good:
        assert text.count(good) == 1, "blockread.c has changed: seed the fault anew"
        text = text.replace(good, bad)
    parts = ["blockread", "engine", "ways", "objects", "cores", "serve"]
    return build(scratch, objects, SANITIZERS[sanitizer], "blockread_stress.c", parts, {"blockread.c": text})


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_blocks_read_by_two(sanitizer: str, driver: Driver, objects: list[Path], tmp_path: Path) -> None:
    target = blockread(tmp_path, objects, sanitizer)
    for name in driver.names:
        if driver.take(name) is None:
            done = stress(target, tmp_path, 9, 12, 1, name)
            assert done.returncode == 0, done.stdout[-5000:]
            assert f"kernel {name}" in done.stdout


BLOCKREAD_SEEDS = {
    "what is forgotten is still being read": (
        "thread",
        "state == BUSY)\n            pthread_cond_wait",
        "state == BUSY && 0)\n            pthread_cond_wait",
    ),
    "a block is taken by two": ("thread", "    s->state = BUSY;\n", ""),
    "a block is done before it is read": ("thread", "    s->state = BUSY;\n", "    s->state = DONE;\n"),
    "the helper outlives what it helps": (
        "address",
        "        pthread_join(b->thread, NULL);\n",
        "        pthread_detach(b->thread);\n",
    ),
    "the descriptor may be closed while it is read": ("thread", "serve_file_enter(b->file)", "true"),
    "a block that is cut short is read as far as it goes": ("address", "got < 0 ? (int)got : -ENODATA", "(int)got"),
}


@pytest.mark.parametrize("seed", BLOCKREAD_SEEDS)
def test_a_fault_seeded_in_reading_by_two_is_found(seed: str, objects: list[Path], tmp_path: Path) -> None:
    sanitizer, good, bad = BLOCKREAD_SEEDS[seed]
    target = blockread(tmp_path, objects, sanitizer, good, bad)
    assert any(is_faulty(target, tmp_path, 9, 20, turn, "portable") for turn in range(1, 41)), "not found"
