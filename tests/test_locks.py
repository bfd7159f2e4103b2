"""What `make` installs is locked by hash, for every Python and system, within the ranges of pyproject.toml."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
LOCKS = sorted(path.stem for path in FOLDER.glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILD = PROJECT["build-system"]["requires"]

ENVIRONMENTS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    for python, (system, name), machine in product(
        ("3.11", "3.12", "3.13"), (("linux", "Linux"), ("darwin", "Darwin")), ("x86_64", "aarch64", "arm64")
    )
]


@dataclass(frozen=True)
class Pin:
    """One entry of a lock: a version, where it is for, and the files that may be installed."""

    name: str
    version: Version
    marker: Marker | None
    hashes: tuple[str, ...]


def listed(file: str) -> list[str]:
    """Requirements of a file, without comments."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := line.partition("#")[0].strip())]


@cache
def pins(lock: str) -> list[Pin]:
    found = []
    for entry in "\n".join(listed(f"{lock}.txt")).replace("\\\n", "").splitlines():
        head, *hashes = re.split(r"\s+--hash=", entry)
        needed = Requirement(head)
        (one,) = needed.specifier
        assert one.operator == "==", entry
        found.append(Pin(canonicalize_name(needed.name), Version(one.version), needed.marker, tuple(hashes)))
    return found


def resolved(lock: str, environment: dict[str, str]) -> dict[str, Version]:
    """What the lock installs there; one version of each."""
    chosen = [pin for pin in pins(lock) if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name: pin.version for pin in chosen}
    assert len(versions) == len(chosen)
    return versions


@pytest.mark.parametrize("lock", LOCKS)
def test_every_file_is_known_by_its_hash_and_from_no_named_host(lock: str) -> None:
    assert pins(lock)
    for pin in pins(lock):
        assert pin.hashes, pin.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in pin.hashes), pin.name
    text = (FOLDER / f"{lock}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize(
    ("lock", "needed"),
    [
        ("run", RUN),
        ("dev", [*RUN, *EXTRAS["dev"], *EXTRAS["docs"], *BUILD]),
        ("ray", [*RUN, *listed("ray.in")]),
        ("build", BUILD),
        ("protos", listed("protos.in")),
    ],
)
def test_locks_hold_what_is_needed_within_its_range(lock: str, needed: list[str]) -> None:
    for environment in ENVIRONMENTS:
        versions = resolved(lock, environment)
        for requirement in map(Requirement, needed):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("lock", ["build", "run", "ray"])
def test_what_is_run_is_what_was_tested(lock: str) -> None:
    for environment in ENVIRONMENTS:
        tested, versions = resolved("dev", environment), resolved(lock, environment)
        assert {name: tested.get(name, version) for name, version in versions.items()} == versions
        if lock != "ray":
            assert versions.keys() <= tested.keys()


def test_the_build_backend_is_that_of_the_package() -> None:
    assert listed("build.in") == BUILD
