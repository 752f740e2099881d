"""The hash kernels, compiled from ext/hash by themselves, as Python functions."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EXT = HERE.parents[1] / "ext"
FLAGS = ["-std=gnu11", "-O2", "-pthread", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# enum cpu_feature
AVX2, AVX512, SHA, NEON, QUICK_VECTOR = (1 << i for i in range(5))
ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
UNIT = 128  # bytes that pairs advance by

NO_AVX512 = '#include "kernels.h"\nvoid hash_enter_avx512(struct hash_kernels *k, unsigned f) { (void)k, (void)f; }\n'


def compiler() -> list[str]:
    """The C compiler, behind ccache where that is installed."""
    words = shlex.split(os.environ.get("CC", "cc"))
    return [*(["ccache"] if shutil.which("ccache") and "ccache" not in words[0] else []), *words]


@functools.cache
def has_avx512() -> bool:
    """Without it AVX-512's kernels are not even compiled: they take as long as all others together."""
    try:
        return "avx512dq" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")


def compile_objects(
    scratch: Path, sources: Sequence[Path], *options: str, ext: Path = EXT, cc: Sequence[str] = ()
) -> list[Path]:
    """Compile each of `sources`, several at a time, into `scratch`."""
    command = [*(cc or compiler()), *FLAGS, f"-I{ext}", f"-I{ext / 'hash'}", *options]
    version = subprocess.run([*command[: command.index("-std=gnu11")], "--version"], capture_output=True, text=True)
    if "Free Software Foundation" in version.stdout:
        command.append("-ftrack-macro-expansion=0")  # half the time and a third of the memory
    objects = [scratch / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda s, o: run([*command, "-c", str(s), "-o", str(o)]), sources, objects))
    return objects


def kernel_objects(scratch: Path, *options: str, ext: Path = EXT, cc: Sequence[str] = ()) -> list[Path]:
    """Compile all kernels that can run here, or for the machine that `cc` compiles for."""
    sources = [*sorted((ext / "hash").glob("*.c")), ext / "cpu.c"]
    if not cc and not has_avx512():
        sources = [source for source in sources if source.stem != "avx512"]
        (scratch / "no_avx512.c").write_text(NO_AVX512)
        sources.append(scratch / "no_avx512.c")
    sources.sort(key=lambda source: -source.stat().st_size)
    sources.sort(key=lambda source: source.stem not in ("avx512", "avx2", "portable"))  # the slowest first
    return compile_objects(scratch, sources, *options, ext=ext, cc=cc)


def link_driver(target: Path, objects: Sequence[Path], ext: Path = EXT) -> Path:
    """A library for `Driver`."""
    flags = [*FLAGS, f"-I{ext}", "-shared", str(HERE / "driver.c"), *map(str, objects)]
    run([*compiler(), *flags, "-o", str(target)])
    return target


@dataclass(frozen=True)
class Kernel:
    """One function of a set: of one stream (`index` -1, `width` 1) or of lanes; of one algorithm or md5 and another."""

    algorithm: str
    pair: bool = False
    index: int = -1
    width: int = 1

    def __str__(self) -> str:
        lanes = f"x{self.width}" if self.index >= 0 else ""
        return f"{'md5+' if self.pair else ''}{self.algorithm}{lanes}"

    @property
    def number(self) -> int:
        return ALGORITHMS.index(self.algorithm)

    @property
    def unit(self) -> int:
        """Bytes that it advances by."""
        return UNIT if self.pair or self.algorithm in ("sha384", "sha512") else 64


