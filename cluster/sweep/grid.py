"""The grid of a sweep: from `--grid path=v1,v2` to points, each a scenario, all checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pimserve.cluster.run.placement_label import placement_label
from pimserve.cluster.scenario.check import Check
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import scenario_digest
from pimserve.device_models.catalogue import parse_document
from pimserve.errors import InputError, shortened

MAX_RUNS = 10_000
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(\d{1,18}))?")
_SEED = "run.seed"
_LONGEST_NAME = 80
_NAMES = ("preset", "name")  # keys of a mapping that say what it is
_MOST_ERRORS = 10  # that are told in full


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the scenario and the values that it takes."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a point: its seed, its scenario, and what its summary will have as scenario_digest."""

    seed: int
    scenario: Scenario
    digest: str


@dataclass(frozen=True, slots=True)
class Point:
    """One place of the grid. `name` is its folder; its runs differ in their seed only.

    `shown` says its settings to people, each by what tells it from the other values of its axis.
    """

    name: str
    settings: Mapping[str, Any]
    shown: Mapping[str, str]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """What a sweep runs. `identity` says whether two sweeps are the same one, whatever their number of seeds."""

    name: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    identity: str


def load_grid(path: Path | None, overrides: Sequence[str], grid: Sequence[str], repeat: int) -> Grid:
    """All points of a sweep, in the order of nested loops, the last axis the innermost.

    Args:
        path: the scenario (YAML); None for the embedded one.
        overrides: "path=value" each, for all points.
        grid: "path=v1,v2" each: values in YAML, or ranges of whole numbers, first..last or first..last..step.
        repeat: runs of each point, with the seeds run.seed, run.seed + 1, and so on: the same for all points.

    Raises:
        InputError: a value of the grid, or the scenario, is not acceptable.
    """
    axes = _axes(grid, overrides, repeat)
    number = math.prod(len(axis.values) for axis in axes) * repeat
    if number > MAX_RUNS:
        raise InputError("--grid", f"{number:,} runs are too many; at most {MAX_RUNS:,}")
    base = _base(path, overrides, axes)
    short = labels([axis.path for axis in axes])
    names: set[str] = set()
    points: list[Point] = []
    errors: list[tuple[str, InputError]] = []
    check = Check()
    for chosen in itertools.product(*(zip(axis.values, value_names(axis.values), strict=True) for axis in axes)):
        settings = {axis.path: value for axis, (value, _) in zip(axes, chosen, strict=True)}
        told = {axis.path: name for axis, (_, name) in zip(axes, chosen, strict=True)}
        changes = [f"{key}={_yaml(value)}" for key, value in settings.items()]
        name = _folder(dict(zip(short, told.values(), strict=True)), settings, names)
        runs = []
        try:
            first = load_scenario(path, [*overrides, *changes])
            for seed in range(first.run.seed, first.run.seed + repeat):
                run = (
                    first if seed == first.run.seed else load_scenario(path, [*overrides, *changes, f"{_SEED}={seed}"])
                )
                runs.append(Run(seed, run, scenario_digest(run)))
            check.see(first)
        except InputError as error:
            errors.append((" ".join(changes), error))
        points.append(Point(name, settings, told, tuple(runs)))
    if errors:
        raise _refused(errors, len(points))
    document = {"scenario": scenario_digest(base), "grid": [[axis.path, list(axis.values)] for axis in axes]}
    identity = hashlib.sha256(json.dumps(document, default=str).encode()).hexdigest()
    return Grid(base.name, axes, tuple(points), identity)


def _refused(errors: Sequence[tuple[str, InputError]], points: int) -> InputError:
    """What is wrong with points of the grid, each with its settings."""
    settings, error = errors[0]
    message = str(error)
    if len(errors) > 1:
        others = [f"{shortened(changes)}: {error}" for changes, error in errors[1:_MOST_ERRORS]]
        more = len(errors) - 1 - len(others)
        message += f"\n{len(errors)} of {points} points cannot be run; likewise\n" + "\n".join(others)
        message += f"\nand {more} more" if more else ""
    return InputError(f"--grid {shortened(settings)}", message)


def _base(path: Path | None, overrides: Sequence[str], axes: Sequence[Axis]) -> Scenario:
    """The scenario without the grid; where it needs a value from there, with the first value of each axis."""
    try:
        return load_scenario(path, overrides)
    except InputError as error:
        try:
            return load_scenario(path, [*overrides, *(f"{axis.path}={_yaml(axis.values[0])}" for axis in axes)])
        except InputError:
            raise error from None


