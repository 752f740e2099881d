"""Writers that must not pass: each does one thing wrong, and the check for that thing must notice.

`Plain` does everything right in the simplest way, and must pass: the checks cry no wolf.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple


def real(**options: Any) -> Any:
    """fastfs."""
    import fastfs

    return fastfs.Store(**options)


class Plain:
    """A correct store in a hundred lines, of which each may be broken."""

    def __init__(self, *, datadir: str, durability: str = "full", **options: Any) -> None:
        self.datadir = datadir
        self.durability = durability
        self.claim: Any = None

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open."""

    def add(self, name: str, file: Any, size: int | None = None) -> None:
        from fastfs.exceptions import from_oserror

        with self.claimed(size):
            try:
                self.store(name, self.pieces(file))
            except OSError as error:
                raise from_oserror(error, "write", path=f"{self.datadir}/{name}", image_id=name) from error

    @contextlib.contextmanager
    def claimed(self, size: int | None) -> Iterator[None]:
        from fastfs.datadirs import Claim

        claim = Claim(0, size or 0)
        try:
            yield
        finally:
            claim.release()

    def pieces(self, file: Any) -> Iterable[bytes]:
        if isinstance(file, bytes):
            return [file[at : at + 100_000] for at in range(0, len(file), 100_000)]
        return iter(lambda: file.read(100_000), b"") if hasattr(file, "read") else file

    def store(self, name: str, pieces: Iterable[bytes]) -> None:
        hidden = self.hidden_name()
        top = os.open(self.datadir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fd = self.create(top, hidden)
            linked = False
            try:
                self.write(fd, pieces)
                self.seal(fd)
                try:
                    self.publish(top, hidden, name)
                    linked = True
                except OSError as error:  # which may be told of what was done
                    linked = self.is_named(fd, top, name)
                    if not (linked and error.errno == errno.EEXIST):
                        raise
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(hidden, dir_fd=top)
                self.sync_directory(top)
            except BaseException:
                self.undo(top, name if linked else None, hidden)
                raise
            finally:
                self.shut(fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(top)

    def is_named(self, fd: int, top: int, name: str) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=top, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def hidden_name(self) -> str:
        return f".fastfs-{secrets.token_hex(12)}.part"

    def create(self, top: int, hidden: str) -> int:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=top)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            self.undo(top, None, hidden)
            self.shut(fd)
            raise
        return fd

    def write(self, fd: int, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]

    def seal(self, fd: int) -> None:
        os.fchmod(fd, 0o644)
        if self.durability != "none":
            os.fsync(fd)
        os.close(os.dup(fd))  # tells what only close tells

    def publish(self, top: int, hidden: str, name: str) -> None:
        os.link(hidden, name, src_dir_fd=top, dst_dir_fd=top)
        with contextlib.suppress(OSError):
            os.unlink(hidden, dir_fd=top)

    def sync_directory(self, top: int) -> None:
        if self.durability == "full":
            os.fsync(top)

    def undo(self, top: int, name: str | None, hidden: str) -> None:
        for victim in (name, hidden):
            if victim is not None:
                with contextlib.suppress(OSError):
                    os.unlink(victim, dir_fd=top)

    def shut(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            os.close(fd)

    def delete(self, url: str) -> None:
        from fastfs.exceptions import from_oserror

        path = url.removeprefix("file://")
        try:
            top = os.open(self.datadir, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.unlink(os.path.basename(path), dir_fd=top)
                self.sync_directory(top)
            finally:
                self.shut(top)
        except OSError as error:
            raise from_oserror(error, "delete", path=path) from error

    def get(self, url: str, offset: int = 0, length: int | None = None) -> tuple[IO[bytes], int]:
        """A file that is not raw: it reads on where a read was short."""
        from fastfs.exceptions import from_oserror

        path = url.removeprefix("file://")
        try:
            file = self.reader(path)
        except OSError as error:
            raise from_oserror(error, "read", path=path) from error
        file.seek(offset)
        return file, os.fstat(file.fileno()).st_size

    def reader(self, path: str) -> IO[bytes]:
        return open(path, "rb")

    def sweep(self) -> None:
        for path in self.remains():
            with contextlib.suppress(BlockingIOError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def remains(self) -> Iterator[Path]:
        return Path(self.datadir).glob(".fastfs-*.part")


# -- crashes ------------------------------------------------------------------------------------------------------


class InPlace(Plain):
    """Writes under the final name."""

    def store(self, name: str, pieces: Iterable[bytes]) -> None:
        self.name = name
        super().store(name, pieces)

    def hidden_name(self) -> str:
        return self.name

    def publish(self, top: int, hidden: str, name: str) -> None:
        pass


class Early(Plain):
    """Publishes before the end."""

    def write(self, fd: int, pieces: Iterable[bytes]) -> None:
        first, *rest = pieces
        super().write(fd, [first])
        os.link(os.readlink(f"/proc/self/fd/{fd}"), f"{self.datadir}/image")
        super().write(fd, rest)

    def publish(self, top: int, hidden: str, name: str) -> None:
        os.unlink(hidden, dir_fd=top)


class Hasty(Plain):
    """Acknowledges what has no name yet."""

    def publish(self, top: int, hidden: str, name: str) -> None:
        self.later = hidden, name

    def close(self) -> None:
        if hasattr(self, "later"):
            hidden, name = self.later
            os.rename(f"{self.datadir}/{hidden}", f"{self.datadir}/{name}")


class Unrecognised(Plain):
    """Its temporaries have a name that the sweep does not know."""

    def hidden_name(self) -> str:
        return f".tmp-{secrets.token_hex(4)}"


class Exposed(Plain):
    """Everybody may read what is not complete."""

    def create(self, top: int, hidden: str) -> int:
        fd = super().create(top, hidden)
        os.fchmod(fd, 0o644)
        return fd


class Ruthless(Plain):
    """Sweeps up what living writers have."""

    def sweep(self) -> None:
        for path in self.remains():
            path.unlink()


class Replacing(Plain):
    """Replaces what is there."""

    def publish(self, top: int, hidden: str, name: str) -> None:
        os.rename(hidden, name, src_dir_fd=top, dst_dir_fd=top)


class CheckThenOpen(Plain):
    """Looks whether the name is free, then takes it."""

    def publish(self, top: int, hidden: str, name: str) -> None:
        if os.path.exists(f"{self.datadir}/{name}"):
            os.unlink(hidden, dir_fd=top)
            raise FileExistsError(errno.EEXIST, "File exists", name)
        os.rename(hidden, name, src_dir_fd=top, dst_dir_fd=top)


# -- errors -------------------------------------------------------------------------------------------------------


class IgnoresShort(Plain):
    """Takes it that a write writes everything."""

    def write(self, fd: int, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            os.write(fd, piece)


class ShortReader(Plain):
    """Takes a short read for the end."""

    def reader(self, path: str) -> IO[bytes]:
        class Once:
            def __init__(self) -> None:
                self.file = open(path, "rb", buffering=0)  # noqa: SIM115

            def read(self) -> bytes:
                return os.read(self.file.fileno(), 2**24)  # at most

            def fileno(self) -> int:
                return self.file.fileno()

            def seek(self, offset: int) -> None:
                self.file.seek(offset)

            def __enter__(self) -> Once:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

        return Once()  # type: ignore[return-value]


class SwallowsFull(Plain):
    """Goes on where there is no space."""

    def write(self, fd: int, pieces: Iterable[bytes]) -> None:
        try:
            super().write(fd, pieces)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


class SwallowsSync(Plain):
    """Takes an error of fsync for a warning."""

    def seal(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            super().seal(fd)


class SwallowsClose(Plain):
    """Looks at every error but that of close."""

    def seal(self, fd: int) -> None:
        os.fchmod(fd, 0o644)
        if self.durability != "none":
            os.fsync(fd)


class RetriesSync(Plain):
    """Tries fsync until it succeeds."""

    def seal(self, fd: int) -> None:
        try:
            super().seal(fd)
        except OSError:
            super().seal(fd)


class Untidy(Plain):
    """Leaves the temporary where it failed."""

    def undo(self, top: int, name: str | None, hidden: str) -> None:
        pass

    def hidden_name(self) -> str:
        return f".fastfs-{secrets.token_hex(4)}"


class StaysVisible(Plain):
    """Fails, and leaves the image there."""

    def undo(self, top: int, name: str | None, hidden: str) -> None:
        super().undo(top, None, hidden)


class LeaksDescriptor(Plain):
    """Closes nothing after an error."""

    def write(self, fd: int, pieces: Iterable[bytes]) -> None:
        try:
            super().write(fd, pieces)
        except OSError:
            os.dup(fd)
            raise


class LeaksThread(Plain):
    """A thread waits for what will not come."""

    def seal(self, fd: int) -> None:
        done = threading.Event()
        threading.Thread(target=done.wait, daemon=True).start()
        super().seal(fd)
        done.set()


class LeaksClaim(Plain):
    """Reserves, and gives back only where all went well."""

    @contextlib.contextmanager
    def claimed(self, size: int | None) -> Iterator[None]:
        from fastfs.datadirs import Claim

        claim = Claim(0, size or 0)
        LEAKED.append(claim)
        yield
        claim.release()


LEAKED: list[Any] = []


class Raw(Plain):
    """Lets the system's errors out as they are."""

    def add(self, name: str, file: Any, size: int | None = None) -> None:
        self.store(name, self.pieces(file))


# -- what hangs ---------------------------------------------------------------------------------------------------


class Timed(Plain):
    """Stores on another thread, which is left behind when it takes too long, and then removes what it has stored."""

    def __init__(self, *, timeout: float, **options: Any) -> None:
        super().__init__(**options)
        self.timeout = timeout

    def add(self, name: str, file: Any, size: int | None = None) -> None:
        import fastfs

        done, lock, given_up = threading.Event(), threading.Lock(), threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                super(Timed, self).add(name, file, size)
            except BaseException as error:
                errors.append(error)
            with lock:
                done.set()
            if given_up.is_set() and not errors:
                self.take_back(name)

        threading.Thread(target=work, daemon=True).start()
        done.wait(self.timeout)
        with lock:
            if not done.is_set():
                given_up.set()
                raise fastfs.TimeoutError("it hangs", path=self.datadir)
        if errors:
            raise errors[0]

    def take_back(self, name: str) -> None:
        os.unlink(f"{self.datadir}/{name}")


class Belated(Timed):
    """Publishes what it was left behind with."""

    def take_back(self, name: str) -> None:
        pass


class Patient(Plain):
    """Has no time limit."""


# -- power cuts ---------------------------------------------------------------------------------------------------


class NoSync(Plain):
    """Syncs the directory, not the file."""

    def seal(self, fd: int) -> None:
        os.fchmod(fd, 0o644)
        os.close(os.dup(fd))


class NoDirectorySync(Plain):
    """Syncs the file, not its name; nor that it is gone."""

    def sync_directory(self, top: int) -> None:
        pass


class DirectoryFirst(Plain):
    """Syncs the directory before the name is in it."""

    def publish(self, top: int, hidden: str, name: str) -> None:
        super().sync_directory(top)
        super().publish(top, hidden, name)

    def sync_directory(self, top: int) -> None:
        pass


class SyncsFirst(Plain):
    """Writes the last bytes after the sync."""

    def seal(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        last = os.pread(fd, 5000, max(0, size - 5000))
        super().seal(fd)
        os.pwrite(fd, last, max(0, size - 5000))


class Broken(NamedTuple):
    """What is wrong, and who must notice."""

    maker: Callable[..., Any]
    #: The kind of sweep, as `sweep.py` has it.
    sweep: str
    #: The category of the problem, as `checks.py` has it.
    category: str
    only: str = "^add (file|bytes) 300K full hidden$"
    most: int = 200
    #: Which points, as `sweep.py` takes them.
    point: str = ""


BROKEN = [
    Broken(InPlace, "crash", "partial"),
    Broken(Early, "crash", "partial"),
    Broken(Hasty, "crash", "lost", "^add bytes 300K full hidden$"),
    Broken(Unrecognised, "crash", "remains"),
    Broken(Exposed, "crash", "exposed"),
    Broken(Ruthless, "crash", "lost", "^sweep$"),
    Broken(Replacing, "order", "order"),
    Broken(Replacing, "order", "partial", "^add-again bytes 4096 hidden$"),
    Broken(IgnoresShort, "error", "partial"),
    Broken(ShortReader, "error", "unclear", "^get read$"),
    Broken(SwallowsFull, "error", "partial"),
    Broken(SwallowsSync, "error", "swallowed"),
    Broken(SwallowsClose, "error", "swallowed"),
    Broken(Belated, "hang", "published"),
    Broken(Patient, "hang", "unclear", most=2),
    Broken(RetriesSync, "error", "order"),
    Broken(Untidy, "error", "remains"),
    Broken(StaysVisible, "error", "published"),
    Broken(LeaksDescriptor, "error", "descriptor"),
    Broken(LeaksThread, "error", "thread", most=10, point="EIO at call .*fsync$"),
    Broken(LeaksClaim, "error", "reservation"),
    Broken(Raw, "error", "unclear"),
    Broken(NoSync, "order", "order"),
    Broken(NoDirectorySync, "order", "order"),
    Broken(NoDirectorySync, "order", "order", "^delete full$"),
    Broken(DirectoryFirst, "order", "order"),
    Broken(SyncsFirst, "order", "order"),
]


def no_group_sync(**options: Any) -> Any:
    """fastfs, but for the sync that acknowledges many small objects of `add_many`."""
    from fastfs.ingest import groupsync

    groupsync.GroupSync.wait = lambda group, since: None  # type: ignore[method-assign, assignment]
    return real(**options)


WRITERS: dict[str, Callable[..., Any]] = {
    "fastfs": real,
    "Plain": Plain,
    "Timed": Timed,
    "no_group_sync": no_group_sync,
}
#: These a power cut must find out, on a real file system.
LOSING = {NoSync: "partial", InPlace: "partial", NoDirectorySync: "lost", DirectoryFirst: "lost"}
WRITERS["CheckThenOpen"] = CheckThenOpen
WRITERS |= {item.maker.__name__: item.maker for item in BROKEN}
