"""A run's summary for the terminal. It fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rich import table as rich
from rich.console import Group, RenderableType
from rich.text import Text

from pimserve.cluster.base.documents import number
from pimserve.cluster.base.figures import TOO_LONG, count, figure, named, scale, scaled, share, written
from pimserve.cluster.base.tables import Row, Table, table_of
from pimserve.cluster.cli.terminal import add_rows, block, headed_table, plain_table, side_by_side, warning
from pimserve.cluster.run.compare import precision_text
from pimserve.cluster.run.summary_tables import (
    POOLS,
    breakdown_table,
    fact_name,
    fact_text,
    fault_cost_table,
    handover_table,
    latency_table,
    pool_table,
    stage_table,
)

Summary = Mapping[str, Any]

# (label, path in the summary, unit)
_RATES = (
    ("requests/s", "throughput.requests_per_s", ""),
    ("offered requests/s", "offered_requests_per_s", ""),
    ("output tokens/s", "throughput.output_tokens_per_s", ""),
    ("output tokens/s per device", "throughput.output_tokens_per_s_per_device", ""),
)
_SILICON = (
    ("silicon, mm2", "silicon_mm2", ""),
    ("output tokens/s per mm2", "throughput.output_tokens_per_s_per_mm2", ""),
)
_LOAD = (
    ("batch, mean requests", "batch.mean_requests", ""),
    ("steps", "batch.steps", "count"),
    ("steps of decoding only", "batch.decode_only_share", "share"),
    ("KV cache in use, mean", "kv.mean_use", "share"),
    ("KV cache in use, peak", "kv.peak_use", "share"),
    ("KV cache, tokens", "kv.capacity_tokens", "count"),
)


def summary_report(summary: Summary) -> RenderableType:
    """The whole report of one run, as `pimserve run` prints it."""
    parts: list[RenderableType] = [
        _heading(summary),
        "",
        side_by_side(_requests(summary), _throughput(summary)),
        "",
        _latency(summary),
        "",
        side_by_side(_slo(summary), block(_of_run("load", summary), _figures(summary, _LOAD))),
        "",
        side_by_side(_units(summary), _breakdown(summary)),
    ]
    if "stages" in summary:
        parts += ["", _stages(stage_table(summary["stages"]))]
    if "pools" in summary:
        pools = block("pools", pool_table(summary["pools"]))
        parts += ["", side_by_side(pools, block("hand-over of KV caches", handover_table(summary["pools"])))]
    if "faults" in summary:
        parts += ["", block("simulated faults", fault_cost_table(summary["faults"]))]
    if summary["device_facts"]:
        parts += ["", _facts(summary["device_facts"])]
    warnings = [warning(f"warning: {text}") for text in summary["warnings"]]
    if warnings and not summary["requests"]["finished"]:  # that there are no figures comes before them
        parts = [*warnings, "", *parts]
    elif warnings:
        parts += ["", *warnings]
    return Group(*parts, "", _simulator(summary))


def _heading(summary: Summary) -> RenderableType:
    pools = [(name, summary["pools"][name]) for name in POOLS] if "pools" in summary else [("", summary)]
    devices = " + ".join(f"{count(pool['devices'])} {pool['device']}" for _, pool in pools)
    replicas = [_replicas(name, pool) for name, pool in pools]
    costs = list(dict.fromkeys(_costs(pool["costs"]) for _, pool in pools))
    last = replicas if len(pools) == 1 else costs  # that line has room for the seed
    last[-1] += f", seed {summary['seed']}"
    window, requests = summary["window"], summary["requests"]
    if window["whole_run"]:
        measured = f"measured: the whole run of {figure(summary['end_s'])} s"
    else:
        measured = (
            f"measured: {figure(window['start_s'])} s to {figure(window['end_s'])} s of {figure(summary['end_s'])} s, "
            f"in which {count(requests['measured'])} requests arrived"
        )
    return Group(
        Text(f"{summary['name']}: {summary['model']} on {devices}", style="bold"),
        *(Text(line) for line in (*replicas, *costs, precision_text(summary), measured)),
        Text(f"stability: {summary['stability']}"),
    )


def _replicas(name: str, pool: Summary) -> str:
    """How many replicas a pool has, and how their devices share the model."""
    split = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in pool["parallelism"].items())
    replicas = pool["replicas"]
    text = f"{replicas} replica{'s' if replicas > 1 else ''} of {pool['devices_per_replica']} ({split})"
    return f"{name}: {text}" if name else text


def _costs(costs: Mapping[str, Any]) -> str:
    """Whether the devices are ideal or measured, and with what."""
    if costs["setting"] == "ideal":
        return "costs: ideal devices"
    parts = costs.get("measured", "all")
    timed = f"measured on {costs['gpu']} with {costs['backend']} {costs['version']}"
    return f"costs: {timed}" if parts == "all" else f"costs: {named(parts)} {timed}, the rest projected"


def _of_run(title: str, summary: Summary) -> str:
    """The title of figures of the whole run, which say so where others are of the measured window."""
    return title if summary["window"]["whole_run"] else f"{title}, whole run"


def _table(rows: Iterable[tuple[str, ...]], *columns: str) -> Table:
    """A table for a block, whose title stands elsewhere."""
    return table_of("", ("", *(columns or ("",))), rows)


def _figures(summary: Summary, figures: Iterable[tuple[str, str, str]]) -> Table:
    return _table((label, written(number(summary, path), unit)) for label, path, unit in figures)


def _requests(summary: Summary) -> rich.Table:
    requests = summary["requests"]
    preempted = count(requests["preempted"])
    if requests["preemptions"] > requests["preempted"]:
        preempted = f"{count(requests['preemptions'])} times, {preempted}"
    rows = [(key, count(requests[key])) for key in ("total", "finished", "rejected", "unfinished")]
    rows.append(("preempted", preempted))
    if requests["truncated"]:
        rows.append(("cut at max_model_len", count(requests["truncated"])))
    rows += [(TOO_LONG[key], count(number)) for key, number in requests["rejected_by_reason"].items() if number]
    return block(_of_run("requests", summary), _table(rows))


def _throughput(summary: Summary) -> rich.Table:
    energy = summary["energy"]
    # "energy per output token, whole run" is wider than the block.
    title = "energy per output token" if summary["window"]["whole_run"] else "energy per token, whole run"
    passive = scaled(energy["passive_joules_per_output_token"], "J")
    if energy["passive_joules"] is None:  # why there is none
        passive = named(energy["passive_power"])
    rows = [
        *_figures(summary, _RATES).rows,
        Row(title, (scaled(energy["joules_per_output_token"], "J"),)),
        Row("  active", (scaled(energy["active_joules_per_output_token"], "J"),)),
        Row("  passive", (passive,)),
    ]
    if summary["silicon_mm2"] is not None:
        rows += _figures(summary, _SILICON).rows
    return block("throughput and energy", Table("", ("",), rows))


def _latency(summary: Summary) -> RenderableType:
    table = latency_table(summary).narrow()
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


def _slo(summary: Summary) -> rich.Table:
    slo = summary["slo"]
    rows = []
    for key, limit in slo["limits"].items():
        size, unit = scale([limit], "s")
        name = key.removesuffix("_s")
        rows.append((f"{name.upper()} <= {limit / size:g} {unit}", share(slo["met"].get(name))))
    if rows:
        rows += [
            ("attainment", share(slo["attainment"])),
            ("goodput, requests/s", figure(slo["goodput_requests_per_s"])),
            *((f"censored, {named(name)}", count(number)) for name, number in slo["censored"].items() if number),
        ]
    return block("SLO", _table(rows or [("no limits set", "")]))


def _units(summary: Summary) -> rich.Table:
    most = summary.get("unit_busy_share_of_busiest_device", {})  # older runs do not have it
    rows = [(named(unit), share(busy), share(most.get(unit))) for unit, busy in summary["unit_busy_share"].items()]
    rows.append(("any", share(summary["busy_share"]), ""))
    return block(_of_run("busy time", summary), _table(rows, "mean", "busiest"))


def _breakdown(summary: Summary) -> rich.Table:
    title = "where it went" if summary["window"]["whole_run"] else "share of whole run"
    return block(title, breakdown_table(summary))


def _stages(table: Table) -> RenderableType:
    drawn = headed_table(table.name, *table.columns)
    add_rows(drawn, table)
    return drawn


def _facts(facts: Mapping[str, Any]) -> RenderableType:
    """What the devices have to say of themselves, each group of facts in one row."""
    table = rich.Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        name, text = _fact(key, value)
        if isinstance(value, Mapping):
            text = "; ".join(" ".join(_fact(inner, fact)) for inner, fact in value.items())
        table.add_row(Text(name), Text(text))
    return Group(Text("device", style="bold"), table)


def _fact(key: str, value: object) -> tuple[str, str]:
    """A fact's name, and its value with the unit."""
    if key.endswith("_days"):  # part of the name here
        return named(key), fact_text(value)
    name, unit = fact_name(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return name, f"{fact_text(value)} {unit}".rstrip() if is_number else fact_text(value)


def _simulator(summary: Summary) -> RenderableType:
    speed = summary["simulator"]
    memory = speed["peak_memory_mb"]
    return Group(
        Text(
            f"simulated in {figure(speed['loop_s'])} s: {figure(speed['steps_per_s'])} steps/s, "
            f"{figure(speed['requests_per_s'])} requests/s"
        ),
        Text(f"the process took {figure(speed['process_s'])} s" + (f" and {figure(memory)} MB" if memory else "")),
    )
