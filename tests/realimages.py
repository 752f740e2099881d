# SPDX-License-Identifier: Apache-2.0
"""Build real images out of Debian packages, for the demonstration and the tests.

``python tests/realimages.py DIRECTORY [--large]`` prints the path of each image.  Nothing is installed: the
packages are downloaded (``apt-get download``) and unpacked.  What cannot be made here is named on stderr.

* ``grub-rescue-cdrom.iso``, ``grub-rescue-floppy.img`` (grub-rescue-pc), ``ipxe.iso`` (ipxe);
* ``sparse.raw``: a 256 MiB disk with an ext4 file system that holds the files above, mostly holes;
* with ``--large``: kernel and initrd of the Debian 12 installer (110 MiB of compressed data), and ``disk.qcow2``,
  made by ``qemu-img`` where that is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = {
    "grub-rescue-pc": ["usr/lib/grub-rescue/grub-rescue-cdrom.iso", "usr/lib/grub-rescue/grub-rescue-floppy.img"],
    "ipxe": ["usr/lib/ipxe/ipxe.iso"],
}
INSTALLER = "usr/lib/debian-installer/images/12/amd64"
LARGE_PACKAGES = {
    "debian-installer-12-netboot-amd64": [
        f"{INSTALLER}/gtk/debian-installer/amd64/initrd.gz",
        f"{INSTALLER}/text/debian-installer/amd64/linux",
    ],
}
SPARSE_SIZE = "256M"


def run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def download(package: str, directory: Path) -> Path:
    """Fetch a package; on a fresh machine apt has no lists yet, so they are brought up to date once."""
    try:
        run("apt-get", "download", package, cwd=directory)
    except RuntimeError:
        run("apt-get", "-qq", "update")
        run("apt-get", "download", package, cwd=directory)
    return next(directory.glob(f"{package}_*.deb"))


def from_package(package: str, members: list[str], target: Path) -> list[Path]:
    """The named files of a package, in `target`."""
    images = [target / Path(member).name for member in members]
    if all(image.exists() for image in images):
        return images
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        run("dpkg-deb", "-x", str(download(package, directory)), str(directory / "root"))
        for member, image in zip(members, images, strict=True):
            shutil.copyfile(directory / "root" / member, image)
    return images


def sparse_disk(content: list[Path], target: Path) -> Path:
    """A raw disk with a file system on it."""
    image = target / "sparse.raw"
    if not image.exists():
        with tempfile.TemporaryDirectory() as scratch:
            for path in content:
                shutil.copy(path, scratch)
            run("mkfs.ext4", "-q", "-F", "-d", scratch, str(image), SPARSE_SIZE)
    return image


def qcow2(raw: Path, target: Path) -> Path:
    """The same disk as QEMU keeps it."""
    image = target / "disk.qcow2"
    if not image.exists():
        run("qemu-img", "convert", "-O", "qcow2", str(raw), str(image))
    return image


def build(target: Path, large: bool = False) -> list[Path]:
    """Make what can be made; raises RuntimeError if that is nothing."""
    target.mkdir(parents=True, exist_ok=True)
    images: list[Path] = []
    for package, members in {**PACKAGES, **(LARGE_PACKAGES if large else {})}.items():
        try:
            images += from_package(package, members, target)
        except (RuntimeError, OSError, StopIteration) as error:
            print(f"without {package}: {error}", file=sys.stderr)
    if not images:
        raise RuntimeError("no Debian package can be had; give images of your own")
    try:
        images.append(sparse_disk(images, target))
        if large:
            images.append(qcow2(images[-1], target))
    except (RuntimeError, OSError) as error:
        print(f"without a disk image: {error}", file=sys.stderr)
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    try:
        for image in build(options.directory, options.large):
            print(image)
    except RuntimeError as error:
        sys.exit(f"realimages: {error}")


if __name__ == "__main__":
    main()
