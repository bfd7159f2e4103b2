"""Runs side by side: their figures as ratios to the first run's, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pimserve.cluster.base.figures import ABSENT, known, named
from pimserve.cluster.run.group_tables import devices_text
from pimserve.cluster.run.placement_label import with_labels
from pimserve.cluster.run.read_summary import load_summary
from pimserve.cluster.run.run_figures import RunFigure, class_figures, run_figures, unit_of, value_at
from pimserve.cluster.run.run_times import ended_at, newer_runs
from pimserve.cluster.run.summary_schema import Precision, ServedSummary, Summary
from pimserve.device_models.catalogue import parse_document
from pimserve.errors import InputError
from pimserve.scheduler.config import FCFS
from pimserve.scheduler.part_sections import ClassFigures

# Runs that differ here did not do the same work, or were not measured alike.
_UNLIKE = {
    "model": "model",
    "workload": "workload",
    "routing": "routing",
    "costs": "costs",
    "slo": "SLO",
    "faults": "simulated faults",
    "simulator": "version",
}
# Settings that stand beside the names of runs, where they are not the same: all of them change what is computed when.
_NAMED = "scheduler."
_ABOUT = ("name", "model", "device", "digest", "stability")
_PASSIVE_POWER = "costs.passive_power"  # of which the energies tell more than the settings
_LARGEST = 1e150
SCENARIO_FILE = "scenario.yaml"
_IGNORED = {"name", "output"}
_IGNORED_PATHS = {"slo.preset"}  # what it stands for is written out beside it
_PROSE = {"title", "sources", "assumptions", "caveats", "published"}


@dataclass(frozen=True, slots=True)
class Run:
    """One run that is compared."""

    place: str
    summary: Summary
    ended: str = ""

    @property
    def title(self) -> str:
        """The run's name, what it ran on, and when."""
        name, model = (getattr(self.summary, key) or "?" for key in ("name", "model"))
        return f"{name}: {model} on {devices_text(self.summary)}" + (f", {self.ended}" if self.ended else "")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of every run. `ratios` are to the first run; None where a value is absent or the first is 0.

    `unit` is as `run_figures.unit_of` has it.
    """

    path: str
    group: str
    label: str
    unit: str
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, summaries: Sequence[Summary], figure: RunFigure) -> Quantity:
        """A figure of runs, under the label that it has beneath others."""
        values = tuple(value_at(summary, figure.path) for summary in summaries)
        return cls(figure.path, figure.group, figure.beneath or figure.label, figure.unit, values)

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each value over the first."""
        base = self.values[0]
        return tuple(None if value is None or not base else value / base for value in self.values)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, their figures, and the settings that are not the same in all: path to one value per run.

    `notes`: sentences on the runs; `repeated`: on those that were given more than once; `unknown`: which settings were
    not compared, and why; empty: all were.
    """

    runs: tuple[Run, ...]
    quantities: tuple[Quantity, ...]
    differences: Mapping[str, tuple[Any, ...]]
    unlike: tuple[str, ...]
    notes: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def differences_by_section(self) -> Mapping[str, tuple[Any, ...]]:
        """The differences with figures of one section of a device in one line, as text, and placements as labels."""
        return _in_sections(with_labels(self.differences))

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Sentences on the runs, and on settings."""
        return (*self.repeated, *self.notes, *([self.unknown] if self.unknown else []))

    def named_settings(self) -> tuple[str, ...]:
        """Of each run, what it has of the scheduler's settings that are not the same in all; "": none of its own."""
        named_ones = {
            path.removeprefix(_NAMED): values for path, values in self.differences.items() if path.startswith(_NAMED)
        }
        of_runs = (
            [f"{key} {values[run]}" for key, values in named_ones.items() if values[run] is not None]
            for run in range(len(self.runs))
        )
        return tuple(map(", ".join, of_runs))

    def document(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        return {
            "runs": [
                {"place": run.place, **{key: getattr(run.summary, key) for key in _ABOUT}, "ended": run.ended}
                for run in self.runs
            ],
            "quantities": {
                quantity.path: {"values": list(quantity.values), "ratios": list(quantity.ratios)}
                for quantity in self.quantities
            },
            "differences": {path: list(values) for path, values in self.differences.items()},
            "not_like_for_like": list(self.unlike),
            "notes": list(self.all_notes),
        }


def compare(places: Sequence[Path]) -> Comparison:
    """Load runs, each a results folder or a summary.json, and compare them with the first.

    Raises:
        InputError: fewer than two, or one cannot be read.
    """
    if len(places) < 2:
        raise InputError("compare", "needs two runs or more")
    places = [_place_of(place) for place in places]
    summaries = [load_summary(place) for place in places]
    runs = tuple(
        Run(str(place), summary, ended_at(summary, place)) for place, summary in zip(places, summaries, strict=True)
    )
    compared = {place.resolve() for place in places}
    notes = tuple(
        f"{place} is of {run.ended}; newer: {', '.join(f'{other} ({ended})' for other, ended in newer)}"
        for place, run in zip(places, runs, strict=True)
        if (newer := [other for other in newer_runs(place) if other[0].resolve() not in compared])
    )
    scenarios = [_scenario(place if place.is_dir() else place.parent) for place in places]
    without = [str(place) for place, scenario in zip(places, scenarios, strict=True) if scenario is None]
    told = f"of settings only those in summaries are compared, none of the scheduler: no {SCENARIO_FILE} beside "
    unknown = told + ", ".join(without) if without else ""
    return replace(
        compare_runs(runs, _settings(runs, scenarios)), notes=notes, repeated=_repeated(places), unknown=unknown
    )


def _repeated(places: Sequence[Path]) -> tuple[str, ...]:
    """That a run is compared with itself, for each."""
    given: dict[Path, list[str]] = {}
    for place in places:
        given.setdefault((place / "summary.json" if place.is_dir() else place).resolve(), []).append(str(place))
    return tuple(
        f"{' and '.join(dict.fromkeys(names))}: one run, which is compared with itself"
        for names in given.values()
        if len(names) > 1
    )


def _place_of(place: Path) -> Path:
    """The place of a run: a path, or the name of a folder in results/."""
    named_one = Path("results") / place
    return named_one if not place.exists() and place.name == str(place) and named_one.is_dir() else place


def compare_runs(runs: tuple[Run, ...], settings: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare loaded runs, of which `settings` says how each was set: nested mappings."""
    differences = _differing(settings)
    sections = [path.partition(".")[0] for path in differences if path != _PASSIVE_POWER]
    unlike = {_UNLIKE[section]: None for section in sections if section in _UNLIKE}
    unlike |= {path.removeprefix("run."): None for path in differences if path.startswith("run.")}
    if len({str(run.summary.costs.get("setting") or "ideal") for run in runs}) > 1:
        unlike.pop("costs", None)
        unlike["the setting of their costs (ideal against measured)"] = None
    unlike |= dict.fromkeys(not_alike([likeness(run.summary) for run in runs]))
    return Comparison(runs, tuple(_quantities(runs)), differences, tuple(unlike))


class Likeness(NamedTuple):
    """What decides, beside settings, whether a run compares with others: how much of the devices' passive power its
    energy holds, and in what they hold weights and KV cache.
    """

    passive: str
    precision: Mapping[str, str]


def likeness(summary: Summary) -> Likeness:
    """Of one run."""
    known = summary.energy.passive_joules is not None
    part = summary.energy.passive_power == "partly_known"
    return Likeness("none" if not known else "part" if part else "all", dict(precision(summary)))


def not_alike(runs: Sequence[Likeness]) -> Iterator[str]:
    """In what runs differ there."""
    if len({run.passive for run in runs}) > 1:
        yield "whether energy includes passive power"
    for key in dict.fromkeys(key for run in runs for key in run.precision):
        held = dict.fromkeys(run.precision[key] for run in runs if key in run.precision)
        if len(held) > 1:
            yield f"precision of {named(key)} ({' against '.join(held)})"


def precision(summary: ServedSummary) -> Iterator[tuple[str, str]]:
    """In what the devices of a run hold weights and KV cache: (what, data types of all pools)."""
    for key in Precision.model_fields:
        types = dict.fromkeys(getattr(part.precision, key) for part in summary.by_pool().values())
        types.pop(None, None)
        if types:
            yield key, " + ".join(types)


def _quantities(runs: Sequence[Run]) -> Iterator[Quantity]:
    summaries = [run.summary for run in runs]
    compared = (Quantity.of(summaries, figure) for figure in run_figures(summaries) if figure.compared)
    for quantity in (*compared, *_busy_units(summaries), *_classes(summaries)):
        values = tuple(map(_comparable, quantity.values))
        if any(value is not None for value in values):
            yield replace(quantity, values=values)


def _busy_units(summaries: Sequence[Summary]) -> Iterator[Quantity]:
    """Busy share of each unit, and on the busiest device where devices are not all alike."""
    for unit in dict.fromkeys(unit for summary in summaries for unit in known(summary.unit_busy_share)):
        mean = tuple(summary.unit_busy_share.get(unit) for summary in summaries)
        most = tuple(summary.unit_busy_share_of_busiest_device.get(unit) for summary in summaries)
        yield Quantity(f"unit_busy_share.{unit}", "busy", f"  {named(unit)}", "share", mean)
        if any(of_busiest not in (None, of_mean) for of_mean, of_busiest in zip(mean, most, strict=True)):
            label = "    on the busiest device"
            yield Quantity(f"unit_busy_share_of_busiest_device.{unit}", "busy", label, "share", most)


def _classes(summaries: Sequence[Summary]) -> Iterator[Quantity]:
    """Figures of the classes of requests of all runs, by their names."""
    by_name = [{each.name: each for each in summary.classes or ()} for summary in summaries]
    for name in dict.fromkeys(name for of_run in by_name for name in of_run):
        for label, path in class_figures(summaries):
            values = tuple(value_at(of_run.get(name), path) for of_run in by_name)
            unit = unit_of(path, ClassFigures)
            yield Quantity(f"classes.{name}.{path}", "classes", f"{name}: {label}", unit, values)


def _comparable(value: float | None) -> float | None:
    """A figure; None for one of which no ratio can be made."""
    return value if value is None or value == 0 or 1 / _LARGEST < abs(value) < _LARGEST else None


def _settings(runs: Sequence[Run], scenarios: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """How each run was set: its whole scenario, or what the summary says where one of the scenarios is missing."""
    settings = []
    for run, scenario in zip(runs, scenarios, strict=True):
        summary = run.summary
        version = {"simulator": {"version": summary.simulator.version}}
        if None not in scenarios and scenario is not None:
            settings.append({key: value for key, value in scenario.items() if key not in _IGNORED} | version)
            continue
        cluster = {"replicas": summary.replicas, "devices_per_replica": summary.devices_per_replica}
        settings.append(
            {
                "model": {"name": summary.model},
                "cluster": {**cluster, **summary.parallelism, "device": {"name": summary.device}},
                "workload": summary.workload,
                "costs": {key: summary.costs.get(key) for key in ("setting", "backend", "version")},
                "slo": summary.slo.limits,
                "run": {"seed": summary.seed, "warmup_s": summary.window.start_s},
            }
            | version
        )
    return settings


def _scenario(folder: Path) -> dict[str, Any] | None:
    file = folder / SCENARIO_FILE
    return parse_document(file.read_text(encoding="utf-8", errors="replace"), str(file)) if file.is_file() else None


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Dotted paths whose values are not the same in all. Of a different model only the name is listed."""
    flat = [dict(_flattened(settings_of_run)) for settings_of_run in settings]
    paths = sorted({path for settings_of_run in flat for path in settings_of_run} - _IGNORED_PATHS)
    values = {path: tuple(settings_of_run.get(path) for settings_of_run in flat) for path in paths}
    differing = {path: compared for path, compared in values.items() if any(value != compared[0] for value in compared)}
    if "model.name" in differing:
        differing = {
            path: compared
            for path, compared in differing.items()
            if path == "model.name" or not path.startswith("model.")
        }
    return differing


def _in_sections(differences: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The differences with figures of one section of a device together: "key value, ..." for each run that has any.

    Two devices of different kinds differ in dozens of figures, most of which only one of them has.
    """
    texts_by_path: dict[str, tuple[Any, ...]] = {}
    sections: dict[str, dict[str, tuple[Any, ...]]] = {}
    for path, values in differences.items():
        before, device, after = path.partition("device.")
        section, inside, key = after.partition(".")
        if not device or not inside or not before.startswith("cluster."):
            texts_by_path[path] = values
            continue
        label = f"{before}{device}{section}"
        sections.setdefault(label, {})[key] = values
        texts_by_path.setdefault(label, ())  # its place
    for label, figures in sections.items():
        runs = len(next(iter(figures.values())))
        texts = (
            ", ".join(f"{key} {values[run]}" for key, values in figures.items() if values[run] is not None)
            for run in range(runs)
        )
        texts_by_path[label] = tuple(text or None for text in texts)
    return texts_by_path


def _flattened(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{above}{key}.")
        elif key not in _PROSE:
            yield f"{above}{key}", value


def value_text(value: object) -> str:
    """The value of a setting."""
    return ABSENT if value is None else str(value)


def precision_text(summary: ServedSummary) -> str:
    """In what the devices hold weights and KV cache; of another version, that it is not known."""
    held = [f"{named(key)} {value}" for key, value in precision(summary)]
    return f"precision: {', '.join(held) or ABSENT}"


def policy_text(summary: ServedSummary) -> str:
    """The policy of the queue, where it is another than the default."""
    return "" if summary.policy in {None, FCFS} else f"policy: {summary.policy}"
