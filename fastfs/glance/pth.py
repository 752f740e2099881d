# SPDX-License-Identifier: Apache-2.0
"""Switching fastfs on for a virtual environment (a ``.pth`` file) or for one command and what it starts.

Imports nothing of glance_store's.  Whether it works is found out where it counts: in a fresh interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from fastfs.glance.activation import TARGET

NAME = "fastfs-glance.pth"

_HERE = Path(__file__).parent
BOOTSTRAP = _HERE / "bootstrap.py"
STARTUP = _HERE / "startup"

# `site` executes lines of .pth files that begin with "import".
_SOURCE = """\
try:
    with open({path!r}, encoding="utf-8") as file:
        exec(compile(file.read(), file.name, "exec"), {{"__name__": {name!r}}})
except Exception:
    pass
"""

_PROBE = f"""\
import json, logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
import importlib
from fastfs.glance import activation
found = {{"driver": "", "error": ""}}
try:
    module = importlib.import_module({TARGET!r})
    found["driver"] = module.__name__.split(".")[0]
except Exception as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps({{**activation.status()._asdict(), **found}}))
"""


def site_directory() -> Path:
    """The site-packages of this interpreter."""
    return Path(sysconfig.get_path("purelib"))


def pth_file() -> Path:
    return site_directory() / NAME


def is_enabled() -> bool:
    return pth_file().exists()


def in_virtual_environment() -> bool:
    return sys.prefix != sys.base_prefix


def line() -> str:
    """What the file holds: one line that cannot fail."""
    source = _SOURCE.format(path=str(BOOTSTRAP), name="fastfs_glance_bootstrap")
    return f"import sys; exec({source!r})\n"


def enable() -> Path:
    """Write the file: whole, or not at all."""
    path = pth_file()
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fastfs-glance-")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(line())
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def disable() -> bool:
    """Remove the file; False: there was none."""
    try:
        pth_file().unlink()
    except FileNotFoundError:
        return False
    return True


def environment(base: dict[str, str]) -> dict[str, str]:
    """`base`, changed so that interpreters started with it have fastfs switched on."""
    paths = [str(STARTUP), *base.get("PYTHONPATH", "").split(os.pathsep)]
    return {**base, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}


def probe() -> dict[str, Any]:
    """What a fresh interpreter of this environment loads as glance_store's filesystem driver.

    :return: the fields of `fastfs.glance.Status`, ``driver`` (the package it is from) and ``error``.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        found = {"driver": "", "error": done.stderr.strip() or f"the interpreter ended with {done.returncode}"}
    return found
