"""Scrub: every kind of damage is found by every mode, and nothing else is called damage."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfs import IntegrityError, Store, Unverifiable, record, sidecar
from fastfs.scrub import check as check_module
from fastfs.scrub import mapped as mapped_module
from fastfs.scrub.finding import DAMAGED, Status

BLOCK = 65536
EXAMPLES = 1200

# Where there is memory for it: the cases are about bytes, not about a disk.
ROOT = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

CLEAN = {Status.CLEAN}
STALE = {Status.STALE_RECORD}
NO_RECORD = {Status.NO_RECORD}
BAD_RECORD = {Status.RECORD_DAMAGED}
WRONG_FILE = {Status.WRONG_FILE}


def punch(path: Path, offset: int, length: int) -> None:
    """Punch a hole, fallocate(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file:
        # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if libc.fallocate(file.fileno(), 3, ctypes.c_long(offset), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), "fallocate")


def change(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@dataclasses.dataclass
class Case:
    """One image in a store of a few, and what happens to it."""

    directory: Path
    sizes: list[int]
    chance: random.Random
    #: Copied without attributes, times and inodes before it happens.
    copied: bool = False
    #: The image carries the tag of its record.
    marked: bool = True

    @property
    def image(self) -> Path:
        return self.directory / "image"

    @property
    def other(self) -> Path:
        return self.directory / "other"

    @property
    def record(self) -> Path:
        return self.directory / ".fastfs-image.rec"

    @property
    def size(self) -> int:
        return self.sizes[0]

    @property
    def data(self) -> bytes:
        return self.image.read_bytes()

    def place(self) -> int:
        """Some byte of the image; its ends and those of its blocks more often than others."""
        special = [0, self.size - 1, BLOCK - 1, BLOCK, self.size // BLOCK * BLOCK, self.size // BLOCK * BLOCK - 1]
        place = self.chance.choice([*special, self.chance.randrange(self.size)])
        return min(max(place, 0), self.size - 1)

    def new_file(self, data: bytes) -> None:
        """As other software replaces an image."""
        path = self.directory / "new"
        path.write_bytes(data)
        os.rename(path, self.image)


# What may happen, and what may be said about it.  Each gets a case and returns what must be found, or None if nothing
# has happened after all.
Damage = Callable[[Case], "set[Status] | None"]
DAMAGES: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    DAMAGES[function.__name__] = function
    return function


def rotten(case: Case) -> set[Status]:
    """What has no tag may be taken for another file, if nothing of it is as it was; it is never called clean."""
    return {Status.ROT} | (set() if case.marked else STALE)


@damage
def nothing(case: Case) -> set[Status]:
    return CLEAN


@damage
def touched(case: Case) -> set[Status]:
    os.utime(case.image)
    return CLEAN


@damage
def bit_flipped(case: Case) -> set[Status]:
    flip(case.image, case.place() * 8 + case.chance.randrange(8))
    return rotten(case)


@damage
def bit_flipped_and_the_time_kept(case: Case) -> set[Status]:
    """As a disk does it."""
    before = case.image.stat()
    flip(case.image, case.place() * 8 + case.chance.randrange(8))
    os.utime(case.image, ns=(before.st_atime_ns, before.st_mtime_ns))
    return rotten(case)


@damage
def some_bytes_changed(case: Case) -> set[Status] | None:
    place = case.place()
    new = case.chance.randbytes(min(case.chance.randrange(1, 3 * BLOCK), case.size - place))
    if case.data[place : place + len(new)] == new:
        return None
    change(case.image, place, new)
    return rotten(case)


@damage
def block_zeroed(case: Case) -> set[Status] | None:
    start = case.place() // BLOCK * BLOCK
    length = min(BLOCK, case.size - start)
    if not any(case.data[start : start + length]):
        return None
    change(case.image, start, bytes(length))
    return rotten(case)


@damage
def hole_punched(case: Case) -> set[Status] | None:
    start = case.place() // 4096 * 4096
    length = case.chance.choice([4096, BLOCK, 3 * BLOCK])
    if not any(case.data[start : start + length]):
        return None
    punch(case.image, start, length)
    return rotten(case)


@damage
def blocks_exchanged(case: Case) -> set[Status] | None:
    data = case.data
    if len(data) < 2 * BLOCK or data[:BLOCK] == data[BLOCK : 2 * BLOCK]:
        return None
    change(case.image, 0, data[BLOCK : 2 * BLOCK] + data[:BLOCK])
    return rotten(case)


@damage
def truncated(case: Case) -> set[Status]:
    os.truncate(case.image, case.place())
    return {Status.TRUNCATED} | (set() if case.marked else STALE)


@damage
def emptied(case: Case) -> set[Status]:
    os.truncate(case.image, 0)
    return {Status.TRUNCATED} | (set() if case.marked else STALE)


@damage
def appended(case: Case) -> set[Status]:
    with open(case.image, "ab") as file:
        file.write(bytes(case.chance.randrange(1, 2 * BLOCK)))
    return {Status.GROWN}


@damage
def grown_with_a_hole(case: Case) -> set[Status]:
    os.truncate(case.image, case.size + case.chance.randrange(1, 100 * BLOCK))
    return {Status.GROWN}


@damage
def swapped_by_renaming(case: Case) -> set[Status]:
    os.rename(case.image, case.directory / "third")
    os.rename(case.other, case.image)
    os.rename(case.directory / "third", case.other)
    return WRONG_FILE


@damage
def swapped_with_their_records(case: Case) -> set[Status]:
    for one, other in (("image", "other"), (".fastfs-image.rec", ".fastfs-other.rec")):
        if (case.directory / one).exists():
            os.rename(case.directory / one, case.directory / "third")
            os.rename(case.directory / other, case.directory / one)
            os.rename(case.directory / "third", case.directory / other)
    return WRONG_FILE


@damage
def overwritten_by_another(case: Case) -> set[Status]:
    case.image.write_bytes(case.other.read_bytes())
    return WRONG_FILE


@damage
def copied_over_by_another(case: Case) -> set[Status]:
    case.new_file(case.other.read_bytes())
    return WRONG_FILE


@damage
def replaced_by_other_software(case: Case) -> set[Status]:
    case.new_file(case.chance.randbytes(case.chance.choice([case.size, case.size + 5, 3 * BLOCK])))
    return STALE


@damage
def replaced_by_a_variant(case: Case) -> set[Status] | None:
    """The hardest: most of its blocks are as before, and yet it is no damaged image."""
    if case.copied:
        return None  # then nobody can tell
    data = bytearray(case.data)
    data[case.place()] ^= 1
    case.new_file(bytes(data))
    return STALE


@damage
def replaced_by_the_same(case: Case) -> set[Status]:
    case.new_file(case.data)
    return CLEAN


@damage
def record_missing(case: Case) -> set[Status]:
    case.record.unlink()
    return NO_RECORD


@damage
def record_bit_flipped(case: Case) -> set[Status]:
    size = case.record.stat().st_size
    header = int.from_bytes(case.record.read_bytes()[12:16], "little")
    bit = case.chance.randrange(8 * size)
    flip(case.record, bit)
    return CLEAN if header <= bit // 8 < header + record.STAMP_SIZE else BAD_RECORD


@damage
def record_truncated(case: Case) -> set[Status]:
    os.truncate(case.record, case.chance.randrange(case.record.stat().st_size))
    return BAD_RECORD


@damage
def record_grown(case: Case) -> set[Status]:
    with open(case.record, "ab") as file:
        file.write(bytes(case.chance.randrange(1, 100)))
    return BAD_RECORD


@damage
def record_zeroed(case: Case) -> set[Status]:
    case.record.write_bytes(bytes(case.record.stat().st_size))
    return BAD_RECORD


@damage
def record_of_another_image(case: Case) -> set[Status]:
    shutil.copyfile(case.directory / ".fastfs-other.rec", case.record)
    return STALE


@damage
def record_and_image_damaged(case: Case) -> set[Status]:
    """It is not known that the image is damaged, so it is not said."""
    flip(case.image, case.place() * 8)
    flip(case.record, 100)
    return BAD_RECORD


@damage
def record_of_an_image_before(case: Case) -> set[Status]:
    """Other software deletes the image and stores another one of the same id."""
    case.image.unlink()
    case.image.write_bytes(case.chance.randbytes(case.size))
    return STALE


def content(chance: random.Random, size: int) -> bytes:
    """Some blocks of zeroes, for one may be a hole, and equal blocks."""
    blocks = [chance.randbytes(BLOCK), bytes(BLOCK), chance.randbytes(BLOCK)]
    data = b"".join(chance.choice(blocks) for _ in range(size // BLOCK)) + chance.randbytes(size % BLOCK)
    return data if any(data) else chance.randbytes(size)


@contextlib.contextmanager
def stored(sizes: list[int], seed: int, copied: bool, thin: bool) -> Iterator[tuple[Store, Case]]:
    root = Path(tempfile.mkdtemp(dir=ROOT))
    try:
        directory = root / "images"
        chance = random.Random(seed)
        options: dict[str, Any] = {"durability": "none", "record_block_size": BLOCK, "thin_provisioning": thin}
        with Store(datadir=str(directory), **options) as store:
            for name, size in zip(("image", "other"), sizes, strict=True):
                store.add(name, content(chance, size))
            if copied:
                os.rename(directory, root / "original")
                directory.mkdir()
                for path in (root / "original").iterdir():
                    shutil.copyfile(path, directory / path.name)
                    os.utime(directory / path.name, (5, 5))
        with Store(datadir=str(directory), **options) as store:
            yield store, Case(directory, sizes, chance, copied)
    finally:
        shutil.rmtree(root)


SIZES = st.one_of(st.integers(65537, 6 * BLOCK), st.sampled_from([2 * BLOCK, 3 * BLOCK, 65537]))


def nothing_broken(patch: pytest.MonkeyPatch) -> None:
    pass


def without_attributes(patch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def refused(*args: Any, **more: Any) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    patch.setattr(os, "setxattr", refused)
    patch.setattr(os, "getxattr", refused)


def examine(
    name: str,
    sizes: list[int],
    seed: int,
    copied: bool = False,
    thin: bool = False,
    attributes: bool = True,
    lying: bool = False,
    broken: Callable[[pytest.MonkeyPatch], None] = nothing_broken,
) -> bool:
    """Do it, and look at what both modes and a verified reader say.  False: nothing happened."""
    with pytest.MonkeyPatch.context() as patch:
        if not attributes:
            without_attributes(patch)
        if lying:  # blocks are looked at where they lie, two at a time, as those of larger images are
            patch.setattr(mapped_module, "LEAST", 0)
            patch.setattr(check_module, "MAPPED_RUN", 2 * BLOCK)
            patch.setattr(check_module, "UNLOCKED", 0)
        with stored(sizes, seed, copied, thin) as (store, case):
            case.marked = attributes and not copied
            before = case.data
            wanted = DAMAGES[name](case)
            if wanted is None:
                return False
            bystander = WRONG_FILE if name.startswith("swapped") else CLEAN
            after = case.data
            broken(patch)
            for mode in ("fast", "deep", "fast"):
                findings = {finding.image_id: finding for finding in store.scrub(mode=mode)}
                assert findings.keys() == {"image", "other"}
                assert findings["image"].status in wanted, (name, mode, findings["image"])
                assert findings["other"].status in bystander, (name, mode, findings["other"])
                assert findings["image"].damaged is (findings["image"].status in DAMAGED)
            assert case.data == after, "a scrub changes nothing"
            check_reading(store, before, findings["image"].status)
    return True


def check_reading(store: Store, before: bytes, status: Status) -> None:
    """It gives the right bytes, or an error; never a wrong byte."""
    got = b""
    try:
        reader, _ = store.get(store.find("image"), verify=True)
        for piece in reader:
            got += piece
    except IntegrityError:
        assert status in DAMAGED or status in STALE
    except Unverifiable:
        assert status not in CLEAN
    else:
        assert status in CLEAN
        assert got == before
    assert got == before[: len(got)]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(DAMAGES)),
    st.lists(SIZES, min_size=2, max_size=2, unique=True),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_is_damaged_is_found_and_nothing_else(
    name: str, sizes: list[int], seed: int, copied: bool, thin: bool, attributes: bool, lying: bool
) -> None:
    examine(name, sizes, seed, copied, thin, attributes, lying)


@pytest.mark.parametrize("thin", [False, True], ids=["dense", "thin"])
@pytest.mark.parametrize("copied", [False, True], ids=["original", "copied"])
@pytest.mark.parametrize("name", DAMAGES)
def test_each_kind(name: str, copied: bool, thin: bool) -> None:
    """So that no kind is only there by name."""
    happened = [
        examine(name, [5 * BLOCK + 17, 4 * BLOCK], seed, copied, thin, lying=lying)
        for seed in range(3)
        for lying in (False, True)
    ]
    assert any(happened) or (name == "replaced_by_a_variant" and copied)


# Checkers that are broken, each of which must be found out by some case.


def without_last_block(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(record.Record, "blocks", property(lambda self: max(1, -(-self.size // self.block_size) - 1)))


def trusting_every_record(patch: pytest.MonkeyPatch) -> None:
    """A stale one is taken for the image's own."""
    patch.setattr(sidecar, "_relation", lambda *args: sidecar.Relation.OWN)


def without_looking_at_sizes(patch: pytest.MonkeyPatch) -> None:
    real = check_module.Check._judge

    def judge(self: Any, one: record.Record, blocks: Any) -> Any:
        if not blocks.bad.count:
            return self._finding(Status.CLEAN)
        return real(self, one, blocks)

    patch.setattr(check_module.Check, "_judge", judge)


def taking_holes_for_granted(patch: pytest.MonkeyPatch) -> None:
    real = check_module.Check._digest

    def digest(self: Any, guest: Any, map_: Any, offset: int, length: int, buffer: memoryview) -> bytes:
        if map_.is_hole(offset, length):
            wanted: bytes = self._attached.table.digest(offset // BLOCK)
            return wanted
        return real(self, guest, map_, offset, length, buffer)

    patch.setattr(check_module.Check, "_digest", digest)


def by_time_and_size(patch: pytest.MonkeyPatch) -> None:
    """What has not been changed is not read, as cheap checkers do."""
    real = check_module.Check._blocks

    def blocks(self: Any, table: record.Table, position: int) -> Any:
        if table.record.mtime == self._info.st_mtime_ns:
            return check_module._Blocks(matched=True)
        return real(self, table, position)

    patch.setattr(check_module.Check, "_blocks", blocks)


def trusting_what_lies_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    real = check_module.Check._clean_run

    def clean_run(self: Any, *args: Any) -> int:
        run = real(self, *args)
        return 2 if run == 1 else run

    patch.setattr(check_module.Check, "_clean_run", clean_run)


BROKEN = [
    trusting_what_lies_in_the_cache,
    without_last_block,
    trusting_every_record,
    without_looking_at_sizes,
    taking_holes_for_granted,
    by_time_and_size,
]


def examine_all(variant: Callable[[pytest.MonkeyPatch], None]) -> None:
    for seed in range(8):
        for name in DAMAGES:
            sizes = [5 * BLOCK + 17, 4 * BLOCK]
            examine(name, sizes, seed, thin=bool(seed % 2), lying=bool(seed // 2 % 2), broken=variant)


@pytest.mark.parametrize("variant", BROKEN)
def test_a_broken_checker_is_found_out(variant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.raises(AssertionError):
        examine_all(variant)
