"""Run glance_store's own test-suite, unmodified and from the installed package, with a driver of choice.

``python glance_store_suite.py --driver fastfs`` runs the 166 tests that concern the filesystem driver,
``--all`` every unit test that glance_store ships plus the functional ones. The environment needs
``requirements-store-tests.txt``.

The driver is put in its place by the same call that users make, ``fastfs.glance.install()``, before anything of
glance_store's is imported. That the tests then really ran it is proven, not assumed: the base class of all stores is
made to count which classes the filesystem tests instantiate, and the run fails unless there were instances of the
driver asked for and of no other one.

This file is both the program and the pytest plugin that it loads into the test process.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

FILESYSTEM_MODULE = "glance_store._drivers.filesystem"

# The filesystem driver's own tests, and those neighbours that load it.
UNIT_TESTS = (
    "unit/test_filesystem_store.py",
    "unit/test_filesystem_store_base.py",
    "unit/test_multistore_filesystem.py",
    "unit/test_store_base.py",
    "unit/test_opts.py",
    "unit/test_driver.py",
    "unit/test_backend.py",
    "unit/test_store_capabilities.py",
    "unit/test_backend_group_configuration.py",
    "unit/test_location.py",
)
FUNCTIONAL_TESTS = ("functional/filesystem",)
# The functional tests read credentials of a cloud, whatever the store; nothing ever connects to this one.
CLOUDS = """\
clouds:
  devstack-admin:
    auth:
      auth_url: http://127.0.0.1:1/identity
      username: nobody
      password: nothing
      project_name: none
      user_domain_id: default
      project_domain_id: default
    region_name: none
"""
EXPECTED = {"5.7.0": {"driver": {"passed": 166}, "all": {"passed": 842, "skipped": 1}}}
# Some tests configure stores with default directories below this one, and a reserved store has one of its own.
DEFAULT_DIRECTORY = Path("/var/lib/glance")


# -- in the test process ---------------------------------------------------------------------------------------------


class _Proof:
    """Counts, by class, the filesystem stores that the tests make."""

    def __init__(self) -> None:
        self.instances: collections.Counter[str] = collections.Counter()

    def watch(self) -> None:
        """Wrap the constructor that every store class inherits; a store cannot be made without it."""
        base = importlib.import_module("glance_store.driver").Store
        construct = base.__init__

        def counting(store: Any, *args: Any, **kwargs: Any) -> None:
            if "file" in _schemes(store):
                self.instances[_origin(type(store))] += 1
            construct(store, *args, **kwargs)

        base.__init__ = counting

    def report(self) -> dict[str, Any]:
        module = sys.modules[FILESYSTEM_MODULE]
        package = importlib.import_module("glance_store._drivers")
        return {
            "module": _origin(module.Store),
            "package_attribute_is_module": getattr(package, "filesystem", None) is module,
            "instances": dict(self.instances),
        }


def _schemes(store: Any) -> tuple[str, ...]:
    try:
        return tuple(store.get_schemes())
    except NotImplementedError:  # the abstract store
        return ()


def _origin(cls: type) -> str:
    """Tell which driver a store class is, through subclasses that tests or adapters derive from it."""
    if any(base.__module__.split(".")[0] == "fastfs" or "fastfs" in Path(_file(base)).parts for base in cls.__mro__):
        return "fastfs"
    if any(Path(_file(base)).parts[-3:] == ("glance_store", "_drivers", "filesystem.py") for base in cls.__mro__):
        return "upstream"
    return f"{cls.__module__}.{cls.__qualname__}"


def _file(cls: type) -> str:
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return ""


_proof = _Proof()


def pytest_configure(config: pytest.Config) -> None:
    driver = os.environ.get("GLANCE_STORE_SUITE_DRIVER")
    if driver is None:  # imported, not loaded by the program below
        return
    if driver == "fastfs":
        if any(name.split(".")[0] == "glance_store" for name in sys.modules):
            raise pytest.UsageError("glance_store was imported before the driver was installed")
        importlib.import_module("fastfs.glance").install()
    importlib.import_module(FILESYSTEM_MODULE)
    _proof.watch()


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("GLANCE_STORE_SUITE_PROOF")
    if path is not None:
        Path(path).write_text(json.dumps(_proof.report()))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> list[pytest.Item] | None:
    """Collect unittest's test cases only: one mix-in has a name that pytest would take for a class of its own."""
    if inspect.isclass(obj) and not issubclass(obj, unittest.TestCase):
        return []
    return None


