"""WSGI entry point of the test server: Glance's own application, made fit for SQLite.

Loaded by uWSGI and gunicorn as ``glance_app:application``. It does three things:

* every SQLite transaction begins as a writer (``BEGIN IMMEDIATE``). With the plain ``BEGIN`` that oslo.db sends,
  two requests that read first and write later fail at once with "database is locked", whatever the time-out;
* Glance's application is built by Glance itself;
* what the stores were built from is written to a file, so that the tests can prove which driver the server runs.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glance.common.wsgi_app
from glance_store import location
from sqlalchemy import event
from sqlalchemy.engine import Engine


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _begin_as_writer(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _executemany: bool
) -> tuple[str, Any]:
    return ("BEGIN IMMEDIATE" if statement == "BEGIN" else statement), parameters


def _describe(store: object) -> dict[str, Any]:
    """Tell where the class of a store comes from: its whole ancestry, each with module and source file."""
    ancestry = []
    for cls in type(store).__mro__[:-1]:
        try:
            source = inspect.getfile(cls)
        except (OSError, TypeError):
            source = ""
        ancestry.append({"module": cls.__module__, "name": cls.__qualname__, "file": source})
    return {"ancestry": ancestry}


def _record_stores(path: Path) -> None:
    stores: dict[str, Any] = {}
    for scheme, info in location.SCHEME_TO_CLS_MAP.items():
        if scheme == "file":
            stores["(single)"] = _describe(info["store"])
    for scheme, backends in location.SCHEME_TO_CLS_BACKEND_MAP.items():
        if scheme == "file":
            for name, info in backends.items():
                stores[name] = _describe(info["store"])
    record = {"pid": os.getpid(), "python": sys.version, "stores": stores}
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(record, indent=1))
    scratch.rename(path)


def _build() -> Callable[..., Any]:
    app: Callable[..., Any] = glance.common.wsgi_app.init_app()
    _record_stores(Path(os.environ["GLANCE_E2E_RECORD"]))
    return app


application = _build()
