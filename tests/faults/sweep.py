"""Every I/O call of every scenario, struck by every fault: a process that forks one child per case.

    python tests/faults/sweep.py crash --most 2400        # SIGKILL before, after and half-way through each call
    python tests/faults/sweep.py error                    # each errno, once and from then on; short calls; EINTR
    python tests/faults/sweep.py hang                     # the call hangs, and with it all later ones or none
    python tests/faults/sweep.py order                    # the order of calls, without faults

First each scenario runs once to count its calls; then once per point.  `--most` takes that many points, spread
evenly over operations, functions and kinds of fault.  Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import itertools
import json
import logging
import mmap
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import broken
import checks
import scenarios
from scenarios import Place, Scenario
from shim import SOURCE, STORE, Call, Plan, Shim, When, reexec

ACKS = 64
ANSWER = 256 * 1024
#: A case takes milliseconds; one that takes this long hangs.
LIMIT_SECONDS = 60
#: The option `timeout` where a call hangs; and when such a call is let go because nobody has given it up.
HANG_SECONDS, STUCK_SECONDS = 0.2, 15
#: Whatever goes through a store with a time limit.
LIMITED = re.compile("(add|get|delete|copy|look|sweep|start)")

_SPACE = (
    "open",
    "write",
    "pwrite",
    "fallocate",
    "link",
    "rename",
    "renameat2",
    "mkdir",
    "setxattr",
    "ftruncate",
    "fsync",
)
_NAMES = ("open", "link", "rename", "renameat2", "unlink", "mkdir", "rmdir", "chmod", "fchmod", "setxattr", "fallocate")
#: Which functions can give an errno; None: every one.
ERRNOS: dict[int, Sequence[str] | None] = {
    errno.EIO: None,
    errno.ESTALE: None,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: ("write", "pwrite", "fallocate", "ftruncate", "sendfile", "copy_file_range"),
    errno.EROFS: (*_NAMES, "write", "pwrite", "ftruncate", "fsync", "fdatasync", "utime", "removexattr"),
    errno.EPERM: (*_NAMES, "write", "pwrite", "ftruncate", "utime", "removexattr"),
    errno.EACCES: (*_NAMES, "stat", "access", "opendir", "statfs", "getxattr", "listxattr", "removexattr"),
    errno.EMFILE: ("open", "dup", "opendir"),
    errno.ENFILE: ("open", "opendir"),
    errno.ENOMEM: (
        "open",
        "stat",
        "fstat",
        "opendir",
        "readdir",
        "link",
        "rename",
        "renameat2",
        "unlink",
        "mmap",
        "dup",
    ),
    errno.EOPNOTSUPP: ("fallocate", "setxattr", "getxattr", "listxattr", "removexattr"),
}
_INTERRUPTIBLE = (
    "open", "read", "readv", "pread", "preadv", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range",
    "fsync", "fdatasync", "fallocate", "ftruncate", "flock", "link", "rename", "renameat2", "unlink", "stat",
)  # fmt: skip
_TRANSFERS = ("read", "readv", "pread", "preadv", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range")


class Point(NamedTuple):
    """One fault at one call of a scenario."""

    scenario: Scenario
    number: int
    when: When
    error: int = 0
    sticky: bool = False
    function: str = ""

    def __str__(self) -> str:
        what = self.when.name.lower()
        if self.error:
            what += f" {errno.errorcode[self.error]}"
        if self.sticky:
            what += " from then on"
        return f"{self.scenario.name}: {what} at call {self.number}, {self.function}"


class Outcome(NamedTuple):
    """What became of one case."""

    #: The signal that ended the child; 0: it ended by itself.
    signal: int
    acked: list[str]
    answer: dict[str, Any]
    calls: list[Call]


def memory_directory() -> str | None:
    """Where cases are tried: in memory, unless FAULTS_DIRECTORY says something else."""
    return os.environ.get("FAULTS_DIRECTORY") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


class Runner:
    """Runs cases, one after the other, in directories of its own."""

    def __init__(self, writer: str = "fastfs") -> None:
        self.shim = Shim()
        self.shim.renew()
        self.maker = self._writer = broken.WRITERS[writer]
        self.base = Path(tempfile.mkdtemp(prefix="fastfs-faults-", dir=memory_directory()))
        self.locks: list[int] = []  # those of writers that live
        self.shared = mmap.mmap(-1, ACKS + ANSWER)
        self.shim.forget()
        for name in ("images", "other"):
            self.shim.watch(str(self.base / name), STORE)
        self.shim.watch(str(self.base / "outside"), SOURCE)

    def give_up_after(self, seconds: float) -> None:
        """The time limit of all stores that scenarios make from now on."""

        def limited(**options: Any) -> Any:
            return self._writer(**{**options, "timeout": seconds})

        self.maker = limited

    def close(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)

    def lay_out(self, scenario: Scenario) -> None:
        for name in ("images", "other", "outside"):
            shutil.rmtree(self.base / name, ignore_errors=True)
            (self.base / name).mkdir()
        (self.base / "told").unlink(missing_ok=True)
        for name, data in scenario.before.items():
            (self.base / "images" / name).write_bytes(data)
        for name in (*scenario.living, *scenario.remains):
            path = self.base / "images" / name
            path.write_bytes(b"unfinished")
            path.chmod(0o600)
        for fd in self.locks:
            os.close(fd)
        self.locks = [os.open(self.base / "images" / name, os.O_RDONLY) for name in scenario.living]
        for fd in self.locks:
            fcntl.flock(fd, fcntl.LOCK_EX)

    def place(self, scenario: Scenario, plan: Plan) -> Place:
        names = [*{**scenario.before, **scenario.after}, *scenario.remains]
        assert len(names) <= ACKS
        return Place(self.base, self.shim, self.maker, lambda: self.shim.arm(plan), self.shared, names)

    def run(self, scenario: Scenario, plan: Plan | None = None) -> Outcome:
        """One case; its directories stay until the next one."""
        self.lay_out(scenario)
        place = self.place(scenario, plan or Plan())
        if re.search("pipe|socket|mmap", scenario.name):
            place.over = self.shim.release  # the source cannot be closed before what hangs has let go of it
        self.shared[:] = bytes(len(self.shared))
        self.shim.arm()  # clears the counters
        self.shim.disarm()
        self.shim.option(scenario.options)
        child = os.fork()
        if child == 0:
            try:
                self._child(scenario, place, plan is not None and plan.when == When.HANG)
            finally:
                os._exit(98)
        _, status = os.waitpid(child, 0)
        if scenario.command:
            scenarios.told(place)
        acked = [name for number, name in enumerate(place.names) if self.shared[number]]
        text = self.shared[ACKS:].rstrip(b"\0")
        answer = json.loads(text) if text else {}
        if not os.WIFSIGNALED(status) and (os.waitstatus_to_exitcode(status) or not answer):
            raise RuntimeError(f"{scenario.name}: the child ended with {status}")
        return Outcome(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, acked, answer, self.shim.calls())

    def _child(self, scenario: Scenario, place: Place, hangs: bool) -> None:
        signal.alarm(LIMIT_SECONDS)
        logging.disable()
        descriptors, threads = open_descriptors(), threading.active_count()
        answer: dict[str, Any] = {"error": None}
        let_go = threading.Timer(STUCK_SECONDS, self.shim.release)
        if hangs:
            let_go.start()
        try:
            scenario.run(place)
        except BaseException as error:
            self.shim.disarm()
            answer = describe(error)
        if hangs:
            answer["stuck"] = let_go.finished.is_set()
            let_go.cancel()
            let_go.join()
            self.shim.release()
        until = time.monotonic() + 10
        while threading.active_count() > threads and time.monotonic() < until:
            time.sleep(0.001)  # those that end by themselves, such as the one that releases an upload
        left = open_descriptors() - descriptors
        from fastfs import datadirs

        answer["descriptors"] = sorted(left)
        answer["threads"] = [t.name for t in threading.enumerate()][threads:]
        answer["reservations"] = len(datadirs._claims)
        answer["acknowledged_at"] = place.acknowledged_at
        text = json.dumps(answer).encode()
        self.shared[ACKS : ACKS + len(text)] = text
        os._exit(0)

    def restart(self, scenario: Scenario) -> None:
        """What the next process does: start, and sweep up."""
        import fastfs

        directories = [str(self.base / name) for name in ("images", "other")]
        with fastfs.Store(datadirs=directories) as store:
            if scenario.kind != "start":
                store.sweep()

    def verdicts(self) -> list[tuple[str, str]]:
        """What a scrub says of each image."""
        import fastfs

        directories = [str(self.base / name) for name in ("images", "other")]
        with fastfs.Store(datadirs=directories, read_only=True) as store:
            return [(finding.image_id, finding.status.value) for finding in store.scrub(restart=True, jobs=1)]


def open_descriptors() -> set[str]:
    """Number and target of each."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # that of the list itself
    return found


