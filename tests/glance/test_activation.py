# SPDX-License-Identifier: Apache-2.0
"""Three ways to be found as glance_store's driver: each is reversible, and none can keep Glance from starting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import fastfs
from fastfs.glance import activation, pth

ROOT = Path(fastfs.__file__).parent.parent
WHICH = "import glance_store._drivers.filesystem as f; print(f.__name__)"
OURS, THEIRS = "fastfs.glance.driver\n", "glance_store._drivers.filesystem\n"


def run(
    code: str, *, check: bool = True, interpreter: str = sys.executable, env: dict[str, str] | None = None
) -> tuple[str, str]:
    """The output of a fresh interpreter, and its errors."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FASTFS_")}
    command = [interpreter, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**plain, **(env or {})}, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout, done.stderr


def command(*arguments: str, interpreter: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """The command ``fastfs glance``."""
    return subprocess.run(
        [interpreter, "-W", "ignore", "-m", "fastfs.cli", "glance", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


# -- by a call --------------------------------------------------------------------------------------------------------


def test_install_and_uninstall() -> None:
    code = """
import sys
from fastfs.glance import install, status, uninstall
assert not [name for name in sys.modules if name.startswith("glance_store")], "must not be imported by us"
print(status().active, end=" ")
install(); install()
print(status().active, end=" ")
from glance_store._drivers import filesystem
import glance_store._drivers
assert sys.modules["glance_store._drivers.filesystem"] is filesystem is glance_store._drivers.filesystem
print(filesystem.__name__, filesystem.__spec__.name, status().loaded, end=" ")
uninstall(); uninstall()
from glance_store._drivers import filesystem
print(filesystem.__name__, status().active, status().loaded)
install()
from glance_store._drivers import filesystem
print(filesystem.__name__)
"""
    assert run(code)[0].split() == [
        "False",
        "True",
        *["fastfs.glance.driver"] * 2,
        "fastfs",
        "glance_store._drivers.filesystem",
        "False",
        "glance_store",
        "fastfs.glance.driver",
    ]


def test_late_install_is_undone_to_the_very_module() -> None:
    code = """
import glance_store._drivers.filesystem as first
from fastfs.glance import install, uninstall
install()
from glance_store._drivers import filesystem
assert filesystem.__name__ == "fastfs.glance.driver"
uninstall()
from glance_store._drivers import filesystem
import sys
assert filesystem is first is sys.modules["glance_store._drivers.filesystem"]
"""
    assert "imported before" in run(code)[1]


def test_every_way_glance_store_finds_its_driver() -> None:
    code = """
from fastfs.glance import install
install()
import glance_store
from glance_store import backend, multi_backend, location
from oslo_config import cfg
conf = cfg.ConfigOpts()
conf(args=[])
glance_store.register_opts(conf)
conf.set_override("filesystem_store_datadir", {0!r}, group="glance_store")
conf.set_override("stores", ["file"], group="glance_store")
glance_store.create_stores(conf)
store = location.SCHEME_TO_CLS_MAP["file"]["store"]
assert type(store).__module__ == location.SCHEME_TO_CLS_MAP["file"]["location_class"].__module__
print(type(store).__module__)
"""
    assert run(code.replace("{0!r}", repr("/tmp/fastfs-activation")))[0] == OURS


# -- for one command --------------------------------------------------------------------------------------------------


def test_run() -> None:
    assert command("run", "--", sys.executable, "-c", WHICH).stdout == OURS
    # Its children, too; options of the command are its own.
    code = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {WHICH!r}], text=True), end='')"
    )
    assert command("run", sys.executable, "-c", code).stdout == OURS
    assert run(WHICH)[0] == THEIRS
    done = command("run", "--", sys.executable, "-c", "raise SystemExit(7)")
    assert done.returncode == 7
    assert command("run", "--", "no-such-command-here").returncode != 0


def test_run_goes_on_with_the_next_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.next_one = True\n")
    environment = pth.environment({"PYTHONPATH": str(tmp_path)})
    assert environment["PYTHONPATH"] == f"{pth.STARTUP}{os.pathsep}{tmp_path}"
    assert pth.environment(environment) == environment
    out, _ = run("import sys; print(sys.next_one, sys.modules['sitecustomize'].__file__)", env=environment)
    assert out == f"True {tmp_path}/sitecustomize.py\n"
    (tmp_path / "sitecustomize.py").write_text("import no_such_module\n")
    assert run(WHICH, env=environment)[0] == OURS


