"""Tables for the terminal: a run's summary, runs side by side. All fit 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import ABSENT, TOO_LONG, count, figure, named, ratio, scale, scaled, share
from pimserve.cluster.cli.stage_table import stage_table
from pimserve.cluster.run.compare import precision_text

if TYPE_CHECKING:
    from pimserve.cluster.run.compare import Comparison

Summary = Mapping[str, Any]

_BLOCK_WIDTH = 37
_RUN_WIDTH = 20  # of a run's two columns in a comparison, at least
_FEW_SAMPLES = 1000  # fewer leave less than ten above the 99th percentile
_MIXED_WINDOWS = "requests, energy, batch, KV cache and busy shares are of whole runs, all else of the measured windows"
_MOMENTS = ("mean", "p50", "p90", "p99")
_POOLS = ("prefill", "decode")
_FAULTS = {"fail": "devices that failed", "slow": "that slowed down", "leave": "that left"}
_BYTES_PER_GB = 10**9
_FACT_UNITS = {"s": "s", "w": "W", "years": "years", "mm2": "mm2"}  # ends of keys


def console(file: IO[str]) -> Console:
    """A console that prints text as it is, with colours only on a terminal."""
    return Console(file=file, markup=False, highlight=False, emoji=False)


def write(what: RenderableType, file: IO[str]) -> None:
    """Print, without the blanks to which tables are padded."""
    screen = console(file)
    with screen.capture() as captured:
        screen.print(what)
    file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def summary_report(summary: Summary) -> RenderableType:
    """The whole report of one run, as `pimserve run` prints it."""
    parts: list[RenderableType] = [
        _heading(summary),
        "",
        _side_by_side(_requests(summary), _throughput(summary)),
        "",
        _latency(summary),
        "",
        _side_by_side(_slo(summary), _load(summary)),
        "",
        _side_by_side(_units(summary), _where(summary)),
    ]
    if "stages" in summary:
        parts += ["", stage_table(summary["stages"])]
    if "pools" in summary:
        parts += ["", _side_by_side(_pools(summary), _handover(summary))]
    if "faults" in summary:
        parts += ["", _faults(summary["faults"])]
    if summary["device_facts"]:
        parts += ["", _facts(summary["device_facts"])]
    warnings = [_warning(f"warning: {each}") for each in summary["warnings"]]
    if warnings and not summary["requests"]["finished"]:  # that there are no figures comes before them
        parts = [*warnings, "", *parts]
    elif warnings:
        parts += ["", *warnings]
    return Group(*parts, "", _simulator(summary))


def _warning(text: str) -> RenderableType:
    """A warning whose further lines are indented."""
    table = Table.grid(padding=(0, 1, 0, 0))
    head, _, rest = text.partition(" ")
    table.add_row(Text(head, style="bold"), Text(rest, style="bold"))
    return table


def _heading(summary: Summary) -> RenderableType:
    pools = [(name, summary["pools"][name]) for name in _POOLS] if "pools" in summary else [("", summary)]
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
        *map(Text, replicas),
        *map(Text, costs),
        Text(precision_text(summary)),
        Text(measured),
        Text(f"stability: {summary['stability']}"),
    )


def _replicas(name: str, pool: Summary) -> str:
    """How many replicas a pool has, and how their devices share the model."""
    split = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in pool["parallelism"].items())
    replicas = pool["replicas"]
    each = f"{replicas} replica{'s' if replicas > 1 else ''} of {pool['devices_per_replica']} ({split})"
    return f"{name}: {each}" if name else each


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


def _block(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("",)) -> Table:
    table = Table(box=None, pad_edge=False, width=_BLOCK_WIDTH, header_style="bold")
    table.add_column(title, ratio=1)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 5, 0, 0))
    grid.add_row(left, right)
    return grid


def _requests(summary: Summary) -> Table:
    requests = summary["requests"]
    preempted = count(requests["preempted"])
    if requests["preemptions"] > requests["preempted"]:
        preempted = f"{count(requests['preemptions'])} times, {preempted}"
    rows = [(key, count(requests[key])) for key in ("total", "finished", "rejected", "unfinished")]
    rows.append(("preempted", preempted))
    if requests["truncated"]:
        rows.append(("cut at max_model_len", count(requests["truncated"])))
    rows += [(TOO_LONG[key], count(number)) for key, number in requests["rejected_by_reason"].items() if number]
    return _block(_of_run("requests", summary), rows)


def _throughput(summary: Summary) -> Table:
    rates = summary["throughput"]
    # "energy per output token, whole run" is wider than the block.
    energy = "energy per output token" if summary["window"]["whole_run"] else "energy per token, whole run"
    rows = [
        ("requests/s", figure(rates["requests_per_s"])),
        ("offered requests/s", figure(summary["offered_requests_per_s"])),
        ("output tokens/s", figure(rates["output_tokens_per_s"])),
        ("output tokens/s per device", figure(rates["output_tokens_per_s_per_device"])),
        (energy, scaled(summary["energy"]["joules_per_output_token"], "J")),
        ("  active", scaled(summary["energy"]["active_joules_per_output_token"], "J")),
        ("  passive", _passive(summary["energy"])),
    ]
    if summary["silicon_mm2"] is not None:
        rows.append(("silicon, mm2", figure(summary["silicon_mm2"])))
        rows.append(("output tokens/s per mm2", figure(rates["output_tokens_per_s_per_mm2"])))
    return _block("throughput and energy", rows)


def _passive(energy: Mapping[str, Any]) -> str:
    """Passive energy per output token, or why there is none."""
    if energy["passive_joules"] is None:
        return str(named(energy["passive_power"]))
    return scaled(energy["passive_joules_per_output_token"], "J")


def _latency(summary: Summary) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("latency", min_width=8)
    table.add_column("", min_width=3)
    for column in (*_MOMENTS, "n"):
        # A star stands right of the digits, not among them.
        table.add_column(f"{column} " if column == "p99" else column, justify="right", min_width=9, no_wrap=True)
    few = False
    latencies = summary["latency_s"]
    for key, found in latencies.items():
        size, unit = scale([found[moment] for moment in _MOMENTS], "s")
        cells = [figure(None if found[moment] is None else found[moment] / size) for moment in _MOMENTS]
        weak = 0 < found["n"] < _FEW_SAMPLES
        few = few or weak
        cells[-1] += "*" if weak else " "
        table.add_row(named(key), unit if found["n"] else "", *cells, count(found["n"]))
    notes = []
    if few:
        notes.append(f"* of fewer than {_FEW_SAMPLES:,} samples: fewer than ten lie above it")
    if left_out := [
        f"{named(key)} {count(each['censored'])}" for key, each in latencies.items() if each.get("censored")
    ]:
        notes.append(f"left out, as the end of the run hides them: {', '.join(left_out)}")
    return Group(table, *(Text(note, style="dim") for note in notes))


def _slo(summary: Summary) -> Table:
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
    else:
        rows = [("no limits set", "")]
    return _block("SLO", rows)


def _load(summary: Summary) -> Table:
    batch, kv = summary["batch"], summary["kv"]
    rows = [
        ("batch, mean requests", figure(batch["mean_requests"])),
        ("steps", count(batch["steps"])),
        ("steps of decoding only", share(batch["decode_only_share"])),
        ("KV cache in use, mean", share(kv["mean_use"])),
        ("KV cache in use, peak", share(kv["peak_use"])),
        ("KV cache, tokens", count(kv["capacity_tokens"])),
    ]
    return _block(_of_run("load", summary), rows)


def _units(summary: Summary) -> Table:
    most = summary.get("unit_busy_share_of_busiest_device", {})  # older runs do not have it
    rows = [(named(unit), share(busy), share(most.get(unit))) for unit, busy in summary["unit_busy_share"].items()]
    title = _of_run("busy time", summary)
    return _block(title, [*rows, ("any", share(summary["busy_share"]), "")], ("mean", "busiest"))


def _pools(summary: Summary) -> Table:
    pools = [summary["pools"][name] for name in _POOLS]
    units = dict.fromkeys(unit for pool in pools for unit in pool["unit_busy_share"])
    rows = [
        ("busy share", *(share(pool["busy_share"]) for pool in pools)),
        *((f"  {named(unit)}", *(share(pool["unit_busy_share"].get(unit)) for pool in pools)) for unit in units),
        ("steps", *(count(pool["steps"]) for pool in pools)),
        ("mean requests", *(figure(pool["mean_requests"]) for pool in pools)),
        ("KV in use, mean", *(share(pool["kv"]["mean_use"]) for pool in pools)),
        ("KV in use, peak", *(share(pool["kv"]["peak_use"]) for pool in pools)),
        ("energy", *(scaled(pool["joules"], "J") for pool in pools)),
        ("  passive", *(scaled(pool["passive_joules"], "J") for pool in pools)),
    ]
    return _block("pools", rows, _POOLS)


def _handover(summary: Summary) -> Table:
    handover = summary["pools"]["handover"]
    rows = [
        ("requests", count(handover["n"])),
        ("held back by a full pool", count(handover["held"])),
        ("GB", figure(handover["bytes"] / _BYTES_PER_GB)),
    ]
    for key, name in (("waiting_s", "waiting"), ("transfer_s", "transfer")):
        rows += [(f"{name}, {moment}", scaled(handover[key][moment], "s")) for moment in ("mean", "p99")]
    rows += [(f"link of {name} busy", share(handover["link_busy_share"][name])) for name in _POOLS]
    return _block("hand-over of KV caches", rows)


def _faults(faults: Mapping[str, Any]) -> Table:
    kinds = Counter(event["kind"] for event in faults["events"])
    rows = [(name, count(kinds[kind])) for kind, name in _FAULTS.items()]
    rows += [
        ("requests queued again", count(faults["requeued"])),
        ("tokens computed again", count(faults["recomputed_tokens"])),
        ("replicas down, s", figure(faults["down_replica_s"])),
        ("availability", share(faults["availability"])),
    ]
    return _block("simulated faults", rows)


def _where(summary: Summary) -> Table:
    joules = summary["energy"]["joules"]
    energy = summary["energy"]["joules_by_category"]
    rows = [
        (named(key), share(time), share(sum(energy[key].values()) / joules if joules else None))
        for key, time in summary["time_share"].items()
        if key != "step" or time or any(energy[key].values())  # only measured costs know it
    ]
    passive = summary["energy"]["passive_joules"]
    if passive is not None:
        rows.append(("passive power", ABSENT, share(passive / joules if joules else None)))
    title = "where it went" if summary["window"]["whole_run"] else "share of whole run"
    return _block(title, rows, ("time", "energy"))


def _facts(facts: Mapping[str, Any]) -> RenderableType:
    """What the devices have to say of themselves, each group of facts in one row."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if isinstance(value, Mapping):
            parts = ((_fact(name), _fact_value(name, each)) for name, each in value.items())
            text = "; ".join(f"{name} {each}" for name, each in parts)
        else:
            text = _fact_value(key, value)
        table.add_row(Text(_fact(key)), Text(text))
    return Group(Text("device", style="bold"), table)


