# SPDX-License-Identifier: Apache-2.0
"""Hazards of configuring, B1 to B17; see test_hazards.py."""

from __future__ import annotations

import gc
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from glance_store import capabilities, exceptions
from oslo_config import cfg
from support import MIB, Reader, names

from fastfs.glance import upstream

BAD = exceptions.BadStoreConfiguration


def configured(store: Any, **options: Any) -> None:
    """Change options of a store and configure it anew."""
    for name, value in options.items():
        store.conf.set_override(f"filesystem_store_{name}", value, group=store.backend_group or "glance_store")
    store.configure(re_raise_bsc=True)


def test_b1_bad_priority_is_shown(make: Any) -> None:
    with pytest.raises(BAD, match="'high'"):
        make(datadirs=[f"{make.images}:high"])


@pytest.mark.parametrize("perm", [8, 9, 888, 999, 649])
def test_b2_digits_that_are_not_octal(make: Any, perm: int, caplog: pytest.LogCaptureFixture) -> None:
    store = make(datadir=make.images, file_perm=perm, configure=False)
    store.configure()  # the service starts
    assert str(perm) in caplog.text
    with pytest.raises(exceptions.StoreAddDisabled):
        store.add("a", io.BytesIO(b"x"), 1, "sha256")


def test_b3_no_traceback_without_an_error(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    for entry in (f"{make.images}:high", ":100", f"{make.images}/a:1", "/proc/none:1"):
        make(datadirs=[entry, f"{make.images}/a:2"], configure=False).configure()
    store = make(datadirs=[f"{make.images}:1"])
    store._get_capacity_info = lambda path: 0
    with pytest.raises(exceptions.StorageFull):
        store.add("image", Reader(bytes(MIB)), MIB, "sha256")
    assert "NoneType: None" not in caplog.text
    assert [record for record in caplog.records if record.exc_info and record.exc_info[1] is None] == []


def test_b4_good_configuration_after_a_bad_one(make: Any) -> None:
    store = make()
    with pytest.raises(BAD):
        configured(store, file_perm=7)
    assert not store.is_capable(capabilities.BitMasks.WRITE_ACCESS)
    configured(store, file_perm=640)
    assert store.add("a", io.BytesIO(b"x"), 1, "sha256")[1] == 1


@pytest.mark.parametrize("other", ["images/", "images/../images", "link"])
def test_b5_one_datadir_by_two_names(make: Any, other: str) -> None:
    make.images.mkdir()
    (make.directory / "link").symlink_to(make.images)
    with pytest.raises(BAD, match="same directory"):
        make(datadirs=[f"{make.images}:1", f"{make.directory}/{other}:2"])


def test_b6_exact_duplicates_are_listed_once(make: Any) -> None:
    store = make(datadirs=[f"{make.images}:1", f"{make.images}:1"])
    assert store.priority_data_map == {1: [str(make.images)]}


def test_b7_full_disks_do_not_keep_a_service_from_starting(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make("fast", datadirs=[f"{make.images}:1", f"{make.directory}/b:2"], configure=False)
    monkeypatch.setattr(store, "_get_capacity_info", lambda path: 0)
    store.configure()
    with pytest.raises(exceptions.StorageFull):
        store.add("a", Reader(bytes(MIB)), MIB, "sha256")


def test_b8_url_prefix_is_the_same_at_every_start(make: Any, where: Any) -> None:
    # One string without a slash at its end is what glance_store's tests demand. It names the first directory of
    # several, whatever the free space; and locations are found in all of them, and at slashes only.
    one, two = make.directory / "one", make.directory / "one-and-more"
    store = make("fast", datadirs=[f"{one}:2", f"{two}:1"])
    assert store.url_prefix == f"file://{one}"
    for directory in (one, two):
        (directory / "a").write_bytes(b"x")
        assert store.get_size(where(store, f"file://{directory}/a")) == 1
    alone = make("slow", datadir=one)
    with pytest.raises(exceptions.NotFound):
        alone.get_size(where(alone, f"file://{two}/a"))


def test_b9_no_threads_stay(make: Any, where: Any) -> None:
    store = make(timeout=10)
    before = threading.active_count()
    for _ in range(20):
        store.configure()
        url = store.add(f"{threading.active_count()}-{_}", io.BytesIO(b"x"), 1, "sha256")[0]
        assert store.get_size(where(store, url)) == 1
    gc.collect()
    ends = time.monotonic() + 60
    while threading.active_count() > before + 1 and time.monotonic() < ends:
        time.sleep(0.005)
    assert threading.active_count() <= before + 1


def test_b10_metadata_of_a_dropped_file_is_dropped(make: Any) -> None:
    file = make.directory / "metadata.json"
    file.write_text(json.dumps({"id": "nfs", "mountpoint": "/"}))
    store = make(metadata_file=file)
    assert store.add("a", io.BytesIO(b"x"), 1, "sha256")[4]["id"] == "nfs"
    configured(store, metadata_file=None)
    assert store.FILESYSTEM_STORE_METADATA is None
    assert store.add("b", io.BytesIO(b"x"), 1, "sha256")[4] == {}


@pytest.mark.parametrize("backend", [None, "fast"])
def test_b11_datadirs_alone_are_enough(make: Any, backend: str | None) -> None:
    store = make(backend, datadirs=[f"{make.images}:1"])
    assert store.priority_data_map == {1: [str(make.images)]}


def test_b11_what_is_nearer_counts(make: Any) -> None:
    near, far = make.directory / "near", make.directory / "far"
    store = make("fast", datadirs=[near], shared={"datadir": far})
    assert store.datadir == str(near)
    store = make("fast", datadir=near, shared={"datadirs": [far]})
    assert (store.datadir, store.multiple_datadirs) == (str(near), False)
    with pytest.raises(BAD, match="either"):
        make("fast", datadir=near, datadirs=[far])


def reserved(make: Any, key: str) -> Any:
    """A store as Glance reserves it for itself: with a default of its own for the directory."""
    conf = make.conf()
    own = cfg.StrOpt("filesystem_store_datadir", default=str(make.directory / key), help="of the reserved store")
    conf.register_opts([own], group=key)
    from fastfs.glance.driver import Store

    store = Store(conf, key)
    make.stores.append(store)
    store.configure(re_raise_bsc=True)
    return store


def test_b12_reserved_stores_keep_their_own_directory(make: Any) -> None:
    one, two = reserved(make, "os_glance_staging_store"), reserved(make, "os_glance_tasks_store")
    assert one.datadir == str(make.directory / "os_glance_staging_store")
    assert two.datadir == str(make.directory / "os_glance_tasks_store")
    # Glance builds paths of it.
    assert one.conf.os_glance_staging_store.filesystem_store_datadir == one.datadir


def test_b13_an_unequal_option_does_not_stop_the_others(make: Any) -> None:
    conf = make.conf(glance_store={"datadir": make.images, "chunk_size": 1000})
    conf.register_opt(cfg.StrOpt("filesystem_store_datadir", help="another text"), group="glance_store")
    from fastfs.glance.driver import Store

    store = Store(conf)
    store.configure(re_raise_bsc=True)
    assert (store.chunk_size, store.thin_provisioning, store.timeout_executor.timeout) == (1000, False, 0)
    assert [option.name for option in upstream.OPTIONS if option.name not in conf.glance_store] == []


def test_b14_plain_file_is_no_datadir(make: Any) -> None:
    make.images.write_text("")
    with pytest.raises(BAD, match="not a directory"):
        make()


def test_b15_relative_datadir_is_made_absolute(make: Any, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make.directory)
    store = make(datadir="rel")
    url = store.add("a", io.BytesIO(b"x"), 1, "sha256")[0]
    assert url == f"file://{make.directory}/rel/a"
    monkeypatch.chdir("/")
    assert store.get_size(where(store, url)) == 1


@pytest.mark.parametrize("name", ["a#b", "a?b=c", "a%20b", "a b", "a:7"])
def test_b16_odd_datadir(make: Any, where: Any, name: str) -> None:
    store = make(datadir=make.directory / name)
    url = store.add("a", io.BytesIO(b"x"), 1, "sha256")[0]
    assert store.get_size(where(store, url)) == 1
    assert where(store, url).get_store_uri() == url
    store.delete(where(store, url))


def test_b17_datadir_is_there_with_several(make: Any) -> None:
    store = make("fast", datadirs=[f"{make.directory}/a:1", f"{make.directory}/b:2"])
    assert store.datadir == f"{make.directory}/b"
    assert (store.chunk_size, store.thin_provisioning, store.weight) == (65536, False, 0)  # what else Glance shows


def test_the_own_options(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTFS_DURABILITY")
    assert make("fast", datadir=make.images)._core.config.durability == "full"
    file = tmp_path / "fastfs.toml"
    file.write_text('[fastfs]\ndurability = "file"\ndatadir = "/of/the/command"\n[stores.slow]\ndurability = "none"\n')
    monkeypatch.setenv("FASTFS_CONFIG", str(file))
    assert make("fast", datadir=make.images)._core.config.durability == "file"
    assert make("slow", datadir=make.images)._core.config.durability == "none"
    monkeypatch.setenv("FASTFS_DURABILITY", "full")
    assert make("fast", datadir=make.images)._core.config.durability == "full"
    assert make("slow", datadir=make.images)._core.config.durability == "none"
    file.write_text('[stores.fast]\ndurable = "none"\n')
    with pytest.raises(BAD, match="durable"):
        make("fast", datadir=make.images)
    monkeypatch.setenv("FASTFS_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(BAD, match=r"none\.toml"):
        make("fast", datadir=make.images)


def test_mount_guard_is_not_for_reserved_stores(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFS_MOUNT_GUARD", "1")
    assert make("os_glance_staging_store", datadir=make.images)._core.config.mount_guard is False
    if os.stat("/").st_dev == make.directory.stat().st_dev:
        with pytest.raises(BAD, match="mount_guard"):
            make("fast", datadir=make.images)


def test_modes_beyond_0777_are_cut(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = make(file_perm=4644)
    store.add("a", io.BytesIO(b"x"), 1, "sha256")
    assert (make.images / "a").stat().st_mode & 0o7777 == 0o644
    assert "4644" in caplog.text


def test_images_can_be_read_after_a_bad_configuration(make: Any, where: Any) -> None:
    url = make().add("a", io.BytesIO(b"x"), 1, "sha256")[0]
    store = make(datadir=make.images, file_perm=7, configure=False)
    store.configure()
    assert store.get_size(where(store, url)) == 1
    assert list(store.get(where(store, url))[0]) == [b"x"]
    with pytest.raises(exceptions.StoreDeleteNotSupported):
        store.delete(where(store, url))
    assert names(make.images) == ["a"]


def test_records_are_made_on_demand_only(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original driver, when it is swapped back in, would leave them; and Glance removes what is staged itself."""
    assert make(datadir=make.images)._core.config.records == "none"
    for wanted in ("large", "all"):
        monkeypatch.setenv("FASTFS_RECORDS", wanted)
        assert make(datadir=make.images)._core.config.records == wanted
        assert make("os_glance_staging_store", datadir=make.images)._core.config.records == "none"
