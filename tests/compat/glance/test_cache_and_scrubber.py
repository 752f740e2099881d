"""Glance's image cache, which reads the driver's iterator in its own way, and delayed deletion."""

from __future__ import annotations

import socket
import time

import pytest

from client import MIB, ImageApi, payload
from conftest import MakeServer
from helpers import files, wait_until

DATA = payload(5 * MIB + 3)


@pytest.mark.parametrize("server_name", ["uwsgi", "gunicorn"])
def test_image_cache(make_server: MakeServer, server_name: str) -> None:
    """The first download fills the cache, the second one is served from it, without the store's file."""
    server = make_server(server=server_name, caching=True)
    api = ImageApi(server.url)
    image = api.upload(DATA)
    api.check(image, DATA)
    cached = server.cache_directory / image
    wait_until(cached.exists, "the image is cached")
    assert cached.read_bytes() == DATA
    stored = server.datadir() / image
    hidden = stored.rename(server.root / "hidden")
    api.check(image, DATA)
    hidden.rename(stored)
    assert api.get(image, "bytes=70000-200000").body == DATA[70000:200001]
    assert api.delete(image) == 204
    assert not cached.exists()
    assert files(server.datadir()) == []


def test_image_cache_after_aborted_download(make_server: MakeServer) -> None:
    """A download that is broken off must not put part of the image into the cache."""
    server = make_server(caching=True)
    api = ImageApi(server.url)
    data = payload(30 * MIB)
    image = api.upload(data)
    with socket.create_connection(api.address, timeout=30) as connection:
        connection.sendall(f"GET /v2/images/{image}/file HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(1000)
    wait_until(lambda: not server.open_files(server.datadir()), "the image is closed")
    assert not (server.cache_directory / image).exists()
    api.check(image, data)
    wait_until((server.cache_directory / image).exists, "the image is cached")
    assert (server.cache_directory / image).read_bytes() == data


@pytest.mark.parametrize("backends", [True, False], ids=["backends", "single-store"])
def test_delayed_delete(make_server: MakeServer, backends: bool) -> None:
    """With delayed deletion the data stays until glance-scrubber, another process, deletes it."""
    server = make_server(
        stores={"fast": {}} if backends else None, options={"DEFAULT": {"delayed_delete": True, "scrub_time": 0}}
    )
    api = ImageApi(server.url)
    kept = api.upload(DATA)
    image = api.upload(DATA)
    api.check(image, DATA)
    assert api.delete(image) == 204
    assert api.status(image) == "deleted"
    assert (server.datadir() / image).read_bytes() == DATA
    time.sleep(1.1)  # the scrubber compares whole seconds
    server.run_command("glance-scrubber")
    assert files(server.datadir()) == [kept]
    api.check(kept, DATA)


def test_delayed_delete_restored(make_server: MakeServer) -> None:
    server = make_server(options={"DEFAULT": {"delayed_delete": True, "scrub_time": 3600}})
    api = ImageApi(server.url)
    image = api.upload(DATA)
    assert api.delete(image) == 204
    server.run_command("glance-scrubber")
    assert (server.datadir() / image).read_bytes() == DATA
    server.run_command("glance-scrubber", "--restore", image)
    # Glance restores the record but not its locations, so the data itself cannot be had through the API any more.
    assert api.status(image) == "active"
    assert (server.datadir() / image).read_bytes() == DATA
