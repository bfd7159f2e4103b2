"""Imports every module of the installed pimserve and loads every plug-in that it declares.

Prints one JSON object: the folder that pimserve was imported from, its modules, and the devices of its entry points.
A script of its own, so that it also runs where only the wheel is installed.
"""

import importlib
import importlib.metadata
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
    devices = importlib.metadata.entry_points(group="pimserve.devices")
    for device in devices:
        device.load()
    found = {
        "folder": str(Path(pimserve.__file__).parent),
        "modules": names,
        "devices": sorted(device.name for device in devices),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
