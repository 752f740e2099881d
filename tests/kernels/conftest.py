"""The kernels are compiled once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernels import Driver, compiler, kernel_objects, link_driver


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if shutil.which(compiler()[-1]) is None:
        pytest.skip("there is no C compiler")
    return kernel_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="session")
def driver(objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(link_driver(tmp_path_factory.mktemp("driver") / "driver.so", objects))
