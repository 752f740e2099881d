# SPDX-License-Identifier: Apache-2.0
"""Bars on the terminal: one per file in flight and one for everything. Silent where stderr is no terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from fastfs.cli.output import printable, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from fastfs.cli.jobs import Job

__all__ = ["Bars", "Display", "display"]

MOST_BARS = 8  # more would push the total off a small terminal
WIDE = 72  # columns from which on there is room for figures beside name and bar


class Display(Protocol):
    def refresh(self, running: Sequence[Job], settled: int = 0, done: int = 0) -> None:
        """Draw what is running now; so many files and bytes have ended."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Make room for lines on the terminal."""


class Silence:
    """The display of scripts."""

    def refresh(self, running: Sequence[Job], settled: int = 0, done: int = 0) -> None:
        pass

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Bars:
    """Rich draws, we look at the jobs: workers only ever set an integer."""

    def __init__(self, console: Console, progress: Progress, files: int, total: int | None) -> None:
        self._console = console
        self._progress = progress  # never started: it keeps the figures and makes the table
        self._live = self._start()
        self._files = files
        self._tasks: dict[int, TaskID] = {}
        self._sum = progress.add_task(self._title(0), total=total) if files > 1 else None

    def _start(self) -> Live:
        from rich.live import Live

        live = Live(
            get_renderable=self._table,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,  # Rich would redirect to its own stream: results must stay on stdout
            redirect_stderr=False,
        )
        live.start()
        return live

    def _table(self) -> Table:
        """The total stands last, where the eye is."""
        return self._progress.make_tasks_table(sorted(self._progress.tasks, key=lambda t: t.id == self._sum))

    def _title(self, settled: int) -> str:
        return f"{settled} of {self._files} files"

    def refresh(self, running: Sequence[Job], settled: int = 0, done: int = 0) -> None:
        wanted = {id(job): job for job in running[:MOST_BARS]}
        for key in [key for key in self._tasks if key not in wanted]:
            self._progress.remove_task(self._tasks.pop(key))
        for key, job in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(printable(job.item.name), total=job.total)
            self._progress.update(self._tasks[key], completed=job.done)
        if self._sum is not None:
            done += sum(job.done for job in running)
            self._progress.update(self._sum, completed=done, description=self._title(settled))
        self._live.refresh()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wiped away, and drawn anew below. A Live that starts again would wipe what was written between."""
        self._live.stop()
        try:
            yield
        finally:
            self._live = self._start()

    def close(self) -> None:
        self._live.stop()


@contextlib.contextmanager
def display(wanted: bool, files: int, total: int | None) -> Iterator[Display]:
    """A display for `files` files of `total` bytes (None: unknown), gone without a trace at the end."""
    if not wanted or not files or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Silence()
        return
    from rich.console import Console

    console = Console(stderr=True)
    with contextlib.closing(Bars(console, _progress(console), files, total)) as bars:
        yield bars


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            done = size(task.completed)
            return Text(done if task.total is None else f"{done} of {size(task.total)}", style="progress.download")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{size(task.speed)}/s" if task.speed else "", style="progress.data.speed")

    class Remaining(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is not None and task.completed >= task.total:
                return Text("syncing", style="progress.remaining")  # all read; now to make it durable
            left = task.time_remaining
            if left is None:
                return Text("", style="progress.remaining")
            minutes, seconds = divmod(int(left), 60)
            hours, minutes = divmod(minutes, 60)
            text = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
            return Text(f"{text} left", style="progress.remaining")

    def fixed(width: int) -> Column:
        return Column(width=width, no_wrap=True, justify="right")

    columns: list[ProgressColumn] = [
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis"),
        ),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
    ]
    if console.width >= WIDE:
        columns += [Amount(table_column=fixed(24)), Rate(table_column=fixed(12))]
    columns.append(Remaining(table_column=fixed(12)))
    return Progress(*columns, console=console, auto_refresh=False, expand=True)
