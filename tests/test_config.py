"""Where options come from, what is refused with which words, and the tables of the contract's section 7."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastfs
from fastfs import Store, StoreConfig
from fastfs.config import misspelt_variables

SAMPLES: dict[str, Any] = {
    "metadata_file": "/etc/fastfs/metadata.json",
    "file_perm": 0o640,
    "chunk_size": 1048576,
    "thin_provisioning": True,
    "timeout": 2.5,
    "thread_pool_size": 4,
    "threadpool_threshold": 50,
    "durability": "file",
    "records": "all",
    "record_block_size": 65536,
    "cache": "drop",
    "hash_engine": "hashlib",
    "mount_guard": True,
}
DEFAULTS: dict[str, Any] = {
    "metadata_file": None,
    "file_perm": 0,
    "chunk_size": 65536,
    "thin_provisioning": False,
    "timeout": 0,
    "thread_pool_size": 10,
    "threadpool_threshold": 75,
    "durability": "full",
    "records": "large",
    "record_block_size": 1048576,
    "cache": "keep",
    "hash_engine": "auto",
    "mount_guard": False,
}


def as_text(name: str, value: Any) -> str:
    """The value as an environment variable has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:o}" if name == "file_perm" else str(value)


def as_toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, (list, tuple)) else value)


def toml_file(path: Path, options: Mapping[str, Any]) -> Path:
    path.write_text("[fastfs]\n" + "".join(f"{name} = {as_toml(value)}\n" for name, value in options.items()))
    return path


# Where options come from.

FROM: dict[str, Callable[[dict[str, Any], Path], StoreConfig]] = {
    "keywords": lambda options, path: StoreConfig(**options),
    "mapping": lambda options, path: StoreConfig.from_mapping(options),
    "TOML": lambda options, path: StoreConfig.from_toml(toml_file(path / "fastfs.toml", options)),
    "environment": lambda options, path: StoreConfig.from_env(environment(options)),
    "load": lambda options, path: StoreConfig.load(None, {}, **options),
    "load, TOML": lambda options, path: StoreConfig.load(toml_file(path / "fastfs.toml", options), {}),
    "load, environment": lambda options, path: StoreConfig.load(None, environment(options)),
}


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"FASTFS_{name.upper()}": ",".join(value) if name == "datadirs" else as_text(name, value)
        for name, value in options.items()
    }


@pytest.mark.parametrize("source", FROM)
def test_every_option_from_every_source(source: str, tmp_path: Path) -> None:
    options = {"datadirs": ["/a:2", "/b:1"], **SAMPLES}
    config = FROM[source](options, tmp_path)
    assert {name: getattr(config, name) for name in SAMPLES} == SAMPLES
    assert list(config.datadirs) == ["/a:2", "/b:1"]
    assert FROM[source]({"datadir": "/a"}, tmp_path).datadir == "/a"


@pytest.mark.parametrize("source", FROM)
def test_defaults(source: str, tmp_path: Path) -> None:
    config = FROM[source]({"datadir": "/a"}, tmp_path)
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert list(config.datadirs) == []


def test_no_option_is_forgotten() -> None:
    names = {field.name for field in dataclasses.fields(StoreConfig) if field.init}
    assert names == {"datadir", "datadirs", *DEFAULTS} == {"datadir", "datadirs", *SAMPLES}


def test_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFS_DATADIR", "/from/environment")
    monkeypatch.setenv("FASTFS_CHUNK_SIZE", "")  # counts as not set
    assert StoreConfig.from_env().datadir == StoreConfig.load().datadir == "/from/environment"


def test_variables_that_are_nearly_options() -> None:
    names = (
        "FASTFS_DATADRI",
        "FASTFS_KERNEL",
        "FASTFS_CONFIG",
        "FASTFS_DEBUG",
        "FASTFS_TIMEOUT",
        "DATADRI",
        "FASTFS_X",
    )
    assert misspelt_variables(dict.fromkeys(names, "1")) == {"FASTFS_DATADRI": "FASTFS_DATADIR"}