# -- the program -----------------------------------------------------------------------------------------------------


def run(driver: str, everything: bool, arguments: list[str]) -> dict[str, Any]:
    """Run the tests; return counts and proof.

    Unit and functional tests get a process each: the functional ones register options in a global configuration when
    they are collected, which breaks more than a hundred unit tests of other drivers.
    """
    spec = importlib.util.find_spec("glance_store")
    if spec is None or spec.origin is None:
        raise SystemExit("glance_store is not installed here")
    tests = Path(spec.origin).parent / "tests"
    unit = ["unit"] if everything else list(UNIT_TESTS)
    result: dict[str, Any] = {"driver": driver, "glance_store": importlib.metadata.version("glance_store")}
    counts: collections.Counter[str] = collections.Counter()
    result.update(counts=counts, runs=[])
    for targets in (unit, list(FUNCTIONAL_TESTS)):
        done = _run_process(driver, tests, targets, arguments)
        counts.update(done["counts"])
        result["runs"].append(done)
    return result


def _run_process(driver: str, tests: Path, targets: list[str], arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        proof, report, clouds = (Path(scratch, name) for name in ("proof.json", "report.xml", "clouds.yaml"))
        clouds.write_text(CLOUDS)
        command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, "-p", "no:cacheprovider", "-q"]
        # Nothing of the calling project's pytest configuration applies to glance_store's tests.
        command += ["-c", os.devnull, f"--rootdir={tests}", f"--junit-xml={report}", *arguments]
        command += [str(tests / target) for target in targets]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
            "GLANCE_STORE_SUITE_DRIVER": driver,
            "GLANCE_STORE_SUITE_PROOF": str(proof),
            "OS_CLIENT_CONFIG_FILE": str(clouds),
            # Two of the tests need their temporary directories there.
            "TMPDIR": "/tmp",
        }
        before = _default_directories()
        try:
            # The tests of the swift driver find their data relative to the directory that holds the package.
            status = subprocess.run(command, check=False, env=environment, cwd=tests.parent.parent).returncode
        finally:
            _remove_new_directories(before)
        if not proof.exists() or not report.exists():
            raise SystemExit(f"pytest ended with {status} before it ran the tests")
        return {"status": status, "counts": _counts(report), "proof": json.loads(proof.read_text())}


def _default_directories() -> list[Path]:
    """The default directory, if it exists, and what is in it, deepest first."""
    if not DEFAULT_DIRECTORY.exists():
        return []
    return [*DEFAULT_DIRECTORY.iterdir(), DEFAULT_DIRECTORY]


def _remove_new_directories(before: list[Path]) -> None:
    """Remove those that the tests made, if they are empty."""
    for path in _default_directories():
        if path not in before and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _counts(report: Path) -> dict[str, int]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    numbers = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = numbers["failures"] + numbers["errors"]
    counts = {"passed": numbers["tests"] - failed - numbers["skipped"], "failed": failed, "skipped": numbers["skipped"]}
    return {name: count for name, count in counts.items() if count}


def problems(result: dict[str, Any], everything: bool) -> list[str]:
    """Return what is wrong with a run: wrong counts, or a proof that does not prove what it should."""
    found = []
    expected = EXPECTED.get(result["glance_store"], {}).get("all" if everything else "driver")
    if expected is None:
        found.append(f"no counts are known for glance_store {result['glance_store']}")
    elif result["counts"] != expected:
        found.append(f"expected {expected}, got {dict(result['counts'])}")
    for run_of_tests in result["runs"]:
        if run_of_tests["status"]:
            found.append(f"pytest ended with status {run_of_tests['status']}")
        proof = run_of_tests["proof"]
        if proof["module"] != result["driver"] or not proof["package_attribute_is_module"]:
            found.append(f"{FILESYSTEM_MODULE} is not the driver asked for: {proof}")
        if set(proof["instances"]) != {result["driver"]}:
            found.append(f"the tests made stores of other drivers, or none: {proof['instances']}")
    return found


def main() -> int:
    """Run the suite as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=["fastfs", "upstream"], default="fastfs")
    parser.add_argument("--all", action="store_true", help="every test that glance_store ships")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options, arguments = parser.parse_known_args()
    result = run(options.driver, options.all, arguments)
    found = problems(result, options.all)
    result["problems"] = found
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
