"""Many uploads of one image at once: exactly one wins, and what it stored is what it said.

Run as a script, this file is one process of the race between processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastfs
from fastfs import Store
from fastfs.publish import Draft

THREADS = 8
THREAD_ROUNDS = 60
PROCESSES = 4
PROCESS_ROUNDS = 60
SIZES = (0, 1, 4096, 65537, 300_001)


def content(racer: int, turn: int) -> bytes:
    """What this racer uploads in this round; all differ, all have the same length in one round."""
    length = SIZES[turn % len(SIZES)]
    return hashlib.shake_128(b"%d %d" % (racer, turn)).digest(length)


def delivery(racer: int, data: bytes) -> object:
    """Large and small pieces, so that the racers end at different moments."""
    return data if racer % 2 else iter([data[: len(data) // 2], data[len(data) // 2 :]])


def upload(store: Store, racer: int, turn: int) -> str | None:
    """The digest of the image stored, None for a loser."""
    data = content(racer, turn)
    try:
        return store.add(f"image-{turn}", delivery(racer, data), len(data)).multihash
    except fastfs.Duplicate:
        return None


def datadirs_of(directory: Path, layout: str, racer: int = 0) -> list[str]:
    priorities = {
        "one": [100],
        "equal": [100, 100, 100],
        "ranked": [100, 200, 300],
        # An operator is just changing the priorities of a running service.
        "disagreeing": [100 + (racer + place) % 3 for place in range(3)],
    }[layout]
    return [f"{directory / str(place)}:{priority}" for place, priority in enumerate(priorities)]


def check(turn: int, digests: list[str | None], store: Store, directory: Path) -> None:
    """One winner, whose bytes are the only ones there."""
    winners = [digest for digest in digests if digest is not None]
    assert len(winners) == 1, f"round {turn}: {len(winners)} winners"
    found = sorted((path for path in directory.rglob("*") if path.is_file()), reverse=True)
    assert found[0].name == f"image-{turn}", f"round {turn}"
    # Where it is large enough, with its own record and no other; `VerifiedFile` looks at every byte.
    recorded = found[0].stat().st_size > 64 * 1024
    assert found[1:] == [found[0].with_name(f".fastfs-image-{turn}.rec")] * recorded, f"round {turn}"
    if recorded:
        assert sum(map(len, store.get(f"file://{found[0]}", verify=True)[0])) == found[0].stat().st_size
    assert hashlib.sha512(found[0].read_bytes()).hexdigest() == winners[0], f"round {turn}"
    store.delete(store.find(f"image-{turn}"))


@contextlib.contextmanager
def quick_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(functions: list[Callable[[], None]]) -> None:
    """Run all at once; the first error of any thread comes out."""
    barrier = threading.Barrier(len(functions))
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            barrier.wait(60)
            function()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    with quick_switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("layout", ["one", "equal", "ranked", "disagreeing"])
@pytest.mark.parametrize("shared", [True, False], ids=["one store", "a store each"])
def test_threads(shared: bool, layout: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(Store(datadirs=datadirs_of(tmp_path, layout, racer), durability="none"))
            for racer in range(1 if shared else THREADS)
        ]
        digests: list[str | None] = [None] * THREADS
        barrier = threading.Barrier(THREADS)

        def race(racer: int) -> None:
            for turn in range(THREAD_ROUNDS):
                barrier.wait(60)
                digests[racer] = upload(stores[racer % len(stores)], racer, turn)
                if barrier.wait(60) == 0:
                    try:
                        check(turn, digests, stores[0], tmp_path)
                    except BaseException:
                        barrier.abort()
                        raise
                barrier.wait(60)

        together([lambda racer=racer: race(racer) for racer in range(THREADS)])  # type: ignore[misc]


def racing_process(directory: Path, layout: str, racer: int) -> None:
    """Each line that comes in names a round and the moment of its start; the answer is the digest or null."""
    with Store(datadirs=datadirs_of(directory, layout, racer), durability="none") as store:
        print("ready", flush=True)
        for line in sys.stdin:
            turn, start = map(int, line.split())
            while time.monotonic_ns() < start:
                pass
            print(json.dumps(upload(store, racer, turn)), flush=True)


@pytest.mark.parametrize("layout", ["one", "equal", "ranked", "disagreeing"])
def test_processes(layout: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, str(tmp_path), layout, str(racer)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for racer in range(PROCESSES)
        ]

        def answer(racer: subprocess.Popen[str]) -> str:
            assert racer.stdout is not None
            return racer.stdout.readline().strip()

        assert [answer(racer) for racer in racers] == ["ready"] * PROCESSES
        with Store(datadirs=datadirs_of(tmp_path, layout), durability="none") as store:
            for turn in range(PROCESS_ROUNDS):
                for racer in racers:
                    assert racer.stdin is not None
                    racer.stdin.write(f"{turn} {time.monotonic_ns() + 500_000}\n")
                    racer.stdin.flush()
                check(turn, [json.loads(answer(racer)) for racer in racers], store, tmp_path)
        for racer in racers:
            racer.communicate(timeout=60)
            assert racer.returncode == 0


def test_the_check_notices_two_winners(tmp_path: Path) -> None:
    """A writer that looks first and opens then, as glance_store's does, cannot pass."""
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "image-2"
    looked = threading.Barrier(2)
    digests: list[str | None] = [None, None]

    def careless(racer: int) -> None:
        if not path.exists():
            looked.wait(60)
            path.write_bytes(content(racer, 2))
            digests[racer] = hashlib.sha512(content(racer, 2)).hexdigest()

    together([lambda: careless(0), lambda: careless(1)])
    with (
        Store(datadir=str(tmp_path / "0"), durability="none") as store,
        pytest.raises(AssertionError, match="2 winners"),
    ):
        check(2, digests, store, tmp_path)