def describe(error: BaseException) -> dict[str, Any]:
    """An exception, as far as the checks look at it."""
    from fastfs import FastfsError

    own = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "error": type(error).__name__,
        "message": str(error)[:4000],
        "ours": isinstance(error, FastfsError),
        "errno": getattr(error, "errno", None),
        "path": str(getattr(error, "path", None) or ""),
        "programming": isinstance(
            error, (AttributeError, TypeError, NameError, KeyError, AssertionError, RecursionError)
        ),
        "where": f"{own.filename}:{own.lineno}",
    }


def hang(runner: Runner, point: Point, tally: Tally) -> None:
    """A call hangs until whoever waits for it has given up, and goes on then."""
    scenario, shim = point.scenario, runner.shim
    runner.give_up_after(HANG_SECONDS)
    mask = shim.mask([name for name in shim.functions if name != "mark"]) if point.sticky else 0
    outcome = runner.run(scenario, Plan(at=point.number, when=point.when, mask=mask))
    if outcome.signal:
        tally.note(point, [f"unclear: ended by signal {outcome.signal}"])
        return
    struck = [call for call in outcome.calls if call.hit]
    if not struck or struck[0].function != point.function:  # of a stream it may be a read, which has no limit
        tally.cases["missed"] += 1
        return
    tally.cases["hang"] += 1
    answer = outcome.answer
    failed = answer["error"] is not None
    if answer["stuck"]:
        tally.note(point, ["unclear: it is not under the time limit"])
    if failed and answer["error"] != scenario.raises and not (answer["error"] == "TimeoutError" and answer["ours"]):
        tally.note(point, [f"unclear: {answer['error']}: {answer['message']}"])
    elif failed and answer["ours"] and not answer["path"]:
        tally.note(point, [f"unclear: {answer['error']} without a path: {answer['message']}"])
    aftermath(runner, point, tally, outcome, tidy=True)


