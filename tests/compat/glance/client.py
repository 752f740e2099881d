"""A small client of Glance's image API that can misbehave, which the official clients cannot.

Every request is made over a connection of its own, so that an aborted one never disturbs the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

MIB = 1 << 20
TIMEOUT = 60.0


def payload(size: int, seed: int = 1) -> bytes:
    """Return reproducible data that no algorithm can shorten and that has no long runs of zeroes."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Response:
    """Status, headers (in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


def _response(connection: http.client.HTTPConnection) -> Response:
    answer = connection.getresponse()
    return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut data into pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class ImageApi:
    """The calls of the image API v2 that the tests need, at one server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.url = url
        self.address = (parts.hostname, parts.port)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request and return the answer, whatever its status.

        A server that refuses an upload may answer and close while the body is still being sent: the answer counts.
        """
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, dict(headers or {}))
            return _response(connection)
        finally:
            connection.close()

    def _json(self, method: str, path: str, value: object, kind: str = "application/json") -> Response:
        return self.request(method, path, json.dumps(value).encode(), {"Content-Type": kind})

    def create(self, **properties: object) -> str:
        """Create an image record and return its identifier."""
        record = {"disk_format": "raw", "container_format": "bare", "name": "e2e", **properties}
        answer = self._json("POST", "/v2/images", record)
        assert answer.status == 201, answer
        return str(answer.json()["id"])

    def show(self, image: str) -> dict[str, Any]:
        """Return an image's record."""
        answer = self.request("GET", f"/v2/images/{image}")
        assert answer.status == 200, answer
        record: dict[str, Any] = answer.json()
        return record

    def status(self, image: str) -> str:
        """Return an image's status, ``deleted`` if there is none."""
        answer = self.request("GET", f"/v2/images/{image}")
        return "deleted" if answer.status == 404 else str(answer.json()["status"])

    def wait_for(self, image: str, *wanted: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until an image has one of the statuses and return its record."""
        deadline = time.monotonic() + timeout
        while (status := self.status(image)) not in wanted:
            assert time.monotonic() < deadline, f"{image} is {status}, not {wanted}, after {timeout} s"
            time.sleep(0.05)
        return {} if status == "deleted" else self.show(image)

    def delete(self, image: str) -> int:
        """Delete an image and return the status of the answer."""
        return self.request("DELETE", f"/v2/images/{image}").status

    def put(
        self, image: str, data: bytes, *, chunk: int | None = None, target: str = "file", store: str | None = None
    ) -> Response:
        """Upload (or with target ``stage``, stage) data: with Content-Length, or chunked in pieces of *chunk*."""
        path = f"/v2/images/{image}/{target}"
        headers = {"Content-Type": "application/octet-stream"}
        if store:
            headers["X-Image-Meta-Store"] = store
        if chunk is None:
            return self.request("PUT", path, data, headers)
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("PUT", path, pieces(data, chunk), headers, encode_chunked=True)
            return _response(connection)
        finally:
            connection.close()

    def upload(self, data: bytes, *, chunk: int | None = None, store: str | None = None, **properties: object) -> str:
        """Create an image, upload its data, insist on success, and return its identifier."""
        image = self.create(**properties)
        answer = self.put(image, data, chunk=chunk, store=store)
        assert answer.status == 204, answer
        return image

    def get(self, image: str, byte_range: str | None = None) -> Response:
        """Download an image or a part of it."""
        return self.request("GET", f"/v2/images/{image}/file", headers={"Range": byte_range} if byte_range else {})

    def import_image(self, image: str, method: str, **arguments: object) -> Response:
        """Start an import. Arguments of the method itself are ``uri``; all others belong to the request."""
        how: dict[str, object] = {"name": method}
        if "uri" in arguments:
            how["uri"] = arguments.pop("uri")
        return self._json("POST", f"/v2/images/{image}/import", {"method": how, **arguments})

    def check(self, image: str, data: bytes, algorithm: str = "sha512") -> dict[str, Any]:
        """Assert that an image's record and its downloaded bytes are those of *data*; return the record."""
        record = self.show(image)
        assert record["status"] == "active"
        assert record["size"] == len(data)
        assert record["checksum"] == hashlib.md5(data).hexdigest()
        assert record["os_hash_algo"] == algorithm
        assert record["os_hash_value"] == hashlib.new(algorithm, data).hexdigest()
        answer = self.get(image)
        if data:
            assert answer.status == 200
            # Glance's cache middleware sends no length.
            assert answer.headers.get("content-length", str(len(data))) == str(len(data))
            assert answer.headers["content-md5"] == record["checksum"]
        assert answer.body == data
        return record


class SlowUpload:
    """An upload under the test's control: sent piece by piece, then finished, or broken off."""

    def __init__(self, api: ImageApi, image: str, length: int | None, *, target: str = "file") -> None:
        self._socket = socket.create_connection(api.address, timeout=TIMEOUT)
        self._chunked = length is None
        body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        self._socket.sendall(
            f"PUT /v2/images/{image}/{target} HTTP/1.1\r\nHost: {api.address[0]}\r\n"
            f"Content-Type: application/octet-stream\r\n{body}\r\n\r\n".encode()
        )

    def send(self, data: bytes) -> None:
        """Send data, as one chunk if the upload is chunked."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._socket.sendall(data)

    def finish(self) -> int:
        """End the body and return the status of the answer."""
        if self._chunked:
            self._socket.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(self._socket, method="PUT")
        answer.begin()
        answer.read()
        return answer.status

    def reset(self) -> None:
        """Break off at once, with a reset instead of an orderly end, as a killed client's kernel does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Break off with an orderly end of the connection."""
        self._socket.close()

    def __enter__(self) -> SlowUpload:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()
