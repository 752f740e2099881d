"""The headlines, one row each: what `python -m bench.pairs` measures and docs/benchmarks.md shows."""

from __future__ import annotations

from bench.material import MIB
from bench.work import Case

KIB = 1024

_TABLE: tuple[Case, ...] = (
    Case("add-64m-sha512", "64 MiB file, sha512", 64 * MIB, target=1.6),
    Case("add-64m-sha512-1cpu", "64 MiB file, sha512, one CPU", 64 * MIB, cpus=1),
    Case("add-64m-sha256", "64 MiB file, sha256", 64 * MIB, algo="sha256"),
    Case("add-1g-sha512", "1 GiB file, sha512", 1024 * MIB),
    Case("add-64m-reader", "64 MiB from read(n), sha512", 64 * MIB, source="reader"),
    Case("add-4k-memory", "4 KiB objects, tmpfs", 4 * KIB, 2000, source="bytesio", where="memory", target=1.5),
    Case("add-4k-disk", "4 KiB objects, disk", 4 * KIB, 2000, source="bytesio", target=1.5),
    Case(
        "add-4k-2threads",
        "4 KiB objects, tmpfs, 2 threads",
        4 * KIB,
        2000,
        2,
        source="bytesio",
        where="memory",
    ),
    Case("thin-256m-zeroes", "256 MiB of zeroes, thin", 256 * MIB, fill="zeroes", thin=True, target=2.5),
    Case("thin-256m-half", "256 MiB half zeroes, thin", 256 * MIB, fill="half", thin=True),
    Case("add-16x16m-file", "16 files of 16 MiB at once", 16 * MIB, 16, 16, target=1.0),
    Case("add-16x16m-reader", "16 times 16 MiB at once, read(n)", 16 * MIB, 16, 16, source="reader", target=1.0),
    Case("many-32x16m", "add_many, 32 files of 16 MiB", 16 * MIB, 32, 16, work="add-many", target=5.0),
    Case(
        "many-3000-disk", "add_many, 3,000 of 0 to 64 KiB, disk", 64 * KIB, 3000, work="add-many", spread=True, target=3
    ),
    Case(
        "many-3000-memory",
        "add_many, 3,000 of 0 to 64 KiB, tmpfs",
        64 * KIB,
        3000,
        work="add-many",
        spread=True,
        where="memory",
        target=3.0,
    ),
    Case("many-4k-disk", "add_many, 3,000 of 4 KiB, disk", 4 * KIB, 3000, work="add-many"),
    Case("hash-16x64m", "hash_files, 16 of 64 MiB", 64 * MIB, 16, 2, work="hash", a="hashlib", target=7.0),
    Case("hash-3000", "hash_files, 3,000 of 0 to 64 KiB", 64 * KIB, 3000, 2, work="hash", spread=True, a="hashlib"),
    Case("get-512m", "read back 512 MiB, iterating", 512 * MIB, work="get", target=1.1),
    Case("get-512m-readinto", "read back 512 MiB, readinto", 512 * MIB, work="get-readinto", target=1.5),
    Case("send-512m-unix", "send 512 MiB, Unix socket", 512 * MIB, work="send-unix", target=1.8, cpu_target=2.2),
    Case("send-512m-unix-shifted", "the same into memory from malloc", 512 * MIB, work="send-unix-shifted"),
    Case(
        "send-512m-tcp-discard",
        "send 512 MiB, TCP, discarding receiver",
        512 * MIB,
        work="send-tcp-discard",
        target=1.35,
        cpu_target=1.7,
    ),
    Case("send-512m-tcp", "send 512 MiB, TCP loopback, copying receiver", 512 * MIB, work="send-tcp", target=1.1),
    # What durability costs: fastfs beside itself. glance_store has no such choice; it never syncs.
    Case("cost-64m-file", "64 MiB file, durability file", 64 * MIB, a="fastfs", b="fastfs:file"),
    Case("cost-64m-full", "64 MiB file, durability full", 64 * MIB, a="fastfs", b="fastfs:full"),
    Case(
        "cost-4k-file",
        "4 KiB object, durability file",
        4 * KIB,
        100,
        source="bytesio",
        a="fastfs",
        b="fastfs:file",
    ),
    Case(
        "cost-4k-full",
        "4 KiB object, durability full",
        4 * KIB,
        100,
        source="bytesio",
        a="fastfs",
        b="fastfs:full",
    ),
)

_TABLE += tuple(
    Case(
        f"cost-many-4k-{durability}",
        f"4 KiB object by add_many, durability {durability}",
        4 * KIB,
        1000,
        work="add-many",
        a="fastfs",
        b=f"fastfs:{durability}",
    )
    for durability in ("file", "full", "batch")
)

CASES = {case.name: case for case in _TABLE}
HEADLINES = tuple(name for name in CASES if not name.startswith("cost-"))
COSTS = tuple(name for name in CASES if name.startswith("cost-"))
READING = tuple(name for name in CASES if name.startswith(("get-", "send-")))