def test_the_check_notices_mixed_bytes(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path / "0"), durability="none") as store:
        digest = upload(store, 0, 3)
        (tmp_path / "0" / "image-3").write_bytes(content(0, 3)[:-1] + b"!")
        with pytest.raises((AssertionError, fastfs.IntegrityError), match=r"round 3|image-3"):
            check(3, [digest], store, tmp_path)


def race(enough: Callable[[], bool]) -> Callable[[], bool]:
    """Is it still going on?  For two seconds, and on a busy machine until everybody has had a turn."""
    ends = time.monotonic() + 2
    return lambda: time.monotonic() < ends or (time.monotonic() < ends + 60 and not enough())


@pytest.mark.parametrize("layout", ["one", "equal"])
def test_add_delete_and_read(layout: str, tmp_path: Path) -> None:
    """Readers see a whole image of somebody, or NotFound; adders win or meet a Duplicate; nothing else."""
    whole = {hashlib.sha512(content(racer, 3)).hexdigest() for racer in range(THREADS)}
    seen: Counter[str] = Counter()

    with Store(datadirs=datadirs_of(tmp_path, layout), durability="none") as store:
        url = store.add("image-3", content(0, 3)).url
        going = race(lambda: min(seen[what] for what in ("added", "deleted", "read", "looked")) > 0)

        def add(racer: int) -> None:
            while going():
                seen["added" if upload(store, racer, 3) else "refused"] += 1

        def delete() -> None:
            while going():
                with contextlib.suppress(fastfs.NotFound):
                    store.delete(store.find("image-3"))
                    seen["deleted"] += 1

        def read() -> None:
            while going():
                try:
                    size = store.get_size(url)
                    reader, told = store.get(url)
                except fastfs.NotFound:
                    seen["nothing to read"] += 1
                    continue
                with reader:
                    assert hashlib.sha512(b"".join(reader)).hexdigest() in whole
                assert size == told == len(content(0, 3))
                seen["read"] += 1

        def look() -> None:
            while going():
                # It may be seen twice: deleted and stored again while the listing goes on.
                assert {image.size for image in store.images()} <= {len(content(0, 3))}
                with contextlib.suppress(fastfs.NotFound):
                    assert store.info("image-3").size == len(content(0, 3))
                seen["looked"] += 1

        together([lambda: add(1), lambda: add(2), lambda: add(3), delete, read, read, look])
        for image in store.images():
            store.delete(image.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert min(seen[what] for what in ("added", "deleted", "read", "looked")) > 0, seen


def test_sweeping_while_others_upload(tmp_path: Path) -> None:
    """The janitor takes nothing of a writer that lives, in this process or another."""
    stored: Counter[int] = Counter()
    going = race(lambda: min(stored[0], stored[1]) > 0)
    with Store(datadir=str(tmp_path / "images"), durability="none") as store:

        def add(racer: int) -> None:
            turn = 0
            while going():
                data = content(racer, 4)
                result = store.add(f"{racer}-{turn}", delivery(racer, data))
                assert Path(result.url.removeprefix("file://")).read_bytes() == data
                turn += 1
                stored[racer] += 1

        def sweep() -> None:
            while going():
                assert store.sweep() == []
                Store(datadir=str(tmp_path / "images")).close()

        together([lambda: add(0), lambda: add(1), sweep])
        assert len(list(store.images())) == sum(stored.values())
        assert min(stored[0], stored[1]) > 0


@pytest.mark.parametrize("second", ["a:2 b:1", "a:1 b:2"], ids=["agreeing", "disagreeing"])
def test_two_stores_at_the_last_moment(second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second store comes when the first is just about to give the name; they may disagree on priorities."""
    winners: list[str] = []
    link = Draft.link

    def upload_to(store: Store) -> None:
        with contextlib.suppress(fastfs.Duplicate):
            winners.append(store.add("image", iter([content(0, 4)])).url)

    def link_late(draft: Draft) -> None:
        monkeypatch.setattr(Draft, "link", link)
        rival.start()
        rival.join(0.5)  # it waits for us, or it is done
        link(draft)

    one, other = (
        Store(datadirs=[f"{tmp_path}/{entry}" for entry in entries.split()], durability="none")
        for entries in ("a:2 b:1", second)
    )
    rival = threading.Thread(target=upload_to, args=(other,))
    monkeypatch.setattr(Draft, "link", link_late)
    upload_to(one)
    rival.join(60)
    assert len(winners) == 1


def test_two_stores_that_delete_one_image(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    with Store(datadir=str(tmp_path), durability="none") as store:
        for turn in range(100):
            url = store.add(f"image-{turn}", b"image").url

            def delete(url: str = url) -> None:
                try:
                    store.delete(url)
                    outcomes["deleted"] += 1
                except fastfs.NotFound:
                    outcomes["not found"] += 1

            together([delete, delete])
    assert outcomes == {"deleted": 100, "not found": 100}
    assert os.listdir(tmp_path) == []


if __name__ == "__main__":
    racing_process(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
