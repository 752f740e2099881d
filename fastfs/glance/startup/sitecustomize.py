# SPDX-License-Identifier: Apache-2.0
"""Imported by every interpreter that ``fastfs glance run`` starts, because its directory is in PYTHONPATH.

Switches fastfs on and goes on with the ``sitecustomize`` that would have been imported otherwise.  Nothing here may
keep an interpreter from starting.
"""

import os
import sys


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(os.path.dirname(here), "bootstrap.py"), encoding="utf-8") as file:
        exec(compile(file.read(), file.name, "exec"), {"__name__": "fastfs_glance_bootstrap"})
    # The next one of the same name, if there is any.
    kept = sys.path[:]
    sys.path[:] = [entry for entry in kept if os.path.abspath(entry or ".") != here]
    this = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        if this is not None:
            sys.modules["sitecustomize"] = this
    finally:
        sys.path[:] = kept


_start()