# -- for a virtual environment ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a virtual environment that has what this one has, fastfs included."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=False, symlinks=True)
    interpreter = str(directory / "bin" / "python")
    purelib = run("import sysconfig; print(sysconfig.get_path('purelib'))", interpreter=interpreter)[0].strip()
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    Path(purelib, "everything.pth").write_text("\n".join(paths) + "\n")
    return interpreter


def test_enable_and_disable(environment: str) -> None:
    def status() -> tuple[int, dict[str, object]]:
        done = command("status", "--json", interpreter=environment)
        return done.returncode, json.loads(done.stdout)

    assert status()[1]["driver"] == "glance_store"
    done = command("enable", interpreter=environment)
    assert done.returncode == 0, done.stderr
    code, found = status()
    assert (code, found["driver"], found["enabled"], found["problem"]) == (0, "fastfs", True, "")
    assert Path(str(found["file"])).name == pth.NAME
    assert run(WHICH, interpreter=environment)[0] == OURS
    assert run(WHICH, interpreter=environment, env={"FASTFS_GLANCE_DISABLE": "1"})[0] == THEIRS
    # Nothing is imported before it is needed.
    loaded = "import sys; print([name for name in sys.modules if 'fastfs' in name and not name.startswith('__edit')])"
    assert run(loaded, interpreter=environment)[0] == "[]\n"
    assert command("disable", interpreter=environment).returncode == 0
    assert status()[1]["driver"] == "glance_store"
    assert run(WHICH, interpreter=environment)[0] == THEIRS
    assert command("disable", interpreter=environment).returncode == 0


def test_a_file_left_after_uninstalling_does_nothing(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "fastfs"
    line = pth.line().replace(str(pth.BOOTSTRAP), str(package / "glance" / "bootstrap.py"))
    assert run(f"{line}\n{WHICH}") == (THEIRS, "")
    # The bootstrap is there, the package is not.
    code = f"exec(open({str(pth.BOOTSTRAP)!r}).read())\nimport sys; sys.modules['fastfs'] = None\n{WHICH}"
    assert run(code)[0] == THEIRS


def test_enable_wants_a_virtual_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert not pth.in_virtual_environment()


# -- what is wrong does not keep Glance from starting -----------------------------------------------------------------

LOGGED = "import logging; logging.basicConfig(format='%(name)s %(message)s')\n"
UNKNOWN = """
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: {0!r} if name == "glance_store" else version(name)
"""
INSTALL = "from fastfs.glance import install, status; install()\n"
BROKEN = "import fastfs._native; fastfs._native.__name__; import sys; sys.modules['fastfs.store'] = None\n"


@pytest.mark.parametrize("version", ["4.9.1", "6.0.0", "2026.1", "unknown"])
def test_unknown_version_falls_back(version: str) -> None:
    out, log = run(LOGGED + UNKNOWN.format(version) + INSTALL + WHICH)
    assert out == THEIRS
    assert log.startswith("fastfs.glance.activation")
    assert version in log


@pytest.mark.parametrize("version", ["5.0.0", "5.99"])
def test_known_versions(version: str) -> None:
    assert run(UNKNOWN.format(version) + INSTALL + WHICH)[0] == OURS


def test_unknown_version_when_strict() -> None:
    out, log = run(UNKNOWN.format("6.0.0") + INSTALL + WHICH, check=False, env={"FASTFS_GLANCE_STRICT": "1"})
    assert out == ""
    assert "ImportError" in log
    assert "6.0.0" in log
    strict = "from fastfs.glance import install; install(strict=True)\n"
    assert "ImportError" in run(UNKNOWN.format("6.0.0") + strict, check=False)[1]


def test_broken_fastfs_falls_back() -> None:
    out, log = run(LOGGED + BROKEN + INSTALL + WHICH + "\nprint(f.Store.__module__, f.__spec__.loader is f.__loader__)")
    assert out.splitlines() == [THEIRS.strip(), f"{THEIRS.strip()} True"]
    assert "fastfs is not used" in log
    out, log = run(LOGGED + BROKEN + INSTALL + WHICH, check=False, env={"FASTFS_GLANCE_STRICT": "1"})
    assert out == ""
    assert "ImportError" in log


def test_broken_fastfs_falls_back_by_the_file() -> None:
    broken = "import sys; sys.modules['fastfs.glance.activation'] = None\n"
    out, log = run(LOGGED + pth.line() + broken + WHICH)
    assert out == THEIRS
    assert "fastfs is not used" in log


def test_status_tells_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "version", lambda: "6.1.0")
    status = activation.status()
    assert "6.1.0" in status.problem
    monkeypatch.setattr(activation, "version", lambda: "")
    assert "not installed" in activation.status().problem
