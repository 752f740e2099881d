# SPDX-License-Identifier: Apache-2.0
"""Stores of the driver, configured as Glance does it: from a file, by oslo.config."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("glance_store") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra `glance` is not installed


class Maker:
    """Makes stores; the option ``filesystem_store_x`` is called ``x``, and a list is an option given repeatedly."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images = directory / "images"
        self.stores: list[Any] = []

    def conf(self, **groups: dict[str, Any]) -> Any:
        from oslo_config import cfg

        lines = []
        for group, options in groups.items():
            lines.append(f"[{group}]")
            for name, value in options.items():
                full = "filesystem_thin_provisioning" if name == "thin" else f"filesystem_store_{name}"
                lines += [f"{full} = {item}" for item in (value if isinstance(value, list) else [value])]
        file = self.directory / f"glance-{len(self.stores)}.conf"
        file.write_text("\n".join(lines) + "\n")
        conf = cfg.ConfigOpts()
        conf(args=[], project="glance", default_config_files=[str(file)], default_config_dirs=[])
        return conf

    def __call__(
        self,
        backend: str | None = None,
        *,
        configure: bool = True,
        shared: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        from fastfs.glance.driver import Store

        if not {"datadir", "datadirs"} & options.keys() and shared is None:
            options["datadir"] = self.images
        conf = self.conf(**{backend or "glance_store": options, "backend_defaults": shared or {}})
        store = Store(conf, backend)
        self.stores.append(store)
        if configure:
            store.configure(re_raise_bsc=True)
        return store


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTFS_CONFIG", "FASTFS_MOUNT_GUARD", "FASTFS_GLANCE_STRICT", "FASTFS_GLANCE_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FASTFS_DURABILITY", "none")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(tmp_path)
    yield maker
    for store in maker.stores:
        if store.timeout_executor is not None:
            store.timeout_executor.shutdown(wait=False)


@pytest.fixture
def where() -> Callable[[Any, str], Any]:
    """A location as Glance makes it of a URL."""

    def location(store: Any, url: str) -> Any:
        from glance_store.location import Location

        return Location("file", store.get_store_location_class(), store.conf, uri=url, backend=store.backend_group)

    return location
