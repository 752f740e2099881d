"""A real glance-api on loopback, with everything it needs in one temporary directory.

Nothing of Glance is replaced: its own WSGI application runs under uWSGI or gunicorn with SQLite; only Keystone is
(see ``app/fixed_identity.py``). The store driver is the only variable:

``upstream``
    glance_store's filesystem driver as installed.
``fastfs``
    the same command started through ``fastfs glance run --``, see :func:`with_driver`.

The server's log, configuration, database and data stay below ``GlanceServer.root``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

APP_DIRECTORY = Path(__file__).resolve().parent / "app"
BIN_DIRECTORY = Path(sys.executable).parent
START_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0

Options = Mapping[str, object]

_PORT_PATTERNS = {
    "uwsgi": re.compile(r"bound to TCP address 127\.0\.0\.1:(\d+)"),
    "gunicorn": re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)"),
}

_PASTE = """\
[composite:glance-api]
paste.composite_factory = glance.api:root_app_factory
/: api

[composite:glance-api-caching]
paste.composite_factory = glance.api:root_app_factory
/: api-caching

[pipeline:api]
pipeline = versionnegotiation fixed-identity context rootapp

[pipeline:api-caching]
pipeline = versionnegotiation fixed-identity context cache rootapp

[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app

[app:apiversions]
paste.app_factory = glance.api.versions:create_resource

[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory

[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory

[filter:fixed-identity]
paste.filter_factory = fixed_identity:filter_factory

[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory

[filter:cache]
paste.filter_factory = glance.api.middleware.cache:CacheFilter.factory
"""


class ServerError(RuntimeError):
    """The server did not start, or is not what was asked for."""


def with_driver(driver: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs *command*, and its child processes, with the given store driver.

    The one place that knows how fastfs is put under Glance.
    """
    if driver == "upstream":
        return list(command)
    if driver == "fastfs":
        return [str(BIN_DIRECTORY / "fastfs"), "glance", "run", "--", *command]
    raise ValueError(f"unknown driver {driver!r}")


def driver_environment(_driver: str) -> dict[str, str]:
    """Return the environment of a command made by :func:`with_driver`: without proxies, they bypass loopback."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def write_ini(path: Path, sections: Mapping[str, Options]) -> None:
    """Write an oslo.config file. A list becomes a repeated option, ``None`` leaves the option out."""
    lines = []
    for section, options in sections.items():
        lines.append(f"[{section}]")
        for name, value in options.items():
            values = value if isinstance(value, list | tuple) else [value]
            lines += [f"{name} = {item}" for item in values if item is not None]
        lines.append("")
    path.write_text("\n".join(lines))


@functools.cache
def database_template() -> Path:
    """Return an empty, migrated database. Migrating takes seconds, so it is done once for each Python process."""
    directory = Path(tempfile.mkdtemp(prefix="glance-e2e-database-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    config = directory / "glance-manage.conf"
    database = directory / "glance.sqlite"
    write_ini(config, {"DEFAULT": {"debug": False}, "database": {"connection": f"sqlite:///{database}"}})
    command = [str(BIN_DIRECTORY / "glance-manage"), "--config-file", str(config), "db_sync"]
    environment = driver_environment("upstream")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    if done.returncode:
        raise ServerError(f"db_sync failed:\n{done.stdout}\n{done.stderr}")
    return database


@dataclass
class GlanceServer:
    """One glance-api; a context manager that starts and stops it.

    ``stores`` maps each backend's name to its options; the first one is the default. ``None`` asks for the layout
    without ``enabled_backends`` (a single store in section ``glance_store``), whose options are ``store_options``.
    A backend without a datadir gets ``root/NAME``. ``store_options`` are given to every backend, ``options`` are
    added to the configuration file by section.
    """

    root: Path
    driver: str = "upstream"
    server: str = "uwsgi"
    processes: int = 1
    threads: int = 8
    load_before_fork: bool = False
    stores: Mapping[str, Options] | None = field(default_factory=lambda: {"fast": {}})
    store_options: Options = field(default_factory=dict)
    options: Mapping[str, Options] = field(default_factory=dict)
    caching: bool = False
    umask: int = 0o022

    port: int = field(default=0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.log_file = self.root / "server.log"
        self.record_file = self.root / "stores.json"
        self.database = self.root / "glance.sqlite"
        self.config_directory = self.root / "etc"
        self.config_file = self.config_directory / "glance-api.conf"
        self.cache_directory = self.root / "cache"
        self.staging_directory = self.root / "staging"
        self.certificates = self.root / "certificates"

    # -- configuration -----------------------------------------------------------------------------------------------

    def datadir(self, backend: str | None = None) -> Path:
        """Return the directory of a backend (of the default one), as far as the server chose it itself."""
        names = list(self.stores) if self.stores is not None else ["images"]
        return self.root / (backend or names[0])

    def _store_sections(self) -> dict[str, dict[str, object]]:
        def options(name: str, given: Options) -> dict[str, object]:
            merged = {**self.store_options, **given}
            # An unset datadir is not enough beside datadirs: its default would count, and the store refuses both.
            empty = "filesystem_store_datadirs" in merged
            merged.setdefault("filesystem_store_datadir", "" if empty else self.root / name)
            return merged

        if self.stores is None:
            common = {"stores": "file", "default_store": "file"}
            return {"glance_store": {**common, **options("images", {})}}
        sections: dict[str, dict[str, object]] = {"glance_store": {"default_backend": next(iter(self.stores))}}
        for name, given in self.stores.items():
            sections[name] = options(name, given)
        for name, path in (("staging", self.staging_directory), ("tasks", self.root / "tasks")):
            sections[f"os_glance_{name}_store"] = {"filesystem_store_datadir": path}
        return sections

    def configure(self) -> None:
        """Write configuration and database; a database that is there already is kept, so a restart sees its images."""
        for path in (self.config_directory, self.staging_directory, self.cache_directory, self.certificates):
            path.mkdir(parents=True, exist_ok=True)
        if not self.database.exists():
            shutil.copyfile(database_template(), self.database)
        paste = self.config_directory / "paste.ini"
        paste.write_text(_PASTE)
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": {
                "debug": False,
                "bind_host": "127.0.0.1",
                "image_cache_dir": self.cache_directory,
                "image_cache_driver": "sqlite",
                "node_staging_uri": f"file://{self.staging_directory}",
                "show_multiple_locations": True,
                "show_image_direct_url": True,
                "worker_self_reference_url": "http://127.0.0.1",
                "enabled_import_methods": "[glance-direct,web-download,copy-image]",
                "enabled_backends": None if self.stores is None else ",".join(f"{name}:file" for name in self.stores),
                "default_log_levels": "sqlalchemy=WARN,stevedore=WARN,oslo_policy=WARN,oslo_db=WARN",
            },
            # 60 seconds of patience for SQLite's one writer.
            "database": {"connection": f"sqlite:///{self.database}?timeout=60"},
            "paste_deploy": {"config_file": paste, "flavor": "caching" if self.caching else None},
            "oslo_concurrency": {"lock_path": self.root / "lock"},
            "key_manager": {"backend": "file_key_manager.FileKeyManager"},
            "task": {"work_dir": self.root / "work"},
            **self._store_sections(),
        }
        for section, options in self.options.items():
            sections[section] = {**sections.get(section, {}), **options}
        write_ini(self.config_file, sections)

    def _command(self) -> list[str]:
        if self.server == "uwsgi":
            command = [str(BIN_DIRECTORY / "uwsgi"), "--http-socket", "127.0.0.1:0", "--master", "--need-app"]
            command += ["--processes", str(self.processes), "--threads", str(self.threads), "--enable-threads"]
            command += ["--pythonpath", str(APP_DIRECTORY), "--module", "glance_app:application"]
            # Chunks may be larger than uWSGI's limit of 1 MiB, and a header larger than its 4 KiB.
            command += ["--chunked-input-limit", str(64 << 20), "--buffer-size", "65535"]
            # uWSGI closes after each answer; clients that are not told may send their next request into the void.
            command += ["--add-header", "Connection: close"]
            command += ["--die-on-term", "--socket-timeout", "30", "--umask", f"{self.umask:03o}"]
            return command if self.load_before_fork else [*command, "--lazy-apps"]
        if self.server == "gunicorn":
            command = [str(BIN_DIRECTORY / "gunicorn"), "--bind", "127.0.0.1:0", "--worker-class", "gthread"]
            command += ["--workers", str(self.processes), "--threads", str(self.threads), "--timeout", "120"]
            command += ["--pythonpath", str(APP_DIRECTORY), "--umask", f"{self.umask:#o}", "glance_app:application"]
            return [*command, "--preload"] if self.load_before_fork else command
        raise ValueError(f"unknown server {self.server!r}")

    def environment(self) -> dict[str, str]:
        """Return the environment of the server and of Glance's other commands."""
        return {
            **driver_environment(self.driver),
            "OS_GLANCE_CONFIG_DIR": str(self.config_directory),
            "GLANCE_E2E_RECORD": str(self.record_file),
            "GLANCE_E2E_CERTIFICATES": str(self.certificates),
        }

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> GlanceServer:
        """Start the server, wait until it answers, and check that it runs the driver asked for."""
        self.configure()
        self.record_file.unlink(missing_ok=True)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                with_driver(self.driver, self._command()),
                cwd=self.root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=self.umask,
            )
        try:
            self._wait_until_ready()
            self._check_driver()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with {self._process.returncode}:\n{self.log_tail()}")
            found = _PORT_PATTERNS[self.server].search(self.log())
            if found and self.record_file.exists():
                self.port = int(found.group(1))
                try:
                    with urllib.request.urlopen(f"{self.url}/v2/schemas/image", timeout=5):
                        return
                except (urllib.error.URLError, OSError):
                    pass
            time.sleep(0.05)
        raise ServerError(f"the server did not answer within {START_TIMEOUT:.0f} s:\n{self.log_tail()}")

    def _check_driver(self) -> None:
        for name, store in self.loaded_stores().items():
            found = driver_of(store)
            if found != self.driver:
                raise ServerError(f"store {name} runs the driver {found}, not {self.driver}: {store}")

    def loaded_stores(self) -> dict[str, Any]:
        """Return what the server recorded about its stores (see ``app/glance_app.py``)."""
        stores: dict[str, Any] = json.loads(self.record_file.read_text())["stores"]
        if not stores:
            raise ServerError("the server loaded no filesystem store")
        return stores

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        """Return the server's processes: everything in the process group made for it."""
        if self._process is None:
            return []
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[2]) == self._process.pid and fields[0] != "Z":
                    pids.append(int(entry.name))
        return pids

    def cpu_seconds(self) -> float:
        """Return user and system time of the server's living processes."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def open_files(self, directory: Path) -> list[str]:
        """Return what the server has open below a directory."""
        found = []
        for pid in self.pids():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(link)
                except OSError:
                    continue
                if target.startswith(f"{directory}/"):
                    found.append(target)
        return found

    def stop(self) -> None:
        """End the server in an orderly way; what does not end in time is killed."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the server at once, as a power cut or the kernel's OOM killer would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._process = None

    def run_command(self, name: str, *arguments: str, timeout: float = 120) -> str:
        """Run one of Glance's commands with this server's configuration and driver, and return its output."""
        command = [str(BIN_DIRECTORY / name), "--config-file", str(self.config_file), *arguments]
        done = subprocess.run(
            with_driver(self.driver, command),
            check=False,
            cwd=self.root,
            env={**self.environment(), "PYTHONPATH": str(APP_DIRECTORY)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise ServerError(f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def log(self) -> str:
        """Return the log since the last start."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 80) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def __enter__(self) -> GlanceServer:
        return self.start()

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()


def driver_of(store: Mapping[str, Any]) -> str:
    """Tell from a store's recorded ancestry which driver it is."""
    ancestry = store["ancestry"]
    if any(cls["module"].split(".")[0] == "fastfs" or "fastfs" in Path(cls["file"]).parts for cls in ancestry):
        return "fastfs"
    if Path(ancestry[0]["file"]).parts[-3:] == ("glance_store", "_drivers", "filesystem.py"):
        return "upstream"
    return "unknown"