def test_load_lets_the_nearest_win(tmp_path: Path) -> None:
    path = toml_file(tmp_path / "fastfs.toml", {"datadir": "/a", "chunk_size": 1, "timeout": 1, "durability": "none"})
    config = StoreConfig.load(path, {"FASTFS_CHUNK_SIZE": "2", "FASTFS_TIMEOUT": "2"}, timeout=3)
    assert (config.durability, config.chunk_size, config.timeout) == ("none", 2, 3)


def test_load_lets_a_nearer_datadir_replace_datadirs(tmp_path: Path) -> None:
    path = toml_file(tmp_path / "fastfs.toml", {"datadirs": ["/a:1"]})
    assert StoreConfig.load(path, {"FASTFS_DATADIR": "/b"}).datadir == "/b"
    assert list(StoreConfig.load(path, {"FASTFS_DATADIR": "/b"}, datadirs=["/c"]).datadirs) == ["/c"]


def test_config_is_frozen_and_compares() -> None:
    config = StoreConfig(datadir="/a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.datadir = "/b"  # type: ignore[misc]
    assert config == StoreConfig.from_mapping({"datadir": "/a"}) != StoreConfig(datadir="/b")
    with pytest.raises(TypeError):
        StoreConfig("/a")  # type: ignore[call-arg]


def test_store_takes_config_or_keywords(tmp_path: Path) -> None:
    for store in (
        Store(StoreConfig(datadir=str(tmp_path), chunk_size=7)),
        Store(datadir=str(tmp_path), chunk_size=7),
    ):
        with store:
            assert store.config == StoreConfig(datadir=str(tmp_path), chunk_size=7)


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_text("[]")
    with Store(datadir=tmp_path / "a", metadata_file=tmp_path / "metadata") as store:
        assert store.add("image", b"").url == f"file://{tmp_path}/a/image"
    with Store(datadirs=[tmp_path / "b", (tmp_path / "c", 5)]) as store:
        assert [(usage.path, usage.priority) for usage in store.usage()] == [
            (f"{tmp_path}/c", 5),
            (f"{tmp_path}/b", 0),
        ]


# What is refused, and the words for it.

NO_SENSE: list[tuple[str, Any, str]] = [
    ("chunk_size", 0, "0"),
    ("chunk_size", -1, "-1"),
    ("chunk_size", "many", "many"),
    ("chunk_size", 1.5, "1.5"),
    ("chunk_size", None, "None"),
    ("chunk_size", True, "True"),
    ("chunk_size", 2**70, str(2**70)),
    ("thin_provisioning", "maybe", "maybe"),
    ("thin_provisioning", 2, "2"),
    ("thin_provisioning", None, "None"),
    ("timeout", -1, "-1"),
    ("timeout", "soon", "soon"),
    ("timeout", float("nan"), "nan"),
    ("timeout", "nan", "nan"),
    ("timeout", float("inf"), "inf"),
    ("thread_pool_size", 0, "0"),
    ("thread_pool_size", "x", "x"),
    ("threadpool_threshold", 101, "101"),
    ("threadpool_threshold", -1, "-1"),
    ("durability", "some", "some"),
    ("durability", None, "None"),
    ("durability", 1, "1"),
    ("cache", "none", "none"),
    ("hash_engine", "fast", "fast"),
    ("hash_engine", None, "None"),
    ("mount_guard", "perhaps", "perhaps"),
    ("file_perm", "rw-r--r--", "rw-r--r--"),
    ("file_perm", "888", "888"),
    ("file_perm", "649", "649"),
    ("file_perm", 6.5, "6.5"),
    ("file_perm", None, "None"),
    ("metadata_file", 5, "5"),
    ("datadir", 5, "5"),
    ("datadir", b"/a", "/a"),
    ("datadirs", "/a", "/a"),
    ("datadirs", 5, "5"),
    ("datadirs", {"/a": 5}, "/a"),
    ("datadirs", {"/a"}, "/a"),
    ("datadirs", [5], "5"),
    ("datadirs", [None], "None"),
]


@pytest.mark.parametrize(
    ("name", "value", "shown"), NO_SENSE, ids=[f"{name}={value!r}"[:40] for name, value, _ in NO_SENSE]
)
def test_message_names_option_value_and_remedy(name: str, value: Any, shown: str) -> None:
    options = {name: value} if name.startswith("datadir") else {"datadir": "/a", name: value}
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        StoreConfig(**options)
    message = str(caught.value)
    assert name in message
    assert shown in message
    assert len(message.partition("; ")[2]) > 10, "no remedy"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["datadir", "datadirs", "set"]),
        ({"datadir": "/a", "datadirs": ["/b"]}, ["datadir", "datadirs", "/a", "/b", "keep one"]),
        ({"datadir": ""}, ["datadir", "path"]),
        ({"datadir": "  "}, ["datadir", "path"]),
        ({"datadir": "/a\0b"}, ["datadir", "NUL"]),
        ({"datadirs": ["/a\0b"]}, ["datadirs", "NUL"]),
        ({"datadir": "/\ud800"}, ["datadir", "\\ud800", "another"]),
        ({"datadir": "/a", "chunksize": 1}, ["chunksize", "chunk_size"]),
        ({"datadir": "/a", "zzz": 1}, ["zzz", "thin_provisioning"]),
    ],
    ids=["none", "both", "empty", "blank", "NUL", "NUL in datadirs", "surrogate", "misspelt", "unknown"],
)
def test_words_of_other_messages(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        StoreConfig.from_mapping(options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["fastfs.toml", "No such file"]),
        ("", ["fastfs.toml", "[fastfs]"]),
        ("fastfs = 5", ["fastfs.toml", "[fastfs]"]),
        ("[fastfs", ["fastfs.toml", "TOML"]),
        ("[fastfs]\ndatadri = '/a'", ["fastfs.toml", "datadri", "datadir"]),
        ("[fastfs]\ndatadir = '/a'\nfile_perm = 644", ["file_perm", "0o644"]),
        ("[fastfs]\ndatadir = '/\xe4'", ["fastfs.toml", "TOML"]),
    ],
    ids=["missing", "empty", "no table", "broken", "misspelt", "decimal mode", "not UTF-8"],
)
def test_bad_toml(text: str | None, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "fastfs.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        StoreConfig.from_toml(path)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_whole_numbers_are_int() -> None:
    """JSON calls 4.0 an integer; `range` does not."""
    for name, value in {"chunk_size": 4.0, "thread_pool_size": 4.0, "file_perm": 256.0}.items():
        with contextlib.suppress(fastfs.BadStoreConfiguration):
            config = StoreConfig.from_mapping({"datadir": "/a", name: value})
            assert type(getattr(config, name)) is int


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()))
)
def test_any_value_is_taken_or_refused(value: Any) -> None:
    """No other exception than the documented one, whatever comes."""
    for name in (*SAMPLES, "datadir", "datadirs"):
        options = {name: value} if name.startswith("datadir") else {"datadir": "/a", name: value}
        with contextlib.suppress(fastfs.BadStoreConfiguration):
            StoreConfig(**options)