# -- points -------------------------------------------------------------------------------------------------------


_NAMING = ("link", "renameat2")


def crash_points(scenario: Scenario, calls: Sequence[Call]) -> Iterator[Point]:
    for call in calls:
        if call.function == "mark":
            yield Point(scenario, call.number, When.KILL_BEFORE, function=call.function)
            continue
        for when in (When.KILL_BEFORE, When.KILL_AFTER, *([When.KILL_HALF] if call.length > 1 else [])):
            yield Point(scenario, call.number, when, function=call.function)


def error_points(scenario: Scenario, calls: Sequence[Call]) -> Iterator[Point]:
    for call in calls:
        if call.function == "mark":
            continue
        if call.kind != STORE:
            yield Point(scenario, call.number, When.ERROR, errno.EIO, function=call.function)
        else:
            for number, functions in ERRNOS.items():
                if functions is None or call.function in functions:
                    for sticky in (False, True):
                        yield Point(scenario, call.number, When.ERROR, number, sticky, call.function)
            if call.function in _NAMING:
                # It is done, and an error is told: an answer was lost, and EEXIST is what a repeated call finds.
                for number in (errno.EIO, errno.EEXIST):
                    yield Point(scenario, call.number, When.LIE, number, function=call.function)
        if call.function in _INTERRUPTIBLE:
            yield Point(scenario, call.number, When.ERROR, errno.EINTR, function=call.function)
        if call.function in _TRANSFERS and call.length > 1:
            yield Point(scenario, call.number, When.SHORT, function=call.function)


def hang_points(scenario: Scenario, calls: Sequence[Call]) -> Iterator[Point]:
    for call in calls:
        if call.kind == STORE and call.function not in ("mark", "dup"):  # dup(2) asks no file system
            for sticky in (False, True):
                yield Point(scenario, call.number, When.HANG, sticky=sticky, function=call.function)


def spread(points: Iterable[Point], most: int, seed: int = 0) -> list[Point]:
    """Up to `most` points: of each operation, function and fault in turn, so that the rare ones are all there."""
    groups: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    for point in points:
        groups[point.scenario.kind, point.function, point.when, point.error, point.sticky].append(point)
    chance = random.Random(seed)
    for group in groups.values():
        chance.shuffle(group)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return list(itertools.islice(filter(None, in_turn), most))


# -- cases --------------------------------------------------------------------------------------------------------


