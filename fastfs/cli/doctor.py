# SPDX-License-Identifier: Apache-2.0
"""``fastfs doctor``: what this machine, this Python and each data directory can do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.output import Output, size
from fastfs.cli.settings import Settings, common_options, json_option

__all__ = ["doctor_command", "version"]

FLAGS = ("ssse3", "sse4_1", "sse4_2", "avx", "avx2", "avx512f", "avx512bw", "avx512vl", "sha_ni", "vaes",
         "asimd", "sha1", "sha2", "sha3", "sha512", "sve")  # fmt: skip
ENGINE_HASHES = ("md5", "sha512", "sha256")
HASHES = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b")
SAMPLE = 1 << 20
MEASURE = 0.05  # seconds for each hash


def version() -> str:
    try:
        return importlib.metadata.version("fastfs-store")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@click.command("doctor", short_help="Show what this machine and each data directory can do.")
@json_option
@common_options
@click.pass_obj
def doctor_command(settings: Settings, as_json: bool) -> int:
    """Show what this machine and each data directory can do.

    The extension, the processor, the rate of each hash, and each directory's filesystem.
    Works without a store too. Ends with 1 if something is wrong.
    """
    output = settings.output(as_json)
    report = gather(settings)
    if as_json:
        output.record(report)
    else:
        _show(report, output)
    problems = [f"{d['path']}: {d['problem']}" for d in report["datadirs"] if "problem" in d]
    if "error" in report["extension"]:
        problems.insert(0, f"the extension cannot be used: {report['extension']['error']}")
    if "error" in report["engine"]:
        problems.append(report["engine"]["error"])
    for problem in problems:
        output.failure(CommandError(problem))
    return ExitCode.FAILED if problems else ExitCode.OK


def gather(settings: Settings) -> dict[str, Any]:
    from fastfs.cli.probes import datadir_report

    entries = settings.config().directories if settings.names_a_store else ()
    return {
        "version": version(),
        "extension": _extension(),
        "engine": _engine(),
        "python": _python(),
        "system": _system(),
        "hashes": {name: rate for name in HASHES if (rate := _rate(name)) is not None},
        "datadirs": [datadir_report(path, priority) for path, priority in entries],
    }


def _extension() -> dict[str, Any]:
    try:
        import fastfs._native as native
    except ImportError as exc:
        return {"error": str(exc)}
    return {"file": native.__file__}


def _engine() -> dict[str, Any]:
    """What the hash engine chose here, and its rates on one core in bytes per second by streams side by side."""
    from fastfs import BadStoreConfiguration, _native, hashing

    try:
        names = hashing.engine_algorithms()
    except BadStoreConfiguration as exc:
        return {"error": str(exc)}
    return {
        "kernel": _native.kernel(),
        "kernels": _native.kernels(),
        "cores": _native.cores(),
        "fips_mode": hashing.fips_mode(),
        "algorithms": sorted(names),
        "rates": {
            "md5" if name == "md5" else f"md5+{name}": {
                str(n): round(rate) for n, rate in _native.kernel_rates(name, name != "md5").items()
            }
            for name in ENGINE_HASHES
            if name in names
        },
    }


def _python() -> dict[str, Any]:
    import platform
    import ssl

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "GIL": bool(gil),
        "openssl": ssl.OPENSSL_VERSION,
    }


def _system() -> dict[str, Any]:
    import platform

    model, flags = "", set[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = (part.strip() for part in line.partition(":"))
                if name == "model name" and not model:
                    model = value
                elif name in ("flags", "Features") and not flags:
                    flags = set(value.split())
    except OSError:
        pass
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": model,
        "cores_usable": len(os.sched_getaffinity(0)),
        "cpu_features": [flag for flag in FLAGS if flag in flags],
    }


def _rate(name: str) -> int | None:
    """Bytes per second of hashlib on one core; None where the algorithm is barred (FIPS)."""
    data = bytes(SAMPLE)
    try:
        digest = hashlib.new(name)
    except ValueError:
        return None
    digest.update(data)  # warm
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < MEASURE:
        digest.update(data)
        done += SAMPLE
    return round(done / spent)


def _show(report: dict[str, Any], output: Output) -> None:
    output.line(output.bold(f"fastfs {report['version']}"))
    for title in ("extension", "python", "system"):
        output.fields(title, [(name.replace("_", " "), _text(value)) for name, value in report[title].items()])
    engine = {name: value for name, value in report["engine"].items() if name != "rates"}
    output.fields("hash engine", [(name.replace("_", " "), _text(value)) for name, value in engine.items()])
    output.fields(
        "hash engine, one core, by streams side by side",
        [
            (n, ", ".join(f"{k}: {size(r)}/s" for k, r in rates.items()))
            for n, rates in report["engine"].get("rates", {}).items()
        ],
    )
    output.fields("hashes (hashlib, one core)", [(n, f"{size(rate)}/s") for n, rate in report["hashes"].items()])
    for found in report["datadirs"]:
        pairs = []
        for name, value in found.items():
            if name == "can":
                pairs += [("can", ", ".join(n for n, works in value.items() if works) or "nothing of this")]
                pairs += [("cannot", ", ".join(n for n, works in value.items() if not works) or "-")]
            elif name != "path":
                shown = size(value) if name in ("total", "free") else _text(value)
                pairs.append((name.replace("_", " "), shown))
        output.fields(f"datadir {found['path']}", pairs)
    if not report["datadirs"]:
        output.note("no data directory named: give --datadir to look at one")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(map(str, value)) or "-"
    return str(value) if value not in (None, "") else "-"
