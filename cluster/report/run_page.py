"""The report of one run."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.cluster.base.figures import ABSENT, figure, ratio, scaled, text_of
from pimserve.cluster.base.tables import Table, table_of
from pimserve.cluster.report import facts
from pimserve.cluster.report.content import Folded, Page, Section
from pimserve.cluster.report.device_section import device_sections
from pimserve.cluster.report.group_section import group_sections
from pimserve.cluster.report.inputs import ReportRun
from pimserve.cluster.report.pictures import Named, breakdown_pictures, latency_pictures
from pimserve.cluster.report.time_pictures import over_time_pictures
from pimserve.cluster.run.actor_tables import device_actor_table, wire_table
from pimserve.cluster.run.class_tables import class_tables
from pimserve.cluster.run.compare import Run, compare_runs, policy_text, precision_text
from pimserve.cluster.run.group_tables import devices_text
from pimserve.cluster.run.latency_tables import latency_table, percentile_limit_table
from pimserve.cluster.run.run_figures import value_at
from pimserve.cluster.run.summary_schema import Pools
from pimserve.cluster.run.summary_tables import (
    autoscaling_table,
    breakdown_table,
    draft_table,
    fault_cost_table,
    handover_table,
    load_wait_table,
    pool_table,
    prefix_table,
    router_table,
    size_table,
    stage_table,
    swap_table,
    tier_table,
)
from pimserve.scheduler.part_sections import ClassFigures, RouterFigures, StageFigures
from pimserve.scheduler.summary_sections import (
    Autoscaling,
    FaultFigures,
    FaultThatTookPlace,
    PrefixCache,
    SpecDecode,
    Swap,
)
from pimserve.scheduler.tier_sections import KvTiersUse

_DIGITS = 24  # of digests, where there are several beside each other


def single_page(run: ReportRun, title: str | None) -> Page:
    """Everything that a results folder tells of its run."""
    summary = run.summary
    only = [Named("", run)]
    comparison = compare_runs((Run(run.place, summary),), ({},))
    sections = [
        Section("summary", "Summary", (f"{facts.measured(summary)}.",), tiles=facts.tiles(summary)),
        _latency(run, only),
        _over_time(run, only),
        *_stages(summary.stages),
        *_classes(summary.classes),
        *_router(summary.router),
        *_prefixes(summary.prefix_cache, summary.kv_tiers),
        *_drafts(summary.spec_decode),
        *_swap(summary.swap),
        *_breakdown(run, only),
        *group_sections(only),
        *device_sections(only),
        *_pools(summary.pools),
        *_autoscaling(summary.autoscaling),
        *_faults(summary.faults),
        *_actors(run),
        Section("figures", "All figures", tables=facts.run_tables(comparison)),
        provenance([run]),
    ]
    return Page(
        title or text_of(summary.name),
        f"{text_of(summary.model)} on {devices_text(summary)}",
        (
            f"costs: {facts.setting(summary)}",
            precision_text(summary),
            f"workload: {text_of(summary.workload)}",
            f"replicas: {text_of(summary.replicas)}, seed {text_of(summary.seed)}",
            *filter(None, [policy_text(summary)]),
        ),
        summary.warnings,
        sections,
    )


def _latency(run: ReportRun, only: list[Named]) -> Section:
    text = [
        "Every request of the measured window is in these curves as far as the run tells of it; nothing was put into "
        "buckets."
    ]
    if run.requests is None:
        text = [f"No pictures of latencies: {run.absent['requests']}."]
    pictures, summary = latency_pictures(only), run.summary
    tables = [latency_table(summary.latency_s, summary.ci95.latency_s)]
    if summary.slo.at_percentiles:
        tables.append(percentile_limit_table(summary.slo.at_percentiles))
    if run.requests is not None and not pictures:
        text = ["No request of the measured window finished."]
    return Section("latency", "Latency", text, pictures=pictures, tables=tables)


def _over_time(run: ReportRun, only: list[Named]) -> Section:
    text = ["Time is simulated." + (" Shaded: outside the measured window." if run.trimmed else "")]
    if run.summary.faults is not None and run.summary.faults.events:
        text.append("Dotted lines: when a device failed, slowed down or left.")
    if run.history is None:
        text.append(f"No pictures of steps, batch and KV cache: {run.absent['history']}.")
    pictures = over_time_pictures(only)
    if not pictures and run.requests is not None and run.history is not None:
        text = ["No time passed."]
    return Section("over-time", "Over time", text, pictures=pictures)


def _stages(stages: Sequence[StageFigures] | None) -> list[Section]:
    if stages is None:
        return []
    text = (
        "Of the measured window, while requests arrive: latencies and the SLO of requests that arrived in the stage, "
        "and what finished while it lasted."
    )
    return [Section("stages", "Stages of the load", [text], tables=[stage_table(stages)])]


def _classes(classes: Sequence[ClassFigures] | None) -> list[Section]:
    if classes is None:
        return []
    text = (
        "Requests of the whole run; latencies, rates and the SLO of the measured window. The SLO of a class is that of "
        "its own limits, if it has some, and the run's counts each request by those of its class."
    )
    return [Section("classes", "Classes of requests", [text], tables=class_tables(classes))]


def _router(router: RouterFigures | None) -> list[Section]:
    if router is None:
        return []
    text = "Where requests went, of the whole run, and why."
    return [Section("router", "Router", [text], tables=[router_table(router)])]


def _prefixes(cache: PrefixCache | None, tiers: KvTiersUse | None) -> list[Section]:
    if cache is None:
        return []
    tables = [prefix_table(cache)]
    if tiers is not None:
        tables += [tier_table(tiers), load_wait_table(tiers)]
    return [Section("prefixes", "Prefix cache", ["Of all replicas, over the whole run."], tables=tables)]


def _drafts(drafts: SpecDecode | None) -> list[Section]:
    if drafts is None:
        return []
    text = (
        "Of all replicas, over the whole run. Time between tokens (ITL) is from step to step, in which a request has a "
        "token or more at once; time per output token (TPOT) is over all of them."
    )
    return [Section("drafts", "Speculative decoding", [text], tables=[draft_table(drafts)])]


def _swap(swap: Swap | None) -> list[Section]:
    if swap is None:
        return []
    return [Section("swap", "Preemption by swap", ["Of all replicas, over the whole run."], tables=[swap_table(swap)])]


def _breakdown(run: ReportRun, only: list[Named]) -> list[Section]:
    pictures, table = breakdown_pictures(only), breakdown_table(run.summary.time_share, run.summary.energy).wide()
    if not pictures and not table.rows:
        return []
    tables = [table] if table.rows else []
    return [Section("breakdown", "Time and energy", pictures=pictures, tables=tables)]


def _pools(pools: Pools | None) -> list[Section]:
    if pools is None:
        return []
    tables = [pool_table(pools), handover_table(pools)]
    return [Section("pools", "Prefill and decode pools", ["Figures of the whole run."], tables=tables)]


def _autoscaling(found: Autoscaling | None) -> list[Section]:
    if found is None:
        return []
    title = "Replicas that join and leave"
    return [Section("autoscaling", title, tables=[size_table(found), autoscaling_table(found)])]


def _faults(faults: FaultFigures | None) -> list[Section]:
    if faults is None:
        return []
    return [Section("faults", "Simulated faults", tables=[_fault_events(faults.events), fault_cost_table(faults)])]


def _actors(run: ReportRun) -> list[Section]:
    """What device actors exchanged, and what each did."""
    exchanged = wire_table(run.summary.simulator.spread)
    tables = [] if exchanged is None else [exchanged]
    if run.devices is not None:
        tables.append(device_actor_table(run.devices))
    if not tables:
        return []
    text = (
        "Devices were actors of their own: times, energy and counts are theirs, and add up to the engine's. Bytes are "
        "those that the model's vectors and caches have, not those of the messages that tell of them."
    )
    return [Section("actors", "Device actors", [text], tables=tables)]


def _fault_events(events: Sequence[FaultThatTookPlace]) -> Table:
    """What happened to the replicas."""
    kinds = {"fail": "fails", "slow": "slows down", "leave": "leaves"}
    rows = [
        (
            f"{figure(event.at_s)} s",
            text_of(event.replica),
            text_of(event.device),
            kinds.get(event.kind, text_of(event.kind)),
            ABSENT if event.for_s is None else f"{figure(event.for_s)} s",
            ratio(event.factor),
        )
        for event in events
    ]
    columns = ("at", "replica", "device", "what", "for", "steps take")
    return table_of("Events", columns, rows, text=True)


def provenance(runs: list[ReportRun], names: list[str] | None = None) -> Section:
    """Where figures are from, and how to get them again."""
    rows = [
        ("results folder", "results"),
        ("digest of the run", "digest"),
        ("digest of the scenario", "scenario_digest"),
        ("digest of the cost plan", "plan_digest"),
        ("seed", "seed"),
        ("pimserve", "simulator.version"),
        ("Python", "simulator.python"),
        ("numpy", "simulator.numpy"),
    ]
    cells = [
        (label, *(text_of(value_at(run.summary, path))[: None if len(runs) == 1 else _DIGITS] for run in runs))
        for label, path in rows
        if any(value_at(run.summary, path) is not None for run in runs)
    ]
    simulated = [run.summary.simulator.loop_s for run in runs]
    if any(simulated):
        cells.append(("simulated in, wall clock", *(scaled(time_s, "s") for time_s in simulated)))
    folded = [
        Folded(f"{name}: scenario.yaml" if name else "scenario.yaml", run.scenario_text)
        for name, run in zip(names or [""] * len(runs), runs, strict=True)
        if run.scenario_text is not None
    ]
    text = ["Equal digests mean equal executed steps and equal requests."]
    if folded:
        again = "To get the same bits again, save the scenario below and give it to pimserve run, in the same version."
        text.insert(0, again)
    table = table_of("Provenance", ("", *(names or [""])), cells, text=True)
    return Section("provenance", "Provenance", text, tables=[table], folded=folded)
