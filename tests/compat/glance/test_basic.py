"""Create, upload, download, delete: with both WSGI servers, both ways to send a body, and both official clients."""

from __future__ import annotations

import hashlib
import io
import socket
from concurrent.futures import ThreadPoolExecutor

import glanceclient
import openstack
import pytest

from client import MIB, ImageApi, payload
from helpers import DRIVER, files, wait_until
from server import GlanceServer, driver_of

SIZES = [1, 4095, 65535, 65536, 65537, MIB, 5 * MIB + 3]


@pytest.mark.parametrize("size", SIZES)
def test_content_length(api: ImageApi, shared_server: GlanceServer, size: int) -> None:
    data = payload(size)
    image = api.upload(data)
    api.check(image, data)
    stored = shared_server.datadir() / image
    assert stored.read_bytes() == data
    assert api.delete(image) == 204
    assert not stored.exists()
    assert api.status(image) == "deleted"


@pytest.mark.parametrize("chunk", [1000, 65536, 1 * MIB, 3 * MIB])
def test_chunked(api: ImageApi, shared_server: GlanceServer, chunk: int) -> None:
    data = payload(5 * MIB + 3)
    image = api.upload(data, chunk=chunk)
    api.check(image, data)
    assert (shared_server.datadir() / image).read_bytes() == data
    assert api.delete(image) == 204
    assert not (shared_server.datadir() / image).exists()


@pytest.mark.parametrize("chunk", [None, 65536])
def test_empty_image(api: ImageApi, shared_server: GlanceServer, chunk: int | None) -> None:
    image = api.create()
    assert api.put(image, b"", chunk=chunk).status == 204
    record = api.show(image)
    assert (record["status"], record["size"]) == ("active", 0)
    assert record["checksum"] == hashlib.md5(b"").hexdigest()
    assert record["os_hash_value"] == hashlib.sha512(b"").hexdigest()
    assert (shared_server.datadir() / image).read_bytes() == b""
    assert api.delete(image) == 204


def test_location(api: ImageApi, shared_server: GlanceServer) -> None:
    data = payload(1000)
    image = api.upload(data)
    record = api.check(image, data)
    url = f"file://{shared_server.datadir()}/{image}"
    assert record["direct_url"] == url
    assert record["locations"] == [{"url": url, "metadata": {"store": "fast"}}]
    assert record["stores"] == "fast"
    api.delete(image)


def test_ranges(api: ImageApi) -> None:
    data = payload(200_001)
    image = api.upload(data)
    api.check(image, data)
    size = len(data)
    cases = [(0, 0), (0, 9), (1, 65536), (65535, 65536), (65536, 131071), (100_000, size - 1), (size - 1, size - 1)]
    for first, last in cases:
        answer = api.get(image, f"bytes={first}-{last}")
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert answer.headers["content-length"] == str(last - first + 1)
        assert answer.body == data[first : last + 1]
    assert api.get(image, "bytes=199000-").body == data[199_000:]
    assert api.get(image, f"bytes={size}-{size + 10}").status == 416
    api.delete(image)


def test_missing_data(api: ImageApi, shared_server: GlanceServer) -> None:
    """An image whose file vanished: Glance says so, and its record can still be deleted."""
    image = api.upload(payload(1000))
    api.check(image, payload(1000))
    (shared_server.datadir() / image).unlink()
    assert api.get(image).status == 204
    assert api.delete(image) == 204


def test_download_before_upload(api: ImageApi) -> None:
    image = api.create()
    assert api.get(image).status == 204
    api.delete(image)


def test_upload_twice_is_refused(api: ImageApi) -> None:
    data = payload(100_000)
    image = api.upload(data)
    assert api.put(image, payload(100_000, seed=2)).status == 409
    api.check(image, data)
    api.delete(image)


