"""The report of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pimserve.cluster.base.figures import text_of
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report import facts
from pimserve.cluster.report.content import Page, Section
from pimserve.cluster.report.device_section import device_sections
from pimserve.cluster.report.group_section import group_sections
from pimserve.cluster.report.inputs import ReportRun
from pimserve.cluster.report.pictures import Named, breakdown_pictures, latency_pictures
from pimserve.cluster.report.run_page import provenance
from pimserve.cluster.report.time_pictures import over_time_pictures
from pimserve.cluster.run.compare import Comparison, Run, compare, compare_runs, precision_text
from pimserve.cluster.run.comparison_tables import MIXED_WINDOWS, difference_table, run_letters
from pimserve.errors import InputError


def several_page(runs: Sequence[ReportRun], places: Sequence[Path], title: str | None) -> Page:
    """Runs beside the first one."""
    names = run_letters(len(runs))
    comparison, unknown = _compared(runs, places)
    together = [Named(name, run) for name, run in zip(names, runs, strict=True)]
    absent = [
        run.labelled(reason)
        for run in together
        for part, reason in run.run.absent.items()
        if part in {"requests", "history"}
    ]
    sections = [
        Section("runs", "Runs", tables=[_legend(together)]),
        _differences(comparison, names, unknown),
        Section(
            "latency",
            "Latency",
            ["Of requests of each run's measured window that finished."],
            pictures=latency_pictures(together),
        ),
        Section(
            "over-time",
            "Over time",
            [
                "Time is simulated. Lines are means over short stretches of time.",
                *(["Not in all pictures: " + "; ".join(absent) + "."] if absent else []),
            ],
            pictures=over_time_pictures(together),
        ),
        Section("breakdown", "Time and energy", pictures=breakdown_pictures(together)),
        *group_sections(together),
        *device_sections(together),
        Section("figures", "All figures", [_WINDOWS], tables=facts.comparison_tables(comparison, names)),
        provenance(list(runs), names),
    ]
    warnings = [f"not like for like: the runs differ in {', '.join(comparison.unlike)}"] if comparison.unlike else []
    warnings += comparison.repeated
    warnings += ["whether the settings are like for like is not known: a scenario cannot be read"] if unknown else []
    warnings += [run.labelled(warning) for run in together for warning in run.run.summary.warnings]
    settings = dict.fromkeys(facts.setting(run.summary) for run in runs)
    return Page(
        title or f"{len(runs)} runs",
        ", ".join(dict.fromkeys(text_of(run.summary.name) for run in runs)),
        tuple(f"costs: {setting}" for setting in settings),
        warnings,
        sections,
    )


_WINDOWS = f"Ratios are to the first run. {MIXED_WINDOWS[0].upper()}{MIXED_WINDOWS[1:]}."


def _legend(runs: Sequence[Named]) -> Table:
    keys = ("name", "model", "devices", "device", "workload", "policy", "seed")
    rows = [
        (
            run.name,
            *(text_of(getattr(run.run.summary, key)) for key in keys),
            facts.setting(run.run.summary),
            precision_text(run.run.summary).removeprefix("precision: "),
            run.run.place,
        )
        for run in runs
    ]
    return table_of("Which run is which", ("", *keys, "costs", "precision", "results"), rows, text=True)


def _compared(runs: Sequence[ReportRun], places: Sequence[Path]) -> tuple[Comparison, str]:
    """Their comparison, and why their settings are not known, if a scenario cannot be read."""
    try:
        return compare(places), ""
    except InputError as error:
        why = str(error)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    return compare_runs(tuple(Run(run.place, run.summary) for run in runs), [{}] * len(runs)), why


def _differences(comparison: Comparison, names: Sequence[str], unknown: str) -> Section:
    if unknown:
        return Section("differences", "Differences of settings", [f"Not known: {unknown}."])
    text = [f"{comparison.unknown[0].upper()}{comparison.unknown[1:]}."] if comparison.unknown else []
    if not comparison.differences:
        same = "These are the same." if comparison.unknown else "The runs have the same settings."
        return Section("differences", "Differences of settings", [*text, same])
    table = difference_table(comparison.differences, names)
    return Section("differences", "Differences of settings", text, tables=[table])
