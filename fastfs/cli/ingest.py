# SPDX-License-Identifier: Apache-2.0
"""``fastfs ingest``: files, folders and stdin into the store."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastfs.cli.errors import CommandError, Tally
from fastfs.cli.jobs import TICK, Job
from fastfs.cli.output import Output, duration, exact_size, size
from fastfs.cli.plan import STDIN, Item, make_plan
from fastfs.cli.progress import Display, display
from fastfs.cli.settings import Settings, common_options, json_option
from fastfs.cli.signals import Cancel, Cancelled, Interrupted, cancelling
from fastfs.cli.source import source_of

if TYPE_CHECKING:
    from fastfs import Outcome, Store
    from fastfs.ingest import Entry

__all__ = ["check_algorithm", "ingest_command"]

PATIENCE = 2.0  # seconds of winding down before we tell how to leave at once
EPILOG = """\b
Examples:
  fastfs ingest --datadir /srv/images debian-12.iso
  fastfs ingest --datadir /ssd:200 --datadir /hdd:100 --jobs 4 disks/
  qemu-img convert -O raw a.qcow2 /dev/stdout | fastfs ingest - --id a --thin
  fastfs ingest --json --uuid *.img | jq -r .url

\b
The id is the file's name; in a folder, the path below it with '-' for '/'
(disks/web/a.img: web-a.img). If two files come to one id, nothing is stored.
Hidden names, devices and linked folders in a folder are left out (-v tells).
"""


def byte_count(text: str) -> int:
    """4096, 64K, 1.5G: powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:iB)?", text.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{text!r} is no size; write bytes, or a number with K, M, G or T")
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2].upper() or " "))


def octal_mode(text: str) -> int:
    """640 or 0o640."""
    mode = int(text, 8) if re.fullmatch(r"(0o)?[0-7]+", text) else -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(f"{text!r} is no file mode; write it in octal, such as 640")
    return mode


@click.command("ingest", epilog=EPILOG, short_help="Store files, whole folders, or stdin.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--id", "image_id", metavar="ID", help="The id of the one image given.")
@click.option("--uuid", "use_uuid", is_flag=True, help="A random UUID as the id of each image.")
@click.option("--hash", "algorithm", metavar="ALGO", default="sha512", show_default=True, help="Computed beside md5.")
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Files at a time.  [default: 32]")
@click.option(
    "--durability",
    type=click.Choice(["none", "file", "full", "batch"]),
    help="What is synced before an image counts as stored.  [default: as configured]",
)
@click.option("--thin", is_flag=True, help="Leave holes for zeroes.")
@click.option(
    "--file-perm",
    type=octal_mode,
    metavar="OCTAL",
    help="Mode of the stored files.  [default: as configured, else as the umask says]",
)
@click.option("--resume", is_flag=True, help="Skip what is stored already with the same bytes.")
@click.option("--size", "declared", type=byte_count, metavar="N", help="Size of a stream; more or less is an error.")
@json_option
@common_options
@click.pass_obj
def ingest_command(
    settings: Settings,
    paths: tuple[str, ...],
    *,
    image_id: str | None,
    use_uuid: bool,
    algorithm: str,
    jobs: int | None,
    durability: str | None,
    thin: bool,
    file_perm: int | None,
    resume: bool,
    declared: int | None,
    as_json: bool,
) -> int:
    """Store files and whole folders; '-' is stdin (with --id or --uuid).

    Each image is reported as it gets done: id, size, md5, the chosen hash, URL.
    """
    _check_names(paths, image_id, use_uuid)
    check_algorithm(algorithm)
    output = settings.output(as_json)
    chosen = {"durability": durability, "thin_provisioning": thin or None, "file_perm": file_perm}
    more: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    stores = [path for path, _ in settings.config(**more).directories]
    plan = make_plan(paths, image_id, use_uuid, stores)
    if declared is not None and (len(plan.items) != 1 or plan.items[0].size is not None):
        raise CommandError("--size is for a single stream, such as stdin", "leave it away: files know their size")
    tally = Tally()
    for path, reason in plan.skipped:
        output.detail(f"left out {path}: {reason}")
    for path, exc in plan.failures:
        tally.add(output.failure(exc, source=path).code)
    if not plan.items:
        if not plan.failures:
            output.note("no files to store there" if output.verbose else "no files to store there (-v tells why)")
        return tally.code
    with settings.open_store(create=True, **more) as store:
        run = Ingest(store, plan.items, algorithm, declared, resume=resume, output=output, tally=tally)
        return run.run(jobs)


def _check_names(paths: Sequence[str], image_id: str | None, use_uuid: bool) -> None:
    if image_id is not None and use_uuid:
        raise CommandError("--id and --uuid exclude each other", "keep one of them")
    if image_id is not None and len(paths) > 1:
        raise CommandError(f"--id names one image, and there are {len(paths)} paths", "store them apart, or use --uuid")
    if paths.count(STDIN) > 1:
        raise CommandError("stdin can be read only once", "give '-' once")
    if STDIN in paths and image_id is None and not use_uuid:
        raise CommandError("stdin has no name", "give one with --id ID, or take a random one with --uuid")