def test_aborted_downloads_release_the_file(api: ImageApi, shared_server: GlanceServer) -> None:
    """Glance never closes the iterator of a download, so one that is dropped has to release its file by itself."""
    data = payload(20 * MIB)
    image = api.upload(data)
    stored = shared_server.datadir() / image
    for _ in range(8):
        with socket.create_connection(api.address, timeout=30) as connection:
            connection.sendall(f"GET /v2/images/{image}/file HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(1000)
    wait_until(lambda: str(stored) not in shared_server.open_files(stored.parent), "the image is closed")
    api.check(image, data)
    wait_until(lambda: str(stored) not in shared_server.open_files(stored.parent), "the image is closed")
    api.delete(image)


def test_parallel_images(api: ImageApi, shared_server: GlanceServer) -> None:
    """Uploads and downloads of different images at once do not disturb each other."""
    contents = {seed: payload(2 * MIB + seed, seed) for seed in range(8)}

    def cycle(seed: int) -> None:
        for chunk in (None, 100_000):
            image = api.upload(contents[seed], chunk=chunk)
            api.check(image, contents[seed])
            assert api.delete(image) == 204

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(cycle, contents))
    assert files(shared_server.datadir()) == []


def test_glanceclient(api: ImageApi, shared_server: GlanceServer) -> None:
    """python-glanceclient sends chunked bodies, and verifies the multihash of what it downloads."""
    client = glanceclient.Client(endpoint=f"{api.url}/v2", token="unused")
    data = payload(3 * MIB + 1)
    image = client.images.create(name="e2e", disk_format="raw", container_format="bare").id
    client.images.upload(image, io.BytesIO(data))
    api.check(image, data)
    assert b"".join(client.images.data(image)) == data
    assert (shared_server.datadir() / image).read_bytes() == data
    client.images.delete(image)
    assert api.status(image) == "deleted"


def test_openstacksdk(api: ImageApi, shared_server: GlanceServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """openstacksdk computes md5 and sha256 before it uploads, and verifies what it downloads."""
    source = tmp_path_factory.mktemp("sdk") / "image.raw"
    data = payload(3 * MIB + 1)
    source.write_bytes(data)
    cloud = openstack.connect(
        load_yaml_config=False, load_envvars=False, auth_type="none", auth={"endpoint": api.url},
        image_endpoint_override=api.url, image_api_version="2",
    )  # fmt: skip
    image = cloud.image.create_image(
        "e2e-sdk", filename=str(source), disk_format="raw", container_format="bare", wait=True, allow_duplicates=True
    )
    api.check(image.id, data)
    assert (shared_server.datadir() / image.id).read_bytes() == data
    target = source.with_suffix(".copy")
    cloud.image.download_image(image.id, output=str(target))
    assert target.read_bytes() == data
    cloud.image.delete_image(image.id)
    assert api.status(image.id) == "deleted"


def test_stores_information(api: ImageApi, shared_server: GlanceServer) -> None:
    """The administrator's view of the stores reads attributes of the driver."""
    answer = api.request("GET", "/v2/info/stores/detail")
    assert answer.status == 200, answer
    (store,) = [store for store in answer.json()["stores"] if store["id"] == "fast"]
    assert store["type"] == "file"
    assert store["properties"]["data_dir"] == str(shared_server.datadir())
    assert store["properties"]["chunk_size"] == 65536
    assert store["properties"]["thin_provisioning"] is False


def test_driver_under_test(shared_server: GlanceServer) -> None:
    """The server's own record of its stores says that each one is of the driver under test."""
    stores = shared_server.loaded_stores()
    assert set(stores) == {"fast", "os_glance_staging_store", "os_glance_tasks_store"}
    assert {driver_of(store) for store in stores.values()} == {DRIVER}


def test_driver_is_told_apart() -> None:
    """The proof would notice a swap that did not happen, and one that is only half done."""
    base = {"module": "glance_store.driver", "name": "Store", "file": "lib/glance_store/driver.py"}
    original = {
        "module": "glance_store._drivers.filesystem",
        "name": "Store",
        "file": "lib/glance_store/_drivers/filesystem.py",
    }
    assert driver_of({"ancestry": [original, base]}) == "upstream"
    assert driver_of({"ancestry": [{**original, "file": "lib/fastfs/glance/driver.py"}, base]}) == "fastfs"
    assert driver_of({"ancestry": [{**original, "module": "fastfs.glance.driver", "file": ""}, base]}) == "fastfs"
    assert driver_of({"ancestry": [{**original, "file": "lib/other/filesystem.py"}, base]}) == "unknown"
