"""Devices of runs: rooflines with the operators as points, the load of experts, and what devices say of themselves.

A single run has a table for each of its mean steps; several have their steps, operators and experts side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.cluster.base.figures import ABSENT, count, figure, named, scaled, share
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report.axes import rate
from pimserve.cluster.report.content import Section
from pimserve.cluster.report.expert_pictures import load_table, popularity
from pimserve.cluster.report.inputs import ReportRun
from pimserve.cluster.report.intensity import Work, share_of_roof
from pimserve.cluster.report.parts import Part, Step, parts_of
from pimserve.cluster.report.pictures import Named
from pimserve.cluster.report.rooflines import rooflines
from pimserve.cluster.run.summary_tables import fact_table

_ROOFLINE = (
    "FLOPs and bytes are of one device, worked out from the model's operators at the run's mean step, and the rate is "
    "what the cost plan gives for them: a point lies below its roof as far as kernels, launches or DRAM stay below "
    "nominal figures. Experts that run on two units side by side may pass the roof of each; their share is of both."
)
_NOTHING = "No step was executed: there is no roofline and no expert load."
_STATIONARY = (
    "Matrix products run where the weights lie and move none of them, so they have no place in the roofline; nor has "
    "attention of prompts, whose keys and values are at hand. The rate is per chip, while its attention is busy."
)
_EXPERTS = (
    "A run keeps times, not who chose whom: this is the law by which it drew them, and layers drawn anew from it with "
    "the run's seed."
)


def device_sections(runs: list[Named]) -> list[Section]:
    """Rooflines, expert load, and what devices say of themselves."""
    tables = [table for run in runs for table in _facts(run)]
    parts = parts_of(runs)
    absent = [run.labelled(_absent(run.run)) for run in runs if run.name not in {part.run for part in parts}]
    if not parts:
        why = _NOTHING if runs[0].run.history is not None else f"No roofline and no expert load: {absent[0]}."
        if len(runs) > 1:
            why = f"No rooflines and no expert loads: {'; '.join(absent)}."
        return [Section("device", "Device", [why], tables=tables)]
    text = [_ROOFLINE]
    if absent:
        text.append(f"Not here: {'; '.join(absent)}.")
    still = [part.name for part in parts if part.stationary]
    if still:
        alone = len(runs) == 1 and len(still) == len(parts)
        text.append(_STATIONARY if alone else f"Of {', '.join(still)}: {_STATIONARY}")
    shown = rooflines(parts)
    if len(runs) == 1:
        steps = [(part, step) for part in parts for step in part.steps if step.work]
        title, work = "Device and roofline", [_work_table(part, step) for part, step in steps]
    else:
        title, work = "Devices and rooflines", _side_by_side(parts)
        text += ["The pictures have the same axes."] if len(shown) > 1 else []
    sections = [Section("device", title, text, pictures=shown, tables=[*work, *tables])]
    loaded = [part for part in parts if part.load is not None]
    if loaded:
        experts = [load_table([part]) for part in loaded] if len(runs) == 1 else [load_table(loaded)]
        sections.append(Section("experts", "Experts", [_EXPERTS], pictures=popularity(loaded), tables=experts))
    return sections


def _absent(run: ReportRun) -> str:
    return run.absent.get("history", "no step was executed")


def _facts(named: Named) -> list[Table]:
    """What the devices of each pool say of themselves."""
    tables = []
    for name, pool in named.run.summary.by_pool().items():
        title = f"Device, {name} pool" if name else "Device"
        if pool.device_facts:
            tables.append(fact_table(pool.device_facts, named.labelled(title)))
        if pool.groups is not None and pool.groups.experts.device_facts:
            tables.append(fact_table(pool.groups.experts.device_facts, named.labelled(f"{title} of the experts")))
    return tables


def _work_table(part: Part, step: Step) -> Table:
    rows = [
        (
            work.name,
            f"{rate(work.flops)}FLOP",
            f"{rate(work.moved)}B",
            figure(work.intensity),
            scaled(work.seconds, "s"),
            f"{rate(work.flop_per_s or 0.0)}FLOP/s",
            share(share_of_roof(work, part.roofs)),
            " + ".join(map(named, work.units)),
        )
        for work in step.work
    ]
    columns = ("", "FLOPs", "bytes", "Op/B", "time", "reached", "of roof", "on")
    return table_of(f"Operators of {step.description}{part.of}", columns, rows)


def _side_by_side(parts: Sequence[Part]) -> list[Table]:
    """The mean steps of all parts, and their operators."""
    tables = []
    for mixed, kind in ((False, "mean decoding step"), (True, "mean step with prompts")):
        steps = [(part, step) for part in parts for step in part.steps if step.mixed == mixed]
        if not steps:
            continue
        shapes = [step.shape for _, step in steps]
        rows = [
            ("requests that decode", *(count(shape.decodes) for shape in shapes)),
            ("tokens of their contexts", *(count(shape.context) for shape in shapes)),
        ]
        if mixed:
            rows.append(("prompts", *(count(shape.prompts) for shape in shapes)))
            rows.append(("tokens of each prompt", *(count(shape.prompt_tokens) for shape in shapes)))
        tables.append(table_of(f"The {kind}", ("", *(part.name for part, _ in steps)), rows))
        tables.append(_operators(f"Operators of the {kind}", steps))
    return tables


def _operators(caption: str, steps: Sequence[tuple[Part, Step]]) -> Table:
    columns = [f"{part.name}{what}" for part, _ in steps for what in (", Op/B", ", time", ", of roof")]
    rows = []
    for name in dict.fromkeys(work.name for _, step in steps for work in step.work):
        cells: list[str] = []
        for part, step in steps:
            of_name = next((work for work in step.work if work.name == name), None)
            cells += _of(of_name, part) if of_name is not None else (ABSENT,) * 3
        rows.append((name, *cells))
    return table_of(caption, ("", *columns), rows)


def _of(work: Work, part: Part) -> tuple[str, str, str]:
    return figure(work.intensity), scaled(work.seconds, "s"), share(share_of_roof(work, part.roofs))
