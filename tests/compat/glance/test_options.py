"""The options of the store: datadirs, metadata file, permissions, thin provisioning, chunk size, time-outs, hashes."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from client import MIB, ImageApi, SlowUpload, payload
from conftest import MakeServer
from helpers import files, strict_fastfs_only, visible_files, wait_until


def _cycle(api: ImageApi, data: bytes, where: Path, algorithm: str = "sha512", chunk: int | None = None) -> None:
    """Upload, compare record, download and stored file, delete, and compare the directory."""
    image = api.upload(data, chunk=chunk)
    api.check(image, data, algorithm)
    assert (where / image).read_bytes() == data
    assert api.delete(image) == 204
    assert visible_files(where) == []


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- layouts of stores -----------------------------------------------------------------------------------------------


def test_single_store_layout(make_server: MakeServer) -> None:
    """Without ``enabled_backends`` Glance takes another way through glance_store, and locations carry no store."""
    server = make_server(stores=None)
    api = ImageApi(server.url)
    data = payload(MIB + 1)
    image = api.upload(data)
    record = api.check(image, data)
    assert record["locations"] == [{"url": f"file://{server.datadir()}/{image}", "metadata": {}}]
    assert api.get(image, "bytes=5-70000").body == data[5:70001]
    assert api.delete(image) == 204
    assert files(server.datadir()) == []


def test_two_backends(make_server: MakeServer) -> None:
    """The store is chosen for each upload; the same options differ between them."""
    server = make_server(stores={"fast": {"filesystem_store_file_perm": 640}, "slow": {}})
    api = ImageApi(server.url)
    for store in ("fast", "slow"):
        data = payload(MIB, seed=len(store))
        image = api.upload(data, store=store)
        record = api.check(image, data)
        assert record["locations"][0]["metadata"] == {"store": store}
        assert (server.datadir(store) / image).read_bytes() == data
        assert _mode(server.datadir(store) / image) == (0o640 if store == "fast" else 0o644)
        assert api.delete(image) == 204
        assert files(server.datadir(store)) == []


@pytest.mark.parametrize("server_name", ["uwsgi", "gunicorn"])
@pytest.mark.parametrize("chunk_size", [1, 4096, 1 * MIB, 64 * MIB])
def test_chunk_size(make_server: MakeServer, server_name: str, chunk_size: int) -> None:
    """From a silly to a large chunk size. A chunk of 1 byte costs a read each, so that image is small."""
    server = make_server(server=server_name, store_options={"filesystem_store_chunk_size": chunk_size})
    api = ImageApi(server.url)
    data = payload(10_000 if chunk_size == 1 else 3 * MIB + 17)
    _cycle(api, data, server.datadir())
    _cycle(api, data, server.datadir(), chunk=2 * MIB)


# -- several directories ---------------------------------------------------------------------------------------------


def test_datadirs_priority(make_server: MakeServer, tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    server = make_server(stores={"fast": {"filesystem_store_datadirs": [f"{low}:100", f"{high}:200"]}})
    api = ImageApi(server.url)
    _cycle(api, payload(MIB), high)
    _cycle(api, payload(MIB), high, chunk=65536)
    assert files(low) == []


def test_datadirs_read_and_delete_from_any(make_server: MakeServer, tmp_path: Path) -> None:
    """Images stay readable and can be deleted when the priorities change."""
    first, second = tmp_path / "first", tmp_path / "second"
    data = payload(MIB)
    server = make_server(stores={"fast": {"filesystem_store_datadirs": [f"{first}:2", f"{second}:1"]}})
    image = ImageApi(server.url).upload(data)
    assert (first / image).read_bytes() == data
    server.stop()
    server = make_server(
        root=server.root, stores={"fast": {"filesystem_store_datadirs": [f"{first}:1", f"{second}:2"]}}
    )
    api = ImageApi(server.url)
    api.check(image, data)
    _cycle(api, data, second)
    assert api.delete(image) == 204
    assert files(first) == files(second) == []


def test_datadirs_full_one_is_passed_over(
    make_server: MakeServer, small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    """An upload of known size goes to a directory of lower priority when the preferred one lacks the room."""
    full, roomy = small_disk("full", 8 * MIB), tmp_path / "roomy"
    server = make_server(stores={"fast": {"filesystem_store_datadirs": [f"{full}:200", f"{roomy}:100"]}})
    api = ImageApi(server.url)
    _cycle(api, payload(12 * MIB), roomy)
    assert files(full) == []


@strict_fastfs_only("A28: an upload of unknown size fails in a full directory although another has room")
def test_datadirs_full_one_is_passed_over_chunked(
    make_server: MakeServer, small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    full, roomy = small_disk("full", 8 * MIB), tmp_path / "roomy"
    server = make_server(stores={"fast": {"filesystem_store_datadirs": [f"{full}:200", f"{roomy}:100"]}})
    api = ImageApi(server.url)
    _cycle(api, payload(12 * MIB), roomy, chunk=MIB)
    assert files(full) == []


@strict_fastfs_only("B17: no attribute datadir with several directories, so Glance answers 500")
def test_datadirs_stores_information(make_server: MakeServer, tmp_path: Path) -> None:
    directories = [f"{tmp_path / 'low'}:100", f"{tmp_path / 'high'}:200"]
    server = make_server(stores={"fast": {"filesystem_store_datadirs": directories}})
    answer = ImageApi(server.url).request("GET", "/v2/info/stores/detail")
    assert answer.status == 200
    (store,) = [store for store in answer.json()["stores"] if store["id"] == "fast"]
    assert str(tmp_path / "high") in json.dumps(store["properties"]["data_dir"])


# -- metadata file ---------------------------------------------------------------------------------------------------


def test_metadata_file(make_server: MakeServer, tmp_path: Path) -> None:
    """The entry of the metadata file that names the directory becomes the location's metadata."""
    datadir = tmp_path / "images"
    entries = [
        {"id": "elsewhere", "mountpoint": str(tmp_path / "elsewhere")},
        {"id": "here", "mountpoint": str(datadir), "share": "nfs://host/export"},
    ]
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps(entries))
    options = {"filesystem_store_datadir": datadir, "filesystem_store_metadata_file": metadata}
    server = make_server(stores={"fast": options})
    api = ImageApi(server.url)
    data = payload(MIB)
    image = api.upload(data)
    record = api.check(image, data)
    (location,) = record["locations"]
    assert location["url"] == f"file://{datadir}/{image}"
    assert location["metadata"] == {**entries[1], "store": "fast"}
    assert api.delete(image) == 204
    assert files(datadir) == []


