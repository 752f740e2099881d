# SPDX-License-Identifier: Apache-2.0
"""Every kernel has the digests of RFC 1321 and FIPS 180-4, and hashlib's at all lengths, and reads no byte too many."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import proofs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ALGORITHMS, AVX2, AVX512, EXT, NEON, QUICK_VECTOR, SHA, Driver, Kernel, States

import fastfs
from fastfs import _native

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONG = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
LONGER = "".join(LETTERS[i : i + 8] for i in range(14))
# RFC 1321, A.5; the examples that NIST has published for FIPS 180-4
PUBLISHED = {
    "md5": {
        "": "d41d8cd98f00b204e9800998ecf8427e",
        "a": "0cc175b9c0f1b6a831c399e269772661",
        "abc": "900150983cd24fb0d6963f7d28e17f72",
        "message digest": "f96b697d7cb7938d525a2f31aaf161d0",
        LETTERS: "c3fcd3d76192e4007dfb496cca67e13b",
        LETTERS.upper() + LETTERS + "0123456789": "d174ab98d277d9f5a5611c2c9f419d9f",
        "1234567890" * 8: "57edf4a22be3c955ac49da2e2107b67a",
    },
    "sha1": {
        "abc": "a9993e364706816aba3e25717850c26c9cd0d89d",
        LONG: "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
        "a" * 1_000_000: "34aa973cd4c4daa4f61eeb2bdbad27316534016f",
    },
    "sha224": {
        "abc": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        LONG: "75388b16512776cc5dba5da1fd890150b0c6455cb4f58b1952522525",
        "a" * 1_000_000: "20794655980c91d8bbb4c1ea97618a4bf03f42581948b2ee4ee7ad67",
    },
    "sha256": {
        "abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        LONG: "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        "a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    },
    "sha384": {
        "abc": "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        LONGER: "09330c33f71147e83d192fc782cd1b4753111b173b3b05d22fa08086e3b0f712fcc7c71a557e2db966c3e9fa91746039",
    },
    "sha512": {
        "abc": "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        LONGER: "8e959b75dae313da8cf4f72814fc143f8f7779c6eb9f7fa17299aeadb6889018"
        "501d289e4900f7e4331b99dec4b5433ac7d329eeb6dd26545e96e55b874be909",
    },
}

LEFT_OUT = {0: "all", SHA: "no_sha", QUICK_VECTOR: "not_quick", SHA | QUICK_VECTOR: "no_sha_not_quick"}
every_set = pytest.mark.parametrize(
    ("name", "left_out"),
    proofs.configurations(_native.kernels()),
    ids=lambda value: value if isinstance(value, str) else LEFT_OUT[value],
)


def take(driver: Driver, name: str, left_out: int) -> None:
    why = proofs.cannot_run(driver, name, left_out)
    if why is not None:
        pytest.skip(why)


def published(driver: Driver, kernel: Kernel, text: str) -> tuple[str, ...]:
    """The digests of `text` in every lane."""
    memory = ctypes.create_string_buffer(text.encode())
    count = kernel.width
    states, md5 = States(driver, kernel.algorithm, count), States(driver, "md5", count)
    units = len(text) // kernel.unit
    where = [ctypes.addressof(memory)] * count
    each = range(count)
    if units:
        driver.call(kernel, [md5.at(i) for i in each], [states.at(i) for i in each], where, units)
    rest = text[units * kernel.unit :].encode()
    found = {states.digest(i, rest, len(text)) for i in each}
    if kernel.pair:
        found |= {md5.digest(i, rest, len(text)) for i in each}
    return tuple(sorted(found))


@every_set
def test_published_digests(driver: Driver, name: str, left_out: int) -> None:
    take(driver, name, left_out)
    for kernel in driver.kernels():
        texts = dict(PUBLISHED[kernel.algorithm])
        if kernel.pair:  # of md5's texts hashlib tells the other digest
            texts.update({text: hashlib.new(kernel.algorithm, text.encode()).hexdigest() for text in PUBLISHED["md5"]})
        for text, digest in texts.items():
            right = {digest}
            if kernel.pair:
                right.add(PUBLISHED["md5"].get(text) or hashlib.md5(text.encode()).hexdigest())
            assert published(driver, kernel, text) == tuple(sorted(right)), (str(kernel), text[:80])


def test_hashlib_has_the_published_digests() -> None:
    for algorithm, texts in PUBLISHED.items():
        for text, digest in texts.items():
            assert hashlib.new(algorithm, text.encode()).hexdigest() == digest


@every_set
def test_every_kind_of_kernel_is_tried(driver: Driver, name: str, left_out: int) -> None:
    take(driver, name, left_out)
    kinds = {(kernel.pair, kernel.index >= 0) for kernel in driver.kernels()}
    assert kinds == {(pair, lanes) for pair in (False, True) for lanes in (False, True)}
    assert {kernel.algorithm for kernel in driver.kernels() if not kernel.pair} == set(ALGORITHMS)
    assert {kernel.algorithm for kernel in driver.kernels() if kernel.pair} >= {"sha256", "sha512"}


@every_set
def test_all_lengths(driver: Driver, name: str, left_out: int) -> None:
    take(driver, name, left_out)
    assert proofs.wrong_kernels(driver) == []


@every_set
def test_exactly_the_named_blocks_are_read(driver: Driver, name: str, left_out: int) -> None:
    take(driver, name, left_out)
    done = proofs.guard(driver.path, name, left_out)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["all"]), (done.stdout, done.stderr)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 9_000)), min_size=1, max_size=60),
    chosen=st.integers(0, 1 << 30),
)
def test_any_streams_in_any_kernel(driver: Driver, pieces: list[tuple[int, int]], chosen: int) -> None:
    sets = [c for c in proofs.configurations(driver.names) if proofs.cannot_run(driver, *c) is None]
    assert proofs.cannot_run(driver, *sets[chosen % len(sets)]) is None
    kernels = list(driver.kernels())
    kernel = kernels[chosen // len(sets) % len(kernels)]
    assert proofs.mistakes(driver, kernel, pieces) == [], str(kernel)


# What is demanded


def features_of(name: str) -> int:
    return {"avx2": AVX2, "avx512": AVX512, "neon": NEON}.get(name, 0)


def test_a_set_is_taken_only_where_it_can_run(driver: Driver) -> None:
    for name in driver.names:
        needed = features_of(name)
        runs = driver.features & needed == needed
        assert (driver.take(name) is None) == runs
        assert driver.select(name)[0] == (name if runs else None)
        if needed:
            why = driver.take(name, driver.features & ~needed)
            assert why is not None
            assert "lacks the instructions" in why
    assert driver.take("mmx") == driver.select("mmx")[1] == "there are no kernels of this name"
    best = [name for name in driver.names if driver.features & features_of(name) == features_of(name)][-1]
    assert driver.select(None) == (best, None)


@pytest.mark.parametrize("name", [*_native.kernels(), "mmx"])
def test_a_demanded_kernel_is_used_or_refused(driver: Driver, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    script = (
        "import sys, fastfs\nfrom fastfs import _native\n"
        "print(fastfs.hash_file(sys.argv[1], ['md5', 'sha512'])['sha512'], _native.kernel())"
    )
    environment = {**os.environ, "FASTFS_KERNEL": name}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "file"], capture_output=True, text=True, env=environment, timeout=60
    )
    if driver.select(name)[0] == name:
        assert done.stdout.split() == [hashlib.sha512(b"abc" * 100_000).hexdigest(), name], done.stderr
    else:
        assert done.returncode == 1
        assert fastfs.BadStoreConfiguration.__name__ in done.stderr
        assert f"FASTFS_KERNEL='{name}'" in done.stderr


# The numbers


def first_primes(n: int) -> list[int]:
    return [p for p in range(2, 500) if all(p % q for q in range(2, p))][:n]


def root(value: int, degree: int) -> int:
    """The whole part of a root."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle)
    return low


