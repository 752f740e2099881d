"""A pytest plugin: refuse to run the tests on any other extension than the one that was built with a sanitizer."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    from fastfs import _native

    where = os.environ["FASTFS_SANITIZED"]
    assert _native.__file__.startswith(where), f"{_native.__file__} is not below {where}"
