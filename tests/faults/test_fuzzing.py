# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets on many inputs: a bounded part of what ``fuzzing.py`` can do."""

from __future__ import annotations

import json
import subprocess
import sys

from shim import HERE

CASES = 100_000


def test_fuzz_targets() -> None:
    command = [sys.executable, str(HERE / "fuzzing.py"), "--most", str(CASES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600)
    assert done.stdout, f"it ended with {done.returncode}"
    answer = json.loads(done.stdout)
    assert answer["problems"] == []
    assert answer["cases"]["fuzz"] >= CASES
    assert {name.partition(",")[0] for name in answer["cases"]} == {"fuzz", "pump", "zero", "fsops", "parsers"}
