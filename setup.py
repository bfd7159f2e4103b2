"""The part of the package that is in C. All else is in pyproject.toml, where this is called experimental."""

from glob import glob

from setuptools import Extension, setup

FOLDER = "src/pimserve/device_models/compiled"

setup(
    ext_modules=[
        Extension(
            "pimserve.device_models.compiled._steps",
            sorted(glob(f"{FOLDER}/*.c")),
            depends=sorted(glob(f"{FOLDER}/*.h")),
            optional=True,  # without a compiler, Python's own times serve, which are the same
        )
    ]
)
