"""The wheel that a user gets, built the way a package index would: sdist first, wheel from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pimserve"

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was installed."""
    scratch = tmp_path_factory.mktemp("packaging")
    # A copy, because setuptools writes build/ and egg-info beside what it builds, and reads them again next time.
    source = shutil.copytree(
        ROOT,
        scratch / "source",
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "results"),
    )
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", scratch / "dist", source, cwd=scratch)
    (wheel,) = (scratch / "dist").glob("*.whl")
    target = scratch / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=scratch)
    return target


def package_files(folder: Path) -> set[str]:
    """Paths of the files under `folder`, relative to it, through symlinked folders; but for sources in C."""
    return {
        str((Path(parent) / name).relative_to(folder))
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.endswith((".pyc", ".c", ".h"))
    }


def test_wheel_holds_every_file_of_the_package(installed):
    files = package_files(installed / "pimserve")
    assert files == package_files(PACKAGE)
    for kind in ("devices", "models"):
        assert any(file.startswith(f"device_models/catalogue/{kind}/") and file.endswith(".yaml") for file in files)


def test_every_installed_module_imports(installed):
    found = json.loads(
        run(sys.executable, ROOT / "tests" / "import_every_module.py", cwd=installed, PYTHONPATH=str(installed))
    )
    assert Path(found["folder"]) == installed / "pimserve"
    modules = {name for name in found["modules"] if name.count(".") == 1}
    assert modules >= {f"pimserve.{name}" for name in ("cluster", "device_models", "errors", "loadgen", "scheduler")}


def test_no_bare_top_level_names(installed):
    # `cluster` and `scheduler` are other projects' names on the package index.
    assert {path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")} == {
        "bin",
        "pimserve",
    }
