"""A and B measured in turns, and the ratio taken pair by pair: what a noisy machine leaves of a comparison.

    python -m bench.pairs --case add-64m-sha512 --pairs 9 --json out.json

A machine's speed drifts over seconds and minutes; two rounds next to each other see the same machine. So
one pair is A B, the next B A, each gives one ratio A/B (above 1: B is faster), and the figure is their
median.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.cases import CASES, COSTS, HEADLINES, READING
from bench.places import await_quiet, busy_seconds, filesystem_of, fresh_directory, scatter
from bench.stores import OpenStore, Side
from bench.work import Case, Work, make_work

FORMAT = "fastfs-pairs-1"


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float
    others: float  # CPUs that something else kept busy meanwhile


def time_round(work: Work, store: OpenStore) -> Timing:
    """One round of one side; process CPU time is user and system time of all threads."""
    round_ = work.prepare(store)
    gc.collect()
    busy = busy_seconds()
    cpu, wall = time.process_time(), time.perf_counter()
    work.run(store, round_)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = max(0.0, busy_seconds() - busy - cpu) / wall
    work.finish(store, round_)
    return Timing(wall, cpu, others)


def interleave(
    work: Work, a: OpenStore, b: OpenStore, pairs: int, warmup: int, quiet: float
) -> list[tuple[Timing, Timing]]:
    """A B, B A, A B, … so that neither side is always the second."""
    measured = []
    for n in range(-warmup, pairs):
        await_quiet(quiet)
        if n % 2:
            second, first = time_round(work, b), time_round(work, a)
        else:
            first, second = time_round(work, a), time_round(work, b)
        if n >= 0:
            measured.append((first, second))
    return measured


def spread(values: Sequence[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "q1": low,
        "q3": high,
    }


def measure(case: Case, base: Path, pairs: int, warmup: int, patience: float, quiet: float) -> dict[str, Any]:
    """One case, in a process of its own: the affinity and the threads of one case are not the next one's."""
    if case.cpus:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.cpus])
    a, b = Side.parse(case.a), Side.parse(case.b)
    directory, create_us = fresh_directory(base, case.name, patience)
    with make_work(case, directory) as work:
        store_a, store_b = work.open(a, "a"), work.open(b, "b")
        measured = interleave(work, store_a, store_b, pairs, warmup, quiet)
        allocated = {str(side): size for side, size in work.allocated.items()}
    result = asdict(case) | {
        "hashes": case.hashes,
        "bytes": case.total,
        "pairs": pairs,
        "filesystem": filesystem_of(base),
        "cpus_used": len(os.sched_getaffinity(0)),
        "allocated": allocated,
        "create_us": round(create_us, 1),
        "others": spread([timing.others for pair in measured for timing in pair]),
        "best_ratio": min(x.wall for x, _ in measured) / min(y.wall for _, y in measured),
        "ratio": spread([x.wall / y.wall for x, y in measured]),
        "cpu_ratio": spread([x.cpu / y.cpu for x, y in measured]),
    }
    for letter, store, timings in (
        ("a", store_a, [x for x, _ in measured]),
        ("b", store_b, [y for _, y in measured]),
    ):
        wall, cpu = [t.wall for t in timings], [t.cpu for t in timings]
        result[f"{letter}_run"] = {
            "side": str(store.side),
            "durability": store.side.durability,
            "version": store.version,
            "wall": spread(wall),
            "cpu": spread(cpu),
            "wall_all": wall,
            "cpu_all": cpu,
        }
    return result


def hash_speeds() -> dict[str, float]:
    """GB/s of one core: no store that leaves hashing to hashlib can pass what follows from these."""
    block, speeds = bytes(1 << 18), {}
    for name in ("md5", "sha256", "sha512"):
        times = []
        for _ in range(400):  # a busy machine needs many to have one undisturbed
            start = time.perf_counter()
            hashlib.new(name, block).digest()
            times.append(time.perf_counter() - start)
        speeds[name] = round(len(block) / min(times) / 1e9, 3)
    return speeds


def machine() -> dict[str, Any]:
    model = "?"
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith(("model name", "Model")):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "hashlib_gbps": hash_speeds(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def line_of(result: dict[str, Any]) -> str:
    r, c, target = result["ratio"], result["cpu_ratio"], result["target"]
    around = f"{r['q1']:.2f} to {r['q3']:.2f}, all {r['min']:.2f} to {r['max']:.2f}"
    others = result["others"]["median"]
    aim = f", target {target:g}" if target else ""
    aim += f" and {result['cpu_target']:g} CPU" if result["cpu_target"] else ""
    best = f"best {result['best_ratio']:.2f}"
    figures = f"{r['median']:5.2f} wall ({around}, {best}) {c['median']:5.2f} CPU"
    return f"{result['name']:20} {figures}, others {others:.2f}{aim}"


def size_of(text: str) -> int:
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    number = text.lower().removesuffix("b").removesuffix("i")
    scale = units.get(number[-1:], 1)
    return int(float(number.rstrip("kmg")) * scale)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.pairs", description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument(
        "--case", action="append", default=[], help="a case, `headlines`, `costs`, `reading` or `all`; again for more"
    )
    p.add_argument("--list", action="store_true", help="name the cases and stop")
    p.add_argument("--pairs", type=int, default=9)
    p.add_argument("--warmup", type=int, default=2, help="pairs that are not counted")
    p.add_argument("--size", type=size_of, help="bytes of one image instead of the case's own (also 16M, 1g)")
    p.add_argument("--images", type=int, help="images of one round instead of the case's own")
    p.add_argument("--threads", type=int, help="callers instead of the case's own")
    p.add_argument("--a", help="side A: glance_store, fastfs, fastfs:file, fastfs:full")
    p.add_argument("--b", help="side B; the same on both sides shows the noise")
    p.add_argument("--dir", type=Path, help="where `disk` cases store (default: the temporary directory)")
    p.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="where `memory` cases store")
    p.add_argument(
        "--patience", type=float, default=90, help="seconds to look for a place where creating files is fast"
    )
    p.add_argument("--quiet", type=float, default=0, help="seconds to wait before a pair for an idle machine")
    p.add_argument("--json", type=Path, help="write the results there")
    return p


def chosen(args: argparse.Namespace) -> list[Case]:
    groups = {"headlines": HEADLINES, "costs": COSTS, "reading": READING, "all": tuple(CASES)}
    names = [name for given in args.case or ["headlines"] for name in groups.get(given, (given,))]
    if unknown := [name for name in names if name not in CASES]:
        raise SystemExit(f"unknown case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    given = {key: getattr(args, key) for key in ("size", "images", "threads", "a", "b")}
    changes = {key: value for key, value in given.items() if value is not None}
    if {"size", "images", "threads"} & set(changes):
        changes["target"] = changes["cpu_target"] = None  # a target is about the case as it stands
    return [replace(CASES[name], **changes) for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.list:
        for case in CASES.values():
            print(f"{case.name:22} {case.title}")
        return 0
    cases, results, here = chosen(args), [], machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    disk = Path(tempfile.mkdtemp(prefix="fastfs-bench-", dir=args.dir))
    memory = Path(tempfile.mkdtemp(prefix="fastfs-bench-", dir=args.memory_dir))
    try:
        scatter(disk)
        for case in cases:
            base = memory if case.where == "memory" else disk
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
                result = own.submit(measure, case, base, args.pairs, args.warmup, args.patience, args.quiet).result()
            results.append(result)
            print(line_of(result), flush=True)
            if args.json:
                document = {"format": FORMAT, "machine": here, "cases": results}
                args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(disk, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
