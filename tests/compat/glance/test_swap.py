"""Changing the driver under existing images: what one has stored the other reads and deletes, both ways."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from client import MIB, ImageApi, payload
from conftest import MakeServer
from helpers import DRIVER, files
from server import driver_of

SIZES = [0, 1, 65536, 3 * MIB + 5]
SPARSE = bytes(2 * MIB) + payload(MIB) + bytes(4 * MIB)


def _orders() -> list[tuple[str, str]]:
    return [("upstream", DRIVER), (DRIVER, "upstream")] if DRIVER != "upstream" else [("upstream", "upstream")]


@pytest.mark.parametrize("layout", ["backends", "single-store", "datadirs"])
@pytest.mark.parametrize(("first", "second"), _orders())
def test_swap(make_server: MakeServer, tmp_path: Path, first: str, second: str, layout: str) -> None:
    options: dict[str, object] = {"filesystem_store_file_perm": 640, "filesystem_thin_provisioning": True}
    datadir = tmp_path / "images"
    if layout == "datadirs":
        options["filesystem_store_datadirs"] = [f"{tmp_path / 'spare'}:1", f"{datadir}:2"]
    else:
        options["filesystem_store_datadir"] = datadir
        metadata = tmp_path / "metadata.json"
        metadata.write_text(json.dumps({"id": "share", "mountpoint": str(datadir)}))
        options["filesystem_store_metadata_file"] = metadata
    arguments: dict[str, Any] = {"stores": None if layout == "single-store" else {"fast": {}}, "store_options": options}

    server = make_server(driver=first, **arguments)
    api = ImageApi(server.url)
    contents = {api.upload(payload(size), chunk=100_000 if size % 2 else None): payload(size) for size in SIZES[1:]}
    contents[api.upload(SPARSE)] = SPARSE
    deleted = api.upload(payload(1000))
    assert api.delete(deleted) == 204
    records = {image: api.check(image, data) for image, data in contents.items()}
    states = {image: (datadir / image).stat() for image in contents}
    server.stop()

    server = make_server(driver=second, root=server.root, **arguments)
    assert {driver_of(store) for store in server.loaded_stores().values()} == {second}
    api = ImageApi(server.url)
    assert files(datadir) == sorted(contents)
    for image, data in contents.items():
        assert api.check(image, data) == records[image]
        if len(data) > 100:
            assert api.get(image, "bytes=50-99").body == data[50:100]
    added = api.upload(SPARSE)
    record = api.check(added, SPARSE)
    twin = next(image for image, data in contents.items() if data is SPARSE)
    same = ("checksum", "os_hash_algo", "os_hash_value", "size", "disk_format")
    assert {name: record[name] for name in same} == {name: records[twin][name] for name in same}
    assert record["locations"][0]["metadata"] == records[twin]["locations"][0]["metadata"]
    assert stat.S_IMODE((datadir / added).stat().st_mode) == stat.S_IMODE(states[twin].st_mode) == 0o640
    assert abs((datadir / added).stat().st_blocks - states[twin].st_blocks) * 512 <= MIB
    # Half of the images are deleted by the second driver, the rest, and one of its own, by the first.
    half = list(contents)[::2]
    for image in half:
        assert api.delete(image) == 204
    server.stop()

    server = make_server(driver=first, root=server.root, **arguments)
    api = ImageApi(server.url)
    contents[added] = SPARSE
    for image in half:
        assert api.status(image) == "deleted"
        del contents[image]
    assert files(datadir) == sorted(contents)
    for image, data in contents.items():
        api.check(image, data)
        assert api.delete(image) == 204
    assert files(datadir) == []


@pytest.mark.parametrize(("first", "second"), _orders())
def test_swap_in_the_middle_of_an_import(make_server: MakeServer, first: str, second: str) -> None:
    """Staged by one driver, imported by the other."""
    data = payload(3 * MIB + 5)
    server = make_server(driver=first)
    image = ImageApi(server.url).create()
    assert ImageApi(server.url).put(image, data, target="stage").status == 204
    server.stop()
    server = make_server(driver=second, root=server.root)
    api = ImageApi(server.url)
    assert api.import_image(image, "glance-direct", stores=["fast"]).status == 202
    api.wait_for(image, "active")
    api.check(image, data)
    assert api.delete(image) == 204
    assert files(server.datadir()) == []
