"""NFS 4.2 and 3, server and clients in a guest kernel: on_nfs.py, which is run there once for all tests."""

from __future__ import annotations

import json
import shlex
import sys

import guest
import pytest
from on_nfs import CHECKS, VERSIONS
from shim import HERE

pytestmark = pytest.mark.skipif(bool(guest.missing()), reason=guest.missing() or "never")


Outcomes = dict[tuple[str, str, str], str]


def outcomes(*runs: tuple[str, str]) -> Outcomes:
    """What went wrong, by writer, check and version; "" where nothing did.

    :param runs: writers, and a regular expression for the names of checks.
    """
    script = shlex.join([sys.executable, str(HERE / "on_nfs.py")])
    lines = [f"{script} --writer {writer} --only {shlex.quote(only)}" for writer, only in runs]
    try:
        printed = guest.run("\n".join([f"cd {shlex.quote(str(HERE))}", *lines])).splitlines()
    except guest.NotBootedError as error:
        pytest.skip(f"no guest can be booted on this machine: {error}")
    found = [json.loads(line) for line in printed if line.startswith('{"writer"')]
    return {(one["writer"], one["check"], one["version"]): one["trouble"] for one in found}


@pytest.fixture(scope="module")
def found() -> Outcomes:
    return outcomes(("fastfs", ""))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_nfs(check: str, version: str, found: Outcomes) -> None:
    trouble = found["fastfs", check, version]
    assert not trouble, trouble


#: Writers with one mistake, and which check must notice it.
MISTAKES = {"CheckThenOpen": "one_of_two_hosts_wins", "Replacing": "one_of_two_hosts_wins", "Untidy": "no_room"}


def test_broken_writers_are_caught_on_nfs() -> None:
    """And one that is not broken is not."""
    plain = ("Plain", "|".join(MISTAKES.values()))
    caught = outcomes(plain, *MISTAKES.items())
    failed = {writer for (writer, *_), trouble in caught.items() if "AssertionError" in trouble}
    assert failed == set(MISTAKES), caught