# Section 7: datadirs.

ENTRIES = {
    "{}": 0,
    "{}:": 0,
    "{}:-5": -5,
    "{}:+5": 5,
    "{} : 7 ": 7,
    "  {}  ": 0,
    "{}:1_000": 1000,
    "{}:x:3": 3,
    "{}:100:": 0,
}


@pytest.mark.parametrize(("entry", "priority"), ENTRIES.items())
def test_datadirs_entry(entry: str, priority: int, tmp_path: Path) -> None:
    path = {"{}:x:3": f"{tmp_path}/d:x", "{}:100:": f"{tmp_path}/d:100"}.get(entry, f"{tmp_path}/d")
    with Store(datadirs=[entry.format(f"{tmp_path}/d")]) as store:
        assert [(usage.path, usage.priority) for usage in store.usage()] == [(path, priority)]
        assert store.add("image", b"").url == f"file://{path}/image"


@pytest.mark.parametrize("entry", ["/d:abc", "/d:5.0", "/d:1e3", "/d: x"])
def test_bad_priority_is_shown(entry: str) -> None:
    """Hazard B1: upstream shows the priority before, always 0."""
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        StoreConfig(datadirs=[entry])
    assert "datadirs" in str(caught.value)
    assert repr(entry.partition(":")[2].strip()) in str(caught.value)


