"""Run the fuzz targets: those in C with libFuzzer and its sanitizers, the parsers with atheris.

    python tests/faults/fuzzing.py --most 100000          # inputs, all targets together
    python tests/faults/fuzzing.py --seconds 3600         # each target so long

Without clang and without atheris what coverage leads to is left out, which is told, and the inputs are random ones.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shim import BUILD, HERE, cc

EXT = HERE.parent.parent / "ext"
#: Target: the files of the core that it is linked with, and its share of the inputs.
C_TARGETS = {
    "pump": (["pump.c", "chains.c", "cores.c"], 0.02),
    "zero": (["pump.c"], 0.3),
    "fsops": (["fsops.c"], 0.28),
    "hash": (["cpu.c", *(f"hash/{path.name}" for path in sorted((EXT / "hash").glob("*.c")))], 0.1),
}
PARSERS_SHARE = 0.4


def clang() -> str | None:
    return next(
        (found for name in ("clang", "clang-19", "clang-16", "clang-14") if (found := shutil.which(name))), None
    )


def built(compiler: list[str], name: str, *main: str) -> str:
    """A target as a program; without a `main` of ours it gets libFuzzer's."""
    BUILD.mkdir(parents=True, exist_ok=True)
    target = str(BUILD / f"fuzz-{name}")
    sources = [str(HERE / "fuzz" / f"{name}.c"), *main, *(str(EXT / file) for file in C_TARGETS[name][0])]
    sanitizers = "address,undefined" if main else "fuzzer,address,undefined"
    flags = [
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-g1",
        "-O1",
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
        "-pthread",
        f"-I{EXT}",
    ]
    subprocess.run([*compiler, *flags, "-o", target, *sources], check=True)
    return target


def guided(command: list[str], runs: int, seconds: int) -> tuple[int, list[str]]:
    """(Inputs tried, what was found.)"""
    limits = [f"-max_total_time={seconds}"] if seconds else [f"-runs={runs}"]
    return run([*command, *limits, "-max_len=200", "-seed=1"])


def run(command: list[str]) -> tuple[int, list[str]]:
    with tempfile.TemporaryDirectory(prefix="fastfs-fuzz-") as scratch:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            errors="replace",
            text=True,
        )
    tried = re.findall(r"^Done (\d+) ", done.stdout, re.MULTILINE)
    if done.returncode or not tried:
        return 0, [f"unclear: {' '.join(Path(word).name for word in command)}: {done.stdout[-3000:]}"]
    return int(tried[-1]), []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--only", choices=[*C_TARGETS, "parsers"])
    arguments = parser.parse_args()
    started = time.monotonic()
    cases: dict[str, int] = {}
    problems: list[str] = []
    left_out: list[str] = []
    compiler = clang()
    for name, (_, share) in C_TARGETS.items():
        if arguments.only not in (None, name):
            continue
        if name == "hash" and not (arguments.only or arguments.seconds):
            left_out.append("hash: compiling the kernels with sanitizers takes minutes; --only hash")
            continue
        runs = int(arguments.most * share) + 1
        if compiler is None:
            left_out.append(f"{name}, guided: there is no clang")
            cases[f"{name}, random"], found = run([built(cc("gcc"), name, str(HERE / "fuzz" / "main.c")), str(runs)])
        else:
            cases[name], found = guided([built([compiler], name)], runs, arguments.seconds)
        problems += found
    if arguments.only in (None, "parsers"):
        script = str(HERE / "fuzz" / "parsers.py")
        runs = int(arguments.most * PARSERS_SHARE) + 1
        if importlib.util.find_spec("atheris"):
            cases["parsers"], found = guided([sys.executable, script], runs, arguments.seconds)
            problems += found
        else:
            left_out.append("parsers, guided: there is no atheris")
        # Random inputs beside it: some get further than what coverage leads to.
        done = subprocess.run(
            [sys.executable, script, "--plain", str(runs)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        cases["parsers, random"] = runs
        if done.returncode:
            problems.append(f"unclear: parsers: {done.stderr[-3000:]}")
    seconds = round(time.monotonic() - started, 1)
    total = {"fuzz": sum(cases.values()), **cases}
    print(json.dumps({"cases": total, "problems": problems, "left_out": left_out, "seconds": seconds}))
    sys.exit(1 if problems else 0)


assert os.path.isdir(EXT)

if __name__ == "__main__":
    main()
