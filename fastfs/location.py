# SPDX-License-Identifier: Apache-2.0
"""``file://`` and ``filesystem://`` URIs.

A location is the scheme followed by the absolute path of the file, byte for byte: nothing is quoted or
unquoted, and ``?``, ``#`` and ``%`` have no meaning.  So whatever `add` returned is found again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastfs.exceptions import BadStoreUri, InvalidImageId

SCHEMES = ("filesystem://", "file://")

# NAME_MAX of every Linux file system of note, limits.h
NAME_MAX = 255


@dataclass(frozen=True)
class Location:
    """Where an image lies: an absolute path."""

    path: str

    @property
    def uri(self) -> str:
        """The location as `add` returns it."""
        return f"file://{self.path}"

    def get_uri(self) -> str:
        """As glance_store's locations have it."""
        return self.uri

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Parse a URI.

        :raises BadStoreUri: another scheme (case matters), a host, a relative or an empty path.
        """
        for scheme in SCHEMES:
            if uri.startswith(scheme):
                path = uri[len(scheme) :]
                if path.startswith("/"):
                    return cls(path)
                reason = "no path" if not path else "a host or a relative path; write three slashes: file:///path"
                raise BadStoreUri(f"{uri!r} has {reason}", path=path)
        raise BadStoreUri(f"{uri!r} does not begin with file:// or filesystem://")

    @classmethod
    def of(cls, location: object) -> Location:
        """Accept a URI, a `Location`, or any parsed location that can tell its URI (glance_store's can)."""
        if isinstance(location, str):
            return cls.parse(location)
        if isinstance(location, cls):
            return location
        inner = getattr(location, "store_location", location)
        for name in ("get_uri", "get_store_uri"):
            method = getattr(inner, name, None)
            if callable(method):
                return cls.parse(str(method()))
        raise BadStoreUri(f"not a location: {location!r}; give a URI or what add() returned")


def check_image_id(image_id: object) -> str:
    """The id as the name of a file.

    :param image_id: a string, or an object whose ``str`` is the id (a `uuid.UUID`, an int).
    :raises InvalidImageId: empty, ``.`` or ``..``, with a slash or NUL, over 255 bytes, beginning with a dot
        (such names are kept for unfinished data), or not encodable.
    """
    name = image_id if type(image_id) is str else str(image_id)
    if image_id is None or isinstance(image_id, (bytes, bytearray)):
        reason = "it is no text"  # but what str() makes of it would do
    elif not name:
        reason = "it is empty"
    elif name[0] == ".":
        reason = "it begins with a dot"
    elif "/" in name:
        reason = "it holds a slash"
    elif "\0" in name:
        reason = "it holds a NUL"
    elif len(name) <= NAME_MAX and name.isascii():
        return name
    else:
        try:
            if len(os.fsencode(name)) <= NAME_MAX:
                return name
            reason = f"it is longer than {NAME_MAX} bytes"
        except UnicodeEncodeError:
            reason = "it cannot be encoded as a file name"
    raise InvalidImageId(f"image id {name[:80]!r} is refused: {reason}", image_id=name)
