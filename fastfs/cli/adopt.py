# SPDX-License-Identifier: Apache-2.0
"""``fastfs adopt``: records for what other software has stored, compared with what is expected."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.ingest import check_algorithm
from fastfs.cli.jobs import TICK, Job
from fastfs.cli.output import printable
from fastfs.cli.plan import STDIN, Item
from fastfs.cli.progress import display
from fastfs.cli.scrub import ids_of, rate_of, seconds_of
from fastfs.cli.settings import Settings, common_options, json_option
from fastfs.cli.signals import Cancel, Interrupted, cancelling
from fastfs.exceptions import Invalid, UnknownHashingAlgo

if TYPE_CHECKING:
    from fastfs.cli.output import Output
    from fastfs.scrub import Adopt, Adopted, Priority

__all__ = ["adopt_command", "read_expectations"]

EPILOG = """\b
Examples:
  fastfs adopt                                 records for all that have none
  fastfs adopt --expect glance.csv --dry-run   compare only
  mysql -B -e 'select id, os_hash_algo, os_hash_value, checksum from images
    where deleted = 0' glance | tr '\\t' ',' | fastfs adopt --expect -

\b
FILE is CSV, its first line naming the columns, or JSON lines. Columns: id,
algorithm, digest; or as Glance's table has them: id, os_hash_algo,
os_hash_value, checksum (MD5). Each image is reported as match, mismatch,
unknown (nothing is expected of it), missing (expected, but not there) or
failed (it could not be read).

\b
Exit codes (of several, the first that applies): 7 a mismatch or a missing
image; 8 not all could be read or recorded, or time was up; 0.
"""


@click.command("adopt", epilog=EPILOG, short_help="Make records for images that have none.")
@click.argument("images", metavar="[ID...]", nargs=-1)
@click.option("--expect", "expect", metavar="FILE", help="What the digests should be; '-' is stdin.")
@click.option("--hash", "algorithm", metavar="ALGO", default="sha512", show_default=True, help="Recorded beside md5.")
@click.option("--reread", is_flag=True, help="Read images that have a record, too, instead of trusting it.")
@click.option("--dry-run", is_flag=True, help="Read and compare, make no records.")
@click.option("--rate", type=rate_of, metavar="N", help="Bytes a second, such as 200M.  [default: no limit]")
@click.option("--for", "seconds", type=seconds_of, metavar="TIME", help="End after 45m, 2h, 1d.")
@click.option(
    "--io", type=click.Choice(["normal", "low", "idle"]), default="low", show_default=True, help="I/O priority."
)
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Images at a time.  [default: 32]")
@json_option
@common_options
@click.pass_obj
def adopt_command(
    settings: Settings,
    images: tuple[str, ...],
    *,
    expect: str | None,
    algorithm: str,
    reread: bool,
    dry_run: bool,
    rate: int | None,
    seconds: float | None,
    io: Priority,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Make records for images that have none, so that they can be verified from now on."""
    check_algorithm(algorithm)
    expected = None if expect is None else _expectations(expect)
    output = settings.output(as_json)
    with settings.open_store(read_only=dry_run) as store:
        # Where something is expected of an image that is not there, that is a finding; else a slip.
        chosen = ids_of(store, images) if images and expected is None else images
        adopt = store.adopt(
            chosen or None,
            expected=expected,
            algorithm=algorithm,
            reread=reread,
            dry_run=dry_run,
            rate=rate,
            seconds=seconds,
            priority=io,
            jobs=jobs,
        )
        return _Run(output, adopt, expected is not None, dry_run).run()


