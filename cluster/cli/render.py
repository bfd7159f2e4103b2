"""A run's summary for the terminal. It fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rich import table as rich
from rich.console import Group, RenderableType
from rich.text import Text

from pimserve.cluster.base.figures import TOO_LONG, count, figure, named, scale, share, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.cli.terminal import add_rows, block, headed_table, plain_table, side_by_side, warning
from pimserve.cluster.run.actor_tables import wire_table
from pimserve.cluster.run.compare import precision_text
from pimserve.cluster.run.group_schema import Groups
from pimserve.cluster.run.group_tables import (
    devices_text,
    group_link_table,
    group_table,
    micro_batch_table,
    sharing_text,
    unit_rows,
)
from pimserve.cluster.run.run_figures import FIGURE_AT, REQUESTS, unit_of, value_at
from pimserve.cluster.run.summary_schema import PoolFigures, ServedSummary, Simulator, UnwrittenSummary
from pimserve.cluster.run.summary_tables import (
    breakdown_table,
    fact_name,
    fact_text,
    fault_cost_table,
    handover_table,
    latency_table,
    pool_table,
    stage_table,
)
from pimserve.scheduler.summary_sections import Latencies, Slo

_THROUGHPUT = "throughput.output_tokens_per_s"
_RATES = ("throughput.requests_per_s", "offered_requests_per_s", _THROUGHPUT, f"{_THROUGHPUT}_per_device")
_SILICON = ("silicon_mm2", f"{_THROUGHPUT}_per_mm2")
_ENERGIES = tuple(f"energy.{part}joules_per_output_token" for part in ("", "active_", "passive_"))
_BATCHES = ("batch.mean_requests", "batch.steps", "batch.decode_only_share")
_LOAD = (*_BATCHES, "kv.mean_use", "kv.peak_use", "kv.capacity_tokens")


def summary_report(summary: UnwrittenSummary) -> RenderableType:
    """The whole report of one run, as `pimserve run` prints it."""
    parts: list[RenderableType] = [
        _heading(summary),
        "",
        side_by_side(_requests(summary), _throughput(summary)),
        "",
        _latency(summary.latency_s),
        "",
        side_by_side(_slo(summary.slo), block(_of_run("load", summary), Table("", ("",), _figures(summary, _LOAD)))),
        "",
        side_by_side(_units(summary), _breakdown(summary)),
    ]
    if summary.stages is not None:
        parts += ["", _headed(stage_table(summary.stages))]
    if summary.pools is not None:
        pools = block("pools", pool_table(summary.pools))
        parts += ["", side_by_side(pools, block("hand-over of KV caches", handover_table(summary.pools.handover)))]
    if summary.faults is not None:
        parts += ["", block("simulated faults", fault_cost_table(summary.faults))]
    for name, pool in summary.by_pool().items():
        if pool.groups is not None:
            parts += ["", _groups(name, pool.groups)]
    parts += [part for title, facts in _all_facts(summary) for part in ("", _facts(title, facts))]
    exchanged = wire_table(summary.simulator.spread)
    if exchanged is not None:
        parts += ["", _headed(exchanged)]
    warnings = [warning(f"warning: {text}") for text in summary.warnings]
    if warnings and not summary.requests.finished:  # that there are no figures comes before them
        parts = [*warnings, "", *parts]
    elif warnings:
        parts += ["", *warnings]
    return Group(*parts, "", _simulator(summary.simulator))


def _heading(summary: UnwrittenSummary) -> RenderableType:
    pools = summary.by_pool()
    replicas = [_replicas(name, pool) for name, pool in pools.items()]
    costs = list(dict.fromkeys(_costs(pool.costs) for pool in pools.values()))
    last = replicas if len(pools) == 1 else costs  # that line has room for the seed
    last[-1] += f", seed {summary.seed}"
    window = summary.window
    if window.whole_run:
        measured = f"measured: the whole run of {figure(summary.end_s)} s"
    else:
        measured = (
            f"measured: {figure(window.start_s)} s to {figure(window.end_s)} s of {figure(summary.end_s)} s, "
            f"in which {count(summary.requests.measured)} requests arrived"
        )
    return Group(
        Text(f"{summary.name}: {summary.model} on {devices_text(summary)}", style="bold"),
        *(Text(line) for line in (*replicas, *costs, precision_text(summary), measured)),
        Text(f"stability: {summary.stability}"),
    )


def _replicas(name: str, pool: PoolFigures | ServedSummary) -> str:
    """How many replicas a pool has, and how their devices share the model."""
    text = f"{pool.replicas} replica{'s' if pool.replicas > 1 else ''} of {sharing_text(pool)}"
    return f"{name}: {text}" if name else text


def _costs(costs: Mapping[str, Any]) -> str:
    """Whether the devices are ideal or measured, and with what."""
    if costs["setting"] == "ideal":
        return "costs: ideal devices"
    parts = costs.get("measured", "all")
    timed = f"measured on {costs['gpu']} with {costs['backend']} {costs['version']}"
    return f"costs: {timed}" if parts == "all" else f"costs: {named(parts)} {timed}, the rest projected"


def _of_run(title: str, summary: UnwrittenSummary) -> str:
    """The title of figures of the whole run, which say so where others are of the measured window."""
    return title if summary.window.whole_run else f"{title}, whole run"


def _table(rows: Iterable[tuple[str, ...]], *columns: str) -> Table:
    """A table for a block, whose title stands elsewhere."""
    return table_of("", ("", *(columns or ("",))), rows)


def _figures(summary: UnwrittenSummary, paths: Iterable[str]) -> list[Row]:
    return [Row(FIGURE_AT[path].label, (written(value_at(summary, path), unit_of(path)),)) for path in paths]


def _requests(summary: UnwrittenSummary) -> rich.Table:
    requests = summary.requests
    preempted = count(requests.preempted)
    if requests.preemptions > requests.preempted:
        preempted = f"{count(requests.preemptions)} times, {preempted}"
    rows = [(key, count(getattr(requests, key))) for key in ("total", "finished", "rejected", "unfinished")]
    rows.append(("preempted", preempted))
    if requests.truncated:
        rows.append((REQUESTS["truncated"], count(requests.truncated)))
    rows += [(TOO_LONG[key], count(number)) for key, number in requests.rejected_by_reason if number]
    return block(_of_run("requests", summary), _table(rows))


def _throughput(summary: UnwrittenSummary) -> rich.Table:
    energy = summary.energy
    # "energy per output token, whole run" is wider than the block.
    title = "energy per output token" if summary.window.whole_run else "energy per token, whole run"
    total, active, passive = _figures(summary, _ENERGIES)
    if energy.passive_joules is None:  # why there is none
        passive = replace(passive, cells=(named(energy.passive_power),))
    rows = [*_figures(summary, _RATES), replace(total, label=title), active, passive]
    if summary.silicon_mm2 is not None:
        rows += _figures(summary, _SILICON)
    return block("throughput and energy", Table("", ("",), rows))


def _latency(latencies: Latencies) -> RenderableType:
    table = latency_table(latencies).narrow()
    drawn = plain_table()
    drawn.add_column("latency", min_width=8)
    drawn.add_column("", min_width=3)
    starred = table.columns.index("p99")  # a star stands right of the digits, not among them
    for index, column in enumerate(table.columns):
        heading = f"{column} " if index == starred else column
        drawn.add_column(heading, justify="right", min_width=9, no_wrap=True)
    rows = []
    for row in table.rows:
        cells = list(row.cells)
        cells[starred] += "" if cells[starred].endswith("*") else " "
        rows.append(replace(row, cells=tuple(cells)))
    add_rows(drawn, replace(table, rows=rows), units=True)
    return Group(drawn, *(Text(note, style="dim") for note in (table.note, table.narrow_note) if note))


def _slo(slo: Slo) -> rich.Table:
    rows = []
    for key, limit in slo.limits.items():
        size, unit = scale([limit], "s")
        name = key.removesuffix("_s")
        rows.append((f"{name.upper()} <= {limit / size:g} {unit}", share(slo.met.get(name))))
    if rows:
        rows += [
            ("attainment", share(slo.attainment)),
            ("goodput, requests/s", figure(slo.goodput_requests_per_s)),
            *((f"censored, {named(name)}", count(number)) for name, number in slo.censored.items() if number),
        ]
    return block("SLO", _table(rows or [("no limits set", "")]))


def _units(summary: UnwrittenSummary) -> rich.Table:
    rows = [*unit_rows(summary), ("any", share(summary.busy_share), "")]
    return block(_of_run("busy time", summary), _table(rows, "mean", "busiest"))


def _breakdown(summary: UnwrittenSummary) -> rich.Table:
    title = "where it went" if summary.window.whole_run else "share of whole run"
    return block(title, breakdown_table(summary.time_share, summary.energy))


def _headed(table: Table, name: str = "", *, wrap: bool = False) -> RenderableType:
    drawn = headed_table(name or table.name, *table.columns, wrap=wrap)
    add_rows(drawn, table)
    return drawn


def _groups(pool: str, groups: Groups) -> RenderableType:
    """Both groups of devices of a pool's replicas, and what is between them."""
    tables = [group_table(groups), group_link_table(groups.link), micro_batch_table(groups.micro_batches)]
    names = ("groups of devices", "link between the groups", "micro-batches")
    drawn: list[RenderableType] = []
    for name, table in zip(names, tables, strict=True):
        drawn.append(_headed(table, f"{pool} pool: {name}" if pool else name, wrap=True))
        drawn += [Text(table.note, style="dim"), ""] if table.note else [""]
    return Group(*drawn[:-1])


