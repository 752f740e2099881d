"""What must hold when something goes wrong: nothing half-done is visible or stays, and the upload can be repeated."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client import MIB, ImageApi, SlowUpload, payload
from conftest import MakeServer
from helpers import files, strict_fastfs_only, visible_files, wait_until
from server import GlanceServer

DATA = payload(6 * MIB + 11)
LONG = payload(12 * MIB + 5)
HALF = 6 * MIB

both_servers = pytest.mark.parametrize("server_name", ["uwsgi", "gunicorn"])
both_encodings = pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])


def _begin(api: ImageApi, server: GlanceServer, image: str, chunked: bool) -> SlowUpload:
    """Send half of an upload and wait until the store has begun to write it."""
    upload = SlowUpload(api, image, None if chunked else len(LONG))
    for start in range(0, HALF, MIB):
        upload.send(LONG[start : start + MIB])
    wait_until(lambda: server.open_files(server.datadir()), "the store writes")
    return upload


def _upload_works(api: ImageApi, server: GlanceServer, image: str, chunk: int | None = None) -> None:
    answer = api.put(image, DATA, chunk=chunk)
    assert answer.status == 204, answer
    api.check(image, DATA)
    assert (server.datadir() / image).read_bytes() == DATA
    assert files(server.datadir()) == [image]
    assert api.delete(image) == 204
    assert files(server.datadir()) == []


# -- unfinished images -----------------------------------------------------------------------------------------------


@strict_fastfs_only("A1: an unfinished image is visible under its final name")
@both_encodings
def test_unfinished_image_is_invisible(shared_server: GlanceServer, api: ImageApi, chunked: bool) -> None:
    server = shared_server
    image = api.create()
    with _begin(api, server, image, chunked) as upload:
        during = visible_files(server.datadir())
        upload.send(LONG[HALF:])
        assert upload.finish() == 204
    api.check(image, LONG)
    assert files(server.datadir()) == [image]
    assert api.delete(image) == 204
    assert during == []


@both_encodings
@pytest.mark.parametrize("end", ["reset", "close"])
def test_killed_client(shared_server: GlanceServer, api: ImageApi, chunked: bool, end: str) -> None:
    """A client that dies in mid-upload leaves nothing, and the same image can be uploaded again."""
    server = shared_server
    image = api.create()
    upload = _begin(api, server, image, chunked)
    upload.reset() if end == "reset" else upload.close()
    api.wait_for(image, "queued")
    assert files(server.datadir()) == []
    assert server.open_files(server.datadir()) == []
    _upload_works(api, server, image)


def test_many_killed_clients(shared_server: GlanceServer, api: ImageApi) -> None:
    """Descriptors, files and threads do not pile up."""
    server = shared_server

    def threads() -> int:
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in server.pids())

    counts = []
    for round_number in range(6):
        images = [api.create() for _ in range(4)]
        for number, image in enumerate(images):
            _begin(api, server, image, chunked=number % 2 == 0).reset()
        for image in images:
            api.wait_for(image, "queued")
            assert api.delete(image) == 204
        wait_until(lambda: not server.open_files(server.datadir()), "all files are closed")
        assert files(server.datadir()) == []
        if round_number >= 1:
            counts.append(threads())
    assert max(counts) - counts[0] <= 8, counts
    _upload_works(api, server, api.create())


@both_servers
@pytest.mark.parametrize("chunk", [None, MIB], ids=["content-length", "chunked"])
def test_declared_size_of_image_is_wrong(make_server: MakeServer, server_name: str, chunk: int | None) -> None:
    """A body longer than the limit that Glance sets is refused while it is being read, from inside ``read``."""
    server = make_server(server=server_name, options={"DEFAULT": {"image_size_cap": 2 * MIB}})
    api = ImageApi(server.url)
    image = api.create()
    assert api.put(image, DATA, chunk=chunk).status == 413
    assert api.status(image) == "queued"
    assert files(server.datadir()) == []
    data = DATA[: 2 * MIB]
    assert api.put(image, data, chunk=chunk).status == 204
    api.check(image, data)


@both_encodings
def test_deleted_while_uploading(shared_server: GlanceServer, api: ImageApi, chunked: bool) -> None:
    """Deleting an image in mid-upload: the upload fails in the end, and nothing stays."""
    server = shared_server
    image = api.create()
    with _begin(api, server, image, chunked) as upload:
        assert api.delete(image) == 204
        upload.send(LONG[HALF:])
        assert upload.finish() == 410
    assert api.status(image) == "deleted"
    assert files(server.datadir()) == []


# -- killed servers --------------------------------------------------------------------------------------------------


def _reset_to_queued(server: GlanceServer, image: str) -> None:
    """Do what an administrator does with an image that is stuck in ``saving``: Glance has no call for it."""
    with sqlite3.connect(server.database, timeout=30) as database:
        database.execute("UPDATE images SET status = 'queued' WHERE id = ?", (image,))


@strict_fastfs_only("A2: a killed server leaves part of the image under its final name, and the retry is refused")
@both_servers
@both_encodings
def test_killed_server(make_server: MakeServer, server_name: str, chunked: bool) -> None:
    server = make_server(server=server_name)
    api = ImageApi(server.url)
    image = api.create()
    upload = _begin(api, server, image, chunked)
    server.kill()
    upload.close()
    after_kill = visible_files(server.datadir())
    server = make_server(server=server_name, root=server.root)
    api = ImageApi(server.url)
    assert api.status(image) == "saving"
    _reset_to_queued(server, image)
    answer = api.put(image, DATA, chunk=MIB if chunked else None)
    assert answer.status == 204, answer
    api.check(image, DATA)
    # What the killed server left under a hidden name has to be gone some time after the restart.
    wait_until(lambda: files(server.datadir()) == [image], "only the image is there")
    assert api.delete(image) == 204
    assert after_kill == files(server.datadir()) == []


@strict_fastfs_only("A2: part of the image stays for ever when its record is deleted")
def test_killed_server_and_deleted_image(make_server: MakeServer) -> None:
    server = make_server()
    api = ImageApi(server.url)
    image = api.create()
    upload = _begin(api, server, image, chunked=False)
    server.kill()
    upload.close()
    server = make_server(root=server.root)
    api = ImageApi(server.url)
    assert api.delete(image) == 204
    wait_until(lambda: files(server.datadir()) == [], "nothing of the image is left", timeout=5)


def test_killed_server_keeps_finished_images(make_server: MakeServer) -> None:
    """What was acknowledged is complete after SIGKILL."""
    server = make_server(processes=2)
    api = ImageApi(server.url)
    images = {api.upload(payload(MIB, seed), chunk=65536 if seed % 2 else None): seed for seed in range(6)}
    server.kill()
    server = make_server(root=server.root)
    api = ImageApi(server.url)
    for image, seed in images.items():
        api.check(image, payload(MIB, seed))
        assert (server.datadir() / image).read_bytes() == payload(MIB, seed)
        assert api.delete(image) == 204
    assert files(server.datadir()) == []


# -- storage ---------------------------------------------------------------------------------------------------------


@both_servers
@both_encodings
def test_storage_full(
    make_server: MakeServer, small_disk: Callable[..., Path], server_name: str, chunked: bool
) -> None:
    """A full filesystem: status 413, nothing left, and the upload works once there is room."""
    datadir = small_disk("disk", 8 * MIB)
    server = make_server(server=server_name, stores={"fast": {"filesystem_store_datadir": datadir}})
    api = ImageApi(server.url)
    ballast = datadir / "ballast"
    ballast.write_bytes(bytes(4 * MIB))
    image = api.create()
    assert api.put(image, DATA, chunk=MIB if chunked else None).status == 413
    assert api.status(image) == "queued"
    assert files(datadir) == ["ballast"]
    ballast.unlink()
    assert api.put(image, DATA, chunk=MIB if chunked else None).status == 204
    api.check(image, DATA)
    assert (datadir / image).read_bytes() == DATA
    assert api.delete(image) == 204
    assert files(datadir) == []


def test_storage_full_does_not_hurt_others(make_server: MakeServer, small_disk: Callable[..., Path]) -> None:
    """Of several uploads that do not all fit, those that are acknowledged are whole, and the others leave nothing."""
    datadir = small_disk("disk", 16 * MIB)
    server = make_server(stores={"fast": {"filesystem_store_datadir": datadir}})
    api = ImageApi(server.url)
    images = [api.create() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: api.put(image, DATA).status, images))
    assert set(answers) <= {204, 413}
    stored = [image for image, status in zip(images, answers, strict=True) if status == 204]
    assert len(stored) <= 2
    assert files(datadir) == sorted(stored)
    for image in stored:
        api.check(image, DATA)
        assert api.delete(image) == 204
    assert api.put(images[answers.index(413)], DATA).status == 204
    api.check(images[answers.index(413)], DATA)


@strict_fastfs_only("A10: a filesystem that went read-only answers 500 instead of 503")
def test_storage_read_only(make_server: MakeServer, small_disk: Callable[..., Path]) -> None:
    datadir = small_disk("disk", 16 * MIB)
    server = make_server(stores={"fast": {"filesystem_store_datadir": datadir}})
    api = ImageApi(server.url)
    image = api.create()
    subprocess.run(["mount", "-o", "remount,ro", str(datadir)], check=True)
    read_only = api.put(image, DATA).status
    assert api.status(image) == "queued"
    subprocess.run(["mount", "-o", "remount,rw", str(datadir)], check=True)
    assert files(datadir) == []
    assert api.put(image, DATA).status == 204
    api.check(image, DATA)
    assert (datadir / image).read_bytes() == DATA
    assert read_only == 503


def test_storage_delete_refused(make_server: MakeServer, small_disk: Callable[..., Path]) -> None:
    """An image that cannot be deleted: status 403, and it stays readable."""
    datadir = small_disk("disk", 16 * MIB)
    server = make_server(stores={"fast": {"filesystem_store_datadir": datadir}})
    api = ImageApi(server.url)
    image = api.upload(DATA)
    subprocess.run(["mount", "-o", "remount,ro", str(datadir)], check=True)
    try:
        refused = api.delete(image)
        assert api.get(image).body == DATA
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(datadir)], check=True)
    assert refused == 403
    api.check(image, DATA)
    assert api.delete(image) == 204
    assert files(datadir) == []


# -- at the same time ------------------------------------------------------------------------------------------------


def test_two_uploads_to_one_image(shared_server: GlanceServer, api: ImageApi) -> None:
    """One upload wins and is what record and file hold; the others are refused and leave nothing."""
    server = shared_server
    for attempt in range(5):
        image = api.create()
        contents = [payload(2 * MIB, 10 * attempt + number) for number in range(3)]
        start = threading.Barrier(len(contents))

        def put(data: bytes, image: str = image, start: threading.Barrier = start) -> int:
            start.wait()
            return api.put(image, data).status

        with ThreadPoolExecutor(len(contents)) as pool:
            answers = list(pool.map(put, contents))
        # 410 is Glance's answer to an upload that lost the race for the record itself.
        assert answers.count(204) == 1, answers
        assert set(answers) <= {204, 409, 410}, answers
        winner = contents[answers.index(204)]
        api.check(image, winner)
        assert (server.datadir() / image).read_bytes() == winner
        assert files(server.datadir()) == [image]
        assert api.delete(image) == 204
        assert files(server.datadir()) == []


def test_two_slow_uploads_to_one_image(shared_server: GlanceServer, api: ImageApi) -> None:
    """A second upload that comes in the middle of the first is refused at once and does the first no harm."""
    server = shared_server
    image = api.create()
    with _begin(api, server, image, chunked=False) as upload:
        assert api.put(image, payload(1000)).status == 409
        upload.send(LONG[HALF:])
        assert upload.finish() == 204
    api.check(image, LONG)
    assert files(server.datadir()) == [image]
    assert api.delete(image) == 204


def test_two_servers_with_one_store(make_server: MakeServer, tmp_path: Path) -> None:
    """A second server that starts on the same directory leaves the first one's unfinished upload alone."""
    server = make_server(stores={"fast": {"filesystem_store_datadir": tmp_path / "images"}})
    api = ImageApi(server.url)
    image = api.create()
    with SlowUpload(api, image, len(LONG)) as upload:
        upload.send(LONG[:HALF])
        wait_until(lambda: server.open_files(tmp_path / "images"), "the store writes")
        second = make_server(stores={"fast": {"filesystem_store_datadir": tmp_path / "images"}})
        other_api = ImageApi(second.url)
        other = other_api.upload(DATA)
        other_api.check(other, DATA)
        time.sleep(1)
        upload.send(LONG[HALF:])
        assert upload.finish() == 204
    api.check(image, LONG)
    assert files(tmp_path / "images") == sorted([image, other])
    assert other_api.delete(other) == 204
    api.check(image, LONG)
    assert api.delete(image) == 204
