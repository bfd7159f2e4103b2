"""Generate Python from the .proto files, or with --check say whether what is committed is what would be generated.

Run by `make protos` and `make protos-check`, in an environment of requirements/protos.txt.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).parent
PACKAGE = HERE / "pimserve" / "v1"


def generate(target: Path) -> None:
    """Write the modules of all .proto files below `target`."""
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # mypy-protobuf
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    for proto in sorted(PACKAGE.glob("*.proto")):
        outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        if "\nservice " in proto.read_text(encoding="utf-8"):
            outputs += [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
        if protoc.main(["protoc", f"-I{HERE}", f"-I{well_known}", *outputs, str(proto.relative_to(HERE))]):
            sys.exit(1)


def differences(fresh: Path) -> list[str]:
    """Names of generated modules that are not as committed."""

    def modules(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}

    there, here = modules(fresh / PACKAGE.relative_to(HERE)), modules(PACKAGE)
    return sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))


def main() -> None:
    """Generate, or check."""
    os.chdir(HERE)
    if "--check" not in sys.argv[1:]:
        for old in PACKAGE.glob("*_pb2*.py*"):
            old.unlink()
        generate(HERE)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        changed = differences(Path(folder))
    if changed:
        sys.exit(f"not as generated: {', '.join(changed)}; run make protos")


if __name__ == "__main__":
    main()
