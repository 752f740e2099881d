"""Import methods. They put the driver to uses that plain uploads do not: as staging store, and fed by other readers."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from client import MIB, ImageApi, SlowUpload, payload
from conftest import MakeServer
from helpers import DRIVER, files, wait_until
from server import GlanceServer

DATA = payload(5 * MIB + 3)
STORES = ("fast", "slow")


class _Web:
    """A web server on loopback whose files are given as a dictionary."""

    def __init__(self) -> None:
        contents: dict[str, bytes] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = contents.get(self.path)
                self.send_response(200 if data is not None else 404)
                if data is not None and not self.path.endswith("unsized"):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_arguments: object) -> None:
                pass

        self.contents = contents
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, dict[str, str]]:
        """Options with which Glance agrees to download from here: by default, neither loopback nor odd ports."""
        ports = f"[{self._server.server_port}]"
        return {"import_filtering_opts": {"allowed_hosts": "[127.0.0.1]", "allowed_ports": ports}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def web() -> Iterator[_Web]:
    web = _Web()
    yield web
    web.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, web: _Web) -> Iterator[GlanceServer]:
    """A server with two backends besides the staging and the tasks store, all of them of type ``file``."""
    root = tmp_path_factory.mktemp("import")
    with GlanceServer(root, driver=DRIVER, stores={name: {} for name in STORES}, options=web.options) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: GlanceServer) -> ImageApi:
    return ImageApi(server.url)


def _task_states(api: ImageApi, image: str) -> list[str]:
    return [task["status"] for task in api.request("GET", f"/v2/images/{image}/tasks").json()["tasks"]]


def _check_stored(server: GlanceServer, api: ImageApi, image: str, data: bytes, *stores: str) -> None:
    """Record, bytes and the files in every backend are right, staging is empty; then delete and look again."""
    record = api.check(image, data)
    assert sorted(record["stores"].split(",")) == sorted(stores)
    assert record.get("os_glance_failed_import", "") == ""
    locations = {location["metadata"]["store"]: location for location in record["locations"]}
    assert set(locations) == set(stores)
    for store in STORES:
        stored = server.datadir(store) / image
        assert stored.exists() == (store in stores)
        if store in stores:
            assert stored.read_bytes() == data
            assert locations[store]["url"] == f"file://{stored}"
    wait_until(lambda: files(server.staging_directory) == [], "the staging store is empty")
    assert api.delete(image) == 204
    assert all(files(server.datadir(store)) == [] for store in STORES)


@pytest.mark.parametrize("chunk", [None, 100_000], ids=["content-length", "chunked"])
@pytest.mark.parametrize("stores", [("slow",), ("fast", "slow")])
def test_glance_direct(server: GlanceServer, api: ImageApi, stores: tuple[str, ...], chunk: int | None) -> None:
    image = api.create()
    assert api.put(image, DATA, chunk=chunk, target="stage").status == 204
    assert api.status(image) == "uploading"
    assert (server.staging_directory / image).read_bytes() == DATA
    assert api.import_image(image, "glance-direct", stores=list(stores)).status == 202
    api.wait_for(image, "active")
    wait_until(lambda: _task_states(api, image) == ["success"], "all stores are done")
    _check_stored(server, api, image, DATA, *stores)


def test_glance_direct_killed_client(server: GlanceServer, api: ImageApi) -> None:
    """A client killed while staging leaves nothing in the staging store, and can stage again."""
    image = api.create()
    upload = SlowUpload(api, image, len(DATA), target="stage")
    upload.send(DATA[: 3 * MIB])
    wait_until(lambda: server.open_files(server.staging_directory), "the staging store writes")
    upload.reset()
    wait_until(lambda: not server.open_files(server.staging_directory), "the staging store has given up")
    wait_until(lambda: files(server.staging_directory) == [], "the staging store is empty")
    api.wait_for(image, "queued")
    assert api.put(image, DATA, target="stage").status == 204
    assert api.import_image(image, "glance-direct", stores=["fast"]).status == 202
    api.wait_for(image, "active")
    _check_stored(server, api, image, DATA, "fast")


@pytest.mark.parametrize("name", ["/image", "/image-unsized"])
def test_web_download(server: GlanceServer, api: ImageApi, web: _Web, name: str) -> None:
    """With a Content-Length from the other side, and without: the size is then unknown to the staging store."""
    web.contents[name] = DATA
    image = api.create()
    assert api.import_image(image, "web-download", uri=web.url + name, stores=["fast"]).status == 202
    api.wait_for(image, "active")
    _check_stored(server, api, image, DATA, "fast")


def test_web_download_failure(server: GlanceServer, api: ImageApi, web: _Web) -> None:
    image = api.create()
    assert api.import_image(image, "web-download", uri=web.url + "/missing", stores=["fast"]).status == 202
    wait_until(lambda: _task_states(api, image) == ["failure"], "the import failed", timeout=30)
    assert api.status(image) == "queued"
    assert files(server.staging_directory) == []
    assert all(files(server.datadir(store)) == [] for store in STORES)
    web.contents["/now-there"] = DATA
    assert api.import_image(image, "web-download", uri=web.url + "/now-there", stores=["fast"]).status == 202
    api.wait_for(image, "active")
    _check_stored(server, api, image, DATA, "fast")


def test_copy_image(server: GlanceServer, api: ImageApi) -> None:
    """The staging store is filled from another store's iterator, which has no ``read``."""
    image = api.upload(DATA, store="fast")
    assert api.import_image(image, "copy-image", stores=["slow"]).status == 202
    wait_until(lambda: _task_states(api, image) == ["success"], "the copy is made", timeout=30)
    _check_stored(server, api, image, DATA, "fast", "slow")


