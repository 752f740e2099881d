"""All proofs one after the other, and a table of them: what was tried, and what was lost, half there or leaked.

    python tests/faults/torture.py            # what CI does, some minutes
    python tests/faults/torture.py --long     # everything there is, hours

What cannot be run here is told and counts as nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import guest
from broken import BROKEN, LOSING
from filesystems import missing
from shim import HERE

LOST = {"lost", "undead"}
PARTLY = {"partial", "published", "exposed"}
LEAKED = {"remains", "descriptor", "thread", "reservation"}


class Proof(NamedTuple):
    name: str
    command: list[str]
    #: The counts of its answer that are cases of this proof; () for the tests that pytest tells.
    counts: tuple[str, ...]
    #: At least so many.
    goal: int = 1
    #: What keeps it from being run.
    obstacle: str = ""


def script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *map(str, arguments)]


def tests(*names: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]


def proofs(long: bool, seconds: int) -> Iterator[Proof]:
    yield Proof("crash points", script("sweep", "crash", *([] if long else ["--most", 2400])), ("crash",), 2000)
    yield Proof(
        "error points",
        script("sweep", "error", *([] if long else ["--most", 2400])),
        ("error", "short", "eintr"),
        1000,
    )
    yield Proof("hanging calls", script("sweep", "hang", *([] if long else ["--most", 400])), ("hang",), 360)
    for filesystem, few, many in (("ext4", 500, 10_000), ("xfs", 50, 1000), ("btrfs", 50, 1000)):
        states = many if long else few
        command = script("powercut", filesystem, "--states", states)
        yield Proof(f"power cuts, {filesystem}", command, ("states",), states, missing(filesystem, "fuse"))
    count = 1000 if long else 100
    for durability in ("file", "batch"):
        command = script("powercut", "ext4", "--states", count, "--durability", durability)
        yield Proof(f'power cuts, "{durability}"', command, ("states",), count, missing("ext4", "fuse"))
    count = 100_000 if long else 10_000
    yield Proof("races", script("races", "--most", count), ("races",), count)
    limit = ["--seconds", seconds] if long else ["--most", 110_000]
    yield Proof("fuzz cases", script("fuzzing", *limit), ("fuzz",), 100_000)
    yield Proof("broken writers caught", [], (), len(BROKEN) + len(LOSING) + 3)
    yield Proof("real errors", tests(str(HERE / "test_real.py")), ())
    yield Proof("NFS 4.2 and 3", tests(str(HERE / "test_nfs.py")), (), 1, guest.missing())
    yield Proof("model, forks, shutdown, growth", tests(str(HERE / "test_model.py")), ())
    yield Proof("security checklist", tests(str(HERE.parent / "security")), ())


class Row(NamedTuple):
    name: str
    cases: int
    goal: int
    problems: list[str]
    seconds: float
    note: str = ""

    def count(self, categories: set[str]) -> int:
        return sum(problem.partition(":")[0] in categories for problem in self.problems)


def run(proof: Proof) -> Row:
    """One line of the table."""
    started = time.monotonic()
    if proof.obstacle:
        return Row(proof.name, 0, proof.goal, [], 0, f"not run: {proof.obstacle}")
    if not proof.command:
        command = tests(str(HERE), "-k", "broken_writer or loses_is_caught or checks_and_then_opens")
        return from_tests(proof, command, started)
    if not proof.counts:
        return from_tests(proof, proof.command, started)
    done = subprocess.run(proof.command, stdout=subprocess.PIPE, text=True)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Row(proof.name, 0, proof.goal, [f"unclear: it ended with {done.returncode}"], time.monotonic() - started)
    cases = sum(answer["cases"].get(name, 0) for name in proof.counts)
    return Row(
        proof.name, cases, proof.goal, answer["problems"], answer["seconds"], "; ".join(answer.get("left_out", []))
    )


def from_tests(proof: Proof, command: Sequence[str], started: float) -> Row:
    environment = {**os.environ}
    done = subprocess.run([*command, "-rfEs"], stdout=subprocess.PIPE, text=True, env=environment)
    counts: Counter[str] = Counter()
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    words = last.replace(",", "").split()
    for number, word in itertools.pairwise(words):
        if number.isdigit():
            counts[word.rstrip("s") if word.startswith("error") else word] = int(number)
    failed = [f"unclear: {line}" for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode and not failed:
        failed = [f"unclear: {last}"]
    skipped = f"{counts['skipped']} skipped" if counts["skipped"] else ""
    return Row(proof.name, counts["passed"], proof.goal, failed, time.monotonic() - started, skipped)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seconds", type=int, default=3600, help="for each fuzz target, in the long run")
    parser.add_argument("--only", default="", help="proofs whose name begins so")
    arguments = parser.parse_args()
    heading = (
        f"{'proof':32}{'cases':>10}{'at least':>10}{'lost':>6}{'partly':>8}{'leaked':>8}{'other':>7}{'seconds':>9}"
    )
    print(heading, "-" * len(heading), sep="\n", flush=True)
    rows = []
    for proof in proofs(arguments.long, arguments.seconds):
        if not proof.name.startswith(arguments.only):
            continue
        row = run(proof)
        rows.append(row)
        lost, partly, leaked = row.count(LOST), row.count(PARTLY), row.count(LEAKED)
        other = len(row.problems) - lost - partly - leaked
        print(
            f"{row.name:32}{row.cases:>10,}{row.goal:>10,}{lost:>6}{partly:>8}{leaked:>8}{other:>7}{row.seconds:>9.0f}",
            f"  {row.note}" if row.note else "",
            sep="",
            flush=True,
        )
    for row in rows:
        for problem in row.problems[:20]:
            print(f"{row.name}: {problem}")
    short = [row.name for row in rows if row.cases < row.goal and not row.note.startswith("not run")]
    if short:
        print(f"fewer cases than there should be: {', '.join(short)}")
    sys.exit(1 if short or any(row.problems for row in rows) else 0)


if __name__ == "__main__":
    main()
