# SPDX-License-Identifier: Apache-2.0
"""glance_store's own tests, unmodified and from the installed package, with fastfs as the driver.

They run in processes of their own (see glance_store_suite.py), which count the stores that the tests make: the run
fails unless each of them was made of fastfs's class.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("glance_store_suite.py")
# The modules of requirements-store-tests.txt.
NEEDED = (
    *(
        "glance_store",
        "boto3",
        "cinderclient",
        "ddt",
        "fixtures",
        "httplib2",
        "keystoneclient",
        "openstack",
        "os_brick",
    ),
    *("oslo_privsep", "oslo_rootwrap", "oslo_vmware", "oslotest", "requests_mock", "retrying", "swiftclient"),
    *("testscenarios", "testtools"),
)
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (tests/compat/requirements-store-tests.txt)"
    ),
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], {"passed": 166}), (["--all"], {"passed": 842, "skipped": 1})],
    ids=["driver", "all"],
)
def test_glance_stores_own_tests(tmp_path: Path, arguments: list[str], expected: dict[str, int]) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(SUITE), "--driver", "fastfs", "--json", str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert result["problems"] == [], done.stdout
    assert done.returncode == 0
    assert result["counts"] == expected
    for run in result["runs"]:
        assert run["proof"]["module"] == "fastfs"
        assert run["proof"]["package_attribute_is_module"]
        assert set(run["proof"]["instances"]) == {"fastfs"}
    assert sum(run["proof"]["instances"]["fastfs"] for run in result["runs"]) > 100
