# SPDX-License-Identifier: Apache-2.0
"""Which digests there are, and who makes them: the hash engine of the extension, or hashlib."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fastfs import _native
from fastfs.exceptions import BadStoreConfiguration, UnknownHashingAlgo

if TYPE_CHECKING:
    from hashlib import _Hash

    Factory = Callable[..., "_Hash"]
    #: What hashes one stream with one algorithm; a `fastfs._native.Pump` feeds it.
    Hasher: TypeAlias = _Hash | _native.EngineDigest

#: Forces the engine's kernels: one of `fastfs._native.kernels()`.
ENV_KERNEL = "FASTFS_KERNEL"
#: How many processors hashing may use; unset or 0: as many as the process may.
ENV_THREADS = "FASTFS_HASH_THREADS"
#: Digests of one object that the engine makes in one call.
ENGINE_MOST = 4


def md5(data: bytes | memoryview = b"") -> _Hash:
    """MD5 as a checksum, which FIPS mode allows when it is told so."""
    return hashlib.md5(data, usedforsecurity=False)


class Algorithm(NamedTuple):
    """An algorithm that can be the second digest."""

    #: Makes hash objects; called with the first data, or with nothing.
    new: Factory
    #: The checksum beside it is the same.
    is_md5: bool
    #: All that an image is hashed with: MD5 first, this one last.
    names: tuple[str, ...]


def algorithm(name: str) -> Algorithm:
    """Look up an algorithm.

    :raises UnknownHashingAlgo: hashlib has no such algorithm, or it is an extendable-output function
        (``shake_128``), whose digest has no length of its own.
    """
    if not isinstance(name, str):
        raise UnknownHashingAlgo(f"hashing_algo={name!r} is no name of an algorithm; use sha512, for one")
    return _algorithm(name)


@lru_cache(maxsize=64)
def _algorithm(name: str) -> Algorithm:
    try:
        probe = hashlib.new(name, usedforsecurity=False)
    except (ValueError, TypeError):
        raise UnknownHashingAlgo(
            f"hashing_algo={name!r} is not known to hashlib; fastfs.hashing.available() lists what is"
        ) from None
    if probe.digest_size == 0:
        raise UnknownHashingAlgo(f"hashing_algo={name!r} has no digest of fixed length; use sha512, for one")
    is_md5 = probe.name == "md5"
    # hashlib takes SHA512 and SHA2-512 as well; the engine only knows the name that hash objects have.
    name = probe.name if probe.name in _native.engine_algorithms() else name
    return Algorithm(_factory(name, probe.name), is_md5, ("md5",) if is_md5 else ("md5", name))


def _factory(name: str, canonical: str) -> Factory:
    # The constructor itself where there is one: hashlib.new() looks its argument up again at every call.
    direct: Factory | None = getattr(hashlib, name, None)
    if direct is not None and direct(usedforsecurity=False).name == canonical:
        return lambda data=b"": direct(data, usedforsecurity=False)
    return lambda data=b"": hashlib.new(name, data, usedforsecurity=False)


@lru_cache(maxsize=1)
def fips_mode() -> bool:
    """Only hashlib's (that is, a validated OpenSSL's) algorithms may be used: the kernel or OpenSSL says so."""
    try:
        hashlib.md5()
    except ValueError:
        return True
    try:
        with open("/proc/sys/crypto/fips_enabled", encoding="ascii") as switch:
            return switch.read().strip() == "1"
    except OSError:
        return False


@lru_cache(maxsize=1)
def engine_algorithms() -> frozenset[str]:
    """What the hash engine does in this process; empty in FIPS mode and where it would not pay.

    It pays with AVX2 and AVX-512, for algorithms that a stream that is alone does not lose much by: where the
    processor has instructions for SHA-256 and we do not use them, OpenSSL does, and four times the rate of scalar
    code is more than few lanes give.
    With 128-bit vectors OpenSSL's scalar code is as fast as lanes are, so such kernels (``portable``,
    ``neon``) are used only when ``FASTFS_KERNEL`` demands them; then for all algorithms.

    :raises BadStoreConfiguration: ``FASTFS_KERNEL`` or ``FASTFS_HASH_THREADS`` has no sense here.
    """
    forced = os.environ.get(ENV_KERNEL, "")
    try:
        _native.select_kernel(forced or None)
    except ValueError as error:
        raise BadStoreConfiguration(
            f"{ENV_KERNEL}={forced!r}: {error}; unset it, or use one of {', '.join(_native.kernels())}"
        ) from None
    threads = os.environ.get(ENV_THREADS, "") or "0"
    if not threads.isascii() or not threads.isdigit() or int(threads) > 100_000:
        raise BadStoreConfiguration(f"{ENV_THREADS}={threads!r} is no number of threads; unset it, or use 1 or more")
    _native.limit_cores(int(threads))
    if fips_mode() or not (forced or _native.kernel().startswith("avx")):
        return frozenset()
    names = _native.engine_algorithms()
    return frozenset(names if forced else filter(_keeps_up, names))


def _keeps_up(name: str) -> bool:
    """Is the engine's code for one stream nearly as fast as hashlib's?  Measured here, in 1 ms.

    Ours has 0.9 to 1.1 of OpenSSL's rate, or a quarter where OpenSSL has instructions that we have not: the bound
    lies far from both, so that a busy machine does not decide.
    """
    try:
        new = algorithm(name).new
    except UnknownHashingAlgo:
        return False
    data = bytes(64 * 1024)
    took = 1.0
    for _ in range(8):
        started = time.perf_counter()
        new(data)
        took = min(took, time.perf_counter() - started)
    return _native.kernel_rates(name)[1] > 0.6 * len(data) / took


def hashers(names: Sequence[str], engine: str = "auto") -> list[Hasher]:
    """What hashes one stream, for a `fastfs._native.Pump`; the only place that makes them.

    :param names: hashlib's names, all different.
    :param engine: the option `hash_engine`: ``"hashlib"`` for hashlib only.
    :raises UnknownHashingAlgo: see `algorithm`.
    """
    ours = engine_algorithms() if engine == "auto" else frozenset()
    return [_native.EngineDigest(name) if name in ours else algorithm(name).new() for name in names]


def digest_small(data: bytes, names: Sequence[str], engine: str = "auto") -> tuple[str, ...]:
    """The hexadecimal digests of a small object, in the order of `names`.

    :raises UnknownHashingAlgo: see `algorithm`.
    """
    # Both hashes in one pass, 4 KiB: 7 us instead of hashlib's 13.
    if engine == "auto" and engine_algorithms().issuperset(names):
        return _native.hash_once(data, names)
    return tuple([algorithm(name).new(data).hexdigest() for name in names])


def digest_many(pieces: Sequence[Any], names: Sequence[str], engine: str = "auto") -> list[tuple[str, ...]]:
    """The hexadecimal digests of small bytes-like objects, for each in the order of `names`.

    :raises UnknownHashingAlgo: see `algorithm`.
    """
    # In lanes, 3,000 of 0 to 64 KiB: 0.97 GB/s with AVX2 on one core instead of 0.42 one after the other.
    if engine == "auto" and len(names) <= ENGINE_MOST and engine_algorithms().issuperset(names):
        return _native.hash_many(pieces, names)
    new = [algorithm(name).new for name in names]
    return [tuple([make(piece).hexdigest() for make in new]) for piece in pieces]


def available() -> list[str]:
    """The names that `hashing_algo` may have, sorted."""
    names = []
    for name in hashlib.algorithms_available:
        try:
            algorithm(name)
        except UnknownHashingAlgo:
            continue
        names.append(name)
    return sorted(names)
