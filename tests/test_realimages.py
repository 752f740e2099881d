# SPDX-License-Identifier: Apache-2.0
"""Real disk images, compared with what the system's own tools say about them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import realimages

import fastfs


@pytest.fixture(scope="module")
def images() -> list[Path]:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("not a Debian system: there are no packages to take images from")
    directory = Path(__file__).parent.parent / "build" / "images"
    try:
        # The large ones where the demonstration of CI has fetched them already.
        return realimages.build(directory, large=(directory / "initrd.gz").exists())
    except RuntimeError as error:
        pytest.skip(f"packages cannot be downloaded: {error}")


def told_by(tool: str, path: Path) -> str:
    return subprocess.run([tool, path], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.mark.parametrize("thin", [False, True])
def test_real_images(images: list[Path], thin: bool, tmp_path: Path) -> None:
    store = fastfs.Store(datadir=str(tmp_path), thin_provisioning=thin, durability="none")
    for image in images:
        with open(image, "rb") as file:
            stored = store.add(image.name, file, image.stat().st_size)
        assert (stored.checksum, stored.multihash) == (told_by("md5sum", image), told_by("sha512sum", image))
        subprocess.run(["cmp", image, tmp_path / image.name], check=True)
        if thin:
            os.sync()
            assert store.info(image.name).allocated <= image.stat().st_blocks * 512 + 64 * 1024
        store.delete(stored.url)
