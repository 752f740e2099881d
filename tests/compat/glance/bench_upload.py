"""Upload rate of the real server with the upstream driver and with fastfs, in turn.

``python bench_upload.py --drivers upstream,fastfs --pairs 5 --json result.json``

For every combination of chunk size and number of clients, the drivers take turns: each pair of runs is made close
together, so that whatever else slows the machine slows both. Rate and ratio are medians over the pairs. Processor
time is that of the server's processes alone. The clients send prepared memory over loopback, without reading files.
Every upload is checked against the image's md5 and multihash, and deleted again.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import MIB, ImageApi, payload
from server import GlanceServer

SEND = 1 * MIB


@dataclass
class Run:
    """One measurement: all clients' uploads together."""

    seconds: float
    mb_per_second: float
    cpu_seconds_per_gb: float


class Content:
    """An image in memory that the kernel can send by itself, with its digests."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("image")
        md5, sha512 = hashlib.md5(), hashlib.sha512()
        block = memoryview(payload(min(size, 16 * MIB), seed=7))
        while (left := size - os.fstat(self.fd).st_size) > 0:
            os.write(self.fd, block[:left])
            md5.update(block[:left])
            sha512.update(block[:left])
        self.md5, self.sha512 = md5.hexdigest(), sha512.hexdigest()

    def send(self, connection: socket.socket, start: int, end: int) -> None:
        """Send a part of the image."""
        while start < end:
            start += os.sendfile(connection.fileno(), self.fd, start, end - start)


def _upload(api: ImageApi, image: str, content: Content, chunked: bool) -> int:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {content.size}"
    with socket.create_connection(api.address) as connection:
        connection.sendall(
            f"PUT /v2/images/{image}/file HTTP/1.1\r\nHost: {api.address[0]}\r\n"
            f"Content-Type: application/octet-stream\r\n{length}\r\n\r\n".encode()
        )
        if chunked:
            for start in range(0, content.size, SEND):
                end = min(start + SEND, content.size)
                connection.sendall(b"%x\r\n" % (end - start))
                content.send(connection, start, end)
                connection.sendall(b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        else:
            content.send(connection, 0, content.size)
        answer = http.client.HTTPResponse(connection, method="PUT")
        answer.begin()
        answer.read()
        return answer.status


def measure(server: GlanceServer, clients: int, content: Content, chunked: bool) -> Run:
    """Upload with several clients at once, check the results, delete the images."""
    api = ImageApi(server.url)
    images = [api.create() for _ in range(clients)]
    answers: dict[str, int] = {}

    def client(image: str) -> None:
        answers[image] = _upload(api, image, content, chunked)

    threads = [threading.Thread(target=client, args=(image,)) for image in images]
    cpu = server.cpu_seconds()
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    cpu = server.cpu_seconds() - cpu
    for image in images:
        record = api.show(image)
        found = (answers.get(image), record["status"], record["size"], record["checksum"], record["os_hash_value"])
        if found != (204, "active", content.size, content.md5, content.sha512):
            raise SystemExit(f"{server.driver}: the upload went wrong: {found}")
        api.delete(image)
    total = clients * content.size / 1e9
    return Run(seconds, 1000 * total / seconds, cpu / total)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make all measurements."""
    os.environ["FASTFS_DURABILITY"] = arguments.durability
    content = Content(arguments.size * MIB)
    drivers = arguments.drivers.split(",")
    results = []
    for chunk_size in arguments.chunk_sizes:
        options = {"filesystem_store_chunk_size": chunk_size}
        # One server for each driver, both alive during all the pairs: an idle one takes no processor time.
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-upload-") as root:
            servers = {}
            try:
                for driver in drivers:
                    directory = Path(root, driver)
                    directory.mkdir()
                    servers[driver] = GlanceServer(
                        directory, driver=driver, server=arguments.server, processes=arguments.processes,
                        threads=8, store_options=options,
                    ).start()  # fmt: skip
                for clients in arguments.clients:
                    for driver in drivers:
                        # Warm up: caches, threads, imports.
                        measure(servers[driver], clients, content, arguments.chunked)
                    runs: dict[str, list[Run]] = {driver: [] for driver in drivers}
                    for number in range(arguments.pairs):
                        for driver in drivers if number % 2 == 0 else reversed(drivers):
                            runs[driver].append(measure(servers[driver], clients, content, arguments.chunked))
                    results.append(_summary(chunk_size, clients, drivers, runs))
                    print(_line(results[-1]), flush=True)
            finally:
                for server in servers.values():
                    server.stop()
    return {
        "megabytes": content.size / 1e6,
        "server": arguments.server,
        "processes": arguments.processes,
        "chunked": arguments.chunked,
        "durability": arguments.durability,
        "pairs": arguments.pairs,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "results": results,
    }


def _summary(chunk_size: int, clients: int, drivers: list[str], runs: dict[str, list[Run]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"chunk_size": chunk_size, "clients": clients, "drivers": {}}
    for driver in drivers:
        summary["drivers"][driver] = {
            "mb_per_second": statistics.median(run.mb_per_second for run in runs[driver]),
            "cpu_seconds_per_gb": statistics.median(run.cpu_seconds_per_gb for run in runs[driver]),
            "runs": [asdict(run) for run in runs[driver]],
        }
    if len(drivers) == 2:
        base, other = (runs[driver] for driver in drivers)
        ratios = [second.mb_per_second / first.mb_per_second for first, second in zip(base, other, strict=True)]
        summary["ratio"] = statistics.median(ratios)
        summary["ratios"] = ratios
    return summary


def _line(summary: dict[str, Any]) -> str:
    columns = [f"{summary['chunk_size']:>9} {summary['clients']:>7}"]
    for driver, found in summary["drivers"].items():
        columns.append(f"{driver:>9} {found['mb_per_second']:>7.0f} MB/s {found['cpu_seconds_per_gb']:>6.2f} s/GB")
    if "ratio" in summary:
        columns.append(f"x {summary['ratio']:.2f}")
    return "  ".join(columns)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", default="upstream,fastfs", help="one or two; the ratio is second to first")
    parser.add_argument("--size", type=int, default=512, help="MiB of each image")
    parser.add_argument("--clients", type=_numbers, default=[1, 4])
    parser.add_argument("--chunk-sizes", type=_numbers, default=[65536, 1 * MIB], help="filesystem_store_chunk_size")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--server", choices=["uwsgi", "gunicorn"], default="uwsgi")
    parser.add_argument("--processes", type=int, default=1, help="worker processes of the server")
    parser.add_argument("--chunked", action="store_true", help="chunked uploads instead of Content-Length")
    parser.add_argument("--durability", choices=["none", "file", "full"], default="none", help="of fastfs")
    parser.add_argument("--directory", type=Path, help="where the images go (default: the temporary directory)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the servers are to end with this
    print(f"{'chunk':>9} {'clients':>7}")
    result = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
