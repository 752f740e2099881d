"""Fixtures of the end-to-end suite.

Run it inside an environment made from ``requirements.txt`` (and, for fastfs, fastfs itself)::

    python -m pytest -n 2 --dist loadfile tests/compat/glance

``FASTFS_COMPAT_DRIVER`` chooses the driver under test: ``fastfs`` (the default) or ``upstream``.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import ImageApi
from helpers import DRIVER
from server import GlanceServer

MakeServer = Callable[..., GlanceServer]

_failed = pytest.StashKey[bool]()


def _glance_is_installed() -> bool:
    try:
        importlib.metadata.version("glance")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# In an environment made for the other tests there is nothing to run here.
collect_ignore_glob = [] if _glance_is_installed() else ["test_*.py"]


def pytest_configure() -> None:
    """Let a terminated run, of a CI job that took too long for example, end its servers as an interrupted one does."""

    def terminate(*_arguments: object) -> None:
        pytest.exit("terminated", 143)

    signal.signal(signal.SIGTERM, terminate)


def pytest_report_header() -> str:
    if collect_ignore_glob:
        return "end-to-end tests with Glance: left out, Glance is not installed"
    return f"end-to-end tests with Glance: store driver {DRIVER}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture
def make_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeServer]:
    """Return a function that starts a server with given arguments; the test's servers are stopped after it."""
    servers: list[GlanceServer] = []

    def make(**arguments: Any) -> GlanceServer:
        arguments.setdefault("driver", DRIVER)
        arguments.setdefault("root", tmp_path / f"glance-{len(servers)}")
        arguments["root"].mkdir(exist_ok=True)
        server = GlanceServer(**arguments)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.stop()
        if request.node.stash.get(_failed, False) and server.log_file.exists():
            print(f"--- last lines of {server.log_file} ---\n{server.log_tail(30)}")


@pytest.fixture(scope="session", params=["uwsgi", "gunicorn"])
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlanceServer]:
    """A server with default options, one store, and two worker processes, for tests that need nothing special."""
    root = tmp_path_factory.mktemp(f"shared-{request.param}")
    with GlanceServer(root, driver=DRIVER, server=request.param, processes=2) as server:
        yield server


@pytest.fixture
def api(shared_server: GlanceServer) -> Iterator[ImageApi]:
    """A client of the shared server; what its test leaves is removed, so that one failure does not cause others."""
    api = ImageApi(shared_server.url)
    yield api
    for record in api.request("GET", "/v2/images?limit=1000").json()["images"]:
        api.delete(record["id"])
    for path in shared_server.datadir().iterdir():
        path.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a tmpfs of a given size; skips where mounting is not allowed."""
    mounted: list[Path] = []

    def mount(name: str, size: int) -> Path:
        path = tmp_path / name
        path.mkdir()
        if os.geteuid() != 0:
            pytest.skip("mounting a small filesystem needs root")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        # Lazily: the server may end after this fixture does.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