def test_constants() -> None:
    text = (EXT / "hash" / "constants.h").read_text()
    for i in range(64):
        assert f"X({i}, 0x{math.floor(2**32 * abs(math.sin(i + 1))):08x})" in text
    mask = 2**64 - 1
    for prime in first_primes(80):
        assert f"X(0x{root(prime << 192, 3) & mask:016x})" in text
    for prime in first_primes(16):
        assert f"X(0x{root(prime << 128, 2) & mask:016x})" in text
    for i, word in enumerate(("5a827999", "6ed9eba1", "8f1bbcdc", "ca62c1d6")):
        assert root((2, 3, 5, 10)[i] << 60, 2) == int(word, 16)
        assert f"0x{word}u" in text


@pytest.mark.parametrize(
    ("function", "of"),
    [
        ("xor3", lambda x, y, z: x ^ y ^ z),
        ("choose", lambda x, y, z: y if x else z),
        ("majority", lambda x, y, z: int(x + y + z >= 2)),
        ("md5_i", lambda b, c, d: c ^ (b | (1 - d))),
    ],
)
def test_truth_tables_of_avx512(function: str, of: object) -> None:
    """Provable without the processor: bit 4 x + 2 y + z of the table is the function's value."""
    assert callable(of)
    table = sum(of(i >> 2 & 1, i >> 1 & 1, i & 1) << i for i in range(8))
    assert f"LOGIC({function}, type, intel, prefix, 0x{table:02x})" in " ".join(
        (EXT / "hash" / "ternary.h").read_text().split()
    )


def test_sha_instructions_are_a_choice(driver: Driver) -> None:
    take(driver, driver.names[0], SHA)
    without = [str(kernel) for kernel in driver.kernels()]
    take(driver, driver.names[0], 0)
    assert "sha256x4" in without
    if driver.features & SHA:
        assert "sha256x2" in [str(kernel) for kernel in driver.kernels()]
