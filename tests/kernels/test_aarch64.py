# SPDX-License-Identifier: Apache-2.0
"""The kernels and the engine of aarch64 (NEON), cross-compiled and run by an emulator of its instructions."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import proofs
import pytest
from kernels import ALGORITHMS, EXT, FLAGS, HERE, compile_objects, kernel_objects, run

CC = "aarch64-linux-gnu-gcc"


@pytest.fixture(scope="module")
def emulator() -> list[str]:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("no emulator of aarch64 is installed: Debian's qemu-user")
    if shutil.which(CC) is None:
        pytest.skip("no compiler for aarch64 is installed: Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross")
    return [qemu]


@pytest.fixture(scope="module")
def neon(emulator: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    cache = ["ccache"] if shutil.which("ccache") else []
    return kernel_objects(tmp_path_factory.mktemp("neon"), "-O1", cc=[*cache, CC])


def build(target: Path, source: Path, objects: list[Path]) -> Path:
    """Statically: the emulator needs no other system's libraries."""
    run([CC, *FLAGS, "-O1", "-static", f"-I{EXT}", str(source), *map(str, objects), "-o", str(target)])
    return target


def test_digests(emulator: list[str], neon: list[Path], tmp_path: Path) -> None:
    program = build(tmp_path / "program", HERE / "program.c", neon)
    data = proofs.noise()[0][: 1 << 16]
    (tmp_path / "data").write_bytes(data)
    done = subprocess.run([*emulator, program, tmp_path / "data"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = set()
    for line in done.stdout.splitlines():
        name, kind, width, algorithm, start, length, digest = line.split()
        piece = data[int(start) : int(start) + int(length)]
        assert digest == hashlib.new(algorithm, piece).hexdigest(), line
        seen.add((name, kind, int(width), algorithm))
    assert {name for name, *_ in seen} == {"neon"}
    assert {(kind, algorithm) for _, kind, _, algorithm in seen} >= {
        *((kind, algorithm) for kind in ("one", "lanes") for algorithm in ALGORITHMS),
        *((kind, algorithm) for kind in ("pair", "pair_lanes") for algorithm in ("md5", "sha256", "sha512")),
    }
    assert max(width for _, _, width, _ in seen) == 8


def test_engine(emulator: list[str], neon: list[Path], tmp_path: Path) -> None:
    objects = [*neon, *compile_objects(tmp_path, [EXT / name for name in ("ways.c", "objects.c", "cores.c")], cc=[CC])]
    program = build(tmp_path / "stress", HERE / "engine_stress.c", objects)
    done = subprocess.run([*emulator, program, "4", "12", "1", "61"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernel neon" in done.stdout
