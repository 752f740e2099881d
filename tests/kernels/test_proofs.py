# SPDX-License-Identifier: Apache-2.0
"""The proofs prove something: kernels that are wrong on purpose are told from those that are right."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import proofs
import pytest
from kernels import EXT, SHA, Driver, Kernel, kernel_objects, link_driver

READS = "        (void)*(volatile const unsigned char *)"
FAULTS = {
    "numbers": [
        ("hash/rounds.h", "MD5_TURN(i, 6, 10, 15, 21)", "MD5_TURN(i, 6, 10, 15, 20)"),
        ("hash/constants.h", "X(0x6c44198c4a475817)", "X(0x6c44198c4a475816)"),  # of the last round; not SHA-256's
    ],
    "mixed lanes": [
        ("hash/lanes.h", "s[j]->w32[i] = ((const", "s[j ^ 1]->w32[i] = ((const"),
    ],
    "too far": [
        ("hash/sha1_lanes.h", "    scatter32(", READS + "(data[CHAINS] + 64);\n    scatter32("),
        ("hash/sha2_lanes.h", "        UNROLL\n", READS + "(data[1] - 1);\n        UNROLL\n"),
        ("hash/scalar_sha2.h", "        FIRST\n", READS + "(data + BLOCK);\n        FIRST\n"),
    ],
}


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str], Driver]:
    """Compile the portable kernels with a fault; without optimisation, which is quicker."""

    def make(fault: str) -> Driver:
        shutil.copytree(EXT, tmp_path / "ext", ignore=shutil.ignore_patterns("_native*"))
        for name, good, bad in FAULTS[fault]:
            text = (tmp_path / "ext" / name).read_text()
            assert good in text, f"{name} has changed: seed the fault anew"
            (tmp_path / "ext" / name).write_text(text.replace(good, bad, 1))
        for other in ("avx2", "avx512", "shani"):
            (tmp_path / "ext" / "hash" / f"{other}.c").write_text(
                f'#include "kernels.h"\nhash_enter_fn hash_enter_{other};\n'
                f"void hash_enter_{other}(struct hash_kernels *k, unsigned f) {{ (void)k, (void)f; }}\n"
            )
        if fault != "mixed lanes":  # and without the lanes of pairs, which take most of that time
            text = (tmp_path / "ext" / "hash" / "portable.c").read_text()
            text = re.sub(r"(#define \w+ \w+\n)+#include \"pair_lanes.h\"\n|.*ENTER_PAIR_LANES.*\n", "", text)
            (tmp_path / "ext" / "hash" / "portable.c").write_text(text)
        objects = kernel_objects(tmp_path, "-O0", ext=tmp_path / "ext")
        driver = Driver(link_driver(tmp_path / "driver.so", objects, tmp_path / "ext"))
        assert driver.take(driver.names[0], driver.features & ~SHA) is None
        return driver

    return make


def check(driver: Driver, wrong: Callable[[Kernel], bool]) -> None:
    expected = [str(kernel) for kernel in driver.kernels() if wrong(kernel)]
    assert 0 < len(expected) < len(list(driver.kernels()))
    assert proofs.wrong_kernels(driver) == expected


def test_a_wrong_rotation_and_a_wrong_constant(faulty: Callable[[str], Driver]) -> None:
    check(faulty("numbers"), lambda kernel: kernel.pair or kernel.algorithm in ("md5", "sha384", "sha512"))


def test_mixed_lanes(faulty: Callable[[str], Driver]) -> None:
    """Those of 32-bit words; in each pair md5 is one."""
    check(faulty("mixed lanes"), lambda kernel: kernel.index >= 0 and (kernel.pair or kernel.unit == 64))


def test_a_byte_too_many(faulty: Callable[[str], Driver]) -> None:
    driver = faulty("too far")
    assert proofs.wrong_kernels(driver) == []
    name = driver.names[0]
    for kernel in ("sha1x4", "sha512x2", "sha256", "sha512"):
        done = proofs.guard(driver.path, name, SHA, kernel)
        assert (done.returncode, done.stdout.split()) == (-signal.SIGSEGV, [kernel]), done.stderr
    assert proofs.guard(driver.path, name, SHA, "md5", "md5x4", "sha1").stdout.split()[-1] == "all"