def _axes(grid: Sequence[str], overrides: Sequence[str], repeat: int) -> tuple[Axis, ...]:
    if not grid:
        raise InputError("--grid", "is needed, such as --grid cluster.replicas=1,2,4")
    fixed = {override.partition("=")[0].strip() for override in overrides}
    axes: list[Axis] = []
    for text in grid:
        axis, where = _axis(text), f"--grid {shortened(text)}"
        for other in axes:
            if axis.path == other.path:
                raise InputError(where, f"{axis.path} has a --grid already; list all its values there")
            if other.path.startswith(f"{axis.path}."):
                raise InputError(where, f"would undo --grid {other.path}; give it before that")
        if axis.path in fixed:
            raise InputError(where, f"{axis.path} is given by --set too")
        if axis.path == _SEED and repeat > 1:
            raise InputError(where, "--repeat takes seeds of its own; give one of the two")
        axes.append(axis)
    return tuple(axes)


def _axis(text: str) -> Axis:
    where = f"--grid {shortened(text)}"
    path, equals, listed = text.partition("=")
    if not equals or not _PATH.fullmatch(path.strip()):
        raise InputError(where, "must be path=v1,v2,..., such as cluster.replicas=1,2,4")
    if "\n" in text:
        raise InputError(where, "must be a single line")
    try:
        given = parse_document(f"value: [{listed}]", "")["value"]
    except InputError as error:
        raise InputError(where, error.message) from None
    values: list[Any] = []
    for value in given:
        for item in _expanded(value, where):
            if any(item == other and type(item) is type(other) for other in values):
                raise InputError(where, f"has {shortened(_yaml(item))} twice")
            values.append(item)
    if not values:
        raise InputError(where, "has no values; list them, such as 1,2,4 or 1..8")
    return Axis(path.strip(), tuple(values))


def _expanded(value: object, where: str) -> Sequence[Any]:
    """The numbers of a range; anything else is one value."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return [value]
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if last < first or step == 0:
        raise InputError(where, f"{value}: a range goes up, first..last or first..last..step, with a step of 1 or more")
    numbers = range(first, last + 1, step)
    if len(numbers) > MAX_RUNS:
        raise InputError(where, f"{value}: {len(numbers):,} values are too many; at most {MAX_RUNS:,} runs")
    return numbers


def _yaml(value: object) -> str:
    """A value as one line of YAML that is read back as the same."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of the axes: the shortest ends of their paths that tell them apart."""
    names = []
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        alike = [other for other in paths if other != path]
        names.append(next((end for end in ends if not any(f".{o}".endswith(f".{end}") for o in alike)), path))
    return names


def shown(value: object) -> str:
    """A value of the grid for people: a mapping by its preset or name, a placement by what is on which devices."""
    if isinstance(value, Mapping):
        if label := placement_label(value):
            return label
        return str(next((value[key] for key in _NAMES if value.get(key)), _yaml(value)))
    return _yaml(value)


def value_names(values: Sequence[object]) -> list[str]:
    """Short names of an axis' values: those that would be called alike say what differs between them."""
    short = [shown(value) for value in values]
    leaves = [_leaves(value) for value in values]
    names = []
    for name, mine in zip(short, leaves, strict=True):
        alike = [other for other, called in zip(leaves, short, strict=True) if called == name]
        differing = [path for path in mine if any(other.get(path) != mine[path] for other in alike)]
        own = [path for path in differing if path not in _NAMES]
        ends = labels(own)
        difference = ", ".join(f"{end}={mine[path]}" for path, end in zip(own, ends, strict=True))
        names.append(f"{name} {difference}" if difference else name)
    return [name if names.count(name) == 1 else _yaml(value) for name, value in zip(names, values, strict=True)]


def _leaves(value: object, path: str = "") -> dict[str, str]:
    """All that a mapping says, by dotted path, as YAML."""
    if not isinstance(value, Mapping):
        return {path: _yaml(value)} if path else {}
    leaves: dict[str, str] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{path}.{key}" if path else str(key))
    return leaves


def _folder(labels: Mapping[str, str], settings: Mapping[str, Any], taken: set[str]) -> str:
    """A readable name for the folder of a point that no other point has."""
    plain = ",".join(f"{key}={name}" for key, name in labels.items())
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", plain)
    if len(name) > _LONGEST_NAME or name in taken:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_NAME]}-{digest}"
    taken.add(name)
    return name
