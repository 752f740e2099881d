# SPDX-License-Identifier: Apache-2.0
"""An upload's memory is the ring and what the source itself hands over, however large the image is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEBI = 1024 * 1024

# Runs in a process of its own, whose high-water mark it reads: once warm, then after a large image.
SCRIPT = """
import sys
import fastfs

kind, directory, size = sys.argv[1], sys.argv[2], int(sys.argv[3])


class OnlyRead:
    def __init__(self, size):
        self.left = size
        self.piece = b"x" * (1 << 20)

    def read(self, n):
        n = min(n, self.left, len(self.piece))
        self.left -= n
        return self.piece[:n]


class Filler(OnlyRead):
    def readinto(self, buffer):
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def pieces(size):
    for start in range(0, size, 100_000):
        yield b"y" * min(100_000, size - start)


def source(size):
    if kind == "file":
        path = directory + "/source"
        with open(path, "wb") as file:
            for piece in pieces(size):
                file.write(piece)
        return path
    return {"read": OnlyRead, "readinto": Filler, "iterator": pieces}[kind](size)


store = fastfs.Store(datadir=directory + "/images", durability="none")
peaks = []
for number, count in enumerate([8 << 20, size]):
    store.delete(store.add(f"image-{number}", source(count)).url)
    # Not ru_maxrss: that begins with what the process had before exec(), the whole of a large test run.
    with open("/proc/self/status") as status:
        peaks.append(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")))
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize("kind", ["file", "read", "readinto", "iterator"])
def test_memory_does_not_grow_with_the_image(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(tmp_path), str(192 * MEBI)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 4 * MEBI


def test_the_measurement_notices_a_source_that_is_gathered(tmp_path: Path) -> None:
    """The same measurement, of a store that joins everything first."""
    gathering = SCRIPT.replace("source(count)).url", "b''.join(pieces(count))).url")
    done = subprocess.run(
        [sys.executable, "-c", gathering, "iterator", str(tmp_path), str(192 * MEBI)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 32 * MEBI  # eight times what is allowed above; allocators differ in the rest
