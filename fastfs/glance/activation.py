# SPDX-License-Identifier: Apache-2.0
"""Have fastfs found as ``glance_store._drivers.filesystem``.

One mechanism, however it is switched on: a finder in `sys.meta_path` that answers for that one name.  No file of
glance_store's is changed.  What must not happen is that fastfs keeps Glance from starting: whatever is wrong is
logged, and the original driver is loaded in its place, unless strictness was asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

LOG = logging.getLogger(__name__)

TARGET = "glance_store._drivers.filesystem"
DRIVER = "fastfs.glance.driver"

STRICT = "FASTFS_GLANCE_STRICT"
DISABLE = "FASTFS_GLANCE_DISABLE"

#: Whose names, options and rules the driver was measured against.
SUPPORTED_MAJOR = 5

# Set on every finder of ours, that of the .pth file included, which does not import this module.
MARK = "fastfs_glance"

_strict = False
_original: ModuleType | None = None


class Status(NamedTuple):
    """What is the case in this process."""

    #: Will fastfs be found as the driver when it is imported, or was it?
    active: bool
    #: The module that is loaded as the driver: ``fastfs``, ``glance_store`` or, as yet, "".
    loaded: str
    #: Version of glance_store, "" if it is not installed.
    glance_store: str
    #: Version of fastfs.
    fastfs: str
    #: Why fastfs is not used, or should not be; "".
    problem: str
    #: Does a problem stop the import, instead of having the original driver loaded?
    strict: bool


class _Loader(Loader):
    """Puts our driver in the place of the module that the wrapped loader would load."""

    def __init__(self, original: Loader) -> None:
        self.original = original

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            if reason := unfit():
                raise ImportError(reason)
            driver = importlib.import_module(DRIVER)
        except Exception as error:
            if is_strict():
                raise ImportError(f"fastfs cannot be the driver of glance_store: {error}", name=TARGET) from error
            LOG.warning(
                "fastfs is not used, glance_store's own filesystem driver is: %s",
                error,
                exc_info=not isinstance(error, ImportError),
            )
            module.__loader__ = self.original
            if module.__spec__ is not None:
                module.__spec__.loader = self.original
            self.original.exec_module(module)
        else:
            # The import system takes what is here afterwards, and binds it in the package, too.
            sys.modules[TARGET] = driver
            LOG.info("fastfs %s is the filesystem driver of glance_store %s", fastfs_version(), version())


class Finder:
    """The entry in `sys.meta_path`."""

    fastfs_glance = True

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return find_spec(name, path, target)


def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
    """As `importlib.abc.MetaPathFinder.find_spec`; answers for glance_store's filesystem driver only."""
    if name != TARGET or is_disabled():
        return None
    spec = original_spec(path, target)
    if spec is None or spec.loader is None:
        return None
    spec.loader = _Loader(spec.loader)
    return spec


def original_spec(path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
    """Where glance_store's own driver is.

    :param path: ``glance_store._drivers.__path__``
    """
    for finder in sys.meta_path:
        if getattr(finder, MARK, False) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(TARGET, path, target)
        if spec is not None:
            return spec
    return None


def install(*, strict: bool | None = None) -> None:
    """From now on fastfs is found as glance_store's filesystem driver.  May be repeated.

    To be called before Glance makes its stores: a store that exists stays what it is.

    :param strict: raise ImportError where fastfs cannot be the driver (now if that is known now, else when the
        driver is imported), instead of having the original driver loaded.
    """
    global _strict, _original
    if strict is not None:
        _strict = strict
    if is_strict() and (reason := unfit()):
        raise ImportError(f"fastfs cannot be the driver of glance_store: {reason}")
    if not any(getattr(finder, MARK, False) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder)
    module = sys.modules.get(TARGET)
    if module is not None and module.__name__ != DRIVER:
        LOG.warning("glance_store's own filesystem driver was imported before; stores made with it stay as they are")
        _original = module
        _forget()
        importlib.import_module(TARGET)


def uninstall() -> None:
    """Undo `install`: glance_store's own driver is found again.  Stores that exist stay what they are."""
    global _strict, _original
    sys.meta_path[:] = [finder for finder in sys.meta_path if not getattr(finder, MARK, False)]
    module = sys.modules.get(TARGET)
    if module is not None and module.__name__ == DRIVER:
        _forget()
        if _original is not None:
            sys.modules[TARGET] = _original
            setattr(sys.modules["glance_store._drivers"], "filesystem", _original)  # noqa: B010 (not a known name)
    _strict, _original = False, None


def _forget() -> None:
    sys.modules.pop(TARGET, None)
    package = sys.modules.get("glance_store._drivers")
    if package is not None and "filesystem" in vars(package):
        delattr(package, "filesystem")


def status() -> Status:
    """What is the case in this process; imports nothing of glance_store's."""
    module = sys.modules.get(TARGET)
    loaded = "" if module is None else "fastfs" if module.__name__ == DRIVER else "glance_store"
    found = any(getattr(finder, MARK, False) for finder in sys.meta_path) and not is_disabled()
    problem = unfit()
    if is_disabled():
        problem = problem or f"{DISABLE} is set"
    active = loaded == "fastfs" or (not loaded and found and not problem)
    return Status(active, loaded, version(), fastfs_version(), problem, is_strict())


def unfit() -> str:
    """Why the installed glance_store cannot be served; "" if it can."""
    found = version()
    if not found:
        return "glance_store is not installed"
    major = re.match(r"\d+", found)
    if major is None or int(major[0]) != SUPPORTED_MAJOR:
        return f"glance_store {found} is not a version that this fastfs knows ({SUPPORTED_MAJOR}.x)"
    return ""


def version() -> str:
    """The version of glance_store, "" if it is not installed."""
    try:
        return importlib.metadata.version("glance_store")
    except importlib.metadata.PackageNotFoundError:
        return ""


def fastfs_version() -> str:
    """The version of fastfs."""
    from fastfs import __version__

    return str(__version__)


def is_strict() -> bool:
    return _strict or _switched_on(STRICT)


def is_disabled() -> bool:
    return _switched_on(DISABLE)


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
