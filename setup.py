"""The list of extensions; everything else is in pyproject.toml."""

import os
from glob import glob

from setuptools import Extension, setup

C_FILES = sorted(set(glob("ext/**/*.c", recursive=True)) - {"ext/_native.c"})
STRICT = ["-Wall", "-Wextra", "-Werror"] if os.environ.get("FASTFS_BUILD_STRICT") == "1" else []

setup(
    ext_modules=[
        Extension(
            "fastfs._native",
            sources=["ext/_native.pyx", *C_FILES],
            depends=glob("ext/**/*.h", recursive=True),
            include_dirs=["ext"],
            extra_compile_args=["-std=gnu11", "-O3", "-pthread", "-fvisibility=hidden", *STRICT],
            extra_link_args=["-pthread"],
        )
    ],
)
