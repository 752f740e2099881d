# SPDX-License-Identifier: Apache-2.0
"""Words for people and records for scripts. Results go to stdout; errors, hints and remarks to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

import click

from fastfs.cli.errors import Problem, Tally, explain

__all__ = ["Output", "duration", "exact_size", "iso_time", "octal", "printable", "size"]

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: float) -> str:
    """1536 → '1.5 KiB'."""
    value = float(count)
    for unit in UNITS:
        if value < 1023.95 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def exact_size(count: int) -> str:
    """'1.5 KiB (1536 bytes)': for people who compare."""
    return size(count) if count < 1024 else f"{size(count)} ({count} bytes)"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def iso_time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def octal(mode: int) -> str:
    return f"{mode & 0o7777:04o}"


def printable(text: str) -> str:
    """File names may hold anything; control characters and broken UTF-8 must not reach a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


class _Warnings(logging.Handler):
    """What the library logs, in the voice of the command."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.remark(f"{click.style('warning:', fg='yellow')} {printable(record.getMessage())}")


class Output:
    """The two streams of one run, and how much to say on them."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose

    # results

    def line(self, text: str = "") -> None:
        click.echo(text, color=self._color(sys.stdout))

    def record(self, record: Mapping[str, Any]) -> None:
        """One JSON object on a line of its own, whole."""
        click.echo(json.dumps(record, default=_plain))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], flush_right: Sequence[str] = ()) -> None:
        """Columns padded to their widest cell and never cut."""
        cells = [list(map(printable, row)) for row in rows]
        widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
        flush = [name in flush_right for name in header]

        def aligned(row: Sequence[str]) -> str:
            parts = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, flush, strict=True))
            return "  ".join(parts).rstrip()

        self.line(self.bold(aligned(header)))
        for row in cells:
            self.line(aligned(row))

    def fields(self, title: str, pairs: Iterable[tuple[str, str]]) -> None:
        """A title and indented pairs below it."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        self.line(self.bold(printable(title)))
        for name, value in listed:
            self.line(f"  {name.ljust(width)}  {printable(value)}")

    def bold(self, text: str) -> str:
        return click.style(text, bold=True)

    # remarks and errors

    def note(self, text: str) -> None:
        """A remark; --quiet silences it."""
        if not self.quiet:
            self.remark(text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.remark(text)

    def failure(self, exc: BaseException, *, source: str | None = None, **more: object) -> Problem:
        """Report what went wrong with `source`: on stderr, and with --json as an object on stdout too.

        In the object `path` is the file concerned, where the exception tells; `more` goes in as it is.
        """
        problem = explain(exc)
        message = problem.message
        if source is not None:
            if self.as_json:
                path = getattr(exc, "path", None) or getattr(exc, "filename", None)
                record = {"error": message, "type": problem.type, "source": source, "path": path}
                self.record({**record, **more})
            name = "stdin" if source == "-" else source
            if not message.startswith(name) and f" {name} " not in f" {message} ":
                message = f"{name}: {message}"
        self.problem(Problem(message, problem.hint, problem.code, problem.type), exc)
        return problem

    @contextlib.contextmanager
    def going_on(self, source: str, tally: Tally) -> Iterator[None]:
        """What fails in here concerns `source` only: report it, count it, and go on after the block."""
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as exc:
            tally.add(self.failure(exc, source=source).code)

    def problem(self, problem: Problem, exc: BaseException | None = None) -> None:
        """One line, perhaps a hint; the traceback only for those who asked (FASTFS_DEBUG=1, -vv)."""
        if exc is not None and (self.verbose > 1 or os.environ.get("FASTFS_DEBUG", "0") not in ("", "0")):
            click.echo("".join(traceback.format_exception(exc)).rstrip(), err=True)
        self.remark(f"{click.style('error:', fg='red', bold=True)} {printable(problem.message)}")
        if problem.hint:
            self.remark(f"{click.style('hint:', fg='cyan')} {printable(problem.hint)}")

    def remark(self, text: str) -> None:
        """A line on stderr, --quiet or not."""
        click.echo(f"fastfs: {text}", err=True, color=self._color(sys.stderr))

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Show what the library warns of."""
        handler = _Warnings(self)
        logger = logging.getLogger("fastfs")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    @staticmethod
    def _color(stream: TextIO) -> bool:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