class Driver:
    """A compiled driver.  States are ctypes buffers of 64 bytes each, aligned to 64."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        self.path = path
        lib.driver_name.restype = lib.driver_take.restype = lib.driver_algorithm.restype = ctypes.c_char_p
        lib.driver_select.restype = ctypes.c_void_p
        lib.driver_select.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
        lib.driver_selected.restype = ctypes.c_char_p
        lib.driver_selected.argtypes = [ctypes.c_void_p]
        size, number, pointer = ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p
        lib.driver_one.argtypes = [number, pointer, pointer, size]
        lib.driver_pair.argtypes = [number, pointer, pointer, pointer, size]
        lib.driver_lanes.argtypes = [number, number, pointer, pointer, size]
        lib.driver_pair_lanes.argtypes = [number, number, pointer, pointer, pointer, size]
        lib.driver_final.argtypes = [number, pointer, ctypes.c_char_p, ctypes.c_uint64, pointer]
        for function in ("one", "pair", "lanes", "pair_lanes", "final", "init"):
            getattr(lib, f"driver_{function}").restype = None
        lib.driver_init.argtypes = [number, pointer]
        self.lib = lib
        self.features: int = lib.driver_features()
        self.names: list[str] = []
        while (name := lib.driver_name(len(self.names))) is not None:
            self.names.append(name.decode())

    def take(self, name: str, features: int | None = None) -> str | None:
        """Use the kernels `name`, as on a machine with `features`; None, or why they cannot be had."""
        why = self.lib.driver_take(name.encode(), self.features if features is None else features)
        return None if why is None else str(why.decode())

    def select(self, name: str | None) -> tuple[str | None, str | None]:
        """What the engine would get for `name`: the name of the set, or None and why."""
        why = ctypes.c_char_p()
        table = self.lib.driver_select(None if name is None else name.encode(), ctypes.byref(why))
        if table is None:
            return None, (why.value or b"").decode()
        return self.lib.driver_selected(table).decode(), None

    def kernels(self) -> Iterator[Kernel]:
        """All functions of the set that was taken."""
        for a, algorithm in enumerate(ALGORITHMS):
            for pair in (False, True):
                if pair and not self.lib.driver_has_pair(a):
                    continue
                yield Kernel(algorithm, pair)
                index = 0
                while width := self.lib.driver_width(a, pair, index):
                    yield Kernel(algorithm, pair, index, width)
                    index += 1

    def call(self, kernel: Kernel, md5: Sequence[int], states: Sequence[int], data: Sequence[int], units: int) -> None:
        """Move the lanes on: addresses of states (`md5`: of a pair) and of data."""
        lib, a = self.lib, kernel.number
        if kernel.index < 0 and kernel.pair:
            lib.driver_pair(a, md5[0], states[0], data[0], units)
        elif kernel.index < 0:
            lib.driver_one(a, states[0], data[0], units)
        elif kernel.pair:
            lib.driver_pair_lanes(a, kernel.index, pointers(md5), pointers(states), pointers(data), units)
        else:
            lib.driver_lanes(a, kernel.index, pointers(states), pointers(data), units)


class States:
    """`count` chaining states of `algorithm`, one after the other."""

    def __init__(self, driver: Driver, algorithm: str, count: int = 1) -> None:
        self.memory = ctypes.create_string_buffer(64 * (count + 1))
        self.driver = driver
        self.algorithm = ALGORITHMS.index(algorithm)
        self.start = -(-ctypes.addressof(self.memory) // 64) * 64
        for i in range(count):
            driver.lib.driver_init(self.algorithm, self.at(i))

    def at(self, index: int) -> int:
        """The address of state `index`."""
        return self.start + 64 * index

    def digest(self, index: int, rest: bytes, total: int) -> str:
        """The digest of state `index` after `total` bytes, of which `rest` has not been hashed yet."""
        size, block = self.driver.lib.driver_info(self.algorithm, 1), self.driver.lib.driver_info(self.algorithm, 0)
        whole = len(rest) // block
        if whole:
            self.driver.lib.driver_one(self.algorithm, self.at(index), ctypes.create_string_buffer(rest), whole)
        out = ctypes.create_string_buffer(64)
        self.driver.lib.driver_final(self.algorithm, self.at(index), rest[whole * block :], total, out)
        return out.raw[:size].hex()


def pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of pointers."""
    return (ctypes.c_void_p * len(addresses))(*addresses)