@pytest.mark.parametrize("entry", [":100", "", "  ", ":", " : 5"])
def test_entry_without_a_directory(entry: str) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration, match="directory"):
        StoreConfig(datadirs=["/a", entry])


NAMES_OF_ONE: dict[str, Callable[[Path], str]] = {
    "the same": lambda path: f"{path}",
    "with a slash": lambda path: f"{path}/",
    "with a dot": lambda path: f"{path}/.",
    "by its parent": lambda path: f"{path}/../{path.name}",
    "by a link": lambda path: f"{path.parent}/link",
}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    return tmp_path / "d"


@pytest.mark.parametrize("other", NAMES_OF_ONE.values(), ids=NAMES_OF_ONE.keys())
def test_one_datadir_with_two_priorities(other: Callable[[Path], str], linked: Path) -> None:
    """Hazard B5: upstream compares the texts."""
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        Store(datadirs=[f"{linked}:1", f"{other(linked)}:2"])
    assert str(linked) in str(caught.value)


@pytest.mark.parametrize("other", NAMES_OF_ONE.values(), ids=NAMES_OF_ONE.keys())
def test_one_datadir_twice(other: Callable[[Path], str], linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard B6: it counts once, with a warning."""
    with Store(datadirs=[f"{linked}:1", f"{other(linked)}:1"]) as store:
        assert len(store.usage()) == 1
        store.add("image", b"")
        assert len(list(store.images())) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(linked) in warnings[0]


# Data directories themselves.


def test_datadirs_are_made(tmp_path: Path) -> None:
    with Store(datadirs=[f"{tmp_path}/a/b", f"{tmp_path}/c:5"]):
        assert (tmp_path / "a" / "b").is_dir()
        assert (tmp_path / "c").is_dir()


def test_plain_file_is_no_datadir(tmp_path: Path) -> None:
    """Hazard B14."""
    (tmp_path / "plain").write_bytes(b"")
    for datadir in (tmp_path / "plain", tmp_path / "plain" / "below"):
        with pytest.raises(fastfs.BadStoreConfiguration, match="plain"):
            Store(datadir=str(datadir))
    assert (tmp_path / "plain").read_bytes() == b""


def test_dangling_link_is_no_datadir(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(fastfs.BadStoreConfiguration, match="link"):
        Store(datadir=str(tmp_path / "link"))
    assert not (tmp_path / "nothing").exists()


def test_relative_datadir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard B15: found from anywhere."""
    monkeypatch.chdir(tmp_path)
    with Store(datadir="images") as store:
        url = store.add("image", b"image").url
        assert url == f"file://{tmp_path}/images/image"
        monkeypatch.chdir("/")
        assert store.get_size(url) == 5
        assert store.add("other", b"").url == f"file://{tmp_path}/images/other"


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%2eb", "a b", "a\nb", "ä", "a:5"])
def test_odd_datadir(name: str, tmp_path: Path) -> None:
    """Hazard B16: what is stored is found again."""
    with Store(datadir=str(tmp_path / name)) as store:
        url = store.add("image", b"image").url
        reader, _ = store.get(url)
        with reader:
            assert reader.read() == b"image"
        store.delete(url)


def test_linked_datadir(linked: Path) -> None:
    """The datadir itself may be a link; the URI has the operator's name for it."""
    with Store(datadir=str(linked.parent / "link")) as store:
        url = store.add("image", b"image").url
        assert url == f"file://{linked.parent}/link/image"
        assert store.get_size(url) == 5


# Section 7: file_perm.


@pytest.mark.parametrize("mode", [0o1777, 0o4755, 0o2644, 0o7777, 0o100644, 0o77777, -1, 0o007, 0o200, 0o377, 0o040])
def test_refused_mode(mode: int) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration, match="file_perm"):
        StoreConfig(datadir="/a", file_perm=mode)