def _all_facts(summary: UnwrittenSummary) -> list[tuple[str, Mapping[str, Any]]]:
    """What devices say of themselves, under a title."""
    groups = summary.groups
    if groups is None:
        found = [("device", summary.device_facts)]
    else:
        found = [("device of attention", summary.device_facts), ("device of experts", groups.experts.device_facts)]
    return [(title, facts) for title, facts in found if facts]


def _facts(title: str, facts: Mapping[str, Any]) -> RenderableType:
    """What the devices have to say of themselves, each group of facts in one row."""
    table = rich.Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        name, text = _fact(key, value)
        if isinstance(value, Mapping):
            text = "; ".join(" ".join(_fact(inner, fact)) for inner, fact in value.items())
        table.add_row(Text(name), Text(text))
    return Group(Text(title, style="bold"), table)


def _fact(key: str, value: object) -> tuple[str, str]:
    """A fact's name, and its value with the unit."""
    if key.endswith("_days"):  # part of the name here
        return named(key), fact_text(value)
    name, unit = fact_name(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return name, f"{fact_text(value)} {unit}".rstrip() if is_number else fact_text(value)


def _simulator(speed: Simulator) -> RenderableType:
    memory = speed.peak_memory_mb
    return Group(
        Text(
            f"simulated in {figure(speed.loop_s)} s: {figure(speed.steps_per_s)} steps/s, "
            f"{figure(speed.requests_per_s)} requests/s"
        ),
        Text(f"the process took {figure(speed.process_s)} s" + (f" and {figure(memory)} MB" if memory else "")),
    )