class Tally:
    """Cases, and problems by what they happened at."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.problems: list[str] = []

    def note(self, where: object, problems: Iterable[str]) -> None:
        for problem in problems:
            category, colon, _ = problem.partition(":")
            assert colon, problem
            assert category in checks.CATEGORIES, problem
            self.problems.append(f"{problem} [{where}]")

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.problems += other.problems


def crash(runner: Runner, point: Point, tally: Tally) -> None:
    outcome = runner.run(point.scenario, Plan(at=point.number, when=point.when))
    if outcome.signal != signal.SIGKILL:
        tally.cases["missed"] += 1  # a source came in other pieces than in the recording
        if outcome.signal:
            tally.note(point, [f"unclear: ended by signal {outcome.signal}"])
        return
    tally.cases["crash"] += 1
    scenario = point.scenario
    tally.note(point, checks.state(scenario, runner.base, outcome.acked, failed=False))
    runner.restart(scenario)
    tally.note(point, checks.records(scenario, runner.verdicts(), runner.base))
    tally.note(point, checks.after_sweep(scenario, runner.base))
    tally.note(point, checks.state(scenario, runner.base, outcome.acked, failed=False))


def fail(runner: Runner, point: Point, tally: Tally) -> None:
    scenario = point.scenario
    mask = 0
    if point.sticky:
        functions = ERRNOS[point.error]
        mask = (1 << 63) - 1 if functions is None else runner.shim.mask(functions)
    outcome = runner.run(scenario, Plan(at=point.number, when=point.when, error=point.error, mask=mask))
    if outcome.signal:
        tally.note(point, [f"unclear: ended by signal {outcome.signal}"])
        return
    struck = [call for call in outcome.calls if call.hit]
    # With pipes and sockets the number of calls varies, and nobody could survive lies about what was opened.
    if not struck or (point.when == When.LIE and struck[0].function != point.function):
        tally.cases["missed"] += 1
        return
    tally.cases["short" if point.when == When.SHORT else "eintr" if point.error == errno.EINTR else "error"] += 1
    failed = outcome.answer["error"] is not None
    if point.when == When.SHORT and failed and outcome.answer["error"] != scenario.raises:
        tally.note(point, [f"unclear: a short call made it fail: {outcome.answer['message']}"])
    elif failed or not (point.error == errno.EINTR or (point.when == When.LIE and point.error == errno.EEXIST)):
        tally.note(point, checks.told(scenario, outcome.calls, outcome.answer, point.error, point.sticky))
    tally.note(point, checks.order(scenario, outcome.calls, outcome.answer["acknowledged_at"]))
    irremovable = any(call.function in ("unlink", "fstat", "stat") for call in struck)
    aftermath(runner, point, tally, outcome, tidy=not irremovable and not scenario.either, irremovable=irremovable)


def aftermath(
    runner: Runner, point: Point, tally: Tally, outcome: Outcome, *, tidy: bool, irremovable: bool = False
) -> None:
    """What an operation has left that ended by itself, before the next start and after it.

    :param tidy: nothing may be left already; otherwise, where it could not be removed, the next start does it.
    """
    scenario = point.scenario
    failed = outcome.answer["error"] is not None
    tally.note(point, checks.leaks(outcome.answer))
    if tidy and scenario.kind not in ("sweep", "start"):
        tally.note(point, checks.after_sweep(scenario, runner.base))
    acked = outcome.acked
    if not failed and not scenario.remains and not scenario.raises and scenario.after != scenario.before:
        acked = list({**scenario.before, **scenario.after})
    tally.note(point, checks.state(scenario, runner.base, acked, failed, irremovable))
    runner.restart(scenario)
    tally.note(point, checks.records(scenario, runner.verdicts(), runner.base))
    tally.note(point, checks.after_sweep(scenario, runner.base))
    tally.note(point, checks.state(scenario, runner.base, acked, failed, irremovable))


def in_order(runner: Runner, scenario: Scenario, tally: Tally) -> Outcome:
    """The recording: nothing strikes; also the check of the order of calls."""
    outcome = runner.run(scenario)
    if outcome.signal:
        raise RuntimeError(f"{scenario.name}: signal {outcome.signal}")
    name = outcome.answer["error"]
    if (name or "") != scenario.raises:
        tally.note(scenario.name, [f"unclear: {name}, {outcome.answer.get('message')}, without any fault"])
    tally.cases["order"] += 1
    tally.note(scenario.name, checks.order(scenario, outcome.calls, outcome.answer["acknowledged_at"]))
    tally.note(scenario.name, checks.leaks(outcome.answer))
    tally.note(scenario.name, checks.state(scenario, runner.base, outcome.acked, failed=False))
    return outcome


POINTS: dict[str, Callable[[Scenario, Sequence[Call]], Iterator[Point]]] = {
    "crash": crash_points,
    "error": error_points,
    "hang": hang_points,
}
STRIKE: dict[str, Callable[[Runner, Point, Tally], None]] = {"crash": crash, "error": fail, "hang": hang}


# -- many processes --------------------------------------------------------------------------------------------------


def shared_out(workers: int, work: Callable[[int], Any]) -> list[Any]:
    """``work(number)`` in that many forked processes; what they return, as JSON has it."""
    children = []
    for number in range(workers):
        near, far = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(near)
                with open(far, "w") as file:
                    json.dump(work(number), file)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(far)
        children.append((child, near))
    answers = []
    for child, near in children:
        with open(near) as file:
            text = file.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"a worker ended with {status}")
        answers.append(json.loads(text))
    return answers


def with_runner(writer: str, function: Callable[[Runner], Any]) -> Any:
    runner = Runner(writer)
    try:
        return function(runner)
    finally:
        runner.close()


def record(kind: str, chosen: list[Scenario], writer: str, workers: int) -> tuple[Tally, list[list[Call]]]:
    """The calls of each scenario."""

    def work(number: int) -> Any:
        def with_it(runner: Runner) -> Any:
            tally, found = Tally(), []
            if kind == "hang":
                runner.give_up_after(LIMIT_SECONDS)
            for scenario in chosen[number::workers]:
                found.append(in_order(runner, scenario, tally).calls)
            return [tally.cases, tally.problems, found]

        return with_runner(writer, with_it)

    answers = shared_out(workers, work)
    total = Tally()
    calls: list[list[Call]] = [[] for _ in chosen]
    for number, (cases, problems, found) in enumerate(answers):
        total.cases += Counter(cases)
        total.problems += problems
        for place, item in zip(range(number, len(chosen), workers), found, strict=True):
            calls[place] = [Call(*call) for call in item]
    return total, calls


def strike(kind: str, points: list[Point], writer: str, workers: int) -> Tally:
    def work(number: int) -> Any:
        def with_it(runner: Runner) -> Any:
            tally = Tally()
            for point in points[number::workers]:
                STRIKE[kind](runner, point, tally)
            return [tally.cases, tally.problems]

        return with_runner(writer, with_it)

    total = Tally()
    for cases, problems in shared_out(workers, work):
        total.cases += Counter(cases)
        total.problems += problems
    return total


def warm_up() -> None:
    """Everything is imported before the forks: a child that did so itself would take 60 ms, not 4."""
    import fastfs
    import fastfs.cli.ingest
    import fastfs.cli.program

    with tempfile.TemporaryDirectory(dir=memory_directory()) as scratch, fastfs.Store(datadir=scratch) as store:
        for number, file in enumerate((b"warm", iter([b"up"]), bytes(scenarios.SIZES["300K"]))):
            store.get(store.add(str(number), file).url)[0].read()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["order", *POINTS])
    parser.add_argument("--most", type=int, help="points; default: all")
    parser.add_argument(
        "--part", default="1/1", help="K/N: of N equal parts of the points that one, for hours in turns"
    )
    parser.add_argument("--only", default="", help="a regular expression for the names of scenarios")
    parser.add_argument("--point", default="", help="a regular expression for points")
    parser.add_argument("--writer", default="fastfs", choices=broken.WRITERS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    reexec()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warm_up()

    started = time.monotonic()
    chosen = [s for s in scenarios.scenarios() if re.search(arguments.only, s.name)]
    if arguments.kind == "hang":
        chosen = [s for s in chosen if LIMITED.match(s.kind)]
    tally, calls = record(arguments.kind, chosen, arguments.writer, arguments.workers)
    found = 0
    if arguments.kind != "order":
        every = [
            point
            for scenario, recorded in zip(chosen, calls, strict=True)
            for point in POINTS[arguments.kind](scenario, recorded)
            if re.search(arguments.point, str(point))
        ]
        found = len(every)
        part, parts = map(int, arguments.part.split("/"))
        every = every[part - 1 :: parts]
        points = every if arguments.most is None else spread(every, arguments.most, arguments.seed)
        tally.add(strike(arguments.kind, points, arguments.writer, arguments.workers))
    print(
        json.dumps(
            {
                "scenarios": len(chosen),
                "calls": sum(map(len, calls)),
                "found": found,
                "cases": tally.cases,
                "problems": tally.problems,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    )
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