@pytest.mark.parametrize(
    ("text", "mode"),
    [("644", 0o644), ("0644", 0o644), ("0o644", 0o644), (" 600 ", 0o600), ("0", 0), ("000", 0)],
)
def test_mode_as_text(text: str, mode: int) -> None:
    assert StoreConfig(datadir="/a", file_perm=text).file_perm == mode
    assert StoreConfig.from_env({"FASTFS_DATADIR": "/a", "FASTFS_FILE_PERM": text}).file_perm == mode


@pytest.mark.parametrize("text", ["8", "9", "888", "999", "-1", "0x1ff", "1777", "4755", "100644", "7", "200"])
def test_refused_mode_as_text(text: str) -> None:
    """Hazard B2: upstream lets a ValueError out of `configure()` for the digits 8 and 9."""
    with pytest.raises(fastfs.BadStoreConfiguration, match="file_perm"):
        StoreConfig(datadir="/a", file_perm=text)


DIRECTORY_MODES = {
    0: 0o700,
    0o400: 0o700,
    0o600: 0o700,
    0o640: 0o710,
    0o644: 0o711,
    0o604: 0o701,
    0o744: 0o711,
}


@pytest.mark.parametrize(("file_perm", "expected"), DIRECTORY_MODES.items(), ids=map(oct, DIRECTORY_MODES))
def test_directory_is_opened_as_far_as_its_images(file_perm: int, expected: int, tmp_path: Path) -> None:
    for place in (tmp_path / "parent", tmp_path / "parent" / "images"):
        place.mkdir(0o700)
    with Store(datadir=str(tmp_path / "parent" / "images"), file_perm=file_perm):
        assert stat.S_IMODE((tmp_path / "parent" / "images").stat().st_mode) == expected
        assert stat.S_IMODE((tmp_path / "parent").stat().st_mode) == 0o700


# Section 7: the metadata file.


@pytest.fixture
def metadata_file(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0o022)
    yield tmp_path / "metadata.json"
    os.umask(before)


def metadata_of(tmp_path: Path, metadata_file: Path, value: Any) -> Any:
    metadata_file.write_text(value if isinstance(value, str) else json.dumps(value))
    with Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file)) as store:
        return store.add("image", b"").metadata


def entry(mountpoint: object, name: object = "x", **more: object) -> dict[str, object]:
    return {"id": name, "mountpoint": str(mountpoint) if isinstance(mountpoint, Path) else mountpoint, **more}


def test_one_entry(tmp_path: Path, metadata_file: Path) -> None:
    assert metadata_of(tmp_path, metadata_file, entry(tmp_path)) == entry(tmp_path)


def test_list_of_entries(tmp_path: Path, metadata_file: Path) -> None:
    wanted = entry(tmp_path, "y", share="nfs:/images", options=["ro", {"vers": "4.2"}])
    assert metadata_of(tmp_path, metadata_file, [entry("/nowhere"), wanted]) == wanted


@pytest.mark.parametrize("value", [[], [entry("/nowhere")]], ids=["no entries", "no match"])
def test_no_metadata(value: Any, tmp_path: Path, metadata_file: Path) -> None:
    assert metadata_of(tmp_path, metadata_file, value) == {}


def test_longest_mountpoint_wins(tmp_path: Path, metadata_file: Path) -> None:
    """Hazard A18: upstream takes the first that fits."""
    near, far = entry(tmp_path / "images", "near"), [entry("/", "root"), entry(tmp_path, "far")]
    for value in ([*far, near], [near, *far], [far[0], near, far[1]]):
        assert metadata_of(tmp_path, metadata_file, value) == near
        (tmp_path / "images" / "image").unlink()


def test_mountpoints_end_at_a_slash(tmp_path: Path, metadata_file: Path) -> None:
    """Hazard A17: /x/im is not above /x/images."""
    assert metadata_of(tmp_path, metadata_file, [entry(f"{tmp_path}/im")]) == {}
    (tmp_path / "images" / "image").unlink()
    assert metadata_of(tmp_path, metadata_file, [entry(f"{tmp_path}/images/")]) == entry(f"{tmp_path}/images/")


