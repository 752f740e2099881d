"""The servers of docs/serving.md as they stand there: gunicorn, uvicorn, asyncio; curl and requests as clients."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from fastfs import Store

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
SIZE = 16 * (1 << 20) + 77
CONTENT = random.Random(9).randbytes(SIZE)

# gunicorn tells of each sendfile, so that a test can see that its file_wrapper was used.
GUNICORN = """
import socket, sys
def post_worker_init(worker):
    original = socket.socket.sendfile
    def sendfile(self, file, offset=0, count=None):
        print("sendfile", offset, count, file=sys.stderr, flush=True)
        return original(self, file, offset, count)
    socket.socket.sendfile = sendfile
"""
SERVERS: dict[str, Callable[[int], list[str]]] = {
    "gunicorn": lambda port: ["gunicorn", "-b", f"127.0.0.1:{port}", "-c", "settings.py", "wsgi"],
    "gunicorn, threads": lambda port: [
        *("gunicorn", "-b", f"127.0.0.1:{port}", "-c", "settings.py", "--threads", "3", "wsgi")
    ],
    "gunicorn, no sendfile": lambda port: [
        *("gunicorn", "-b", f"127.0.0.1:{port}", "-c", "settings.py", "--no-sendfile", "wsgi")
    ],
    "uvicorn": lambda port: ["uvicorn", "--port", str(port), "asgi:application"],
    "asyncio": lambda port: ["streams", str(port)],
}


def blocks() -> dict[str, str]:
    """The guide's files, by name."""
    found = re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return dict(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Server:
    def __init__(self, name: str, directory: Path) -> None:
        self.images = directory / "images"
        self.store = Store(datadir=str(self.images), durability="none")
        for file, text in blocks().items():
            (directory / file).write_text(text)
        (directory / "settings.py").write_text(GUNICORN)
        self.port = free_port()
        self.log = directory / "log"
        environment = os.environ | {"IMAGES": str(self.images), "PYTHONUNBUFFERED": "1"}
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", *SERVERS[name](self.port)]
            self.process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.store.add("image", CONTENT)
        self.store.add("empty", b"")
        until(self._answers, lambda: self.log.read_text())

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.url}/empty", timeout=10).status_code == 200
        except requests.ConnectionError:
            return False

    def descriptors(self) -> int:
        """Of the server and its workers, on images."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        count = 0
        for pid in [str(self.process.pid), *children]:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    count += os.readlink(link).startswith(str(self.images) + "/")
                except OSError:
                    continue  # closed meanwhile
        return count

    def begin(self, name: str) -> socket.socket:
        """A client that has had the first bytes, and reads no further before it is asked to."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.connect(("127.0.0.1", self.port))
        client.sendall(f"GET /{name} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        return client

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.store.close()


def until(condition: Callable[[], bool], told: Callable[[], str] = str) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends, f"waited in vain; {told()}"
        time.sleep(0.02)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: Any, tmp_path_factory: Any) -> Iterator[Server]:
    server = Server(request.param, tmp_path_factory.mktemp("server"))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def none_left(server: Server) -> Iterator[None]:
    yield
    until(lambda: server.descriptors() == 0, lambda: "descriptors of images are left")


def test_whole(server: Server) -> None:
    answer = requests.get(f"{server.url}/image", timeout=30)
    assert (answer.status_code, answer.headers["Accept-Ranges"]) == (200, "bytes")
    assert answer.content == CONTENT
    assert requests.get(f"{server.url}/empty", timeout=30).content == b""


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-511", 0, 512),
        ("bytes=1000000-9000000", 1_000_000, 9_000_001),
        ("bytes=4097-", 4097, SIZE),
        ("bytes=-4096", SIZE - 4096, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE + 9}", SIZE - 1, SIZE),
    ],
)
def test_range(wanted: str, begin: int, end: int, server: Server) -> None:
    answer = requests.get(f"{server.url}/image", headers={"Range": wanted}, timeout=30)
    assert (answer.status_code, answer.headers["Content-Range"]) == (206, f"bytes {begin}-{end - 1}/{SIZE}")
    assert answer.content == CONTENT[begin:end]


@pytest.mark.parametrize(
    "wanted", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0", f"bytes={'9' * 5000}-"]
)
def test_range_that_is_not_there(wanted: str, server: Server) -> None:
    answer = requests.get(f"{server.url}/image", headers={"Range": wanted}, timeout=30)
    assert (answer.status_code, answer.headers["Content-Range"], answer.content) == (416, f"bytes */{SIZE}", b"")


@pytest.mark.parametrize("wanted", ["bytes=5-3", "bytes=0-1,3-4", "lines=0-1", "bytes=", "bytes=-", "bytes=a-b"])
def test_range_that_means_nothing(wanted: str, server: Server) -> None:
    answer = requests.get(f"{server.url}/image", headers={"Range": wanted}, timeout=30)
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


@pytest.mark.parametrize("server", [name for name in SERVERS if name != "asyncio"], indirect=True)
def test_head(server: Server) -> None:
    answer = requests.head(f"{server.url}/image", timeout=30)
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, str(SIZE), b"")
    assert requests.post(f"{server.url}/image", timeout=30).status_code == 405


@pytest.mark.parametrize("path", ["nothing", "", ".hidden", "%2e%2e/settings.py", "../settings.py", "a%00b"])
def test_not_found(path: str, server: Server) -> None:
    command = ["curl", "-sS", "--path-as-is", "-o", os.devnull, "-w", "%{http_code}", f"{server.url}/{path}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "404"


def test_curl(server: Server, tmp_path: Path) -> None:
    """A range, and a download that is resumed."""
    assert shutil.which("curl"), "curl is what this is about: apt-get install curl"
    target = tmp_path / "image"
    curl = ["curl", "-sSf", "-o", str(target)]
    subprocess.run([*curl, "--range", "1000-1999", f"{server.url}/image"], check=True)
    assert target.read_bytes() == CONTENT[1000:2000]
    target.write_bytes(CONTENT[:5_000_000])
    subprocess.run([*curl, "-C", "-", f"{server.url}/image"], check=True)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()


def test_client_that_goes_half_way(server: Server) -> None:
    for _ in range(3):
        with server.begin("image") as client:
            client.recv(100_000)
            assert server.descriptors() == 1
        until(lambda: server.descriptors() == 0)
    assert requests.get(f"{server.url}/empty", timeout=30).status_code == 200


def test_deleted_meanwhile(server: Server) -> None:
    server.store.add("going", CONTENT)
    with server.begin("going") as client:
        server.store.delete(server.store.find("going"))
        got = bytearray()
        while piece := client.recv(1 << 20):
            got += piece
    assert got.endswith(CONTENT)


def test_shrinks_meanwhile(server: Server) -> None:
    """A client is not told that it has had everything: the connection ends before the announced length."""
    server.store.add("shrinking", CONTENT)
    with server.begin("shrinking") as client:
        os.truncate(server.images / "shrinking", SIZE - 100_000)
        got = bytearray()
        try:
            while piece := client.recv(1 << 20):
                got += piece
        except ConnectionResetError:
            pass
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert f"content-length: {SIZE}" in head.decode().lower()
    assert len(body) < SIZE
    server.store.delete(server.store.find("shrinking"))


@pytest.mark.parametrize("server", ["gunicorn", "gunicorn, threads"], indirect=True)
def test_gunicorn_uses_sendfile(server: Server) -> None:
    requests.get(f"{server.url}/image", headers={"Range": "bytes=12345-54320"}, timeout=30)
    until(lambda: "sendfile 12345 41976" in server.log.read_text())