def check_algorithm(name: str) -> None:
    from fastfs.hashing import available

    names = available()
    if name not in names:
        import difflib

        close = difflib.get_close_matches(name.lower().replace("-", ""), names, 3, 0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"available: {', '.join(names)}"
        raise CommandError(f"{name} is no hash that can be used here", hint)


class Ingest:
    """One run: the jobs, what is shown of them, and how it ends."""

    def __init__(
        self,
        store: Store,
        items: Sequence[Item],
        algorithm: str,
        declared: int | None,
        *,
        resume: bool,
        output: Output,
        tally: Tally,
    ) -> None:
        self._store = store
        self._jobs = {item.image_id: Job(item, item.size if item.size is not None else declared) for item in items}
        self._running: dict[str, Job] = {}
        self._algorithm = algorithm
        self._declared = declared
        self._resume = resume
        self._output = output
        self._tally = tally
        self._cancel = Cancel()
        self._settled = self._stored = self._skipped = self._bytes = 0

    def run(self, workers: int | None) -> int:
        from fastfs.ingest import outcomes

        started = time.monotonic()
        totals = [job.total for job in self._jobs.values()]
        total = None if None in totals else sum(filter(None, totals))
        shown = not self._output.quiet
        try:
            with (
                cancelling(self._cancel, self._abandon),
                display(shown, len(self._jobs), total) as bars,
                contextlib.closing(
                    outcomes(
                        self._store,
                        self._items(),
                        jobs=workers,
                        progress=self._progress,
                        resume=self._resume,
                        tick=TICK,
                    )
                ) as ends,
            ):
                try:
                    self._follow(ends, bars)
                except BaseException:
                    self._cancel.set()  # or closing would wait for a stream that nobody writes to
                    raise
        finally:
            self._cancel.close()
        self._summary(time.monotonic() - started)
        if self._cancel.signum:
            raise Interrupted(self._cancel.signum)
        return self._tally.code

    def _items(self) -> Iterator[Entry]:
        for job in self._jobs.values():
            if self._cancel.wanted:
                return
            size = self._declared if job.item.size is None else None
            yield job.item.image_id, source_of(job.item, self._cancel), size, self._algorithm

    def _progress(self, image_id: str, done: int) -> None:
        """In a worker thread."""
        self._cancel.check()
        job = self._jobs[image_id]
        if not job.started:
            job.started = time.monotonic()
            self._running[image_id] = job
        job.done = done

    def _follow(self, ends: Iterable[Outcome | None], bars: Display) -> None:
        """Report what ended, ten times a second at most: small files must not wait for a terminal."""
        ended: list[Outcome] = []
        shown = 0.0
        told = False
        for outcome in ends:
            if outcome is not None and not isinstance(outcome.error, Cancelled):
                ended.append(outcome)
            now = time.monotonic()
            if now - shown >= TICK:
                self._show(ended, bars)
                ended.clear()
                shown = now
            if self._cancel.signum and not told and now - self._cancel.since > PATIENCE:
                told = True
                with bars.paused():
                    self._output.note("waiting for the disk; Ctrl-C again leaves at once")
        self._show(ended, bars)

    def _show(self, ended: Sequence[Outcome], bars: Display) -> None:
        failed = any(outcome.error is not None for outcome in ended)
        # Results go to stdout: they disturb the bars only where that is a terminal as well.
        with bars.paused() if failed or (ended and sys.stdout.isatty()) else contextlib.nullcontext():
            for outcome in ended:
                self._settle(outcome)
            sys.stdout.flush()
        bars.refresh(list(self._running.values()), self._settled, self._bytes)

    def _settle(self, outcome: Outcome) -> None:
        image_id = str(outcome.image_id)
        job = self._jobs[image_id]
        self._running.pop(image_id, None)
        self._settled += 1
        if outcome.error is None:
            self._report(outcome, job)
        else:
            problem = self._output.failure(outcome.error, source=job.item.source, id=image_id)
            self._tally.add(problem.code)

    def _abandon(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h\n")  # the bars had hidden the cursor
            sys.stderr.flush()

    def _report(self, outcome: Outcome, job: Job) -> None:
        item, result = job.item, outcome.result
        assert result is not None
        self._bytes += result.size
        self._stored += not outcome.skipped
        self._skipped += outcome.skipped
        if self._output.as_json:
            record = {
                "id": item.image_id,
                "url": result.url,
                "size": result.size,
                "checksum": result.checksum,
                "algorithm": self._algorithm,
                "multihash": result.multihash,
                "metadata": dict(result.metadata or {}),
                "source": item.source,
                "seconds": round(max(time.monotonic() - job.started, 1e-6), 6),
            }
            self._output.record({**record, "skipped": outcome.skipped} if self._resume else record)
            return
        source = [("source", item.source)] if item.source != STDIN and item.name != item.image_id else []
        digests = {"md5": result.checksum, self._algorithm: result.multihash}
        self._output.fields(
            f"{item.image_id} (stored already)" if outcome.skipped else item.image_id,
            [*source, ("size", exact_size(result.size)), *digests.items(), ("url", result.url)],
        )

    def _summary(self, seconds: float) -> None:
        if not sys.stderr.isatty() and not self._cancel.signum:
            return
        count = self._stored
        text = f"stored {count or 'no'} {'image' if count == 1 else 'images'}"
        if count:
            text += f", {size(self._bytes)} in {duration(seconds)} ({size(self._bytes / seconds)}/s)"
        if self._skipped:
            text += f"; {self._skipped} stored already"
        left = len(self._jobs) - self._settled
        if left:
            text += f"; {left} not stored"
        if len(self._tally):
            text += f"; {len(self._tally)} failed"
        self._output.note(text)