class _Run:
    """An adoption with its bars and its report."""

    def __init__(self, output: Output, adopt: Adopt, compared: bool, dry_run: bool) -> None:
        self.output = output
        self.adopt = adopt
        self.compared = compared
        self.dry_run = dry_run
        self.jobs: dict[str, Job] = {}
        self.results: Counter[str] = Counter()
        self.records: Counter[str] = Counter()

    def progress(self, name: str, count: int) -> None:
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs.setdefault(name, Job(Item(name, name, None), None, started=time.monotonic()))
        job.done += count

    def run(self) -> int:
        self.adopt.progress = self.progress
        cancel = Cancel()
        done = 0
        with (
            contextlib.closing(cancel),
            cancelling(cancel, lambda: None),
            contextlib.closing(self.adopt.run(TICK)) as found,
        ):
            one = next(found, None)
            with display(not self.output.quiet, max(self.adopt.total, 2), None) as bars:
                while True:
                    if cancel.wanted:
                        self.adopt.stop()
                    if one is not None:
                        job = self.jobs.pop(one.image_id, None)
                        done += 0 if job is None else job.done
                        self._count(one)
                        with bars.paused() if self._told(one) else contextlib.nullcontext():
                            self._tell(one)
                    bars.refresh(list(self.jobs.values()), sum(self.results.values()), done)
                    try:
                        one = next(found)
                    except StopIteration:
                        break
        self._sum_up()
        if cancel.wanted:
            raise Interrupted(cancel.signum or signal.SIGINT)
        return self._code()

    def _count(self, one: Adopted) -> None:
        self.results[one.comparison.value] += 1
        self.records[one.record.value] += 1

    def _told(self, one: Adopted) -> bool:
        if self.output.as_json or self.output.verbose or one.detail:
            return True
        # Without expectations every image is unknown.
        return one.comparison.value != "match" and (self.compared or one.comparison.value != "unknown")

    def _tell(self, one: Adopted) -> None:
        if not self._told(one):
            return
        if self.output.as_json:
            self.output.record(one.as_dict())
            return
        detail = f"  {printable(one.detail)}" if one.detail else ""
        self.output.line(f"{one.comparison.value:8}  {printable(one.image_id)}{detail}")

    def _sum_up(self) -> None:
        summary = {
            "images": self.adopt.total,
            **{name: self.results[name] for name in ("match", "mismatch", "unknown", "missing", "failed")},
            "records_made": self.records["made"],
            "records_kept": self.records["kept"],
            "left": self.adopt.left,
        }
        if self.output.as_json:
            self.output.record({"summary": summary})
            return
        words = [f"{summary['images']} images", f"{summary['records_made']} records made"]
        if self.compared:
            words += [f"{summary[name]} {name}" for name in ("match", "mismatch", "unknown", "missing")]
        words += [f"{summary[name]} {name}" for name in ("failed", "left") if summary[name]]
        self.output.note(", ".join(words))

    def _code(self) -> ExitCode:
        if self.results["mismatch"] or self.results["missing"]:
            return ExitCode.DAMAGED
        recorded = self.dry_run or self.records["made"] + self.records["kept"] == sum(self.results.values())
        return ExitCode.OK if recorded and not self.adopt.left and not self.results["failed"] else ExitCode.INCOMPLETE


def _expectations(path: str) -> dict[str, dict[str, str]]:
    from fastfs.scrub import checked_expectations

    name = "stdin" if path == STDIN else path
    try:
        if path == STDIN:
            return checked_expectations(read_expectations(sys.stdin, name))
        with open(path, encoding="utf-8-sig", newline="") as file:
            return checked_expectations(read_expectations(file, name))
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8: {error}") from None
    except (Invalid, UnknownHashingAlgo) as error:
        raise CommandError(f"{name}: {error}") from None


def read_expectations(lines: Iterable[str], name: str) -> Iterator[tuple[str, str, str]]:
    """Rows of (id, algorithm, digest) in CSV or JSON lines.

    :raises CommandError: it is neither.
    """
    kept = iter(lines)
    first = next((line for line in kept if line.strip()), "")
    rest = _chain(first, kept)
    rows: Iterable[dict[str, Any]]
    if first.lstrip().startswith("{"):
        rows = _json_rows(rest, name)
    else:
        rows = table = csv.DictReader(rest)
        if first and "id" not in [column.strip().lower() for column in table.fieldnames or ()]:
            raise CommandError(f"{name}: there is no column id", "name the columns: id, algorithm, digest")
    for number, row in enumerate(rows, 1):
        yield from _digests_of({str(key).strip().lower(): value for key, value in row.items()}, f"{name}, {number}")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_rows(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{name}, line {number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise CommandError(f"{name}, line {number}: no JSON object")
        yield row


def _digests_of(row: dict[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    image_id = row.get("id")
    if not isinstance(image_id, str) or not image_id.strip():
        raise CommandError(f"{where}: there is no id", "name the columns: id, algorithm, digest")
    found = False
    for algorithm, digest in (
        (row.get("algorithm"), row.get("digest")),
        (row.get("os_hash_algo"), row.get("os_hash_value")),
        ("md5", row.get("checksum")),
    ):
        if _there(algorithm) and _there(digest):
            found = True
            yield image_id.strip(), str(algorithm), str(digest)
    if not found and not {"digest", "os_hash_value", "checksum"} & set(row):
        raise CommandError(f"{where}: there is no digest", "name the columns: id, algorithm, digest")


def _there(value: Any) -> bool:
    """Is it a value, and not one of the ways to write that there is none?"""
    return isinstance(value, str) and value.strip().lower() not in ("", "null", "none", "\\n")