def _fact(key: str) -> str:
    """A fact's name, without the unit at its end."""
    stem, _, end = key.rpartition("_")
    return named(stem if stem and end in _FACT_UNITS else key)


def _fact_value(key: str, value: object) -> str:
    """A fact's value, with the unit that its key ends in."""
    stem, _, end = key.rpartition("_")
    unit = _FACT_UNITS.get(end, "") if stem else ""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{count(int(value)) if value == int(value) else figure(value)} {unit}".rstrip()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_fact_value("", each) for each in value)
    return str(value)


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


def comparison_report(comparison: Comparison, screen: Console) -> RenderableType:
    """Runs side by side, each with its ratio to the first; as few tables as the screen's width allows."""
    letters = [chr(ord("A") + index) if index < 26 else f"#{index + 1}" for index in range(len(comparison.runs))]
    legend = Table.grid(padding=(0, 2, 0, 0))
    for letter, run in zip(letters, comparison.runs, strict=True):
        legend.add_row(Text(letter, style="bold"), Text(run.title), Text(run.place, overflow="fold"))
    parts: list[RenderableType] = [legend, *(Text(f"note: {note}") for note in comparison.notes)]
    others = range(1, len(comparison.runs))
    unbounded = screen.options.update(width=10_000)
    while others:
        taken = min(len(others), max(1, screen.width // _RUN_WIDTH))
        table = _comparison_table(comparison, letters, others[:taken])
        while taken > 1 and screen.measure(table, options=unbounded).maximum > screen.width:
            taken -= 1
            table = _comparison_table(comparison, letters, others[:taken])
        parts += ["", table]
        others = others[taken:]
    if any((run.summary.get("window") or {}).get("whole_run") is False for run in comparison.runs):
        parts += ["", Text(_MIXED_WINDOWS, style="dim")]
    states = [str(run.summary.get("stability", ABSENT)) for run in comparison.runs]
    parts += ["", Text(f"stability: {', '.join(f'{a} {b}' for a, b in zip(letters, states, strict=True))}")]
    if comparison.differences or comparison.unlike:
        parts += ["", _differences(comparison, letters)]
    warnings = [
        _warning(f"warning: {letter}: {each}")
        for letter, run in zip(letters, comparison.runs, strict=True)
        for each in _listed(run.summary.get("warnings"))
    ]
    if warnings:
        parts += ["", *warnings]
    return Group(*parts)


def _listed(value: object) -> Sequence[object]:
    """What is listed; nothing in a summary that was changed so that it is no list."""
    return value if isinstance(value, list) else ()


def _comparison_table(comparison: Comparison, letters: Sequence[str], others: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("")
    table.add_column(letters[0], justify="right", min_width=9, no_wrap=True)
    for index in others:
        table.add_column(letters[index], justify="right", min_width=9, no_wrap=True)
        table.add_column(f"{letters[index]}/{letters[0]}", justify="right", min_width=7, no_wrap=True)
    previous = comparison.quantities[0].group
    for quantity in comparison.quantities:
        if quantity.group != previous:
            table.add_row()
            previous = quantity.group
        first = [value for value in quantity.values if value][:1]
        size, unit = scale(first, quantity.unit) if quantity.unit in {"s", "J"} else (1.0, quantity.unit)
        write = share if quantity.unit == "share" else figure

        def cell(index: int) -> str:
            value = quantity.values[index]  # noqa: B023 called before the loop goes on
            return write(None if value is None else value / size)  # noqa: B023

        cells = [cell(0)]
        for index in others:
            cells += [cell(index), ratio(quantity.ratios[index])]
        table.add_row(quantity.label, "" if unit == "share" else unit, *cells)
    return table


def _differences(comparison: Comparison, letters: Sequence[str]) -> RenderableType:
    title = "note: the runs differ in"
    if comparison.unlike:
        title = f"warning: not like for like, the runs differ in {', '.join(comparison.unlike)}"
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    for _ in letters:
        table.add_column(overflow="fold")
    table.add_row("", *(Text(letter, style="bold") for letter in letters))
    for key, values in comparison.differences_by_section.items():
        table.add_row(Text(key), *(Text(ABSENT if value is None else str(value)) for value in values))
    return Group(Text(title, style="bold" if comparison.unlike else ""), table)
