# SPDX-License-Identifier: Apache-2.0
"""What is taken from the installed glance_store, with the types that it does not declare.

The options, their help texts and the metadata schema are those of the original driver module.  It is executed
from its own file under a name of ours, so nothing of it is copied, and it is not registered as a driver.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import glance_store.driver
from glance_store import capabilities, exceptions
from oslo_config import cfg

from fastfs.glance.activation import TARGET, original_spec

ALIAS = "fastfs.glance._original_driver"

#: The logger of the original driver, so that an operator's settings for it stay in force.
LOG = logging.getLogger(TARGET)

F = TypeVar("F", bound=Callable[..., Any])


def _load() -> ModuleType:
    package = importlib.import_module("glance_store._drivers")
    found = original_spec(package.__path__)
    if found is None or found.origin is None:
        raise ImportError("glance_store has no filesystem driver", name=TARGET)
    spec = importlib.util.spec_from_file_location(ALIAS, found.origin)
    if spec is None or spec.loader is None:
        raise ImportError(f"{found.origin} cannot be loaded", name=TARGET)
    module = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[ALIAS]
        raise
    return module


original = _load()

OPTIONS: list[Any] = original._FILESYSTEM_CONFIGS
METADATA_SCHEMA: dict[str, Any] = original.MULTI_FILESYSTEM_METADATA_SCHEMA

#: Groups of options: for a store alone, and what all stores of several have in common.
SINGLE_GROUP = "glance_store"
SHARED_GROUP: str = glance_store.driver.SHARED_CONF_GROUP

WRITE_ACCESS = capabilities.BitMasks.WRITE_ACCESS
CAPABILITIES = original.Store._CAPABILITIES

DuplicateOptError: type[Exception] = cfg.DuplicateOptError
NoSuchOptError: type[Exception] = cfg.NoSuchOptError
NoSuchGroupError: type[Exception] = cfg.NoSuchGroupError
#: Where a value came from, when nobody has set one.
DEFAULTS = (cfg.Locations.opt_default, cfg.Locations.set_default)

BadStoreConfiguration: type[Exception] = exceptions.BadStoreConfiguration

if TYPE_CHECKING:

    class BaseStore:
        """What the driver uses of ``glance_store.driver.Store``."""

        conf: Any
        backend_group: str | None
        _url_prefix: str | None

        def __init__(self, conf: Any, backend: str | None = None) -> None: ...
        def configure(self, re_raise_bsc: bool = False) -> None: ...
        def set_capabilities(self, *capabilities: int) -> None: ...
        def unset_capabilities(self, *capabilities: int) -> None: ...

    class BaseLocation:
        """What the driver uses of the original's ``StoreLocation``."""

        scheme: str
        path: str

        @staticmethod
        def validate_schemas(uri: str, valid_schemas: tuple[str, ...]) -> None: ...

    def checked(function: F) -> F:
        """``glance_store.capabilities.check``"""
        return function

    def back_compat_add(function: F) -> F:
        """``glance_store.driver.back_compat_add``"""
        return function

else:
    BaseStore = glance_store.driver.Store
    BaseLocation = original.StoreLocation
    checked = capabilities.check
    back_compat_add = glance_store.driver.back_compat_add


def group_configuration(conf: Any, group: str) -> Any:
    """The options of one of several stores: its group's, else the common group's."""
    return glance_store.driver.BackendGroupConfiguration(OPTIONS, group, conf=conf)