@strict_fastfs_only("A17, A18: mountpoints are compared as text, and the first match wins")
def test_metadata_file_similar_names(make_server: MakeServer, tmp_path: Path) -> None:
    datadir = tmp_path / "images2"
    entries = [
        {"id": "similar", "mountpoint": str(tmp_path / "images")},
        {"id": "parent", "mountpoint": str(tmp_path)},
        {"id": "exact", "mountpoint": str(datadir)},
    ]
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps(entries))
    options = {"filesystem_store_datadir": datadir, "filesystem_store_metadata_file": metadata}
    server = make_server(stores={"fast": options})
    api = ImageApi(server.url)
    data = payload(1000)
    image = api.upload(data)
    assert api.check(image, data)["locations"][0]["metadata"]["id"] == "exact"


# -- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("perm", "file_mode", "directory_bits"),
    [(0, 0o644, 0), (600, 0o600, 0), (640, 0o640, 0o010), (644, 0o644, 0o011), (440, 0o440, 0o010)],
)
def test_file_permission(make_server: MakeServer, perm: int, file_mode: int, directory_bits: int) -> None:
    """The option decides the file's mode, 0 leaves it to the umask; the directory becomes passable as needed."""
    server = make_server(store_options={"filesystem_store_file_perm": perm}, umask=0o022)
    api = ImageApi(server.url)
    data = payload(100_000)
    image = api.upload(data)
    api.check(image, data)
    assert _mode(server.datadir() / image) == file_mode
    assert _mode(server.datadir()) & directory_bits == directory_bits
    assert api.delete(image) == 204


def test_file_permission_umask(make_server: MakeServer) -> None:
    server = make_server(umask=0o077)
    api = ImageApi(server.url)
    data = payload(100_000)
    image = api.upload(data)
    api.check(image, data)
    assert _mode(server.datadir() / image) == 0o600


