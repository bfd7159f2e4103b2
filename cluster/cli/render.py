"""A run's summary for the terminal. It fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import table as rich
from rich.console import Group, RenderableType
from rich.text import Text

from pimserve.cluster.base.figures import WHY_REJECTED, count, figure, half_width, named, scale, share, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.cli.terminal import add_rows, block, headed_table, plain_table, side_by_side, warning
from pimserve.cluster.run.actor_tables import wire_table
from pimserve.cluster.run.class_tables import class_tables, limits_of_all
from pimserve.cluster.run.compare import policy_text, precision_text
from pimserve.cluster.run.group_schema import Groups
from pimserve.cluster.run.group_tables import (
    devices_text,
    group_link_table,
    group_table,
    micro_batch_table,
    sharing_text,
    unit_rows,
)
from pimserve.cluster.run.latency_tables import latency_table, percentile_limit_table
from pimserve.cluster.run.run_figures import FIGURE_AT, REQUESTS, unit_of, value_at
from pimserve.cluster.run.summary_schema import PoolFigures, ServedSummary, Simulator, UnwrittenSummary
from pimserve.cluster.run.summary_tables import (
    autoscaling_table,
    breakdown_table,
    client_table,
    draft_table,
    fact_name,
    fact_text,
    fault_cost_table,
    handover_table,
    load_wait_table,
    pool_table,
    prefix_table,
    router_table,
    stage_table,
    swap_table,
    tier_table,
)

_THROUGHPUT = "throughput.output_tokens_per_s"
_RATES = ("throughput.requests_per_s", "offered_requests_per_s", _THROUGHPUT, f"{_THROUGHPUT}_per_device")
_SILICON = ("silicon_mm2", f"{_THROUGHPUT}_per_mm2")
_ENERGIES = tuple(f"energy.{part}joules_per_output_token" for part in ("", "active_", "passive_"))
_BATCHES = ("batch.mean_requests", "batch.steps", "batch.decode_only_share")
_OF_GROUPS = "batch.group_wait_share"
_PERCENTILES = 5  # beside each other
_KV = ("kv.mean_use", "kv.peak_use", "kv.capacity_tokens")


def summary_report(summary: UnwrittenSummary) -> RenderableType:
    """The whole report of one run, as `pimserve run` prints it."""
    parts: list[RenderableType] = [
        _heading(summary),
        "",
        side_by_side(_requests(summary), _throughput(summary)),
        "",
        _latency(latency_table(summary.latency_s, summary.ci95.latency_s).narrow()),
        "",
        side_by_side(_slo(summary), block(_of_run("load", summary), Table("", ("",), _load(summary)))),
        "",
        side_by_side(_units(summary), _breakdown(summary)),
    ]
    if summary.slo.at_percentiles:
        limits = percentile_limit_table(summary.slo.at_percentiles)
        parts += ["", _headed(limits), *([Text(limits.note, style="dim")] if limits.note else [])]
    if summary.stages is not None:
        parts += ["", _headed(stage_table(summary.stages))]
    for table in class_tables(summary.classes or ()):
        parts += ["", _headed(table)]
    clients = client_table(summary.sessions, summary.client_queue_time_s)
    if clients is not None:
        parts += ["", block("clients", clients)]
    if summary.router is not None:
        parts += ["", block(f"sent by router {summary.router.name}", router_table(summary.router))]
    if summary.swap is not None:
        parts += ["", block("swap", swap_table(summary.swap))]
    if summary.prefix_cache is not None:
        parts += ["", block("prefix cache", prefix_table(summary.prefix_cache))]
    if summary.kv_tiers is not None:
        tiers = block("tiers of KV cache", tier_table(summary.kv_tiers))
        parts += ["", side_by_side(tiers, block("waiting for blocks", load_wait_table(summary.kv_tiers)))]
    if summary.spec_decode is not None:
        parts += ["", block("speculative decoding", draft_table(summary.spec_decode))]
    if summary.pools is not None:
        pools = block("pools", pool_table(summary.pools))
        parts += ["", side_by_side(pools, block("hand-over of KV caches", handover_table(summary.pools)))]
    if summary.autoscaling is not None:
        parts += ["", block("replicas", autoscaling_table(summary.autoscaling))]
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
        *(Text(line) for line in (*replicas, *costs, precision_text(summary), policy_text(summary), measured) if line),
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


def _load(summary: UnwrittenSummary) -> list[Row]:
    """What steps had, and what data-parallel groups waited, where there are any."""
    groups = () if value_at(summary, _OF_GROUPS) is None else (_OF_GROUPS,)
    return _figures(summary, (*_BATCHES, *groups, *_KV))


def _uncertain(summary: UnwrittenSummary, path: str) -> list[Row]:
    """A rate, and below it how far it may be off."""
    value, width = value_at(summary, path), value_at(summary.ci95, path)
    rows = _figures(summary, [path])
    return rows if value is None or width is None else [*rows, Row("  +-", (half_width(figure, value, width),))]


def _requests(summary: UnwrittenSummary) -> rich.Table:
    requests = summary.requests
    preempted = count(requests.preempted)
    if requests.preemptions > requests.preempted:
        preempted = f"{count(requests.preemptions)} times, {preempted}"
    rows = [(key, count(getattr(requests, key))) for key in ("total", "finished", "rejected", "unfinished")]
    rows.append(("preempted", preempted))
    if requests.swaps:
        rows.append(("by swap", count(requests.swaps)))
    if full := requests.preemptions_by_cause.swap_space_full:
        rows.append(("swap space full", count(full)))
    if requests.truncated:
        rows.append((REQUESTS["truncated"], count(requests.truncated)))
    rows += [(WHY_REJECTED[key], count(number)) for key, number in requests.rejected_by_reason if number]
    return block(_of_run("requests", summary), _table(rows))


def _throughput(summary: UnwrittenSummary) -> rich.Table:
    energy = summary.energy
    # "energy per output token, whole run" is wider than the block.
    title = "energy per output token" if summary.window.whole_run else "energy per token, whole run"
    total, active, passive = _figures(summary, _ENERGIES)
    if energy.passive_joules is None:  # why there is none
        passive = replace(passive, cells=(named(energy.passive_power),))
    rates = [row for path in _RATES for row in _uncertain(summary, path)]
    rows = [*rates, replace(total, label=title), active, passive]
    if summary.silicon_mm2 is not None:
        rows += _figures(summary, _SILICON)
    return block("throughput and energy", Table("", ("",), rows))


def _latency(table: Table) -> RenderableType:
    """As many tables as five percentiles each need."""
    moments = table.columns[:-1]
    drawn: list[RenderableType] = []
    for begin in range(1, len(moments), _PERCENTILES):
        columns = [0, *range(begin, min(begin + _PERCENTILES, len(moments))), len(moments)]
        drawn += [*([""] if drawn else []), _latencies(table, columns)]
    notes = (*table.note.replace("± ", "+- ").split("; "), table.narrow_note)
    return Group(*drawn, *(Text(note, style="dim") for note in notes if note))


def _latencies(table: Table, columns: Sequence[int]) -> rich.Table:
    """Some of the columns, of which those with a star have it right of the digits, not among them."""
    drawn = plain_table()
    drawn.add_column("latency", min_width=8)
    drawn.add_column("", min_width=3)
    starred = {index for index in columns if any(row.cells[index].endswith("*") for row in table.rows)}
    width = 9 if len(columns) <= 5 else 7
    for index in columns:
        heading = f"{table.columns[index]} " if index in starred else table.columns[index]
        drawn.add_column(heading, justify="right", min_width=width, no_wrap=True)
    rows = [
        replace(
            row,
            cells=tuple(
                f"{row.cells[index]} " if index in starred and not row.cells[index].endswith("*") else row.cells[index]
                for index in columns
            ),
        )
        for row in table.rows
    ]
    add_rows(drawn, replace(table, rows=rows), units=True)
    return drawn


def _slo(summary: UnwrittenSummary) -> rich.Table:
    slo, rows = summary.slo, []
    limits = limits_of_all(summary)
    for name, met in slo.met.items():
        label = f"{named(name)}, by class"
        if (limit := limits.get(f"{name}_s")) is not None:
            size, unit = scale([limit], "s")
            label = f"{named(name)} <= {limit / size:g} {unit}"
        rows.append((label, share(met)))
    if rows:
        rows += [
            ("attainment", share(slo.attainment)),
            *((row.label, row.cells[0]) for row in _uncertain(summary, "slo.goodput_requests_per_s")),
            *((f"censored, {named(name)}", count(number)) for name, number in slo.censored.items() if number),
        ]
    nothing = "no limits of single requests" if slo.at_percentiles else "no limits set"
    return block("SLO", _table(rows or [(nothing, "")]))


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
