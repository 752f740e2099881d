"""What must hold after a fault.  Every problem is a line that begins with its category, one of `CATEGORIES`."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scenarios import Scenario
from shim import STORE, Call

CATEGORIES = (
    "partial",  # under a final name lies something else than the whole image
    "lost",  # what was acknowledged is not there, or what was there before is not
    "undead",  # what was deleted is there
    "published",  # the operation failed, and the image is there
    "remains",  # a temporary is left
    "descriptor",  # left open
    "thread",  # left running
    "reservation",  # left claimed
    "swallowed",  # an error was not told
    "unclear",  # it was told as something else than what we promise
    "exposed",  # others can read what is not published
    "record",  # a record that is not that of its image
    "order",  # steps in an order that a power cut does not forgive
)

_DATA = ("write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "ftruncate", "fallocate")
# That of O_TMPFILE without O_DIRECTORY's.
_MAKING = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
_NAMING = ("link", "rename", "renameat2")

QUARANTINE = ".fastfs-quarantine"
RECORD = ".rec"
_MAGIC = b"\x89FFR"


def files(place: Path) -> Iterator[Path]:
    """All files in the data directories of a case."""
    for top in ("images", "other"):
        if (place / top).is_dir():
            found = (path for path in (place / top).rglob("*") if not path.is_dir())
            yield from (path for path in found if QUARANTINE not in path.parts)


def hidden(place: Path) -> list[str]:
    return sorted(path.name for path in files(place) if path.name.startswith("."))


def state(
    scenario: Scenario, place: Path, acked: Sequence[str], failed: bool, irremovable: bool = False
) -> Iterator[str]:
    """After a crash or an error.

    :param failed: an exception told that the image is not there.
    :param irremovable: removing it failed, too: it may be there, but whole.
    """
    seen: dict[str, bytes] = {}
    for path in files(place):
        if path.name.startswith("."):
            # The mode is set when the bytes are complete.
            ours = path.name not in scenario.living + scenario.remains and path.suffix != RECORD
            data = path.read_bytes()
            if ours and path.stat().st_mode & 0o077 and data not in scenario.after.values() and data[:4] != _MAGIC:
                yield f"exposed: {path.name} has mode {stat.S_IMODE(path.stat().st_mode):o}"
            continue
        if path.name in seen:
            yield f"partial: {path.name} is there twice"
        seen[path.name] = path.read_bytes()
    for name in {*seen, *scenario.before, *scenario.after}:
        before, after, found = scenario.before.get(name), scenario.after.get(name), seen.get(name)
        if name in acked:
            if found != after:
                kind = "undead" if after is None else "lost" if found is None else "partial"
                yield f"{kind}: {name} was acknowledged, {_tell(found, after)}"
        elif found == before or (scenario.in_place and _mixed(found, before, after)):
            continue
        elif found != after:
            yield f"{'lost' if found is None else 'partial'}: {name}, {_tell(found, after)}"
        elif failed and not scenario.either and not irremovable:
            yield f"published: {name} is there although that failed"


def _mixed(found: bytes | None, before: bytes | None, after: bytes | None) -> bool:
    """Is each byte that of before or of after?"""
    if found is None or before is None or after is None or not len(found) == len(before) == len(after):
        return False
    return all(one in (old, new) for one, old, new in zip(found, before, after, strict=True))


def _tell(found: bytes | None, wanted: bytes | None) -> str:
    def size(data: bytes | None) -> str:
        return "nothing" if data is None else f"{len(data)} bytes"

    return f"found {size(found)}, not the {size(wanted)} that belong there"


def after_sweep(scenario: Scenario, place: Path) -> Iterator[str]:
    """After the next start."""
    there = {path.name for path in files(place) if not path.name.startswith(".")}
    records = {f".fastfs-{name}{RECORD}" for name in there}
    left = [name for name in hidden(place) if name not in records.union(scenario.living, scenario.kept)]
    if left:
        yield f"remains: {left}"
    gone = set(scenario.living) - set(hidden(place))
    if gone:
        yield f"lost: {gone}, whose writer lives"


def records(scenario: Scenario, found: Sequence[tuple[str, str]], place: Path) -> Iterator[str]:
    """After the next start: each image has the record of just that image, or none.

    :param found: id and status of each image, as a scrub tells.
    """
    for name, status in found:
        if status not in ("clean", "no-record", *scenario.statuses):
            yield f"record: {name} is said to be {status}"
    if scenario.quarantined is not None:
        at_home = [path.read_bytes() for path in files(place) if path.name in {**scenario.before, **scenario.after}]
        away = [path.read_bytes() for path in place.glob(f"images/{QUARANTINE}/*/image")]
        if scenario.quarantined not in (*at_home, *away):
            yield "lost: it is neither in its place nor in quarantine"
        if len(at_home) + len(away) > 1:
            yield "partial: it is in two places"


# Of these an error must be told: the image might not be what was promised.  Any other call (looking, opening,
# reserving) may fail as long as the image is whole in the end, which `state` and `order` see.
_MUST_TELL = {*_DATA, *_NAMING, "fsync", "fdatasync", "syncfs", "fchmod", "setxattr", "close"}


def tolerable(call: Call, calls: Sequence[Call], scenario: Scenario) -> bool:
    """May an operation succeed although this call failed?"""
    if scenario.forgiving or call.kind != STORE or call.function not in _MUST_TELL:
        return True
    if call.function == "setxattr" or call.name.endswith(RECORD) or call.object in _sidecars(calls):
        return True  # an image does without a record
    if call.function == "fallocate":
        return call.error in (errno.EOPNOTSUPP, errno.ENOSYS)
    if call.function == "close":
        # Of a directory, of a file that was only read, or after one close has told that all is well.
        writes = [c.number for c in calls if c.object == call.object and c.function in _DATA]
        earlier = [c for c in calls if c.function == "close" and c.object == call.object and c.number < call.number]
        return call.isdir or not writes or any(c.result == 0 and c.number > max(writes) for c in earlier)
    return False


def _sidecars(calls: Sequence[Call]) -> set[int]:
    """The files that became a record, or were to."""
    made = [c for c in calls if c.function == "open" and c.flags & _MAKING and not c.error and c.object]
    # One that is made when the image has its bytes and is still open, as it is not when the next image has its turn.
    return {
        two.object
        for one, two in itertools.pairwise(made)
        if any(c.object == one.object and c.function in _DATA for c in calls[: two.number])
        and not any(c.object == one.object and c.function == "close" for c in calls[: two.number])
        and not any(
            c.function in ("sendfile", "copy_file_range", "ftruncate") and c.object == two.object for c in calls
        )
    }


def told(
    scenario: Scenario, calls: Sequence[Call], outcome: dict[str, Any], expected: int, sticky: bool
) -> Iterator[str]:
    """After a call (or more) that failed: the exception, and what was not told at all."""
    struck = [call for call in calls if call.hit]
    errors = {call.error for call in struck if call.error}
    if outcome["error"] is None:
        if scenario.raises:
            yield f"swallowed: no {scenario.raises}"
        for call in struck:
            if call.error and not tolerable(call, calls, scenario):
                yield f"swallowed: {call}"
        return
    name, number, ours = outcome["error"], outcome["errno"], outcome["ours"]
    if name in ("AssertionError", "AbruptEnd") or outcome.get("programming"):
        yield f"unclear: {name}: {outcome['message']}"
    elif scenario.lenient or (scenario.raises and name == scenario.raises):
        return
    elif scenario.command:
        if name != "CommandFailed":
            yield f"unclear: {name}: {outcome['message']}"
        elif "Traceback" in outcome["message"]:
            yield f"unclear: {outcome['message']}"
    elif any(call.kind != STORE for call in struck):
        if name == "MemoryError" and errno.ENOMEM in errors:
            return
        if number not in errors and not ours:
            yield f"unclear: {name}({number}) from a source that had {expected}"
    elif not ours:
        yield f"unclear: {name}, not one of ours: {outcome['message']}"
    elif not outcome["path"]:
        yield f"unclear: {name} without a path: {outcome['message']}"
    elif number is None:
        yield f"unclear: {name} without an errno: {outcome['message']}"
    elif number not in errors and not scenario.forgiving:
        yield f"unclear: {name} tells errno {number}, it was {sorted(errors)}: {outcome['message']}"


def leaks(outcome: dict[str, Any]) -> Iterator[str]:
    for what in ("descriptor", "thread", "reservation"):
        if outcome[f"{what}s"]:
            yield f"{what}: {outcome[f'{what}s']}"


def order(scenario: Scenario, calls: Sequence[Call], acknowledged_at: dict[str, int]) -> Iterator[str]:
    """What a power cut would not forgive, from the log alone: data and names must be on the disk in time.

    Also, whatever the durability: nothing is written to a file that has its name, nothing replaces a file, and no fsync
    is tried again after it failed.
    """
    for call in calls:
        # What is in quarantine has names of its own there.
        final = bool(call.name) and not call.name.startswith(".") and scenario.quarantined is None
        if call.kind != STORE or call.error or not final:
            continue
        if call.function == "open" and call.flags & os.O_CREAT:
            yield f"order: {call.name} is made under its final name"
        if call.function == "rename" or (call.function == "renameat2" and not call.flags & 1):
            yield f"order: {call.name} might be replaced"
        if call.function in _NAMING:
            yield from _order_of_naming(scenario, calls, call, acknowledged_at.get(call.name))
        if call.function == "unlink" and scenario.durability == "full" and scenario.kind == "delete":
            done = acknowledged_at.get(call.name, len(calls))
            if not any(c.function == "fsync" and c.isdir and call.number < c.number <= done for c in calls):
                yield f"order: the directory is not synced after {call} and before the acknowledgement"
    yield from _retries(calls)


def _order_of_naming(
    scenario: Scenario, calls: Sequence[Call], naming: Call, acknowledged_at: int | None
) -> Iterator[str]:
    written = [c for c in calls if c.kind == STORE and c.function in _DATA and not c.error]
    # The file that gets the name is the one that was made last: there is one upload at a time.
    made = [c.object for c in calls[: naming.number] if c.function == "open" and c.flags & _MAKING and not c.error]
    # Before it, its record gets its own.
    earlier = [c.number for c in calls[: naming.number] if c.function in _NAMING and not c.name.startswith(".")]
    between = calls[max(earlier, default=-1) + 1 : naming.number]
    recorded = any(c.function in _NAMING and c.name.endswith(RECORD) for c in between)
    sidecars = _sidecars(calls[: naming.number])
    images = [item for item in made if item not in sidecars][-1:]
    records = [item for item in made if item in sidecars][-1:] if recorded else []
    for item in {c.object for c in written} & {*images, *records}:
        changes = [c.number for c in written if c.object == item]
        if max(changes) > naming.number:
            yield f"order: written to after {naming}"
        synced = [c.number for c in calls if c.object == item and c.function in ("fsync", "fdatasync") and not c.error]
        if scenario.durability != "none" and not any(max(changes) < number < naming.number for number in synced):
            yield f"order: {naming} before the file is synced"
    if scenario.durability == "full" and acknowledged_at is not None:
        synced = [c.number for c in calls if c.isdir and c.function == "fsync" and not c.error]
        if not any(naming.number < number <= acknowledged_at for number in synced):
            yield f"order: acknowledged before the directory is synced after {naming}"


def _retries(calls: Sequence[Call]) -> Iterator[str]:
    for call in calls:
        if call.function in ("fsync", "fdatasync") and call.error not in (0, errno.EINTR, errno.EINVAL):
            again = [c for c in calls if c.object == call.object and c.function == call.function]
            if any(c.number > call.number for c in again):
                yield f"order: {call} is tried again"
