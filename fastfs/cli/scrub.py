# SPDX-License-Identifier: Apache-2.0
"""``fastfs scrub``: is what is stored what went in?"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from fastfs.cli.errors import CommandError, ExitCode
from fastfs.cli.ingest import byte_count
from fastfs.cli.jobs import TICK, Job
from fastfs.cli.output import Output, duration, size
from fastfs.cli.plan import Item
from fastfs.cli.progress import display
from fastfs.cli.settings import Settings, common_options, json_option
from fastfs.cli.signals import Cancel, Interrupted, cancelling

if TYPE_CHECKING:
    from fastfs import Finding, Store
    from fastfs.scrub import Priority, Scrub, Summary

__all__ = ["scrub_command", "seconds_of"]

EPILOG = """\b
Examples:
  fastfs scrub                                everything, by block digests
  fastfs scrub --deep --jobs 32               MD5 and multihash, too
  fastfs scrub --for 2h --rate 200M --io idle every night, a part
  fastfs scrub --quarantine debian-12.iso     move it away if it is damaged
  fastfs scrub --json | jq -r 'select(.status == "bit-rot").id'

\b
Images that were not checked for longest come first. A scrub that is broken
off, killed too, is gone on with by the next one of the same mode and filter.
Nothing is ever deleted.

\b
Exit codes (of several, the first that applies):
  7    images are damaged
  8    incomplete: time was up, or images could not be checked (no record,
       a damaged one, no access, another scrub at it)
  0    every image is what went in (but for small ones, up to 64 KiB, which
       get a record with the option records=all only)
"""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """90, 90s, 45m, 2h, 1d."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not found or not float(found[1]):
        raise click.BadParameter(f"{text!r} is no time; write seconds, or a number with s, m, h or d")
    return float(found[1]) * _UNITS[found[2]]


def rate_of(text: str) -> int:
    """Bytes a second, as `byte_count` has it."""
    count = byte_count(text.removesuffix("/s"))
    if not count:
        raise click.BadParameter("0 bytes a second would never end; leave the option away for no limit")
    return count


@click.command("scrub", epilog=EPILOG, short_help="Check that what is stored is what went in.")
@click.argument("images", metavar="[ID...]", nargs=-1)
@click.option("--match", metavar="GLOB", help="Only ids that match, such as 'web-*'.")
@click.option("--deep", is_flag=True, help="MD5 and multihash, beside the block digests.")
@click.option("--rate", type=rate_of, metavar="N", help="Bytes a second, such as 200M.  [default: no limit]")
@click.option("--for", "seconds", type=seconds_of, metavar="TIME", help="End after 45m, 2h, 1d.")
@click.option(
    "--io", type=click.Choice(["normal", "low", "idle"]), default="low", show_default=True, help="I/O priority."
)
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Images at a time.")
@click.option("--quarantine", is_flag=True, help="Move what is damaged out of the way.")
@click.option("--restart", is_flag=True, help="From the beginning, whatever an earlier scrub has done.")
@json_option
@common_options
@click.pass_obj
def scrub_command(
    settings: Settings,
    images: tuple[str, ...],
    *,
    match: str | None,
    deep: bool,
    rate: int | None,
    seconds: float | None,
    io: Priority,
    jobs: int | None,
    quarantine: bool,
    restart: bool,
    as_json: bool,
) -> int:
    """Check images against their records: all, those named, or those that match.

    It reports each image that is not known to be what went in; with --json or -v each image, and a summary.
    """
    if images and match is not None:
        raise CommandError("--match and ids exclude each other", "keep one of them")
    output = settings.output(as_json)
    # Where nothing may be written it cannot be noted what was checked, but it can be checked.
    with settings.open_store(read_only=not quarantine) as store:
        chosen: dict[str, Any] = {"images": ids_of(store, images) if images else None, "match": match}
        scrub = store.scrub(
            mode="deep" if deep else "fast",
            rate=rate,
            seconds=seconds,
            priority=io,
            jobs=jobs,
            quarantine=quarantine,
            restart=restart,
            **chosen,
        )
        return _Run(output, scrub).run()


def ids_of(store: Store, images: tuple[str, ...]) -> list[object]:
    """By id or by URL."""
    return list(dict.fromkeys(store.info(image).image_id for image in images))


class _Run:
    """A scrub with its bars and its report."""

    def __init__(self, output: Output, scrub: Scrub) -> None:
        self.output = output
        self.scrub = scrub
        self.jobs: dict[str, Job] = {}
        self.unrecorded = 0

    def progress(self, name: str, count: int) -> None:
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs.setdefault(name, Job(Item(name, name, None), None, started=time.monotonic()))
        job.done += count

    def run(self) -> int:
        self.scrub.progress = self.progress
        cancel = Cancel()
        with (
            contextlib.closing(cancel),
            cancelling(cancel, lambda: None),
            contextlib.closing(self.scrub.run(TICK)) as findings,
        ):
            first = next(findings, None)
            summary = self.scrub.summary
            with display(
                not self.output.quiet, max(summary.images - summary.resumed, 2), summary.bytes or None
            ) as bars:
                finding = first
                while True:
                    if cancel.wanted:
                        self.scrub.stop()
                    if finding is not None:
                        self.jobs.pop(finding.image_id, None)
                        if self._told(finding):
                            with bars.paused():
                                self._tell(finding)
                        self.unrecorded = summary.unrecorded
                    settled = sum(summary.counts.values())
                    bars.refresh(list(self.jobs.values()), settled, summary.checked)
                    try:
                        finding = next(findings)
                    except StopIteration:
                        break
        self._sum_up(self.scrub.summary)
        if cancel.wanted:
            raise Interrupted(cancel.signum or signal.SIGINT)
        return self._code(self.scrub.summary)

    def _told(self, finding: Finding) -> bool:
        if self.output.as_json or self.output.verbose:
            return True
        # Small images without a record are told as a number, where it is meant to be so.
        return not finding.verified and self.scrub.summary.unrecorded == self.unrecorded

    def _tell(self, finding: Finding) -> None:
        if self.output.as_json:
            self.output.record(finding.as_dict())
            return
        detail = finding.detail
        if finding.offset is not None:
            detail += f"{'; ' if detail else ''}from byte {finding.offset}"
        if finding.quarantined:
            detail += f"; moved to the quarantine as {finding.quarantined}"
        from fastfs.cli.output import printable

        self.output.line(f"{finding.status.value:14}  {printable(finding.image_id)}  {printable(detail)}".rstrip())

    def _sum_up(self, summary: Summary) -> None:
        if self.output.as_json:
            self.output.record({"summary": summary.as_dict()})
            return
        looked = sum(summary.counts.values())
        text = f"{summary.images} images: {summary.clean} clean, {summary.damaged} damaged"
        if summary.unverified:
            text += f", {summary.unverified} not verified"
        if summary.unrecorded:
            text += f", {summary.unrecorded} small ones without a record"
        open_ends = summary.images - summary.resumed - looked
        if open_ends > 0:
            text += f", {open_ends} not looked at"
        self.output.note(f"{text}; {size(summary.checked)} in {duration(summary.seconds)}")

    @staticmethod
    def _code(summary: Summary) -> ExitCode:
        if summary.damaged:
            return ExitCode.DAMAGED
        return ExitCode.OK if summary.complete else ExitCode.INCOMPLETE