def test_delete_one_of_two_stores(server: GlanceServer, api: ImageApi) -> None:
    image = api.upload(DATA, store="fast")
    assert api.import_image(image, "copy-image", stores=["slow"]).status == 202
    wait_until(lambda: _task_states(api, image) == ["success"], "the copy is made", timeout=30)
    assert api.request("DELETE", f"/v2/stores/fast/{image}").status == 204
    assert files(server.datadir("fast")) == []
    _check_stored(server, api, image, DATA, "slow")


def test_parallel_import(make_server: MakeServer) -> None:
    """Glance can write one image to several stores at once: the same identifier in several threads of one process."""
    server = make_server(
        stores={name: {} for name in STORES}, options={"image_import_opts": {"max_parallel_stores": 2}}
    )
    api = ImageApi(server.url)
    for _ in range(3):
        image = api.create()
        assert api.put(image, DATA, target="stage").status == 204
        answer = api.import_image(image, "glance-direct", stores=list(STORES), all_stores_must_succeed=True)
        assert answer.status == 202
        api.wait_for(image, "active")
        _check_stored(server, api, image, DATA, *STORES)


def test_import_without_backends(make_server: MakeServer, web: _Web) -> None:
    """Without ``enabled_backends`` the staging store is a second instance of the driver with its own configuration."""
    server = make_server(stores=None, options=web.options)
    api = ImageApi(server.url)
    web.contents["/image"] = DATA
    for method in ("glance-direct", "web-download"):
        image = api.create()
        if method == "glance-direct":
            assert api.put(image, DATA, target="stage").status == 204
        arguments = {"uri": f"{web.url}/image"} if method == "web-download" else {}
        assert api.import_image(image, method, **arguments).status == 202
        api.wait_for(image, "active")
        api.check(image, DATA)
        assert (server.datadir() / image).read_bytes() == DATA
        wait_until(lambda: files(server.staging_directory) == [], "the staging store is empty")
        assert api.delete(image) == 204
        assert files(server.datadir()) == []


def test_orphans_in_staging_are_removed(make_server: MakeServer) -> None:
    """At its start Glance itself removes from the staging directory what no image owns; hidden files are left alone."""
    server = make_server()
    api = ImageApi(server.url)
    image = api.create()
    assert api.put(image, DATA, target="stage").status == 204
    orphan = server.staging_directory / "5d1f8bd0-2b0e-4a3f-9d3c-0a3c5c0f0e11"
    orphan.write_bytes(b"left by an image that is gone")
    server.kill()
    server = make_server(root=server.root)
    api = ImageApi(server.url)
    wait_until(lambda: not orphan.exists(), "the orphan is removed")
    assert (server.staging_directory / image).read_bytes() == DATA
    assert api.import_image(image, "glance-direct", stores=["fast"]).status == 202
    api.wait_for(image, "active")
    api.check(image, DATA)