@strict_fastfs_only("A14: until an upload ends its file has the umask's permissions")
def test_file_permission_while_uploading(make_server: MakeServer) -> None:
    server = make_server(store_options={"filesystem_store_file_perm": 600})
    api = ImageApi(server.url)
    data = payload(4 * MIB)
    image = api.create()
    with SlowUpload(api, image, len(data)) as upload:
        upload.send(data[: 2 * MIB])
        wait_until(lambda: server.open_files(server.datadir()), "the upload has begun")
        during = {path.name: _mode(path) for path in server.datadir().iterdir()}
        upload.send(data[2 * MIB :])
        assert upload.finish() == 204
    api.check(image, data)
    assert all(mode & 0o077 == 0 for mode in during.values()), during


# -- thin provisioning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, MIB, 100_000])
def test_thin_provisioning(make_server: MakeServer, chunk: int | None) -> None:
    """Zeroes become holes; bytes, size and digests are those of the whole image; without the option no hole is made."""
    data = payload(MIB) + bytes(16 * MIB) + payload(MIB, seed=2) + bytes(16 * MIB)
    for thin in (True, False):
        server = make_server(store_options={"filesystem_thin_provisioning": thin})
        api = ImageApi(server.url)
        image = api.upload(data, chunk=chunk)
        api.check(image, data)
        stored = server.datadir() / image
        assert stored.read_bytes() == data
        allocated = stored.stat().st_blocks * 512
        assert allocated < 4 * MIB if thin else allocated >= len(data)
        assert api.get(image, f"bytes={MIB - 5}-{MIB + 5}").body == data[MIB - 5 : MIB + 6]
        assert api.delete(image) == 204
        server.stop()


# -- time-outs -------------------------------------------------------------------------------------------------------


def test_timeout_option(make_server: MakeServer) -> None:
    """The thread pool behind ``filesystem_store_timeout`` changes nothing as long as the storage answers."""
    server = make_server(store_options={"filesystem_store_timeout": 5})
    _cycle(ImageApi(server.url), payload(MIB), server.datadir())


@strict_fastfs_only("E10: with several directories the thread pool is used before the fork, and dead after it")
@pytest.mark.parametrize("server_name", ["uwsgi", "gunicorn"])
def test_timeout_in_forked_workers(make_server: MakeServer, tmp_path: Path, server_name: str) -> None:
    options = {
        "filesystem_store_datadirs": [f"{tmp_path / 'first'}:2", f"{tmp_path / 'second'}:1"],
        "filesystem_store_timeout": 30,
    }
    server = make_server(server=server_name, stores={"fast": options}, load_before_fork=True)
    _cycle(ImageApi(server.url), payload(MIB), tmp_path / "first")


@pytest.mark.parametrize("server_name", ["uwsgi", "gunicorn"])
def test_loaded_before_fork(make_server: MakeServer, server_name: str) -> None:
    """Stores made in the master process work in several workers forked from it."""
    server = make_server(server=server_name, processes=3, load_before_fork=True)
    api = ImageApi(server.url)
    for seed in range(6):
        _cycle(api, payload(2 * MIB, seed), server.datadir(), chunk=MIB if seed % 2 else None)


# -- hashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha512", "sha384", "sha256", "blake2b", "sha3_256", "sha1", "md5"])
def test_hash_algorithm(make_server: MakeServer, algorithm: str) -> None:
    server = make_server(options={"DEFAULT": {"hashing_algorithm": algorithm}})
    api = ImageApi(server.url)
    for size in (1, 2 * MIB + 7):
        _cycle(api, payload(size), server.datadir(), algorithm)
    _cycle(api, payload(2 * MIB + 7), server.datadir(), algorithm, chunk=100_000)
    assert hashlib.new(algorithm).name == algorithm


def _refused_for_its_algorithm(make_server: MakeServer, algorithm: str) -> None:
    """An impossible algorithm fails the upload; nothing stays, and the image can be uploaded to again."""
    server = make_server(options={"DEFAULT": {"hashing_algorithm": algorithm}})
    api = ImageApi(server.url)
    image = api.create()
    assert api.put(image, payload(MIB)).status >= 400
    assert api.status(image) == "queued"
    assert files(server.datadir()) == []
    server.stop()
    server = make_server(root=server.root)
    api = ImageApi(server.url)
    assert api.put(image, payload(MIB)).status == 204
    api.check(image, payload(MIB))


def test_unknown_hash_algorithm(make_server: MakeServer) -> None:
    _refused_for_its_algorithm(make_server, "no-such-hash")


@strict_fastfs_only("A11: a hash without a fixed length fails after the last byte and leaves the file")
def test_hash_algorithm_without_length(make_server: MakeServer) -> None:
    _refused_for_its_algorithm(make_server, "shake_128")
