"""The part of the package that is in C. All else is in pyproject.toml, where this is called experimental."""

from glob import glob
from pathlib import Path
from zlib import crc32

from setuptools import Extension, setup

FOLDER = "src/pimserve/device_models/compiled"
ALL = sorted(glob(f"{FOLDER}/*.[ch]"))  # `compiled` compares them with what it finds

setup(
    ext_modules=[
        Extension(
            "pimserve.device_models.compiled._steps",
            sorted(glob(f"{FOLDER}/*.c")),
            depends=sorted(glob(f"{FOLDER}/*.h")),
            define_macros=[("SOURCES", str(crc32(b"".join(Path(name).read_bytes() for name in ALL))))],
            optional=True,  # without a compiler, Python's own times serve, which are the same
        )
    ]
)
