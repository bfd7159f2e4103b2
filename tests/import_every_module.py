"""Imports every module of the installed pimserve.

Prints one JSON object: the folder that pimserve was imported from, and its modules.
A script of its own, so that it also runs where only the wheel is installed.
"""

import importlib
import json
import pkgutil
from pathlib import Path

import pimserve


def main() -> None:
    names = sorted(
        module.name
        for module in pkgutil.walk_packages(pimserve.__path__, "pimserve.")
        if not module.name.endswith(".__main__")
    )
    for name in names:
        importlib.import_module(name)
    print(json.dumps({"folder": str(Path(pimserve.__file__).parent), "modules": names}))


if __name__ == "__main__":
    main()
