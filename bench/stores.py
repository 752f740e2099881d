"""The two stores behind one face: a benchmark calls each store's own bound method, nothing of ours."""

from __future__ import annotations

import importlib
import importlib.metadata
import ssl
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DURABILITIES = ("none", "file", "full", "batch")
STORES = ("glance_store", "fastfs", "hashlib")  # the last one stores nothing: what `hash_files` is held against


@dataclass(frozen=True)
class Side:
    """Which store, and for fastfs with which durability; written "glance_store", "fastfs", "fastfs:full"."""

    store: str
    durability: str = "none"

    @classmethod
    def parse(cls, text: str) -> Side:
        store, _, durability = text.partition(":")
        durability = durability or "none"
        if store not in STORES or durability not in DURABILITIES:
            raise ValueError(f"unknown side {text!r}: glance_store, hashlib, fastfs, fastfs:file, :full or :batch")
        if store != "fastfs" and durability != "none":
            raise ValueError(f"{store} never syncs: its durability is none")
        return cls(store, durability)

    def __str__(self) -> str:
        return self.store if self.durability == "none" else f"{self.store}:{self.durability}"


@dataclass(frozen=True)
class OpenStore:
    """A store ready to use. `locate` turns an image's URL into what `get` and `delete` accept."""

    side: Side
    version: str
    datadir: Path
    add: Callable[..., Sequence[Any]]
    get: Callable[..., tuple[Iterable[bytes], int]]
    delete: Callable[[Any], None]
    locate: Callable[[str], Any]
    close: Callable[[], None]
    add_many: Callable[..., Iterable[Any]] | None = None


def open_store(side: Side, datadir: Path, *, thin: bool = False) -> OpenStore:
    datadir.mkdir(parents=True, exist_ok=True)
    if side.store == "hashlib":
        return OpenStore(side, ssl.OPENSSL_VERSION, datadir, _nothing, _nothing, _nothing, str, lambda: None)
    return (_open_fastfs if side.store == "fastfs" else _open_glance_store)(side, datadir, thin)


def _nothing(*args: Any) -> Any:
    raise NotImplementedError("hashlib is no store")


# Imports wait until a store is opened: a case on one CPU sets its affinity first, and neither side may have
# counted the CPUs before that. `import_module` because glance_store and oslo.config have no types.


def _open_glance_store(side: Side, datadir: Path, thin: bool) -> OpenStore:
    """As glance_store's own tests do it: a fresh ConfigOpts, registered options, overrides, configure()."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Eventlet is deprecated")  # that it uses it is not our reader's business
        cfg = importlib.import_module("oslo_config.cfg")
        glance_store = importlib.import_module("glance_store")
        filesystem = importlib.import_module("glance_store._drivers.filesystem")
    location = importlib.import_module("glance_store.location")

    conf = cfg.ConfigOpts()
    conf(args=[], default_config_files=[], default_config_dirs=[])
    glance_store.register_opts(conf)
    conf.set_override("filesystem_store_datadir", str(datadir), group="glance_store")
    conf.set_override("filesystem_thin_provisioning", thin, group="glance_store")
    store = filesystem.Store(conf)
    store.configure(re_raise_bsc=True)

    def locate(url: str) -> Any:
        return location.Location("file", filesystem.StoreLocation, conf, uri=url)

    return OpenStore(side, _version("glance_store"), datadir, store.add, store.get, store.delete, locate, lambda: None)


def _open_fastfs(side: Side, datadir: Path, thin: bool) -> OpenStore:
    fastfs = importlib.import_module("fastfs")
    store = fastfs.Store(fastfs.StoreConfig(datadir=str(datadir), thin_provisioning=thin, durability=side.durability))
    version = _version("fastfs-store")
    return OpenStore(side, version, datadir, store.add, store.get, store.delete, str, store.close, store.add_many)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "from its source tree"
