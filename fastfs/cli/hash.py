# SPDX-License-Identifier: Apache-2.0
"""``fastfs hash``: digests of files, in the formats of md5sum and its like."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from fastfs.cli.errors import CommandError, Tally
from fastfs.cli.ingest import check_algorithm
from fastfs.cli.plan import STDIN, Item
from fastfs.cli.settings import Settings, json_option, voice_options
from fastfs.cli.signals import Cancel, raising
from fastfs.cli.source import Stream, source_of

__all__ = ["hash_command"]

EPILOG = """\b
Examples:
  fastfs hash *.img > SHA512SUMS; sha512sum -c SHA512SUMS
  fastfs hash --algorithm md5 --algorithm sha256 debian-12.iso
  qemu-img convert -O raw a.qcow2 /dev/stdout | fastfs hash -

\b
Each line is a digest and a path, as md5sum and sha512sum write and check
them; with several algorithms, or --tag, it names the algorithm, too.
"""


@click.command("hash", epilog=EPILOG, short_help="Print digests of files; needs no store.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "-a", "--algorithm", "algorithms", metavar="ALGO", multiple=True, help="Repeat for several.  [default: sha512]"
)
@click.option("--tag", is_flag=True, help="BSD style: ALGO (path) = digest.")
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Files at a time.  [default: 32]")
@json_option
@voice_options
@click.pass_obj
def hash_command(
    settings: Settings,
    paths: tuple[str, ...],
    *,
    algorithms: tuple[str, ...],
    tag: bool,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Print digests of files; '-' is stdin. Each file is read once, many at once."""
    from fastfs import hash_files

    if paths.count(STDIN) > 1:
        raise CommandError("stdin can be read only once", "give '-' once")
    for name in algorithms:
        check_algorithm(name)
    names = tuple(dict.fromkeys(algorithms)) or ("sha512",)
    output = settings.output(as_json)
    tally = Tally()
    with (
        contextlib.closing(_Sources(paths)) as sources,
        contextlib.closing(hash_files(sources, names, jobs=jobs)) as found,
        raising(sources.cancel),
    ):
        try:
            for path, one in zip(paths, found, strict=True):
                sources.done()
                if one.error is not None:
                    tally.add(output.failure(one.error, source=path).code)
                elif as_json:
                    output.record({"path": path, "size": one.size, "digests": one.digests})
                else:
                    for name in names:
                        click.echo(line(name, one.digests[name], path, tag or len(names) > 1), nl=False)
        except BaseException:
            sources.cancel.set()  # or closing would wait for a stream that nobody writes to
            raise
    return tally.code


class _Sources:
    """The paths; streams as something that Ctrl-C can interrupt."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = paths
        self.cancel = Cancel()
        self._open: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        for path in self._paths:
            source: Any = path
            if path == STDIN or _is_stream(path):
                with contextlib.suppress(OSError):  # whoever opens it will be told
                    source = source_of(Item(path, path, None), self.cancel)
                    source = source() if callable(source) else source
            self._open.append(source)
            yield source

    def done(self) -> None:
        """The first one is."""
        source = self._open.popleft()
        if isinstance(source, Stream):
            source.close()

    def close(self) -> None:
        while self._open:
            self.done()
        self.cancel.close()


def _is_stream(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def tag_of(name: str) -> str:
    """The algorithm as the BSD format writes it."""
    if name in ("blake2b", "blake2s"):
        return f"BLAKE2{name[-1]}"
    return name.upper().replace("_", "-")


def line(name: str, digest: str, path: str, tag: bool) -> bytes:
    """One line of output.  As coreutils do, a backslash before it says that the path is escaped."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    start = "\\" if escaped != path else ""
    text = f"{start}{tag_of(name)} ({escaped}) = {digest}\n" if tag else f"{start}{digest}  {escaped}\n"
    return os.fsencode(text)