def test_empty_mountpoint_is_above_everything(tmp_path: Path, metadata_file: Path) -> None:
    assert metadata_of(tmp_path, metadata_file, entry("", "")) == entry("", "")
    (tmp_path / "images" / "image").unlink()
    assert metadata_of(tmp_path, metadata_file, [entry("", ""), entry("/", "root")]) == entry("/", "root")


def test_metadata_is_the_callers_own(tmp_path: Path, metadata_file: Path) -> None:
    """Hazard A16: upstream hands out one dict for all images."""
    metadata_file.write_text(json.dumps(entry(tmp_path, options=["ro"])))
    with Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file)) as store:
        first = store.add("first", b"").metadata
        first["options"].append("changed")
        first["id"] = "changed"
        assert store.add("second", b"").metadata == entry(tmp_path, options=["ro"])


def test_metadata_file_is_read_once(tmp_path: Path, metadata_file: Path) -> None:
    metadata_file.write_text(json.dumps(entry(tmp_path)))
    with Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file)) as store:
        metadata_file.unlink()
        assert store.add("image", b"").metadata == entry(tmp_path)
    with Store(datadir=str(tmp_path / "images")) as store:  # hazard B10: nothing of it stays
        assert store.add("other", b"").metadata == {}


BAD_METADATA: dict[str, Any] = {
    "no id": {"mountpoint": "/"},
    "no mountpoint": {"id": "x"},
    "empty object": {},
    "null": None,
    "text": '"text"',
    "number": 5,
    "list of nothing": [{}],
    "list of lists": [[]],
    "id is a number": entry("/", 5),
    "mountpoint is a number": entry(5),
    "mountpoint is a list": entry(["/"]),
    "null inside": entry("/", x=None),
    "bool inside": entry("/", x=[True]),
    "number inside": entry("/", x={"y": [{"z": 1}]}),
    "one good, one bad": [entry("/"), {}],
    "broken": '{"id": "x", ',
    "empty": "",
    "not a number": '{"id": "x", "mountpoint": "/", "x": NaN}',
    "deep": '{"id": "x", "mountpoint": "/", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep, but less": entry("/", x=[[[[[[[[[[[[[[[[[[[[["x"]]]]]]]]]]]]]]]]]]]]]),
    "large": [entry("/", "x" * 1000)] * 2000,
}


@pytest.mark.parametrize("value", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_bad_metadata(value: Any, tmp_path: Path, metadata_file: Path) -> None:
    with pytest.raises(fastfs.BadStoreConfiguration) as caught:
        metadata_of(tmp_path, metadata_file, value)
    assert "metadata_file" in str(caught.value)
    assert str(metadata_file) in str(caught.value)
    assert caught.value.path == str(metadata_file)


def test_metadata_not_utf8(tmp_path: Path, metadata_file: Path) -> None:
    metadata_file.write_bytes(b'{"id": "\xe4", "mountpoint": "/"}')
    with pytest.raises(fastfs.BadStoreConfiguration, match="metadata_file"):
        Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file))


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, a_fifo], ids=["missing", "directory", "FIFO"])
def test_no_metadata_file(make: Callable[[Path], None], tmp_path: Path, metadata_file: Path) -> None:
    make(metadata_file)
    with pytest.raises(fastfs.BadStoreConfiguration, match="metadata_file"):
        Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file))


def test_empty_name_of_metadata_file_is_ignored(tmp_path: Path) -> None:
    with Store(datadir=str(tmp_path), metadata_file="") as store:
        assert store.add("image", b"").metadata == {}


def test_metadata_file_that_all_may_write(
    tmp_path: Path, metadata_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata_file.write_text("[]")
    metadata_file.chmod(0o666)
    with Store(datadir=str(tmp_path / "images"), metadata_file=str(metadata_file)):
        pass
    assert [record for record in caplog.records if record.levelno == logging.WARNING]
