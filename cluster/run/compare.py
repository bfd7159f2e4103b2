"""Runs side by side: their figures as ratios to the first run's, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pimserve.cluster.base.documents import at, number
from pimserve.cluster.base.figures import ABSENT, named
from pimserve.cluster.run.results import load_summary
from pimserve.cluster.run.run_times import ended_at, newer_runs
from pimserve.device_models.catalogue import parse_document
from pimserve.errors import InputError

Summary = Mapping[str, Any]

_LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")
_MOMENTS = ("mean", "p50", "p90", "p99")
# (group, label, path in the summary, unit)
_FIGURES: tuple[tuple[str, str, str, str], ...] = (
    ("requests", "requests", "requests.total", ""),
    ("requests", "finished", "requests.finished", ""),
    ("requests", "preempted", "requests.preempted", ""),
    ("throughput", "offered requests/s", "offered_requests_per_s", ""),
    ("throughput", "requests/s", "throughput.requests_per_s", ""),
    ("throughput", "output tokens/s", "throughput.output_tokens_per_s", ""),
    ("throughput", "  per device", "throughput.output_tokens_per_s_per_device", ""),
    ("throughput", "  per mm2 of silicon", "throughput.output_tokens_per_s_per_mm2", ""),
    ("throughput", "silicon, mm2", "silicon_mm2", ""),
    ("throughput", "energy per output token", "energy.joules_per_output_token", "J"),
    ("throughput", "  active", "energy.active_joules_per_output_token", "J"),
    ("throughput", "  passive", "energy.passive_joules_per_output_token", "J"),
    ("throughput", "  at the devices' TDP", "energy.tdp_joules_per_output_token", "J"),
    *(
        (f"latency.{key}", f"{named(key)} {moment}", f"latency_s.{key}.{moment}", "s")
        for key in _LATENCIES
        for moment in _MOMENTS
    ),
    ("slo", "SLO attainment", "slo.attainment", "share"),
    ("slo", "goodput, requests/s", "slo.goodput_requests_per_s", ""),
    ("load", "batch, mean requests", "batch.mean_requests", ""),
    ("load", "KV cache in use, mean", "kv.mean_use", "share"),
    ("load", "KV cache in use, peak", "kv.peak_use", "share"),
    ("load", "KV cache, tokens", "kv.capacity_tokens", ""),
    ("pools", "hand-over, mean", "pools.handover.transfer_s.mean", "s"),
    ("pools", "  waiting before it, mean", "pools.handover.waiting_s.mean", "s"),
    ("pools", "  held back", "pools.handover.held", ""),
    ("faults", "availability", "faults.availability", "share"),
    ("faults", "queued again", "faults.requeued", ""),
    ("busy", "busy share of time", "busy_share", "share"),
    ("busy", "  of prefill", "pools.prefill.busy_share", "share"),
    ("busy", "  of decode", "pools.decode.busy_share", "share"),
)
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
        name, model, devices, device = (self.summary.get(key, "?") for key in ("name", "model", "devices", "device"))
        return f"{name}: {model} on {devices} {device}" + (f", {self.ended}" if self.ended else "")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of every run. `ratios` are to the first run; None where a value is absent or the first is 0.

    `unit` is "s", "J", "share" (of 1), or "" for counts and for rates that the label names.
    """

    path: str
    group: str
    label: str
    unit: str
    values: tuple[float | None, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each value over the first."""
        base = self.values[0]
        return tuple(None if value is None or not base else value / base for value in self.values)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, their figures, and the settings that are not the same in all: path to one value per run."""

    runs: tuple[Run, ...]
    quantities: tuple[Quantity, ...]
    differences: Mapping[str, tuple[Any, ...]]
    unlike: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def differences_by_section(self) -> Mapping[str, tuple[Any, ...]]:
        """The differences with the figures of one section of a device in one line, as text."""
        return _in_sections(self.differences)

    def document(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        return {
            "runs": [
                {"place": run.place, **{key: run.summary.get(key) for key in _ABOUT}, "ended": run.ended}
                for run in self.runs
            ],
            "quantities": {
                quantity.path: {"values": list(quantity.values), "ratios": list(quantity.ratios)}
                for quantity in self.quantities
            },
            "differences": {path: list(values) for path, values in self.differences.items()},
            "not_like_for_like": list(self.unlike),
            "notes": list(self.notes),
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
    return replace(compare_runs(runs, _settings(places, runs)), notes=notes)


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
    if len({str(at(run.summary, "costs.setting") or "ideal") for run in runs}) > 1:
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
    known = at(summary, "energy.passive_joules") is not None
    part = at(summary, "energy.passive_power") == "partly_known"
    return Likeness("none" if not known else "part" if part else "all", dict(precision(summary)))


def not_alike(runs: Sequence[Likeness]) -> Iterator[str]:
    """In what runs differ there."""
    if len({run.passive for run in runs}) > 1:
        yield "whether energy includes passive power"
    for key in dict.fromkeys(key for run in runs for key in run.precision):
        held = dict.fromkeys(run.precision[key] for run in runs if key in run.precision)
        if len(held) > 1:
            yield f"precision of {named(key)} ({' against '.join(held)})"


def precision(summary: Summary) -> Iterator[tuple[str, str]]:
    """In what the devices of a run hold weights and KV cache: (what, data types of all pools)."""
    pools = [part for part in _mapping(summary, "pools").values() if isinstance(part, Mapping) and "precision" in part]
    held = [_mapping(part, "precision") for part in pools or [summary]]
    for key in dict.fromkeys(key for pool in held for key in pool):
        known = dict.fromkeys(str(pool[key]) for pool in held if pool.get(key) is not None)
        if known:
            yield key, " + ".join(known)


def _quantities(runs: Sequence[Run]) -> Iterator[Quantity]:
    for group, label, path, unit in (*_FIGURES, *_busy_units(runs)):
        values = tuple(_comparable(run.summary, path) for run in runs)
        if any(value is not None for value in values):
            yield Quantity(path, group, label, unit, values)


def _busy_units(runs: Sequence[Run]) -> Iterator[tuple[str, str, str, str]]:
    """Busy share of each unit, and on the busiest device where devices are not all alike."""
    mean, most = "unit_busy_share", "unit_busy_share_of_busiest_device"
    for unit in dict.fromkeys(unit for run in runs for unit in _mapping(run.summary, mean)):
        yield "busy", f"  {named(unit)}", f"{mean}.{unit}", "share"
        pairs = [(_mapping(run.summary, mean).get(unit), _mapping(run.summary, most).get(unit)) for run in runs]
        if any(of_busiest not in (None, of_mean) for of_mean, of_busiest in pairs):
            yield "busy", "    on the busiest device", f"{most}.{unit}", "share"


def _mapping(summary: Summary, key: str) -> Mapping[str, Any]:
    """What is there; nothing where that is no mapping, as in a summary that was changed."""
    value = summary.get(key)
    return value if isinstance(value, Mapping) else {}


def _comparable(summary: Summary, path: str) -> float | None:
    """A figure; None where there is none, or one of which no ratio can be made."""
    value = number(summary, path)
    return value if value is None or value == 0 or 1 / _LARGEST < abs(value) < _LARGEST else None


def _settings(places: Sequence[Path], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How each run was set: its whole scenario, or what the summary says where one of the scenarios is missing."""
    scenarios = [_scenario(place if place.is_dir() else place.parent) for place in places]
    settings = []
    for run, scenario in zip(runs, scenarios, strict=True):
        summary = run.summary
        version = {"simulator": {"version": at(summary, "simulator.version")}}
        if None not in scenarios and scenario is not None:
            settings.append({key: value for key, value in scenario.items() if key not in _IGNORED} | version)
            continue
        cluster = {key: summary.get(key) for key in ("replicas", "devices_per_replica")}
        cluster |= _mapping(summary, "parallelism")
        settings.append(
            {
                "model": {"name": summary.get("model")},
                "cluster": cluster | {"device": {"name": summary.get("device")}},
                "workload": summary.get("workload"),
                "costs": {key: at(summary, f"costs.{key}") for key in ("setting", "backend", "version")},
                "slo": at(summary, "slo.limits"),
                "run": {"seed": summary.get("seed"), "warmup_s": at(summary, "window.start_s")},
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


def precision_text(summary: Mapping[str, Any]) -> str:
    """In what the devices hold weights and KV cache; of another version, that it is not known."""
    held = [f"{named(key)} {value}" for key, value in precision(summary)]
    return f"precision: {', '.join(held) or ABSENT}"
